"""What the export stage writes into the file about its origin: the same for the same inputs, whenever it runs."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash, write_json
from fieldguide.core.manifest import COLUMNS, as_given, write_manifest
from fieldguide.core.params import Model
from fieldguide.core.paths import CALIBRATION, CHECKPOINT, EVALUATE, MANIFEST, ONNX
from fieldguide.network.calibration import Calibration, save_calibration
from fieldguide.network.checkpoint import Checkpoint, save_checkpoint
from fieldguide.network.models import build
from fieldguide.onnx.metadata import UPSTREAM, git_blob, licence, pipeline_hash, reported_accuracy
from fieldguide.onnx.proof import probabilities_alone
from stages import export_onnx
from support import ROOT
from support.evaluations import evaluate_metrics


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint that dvc.lock knows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.safetensors").write_bytes(b"weights")
    write_lock(tmp_path)
    return tmp_path


def write_lock(folder: Path, **changes: object) -> None:
    outs = [{"path": "models/model.safetensors", "md5": file_hash(folder / "models" / "model.safetensors", "md5")}]
    stages = {name: {"cmd": f"python -m stages.{name}", "outs": outs if name == "train" else []} for name in UPSTREAM}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages | changes}))


def test_the_pipelines_hash_tells_what_came_before_and_nothing_of_the_export_itself(project: Path) -> None:
    first = pipeline_hash()
    assert first is not None
    assert len(first) == 64
    write_lock(project, export_onnx={"outs": [{"path": "models/model.onnx", "md5": "0"}]})
    assert pipeline_hash() == first
    write_lock(project, split_check={"cmd": "another"})
    assert pipeline_hash() not in (None, first)


@pytest.mark.parametrize("text", [None, "", "stages: {}", "[broken", "stages: {train: 7}"])
def test_without_a_record_of_this_checkpoint_there_is_no_hash(project: Path, text: str | None) -> None:
    if text is None:
        (project / "models" / "model.safetensors").write_bytes(b"other weights")
    else:
        (project / "dvc.lock").write_text(text)
    assert pipeline_hash() is None


def test_a_blob_is_named_as_git_names_it() -> None:
    source = ROOT / "fieldguide" / "network" / "models.py"
    expected = subprocess.check_output(["git", "hash-object", "--no-filters", source], cwd=ROOT, text=True).strip()
    assert git_blob(source) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("fieldnet", "none", "trained here on data of licence: CC0"),
        ("vgg16", "imagenet", "began with weights of torchvision (BSD-3-Clause), made on ImageNet (for research)"),
        ("timm/convnext_atto", "imagenet", "began with weights of timm, "),
        ("vgg16", "own.pth", "began with weights of a file of one's own, whose terms go on"),
    ],
)
def test_the_licence_tells_of_data_and_of_what_training_began_with(name: str, weights: str, expected: str) -> None:
    found = licence(Model(name=name, weights=weights, image_px=96), "CC0")
    assert found.startswith("trained here on data of licence: CC0")
    assert expected in found


def test_data_without_a_licence_are_said_to_have_none_stated() -> None:
    assert licence(Model(name="cnn", weights="none", image_px=96), "") == "trained here on data of licence: not stated"


def test_the_evaluation_comes_with_its_interval(project: Path) -> None:
    evaluate_metrics(valid=(0.9, 10)).write(EVALUATE)
    found = reported_accuracy(EVALUATE, "valid")
    assert (found.split, found.accuracy, found.n, found.n_right) == ("valid", 0.9, 10, 9)
    assert found.accuracy_low == pytest.approx(0.596, abs=0.001)  # Wilson's interval of 9 of 10
    assert found.accuracy_high == pytest.approx(0.982, abs=0.001)
    with pytest.raises(UserError, match=r"evaluate.json: split test is missing; recreate it with: dvc repro -f evaluate"):
        reported_accuracy(EVALUATE, "test")


def test_a_model_that_is_not_proved_never_stands_in_the_place_of_the_model(
    project: Path, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [make_jpeg(seed, 32, 32) for seed in range(3)]
    digests = [hashlib.sha256(photo).hexdigest() for photo in photos]
    (project / "data" / "raw").mkdir(parents=True)
    (project / "data" / "raw" / "shard").write_bytes(b"".join(photos))
    starts = [sum(map(len, photos[:number])) for number in range(3)]
    rows = [
        [
            "test",
            label,
            "ABC"[label],
            f"{label}",
            "shard",
            starts[label],
            len(photos[label]),
            32,
            32,
            digests[label],
            "0",
            True,
            "",
        ]
        for label in range(3)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)[: len(rows[0])]).assign(unit=range(len(rows)))
    write_manifest(as_given(frame), MANIFEST)
    words = ("dataset", "title", "home", "licence", "source", "version", "release")
    features = {"image": "image", "label": "class", "id": ""}
    receipt = dict.fromkeys(words, "") | {"layout": "folders", "features": features, "images": {}, "ignored": {}, "files": {}}
    write_json(project / "data" / "raw" / "receipt.json", receipt)
    save_checkpoint(CHECKPOINT, build("cnn", 3), Checkpoint("cnn", 32, tuple("ABC"), (0, 1, 2), 1, "00"))
    save_calibration(CALIBRATION, Calibration("none", 1.0, 0.5, "probability", 0.1, {}))
    evaluate_metrics(test=(0.5, 4)).write(EVALUATE)  # which cannot be: there are 3
    shutil.copy(ROOT / "params.yaml", project)
    (project / "fieldguide").symlink_to(ROOT / "fieldguide")
    ONNX.write_bytes(b"the model in use")
    seen = []

    def alone(model: Path, raw: Path, places: list[tuple[str, int, int]]) -> np.ndarray:
        seen.append((ONNX.read_bytes(), model != ONNX))
        return probabilities_alone(model, raw, places)

    monkeypatch.setattr(export_onnx, "probabilities_alone", alone)
    with pytest.raises(UserError, match=r"model\.onnx: \d of 3 test images are right, but evaluate reported 2 of 4"):
        export_onnx.main()
    assert seen == [(b"the model in use", True)]
    assert ONNX.read_bytes() == b"the model in use"
    assert [file.name for file in ONNX.parent.iterdir() if file.suffix != ".safetensors"] == ["model.onnx"]
