"""embed and label_check as commands: wrong labels of photographs are found and shown, in the same bytes after a kill."""

import csv
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldguide.labels.findings import SUSPECTED
from fieldguide.sources.sample import photographs
from support.archives import write_folder
from support.projects import copy_built, read, run
from support.stages import MakeProject

OUTPUTS = {
    "embed": ("data/embeddings.safetensors",),
    "label_check": (
        "metrics/label_errors.csv",
        "metrics/label_map.csv",
        "metrics/label_check.json",
        "metrics/label_errors.html",
    ),
}


def run_stage(project: Path, stage: str) -> str:
    """What the stage, forked, prints; it must succeed."""
    return run(project, "python", "-m", f"stages.{stage}").stdout


def make_labelled(make_project: MakeProject, train_images: int = 6, **settings: object) -> tuple[Path, dict[str, str]]:
    """A project on whose photographs embed and split_check have run, and the true class of those with a wrong one."""
    sizes = {"train_images": train_images, "valid_images": 4, "test_images": 4}
    drawn = dict(photographs(n_species=4, **sizes, image_px=96, seed=7))
    species = sorted({name.split("/")[1] for name in drawn})
    wrong = {}
    for split, one, other in (("train", 0, 1), ("train", 2, 3), ("test", 3, 0)):
        name = next(name for name in drawn if name.startswith(f"{split}/{species[one]}/"))
        moved = f"{split}/{species[other]}/moved-{one}.jpg"
        drawn[moved] = drawn.pop(name)
        wrong[moved] = species[one]
    project = make_project(**{"data.dataset": "folder", "data.path": "photos", "label_check.image_px": 96} | settings)
    for old in (project / "data" / "raw").iterdir():
        old.unlink()
    write_folder(project / "photos", drawn)
    for stage in ("download", "embed", "split_check"):
        run_stage(project, stage)
    return project, wrong


def hashes(project: Path, stage: str) -> dict[str, str]:
    return {name: hashlib.sha256((project / name).read_bytes()).hexdigest() for name in OUTPUTS[stage]}


def findings(project: Path) -> list[dict[str, str]]:
    with (project / "metrics" / "label_errors.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_wrong_labels_of_photographs_are_found_and_shown(make_project: MakeProject) -> None:
    project, wrong = make_labelled(make_project, train_images=24)
    output = run_stage(project, "label_check")
    suspects = [row for row in findings(project) if row["kind"] == "label" and float(row["score"]) >= SUSPECTED]
    assert wrong.items() <= {row["file"]: row["suggested"] for row in suspects}.items()
    assert len(suspects) <= len(wrong) + 2
    counts = {split: sum(row["split"] == split for row in suspects) for split in ("train", "valid", "test")}
    metrics = read(project, "label_check")
    assert metrics["suspected"] == counts
    assert (metrics["enabled"], metrics["images"], metrics["missed_copies"]) == (True, 128, 0)
    assert f"suspected wrong labels: {', '.join(f'{n} {split}' for split, n in counts.items())}; " in output
    page = (project / "metrics" / "label_errors.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    for name, truth in wrong.items():
        split, given, _ = name.split("/")
        assert re.search(rf"<h2>{given}, or {truth}\? Wrong with probability [01]\.\d\d</h2>", page)
        assert f'alt="{split}: {given}: {name}"' in page
    assert str(project) not in page
    before = hashes(project, "label_check")
    run_stage(project, "label_check")
    assert hashes(project, "label_check") == before


@pytest.mark.slow
def test_switched_off_both_stages_leave_empty_outputs_and_zeros(make_project: MakeProject) -> None:
    project, _ = make_labelled(make_project, **{"label_check.enabled": False})
    assert "label_check.enabled is false" in run_stage(project, "label_check")
    assert findings(project) == []
    assert len((project / "metrics" / "label_map.csv").read_text().splitlines()) == 1
    metrics = read(project, "label_check")
    assert set(metrics.pop("suspected").values()) == {0}
    assert not any(metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "mark"), [("embed", "log"), ("label_check", "metrics/label_errors.csv")])
def test_a_kill_and_a_repetition_end_in_the_same_bytes(make_project: MakeProject, stage: str, mark: str) -> None:
    """Killed once the device is printed (embed), or once the first output is there (label_check)."""
    project, _ = make_labelled(make_project)
    run_stage(project, stage)
    expected = hashes(project, stage)
    for name in OUTPUTS[stage]:
        (project / name).unlink()  # as DVC does
    with (project / "log").open("w") as log:
        command = [sys.executable, "-u", "-m", f"stages.{stage}"]
        process = subprocess.Popen(command, cwd=project, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    while process.poll() is None and not (
        "device" in (project / "log").read_text() if mark == "log" else (project / mark).exists()
    ):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (project / "log").read_text()
    assert not all((project / name).exists() for name in OUTPUTS[stage])
    run_stage(project, stage)
    assert hashes(project, stage) == expected


@pytest.mark.slow
def test_a_correction_runs_all_but_the_embeddings_again(built_project: Path, tmp_path: Path) -> None:
    project = tmp_path / "corrected"
    copy_built(built_project, project)
    with (project / "data" / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["split"] == "train" and row["use"] == "True")
    with (project / "data" / "corrections.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"{row['sha256']},{row['id']},drop,,blurred,ada,2026-11-29\n")
    output = run(project, "dvc", "repro", "label_check", "train").stdout
    assert re.findall(r"Running stage '(\w+)'", output) == ["split_check", "label_check", "train"]
