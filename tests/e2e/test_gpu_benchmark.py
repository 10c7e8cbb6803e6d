"""benchmarks/gpu.py runs to its end on drawn data, without DVC and MLflow, and its pack is what its second half reads."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_all_tasks_run_on_a_cpu_without_dvc_and_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "dvc"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('is not to be imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, SCRIPT, "--quick", "--out", tmp_path / "gpu.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["repeatable"]["same_bytes"] and results["resume"]["same_bytes"] and results["resume"]["killed"]
    assert results["steps, fieldnet"]["step, fp32"] > 0 and results["steps, fieldnet"]["epoch, bf16"] > 0
    for name in ("cnn, 224 px, 70 epochs", "transfer", "vit, 3 epochs"):
        assert results[name]["test"]["n"] == 18 and results[name]["images_per_second"] > 0
    assert results["onnx of it"]["CPUExecutionProvider"]["largest_difference"] < 1e-4


def test_a_task_without_time_is_listed(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--quick", "--seconds", "1", "--out", tmp_path / "gpu.json"]
    subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert "left" in results["transfer"]["skipped"] and "left" in results["machine"]["skipped"]


def test_what_is_no_pack_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pack.zip").write_bytes(b"no zip")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "pack.zip"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "not a zip file" in done.stderr
    with zipfile.ZipFile(tmp_path / "pack.zip", "w"):
        pass
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "give a pack" in done.stderr
