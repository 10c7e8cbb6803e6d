"""What the export stage writes into the file about its origin: the same for the same inputs, whenever it runs."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash, write_json
from fieldguide.core.images import decode
from fieldguide.core.manifest import COLUMNS, as_given, write_manifest, write_table
from fieldguide.core.params import Model
from fieldguide.core.paths import CALIBRATION, CHECKPOINT, MANIFEST, ONNX, PREDICTIONS_CSV
from fieldguide.network.calibration import Calibration, save_calibration
from fieldguide.network.checkpoint import Checkpoint, save_checkpoint
from fieldguide.network.models import build
from fieldguide.onnx.export import torch_probabilities
from fieldguide.onnx.metadata import UPSTREAM, git_blob, licence, pipeline_hash, read_evaluated
from fieldguide.onnx.proof import Alone, run_alone
from stages import export_onnx
from support import ROOT


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


def predictions(*lines: tuple[str, str, str, str]) -> None:
    """metrics/predictions.csv with lines of split, hash, truth and prediction."""
    columns = ["split", "sha256", "truth", "answer_1"]
    write_table(pd.DataFrame(lines, columns=columns).assign(id="x", verdict="sure"), PREDICTIONS_CSV)


def test_the_evaluation_comes_with_its_interval_and_each_prediction(project: Path) -> None:
    rows = pd.DataFrame({"sha256": [str(number) for number in range(10)]})
    lines = [("valid", str(number), "A", "AB"[number == 9]) for number in range(10)]
    predictions(("test", "0", "B", "A"), *lines)
    found = read_evaluated(PREDICTIONS_CSV, "valid", rows, ["A", "B"])
    accuracy = found.accuracy
    assert (accuracy.split, accuracy.accuracy, accuracy.n, accuracy.n_right) == ("valid", 0.9, 10, 9)
    assert accuracy.accuracy_low == pytest.approx(0.596, abs=0.001)  # Wilson's interval of 9 of 10
    assert accuracy.accuracy_high == pytest.approx(0.982, abs=0.001)
    assert found.predicted.tolist() == [0] * 9 + [1]


@pytest.mark.parametrize(
    ("hashes", "names", "fault"),
    [
        (["0", "2"], ["A", "B"], "its 2 test predictions are not of the 2 test images in use"),
        (["0"], ["A", "B"], "its 2 test predictions are not of the 1 test images in use"),
        (["1", "0"], ["A", "B"], "its 2 test predictions are not of the 2 test images in use"),
        (["0", "1"], ["A", "C"], "its 2 test predictions are of other classes than the network's"),
    ],
)
def test_predictions_of_other_images_or_classes_are_refused(
    project: Path, hashes: list[str], names: list[str], fault: str
) -> None:
    predictions(("test", "0", "A", "A"), ("test", "1", "B", "B"))
    with pytest.raises(UserError) as caught:
        read_evaluated(PREDICTIONS_CSV, "test", pd.DataFrame({"sha256": hashes}), names)
    assert str(caught.value) == f"{PREDICTIONS_CSV}: {fault}; recreate it with: dvc repro -f evaluate"


def test_missing_predictions_are_refused_with_what_to_do(project: Path) -> None:
    rows = pd.DataFrame({"sha256": ["0"]})
    with pytest.raises(UserError, match=r"predictions.csv: No such file or directory; create it with: dvc repro evaluate"):
        read_evaluated(PREDICTIONS_CSV, "test", rows, ["A"])
    PREDICTIONS_CSV.parent.mkdir()
    PREDICTIONS_CSV.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"predictions.csv: not a table of predictions \(.*; recreate it with"):
        read_evaluated(PREDICTIONS_CSV, "test", rows, ["A"])


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
    save_calibration(CALIBRATION, Calibration("none", 1.0, 0.5, "probability", 0.1, {}))
    save_checkpoint(CHECKPOINT, model := build("cnn", 3), Checkpoint("cnn", 32, tuple("ABC"), (0, 1, 2), 1, "00"))
    pixels = np.stack([decode(photo, 32) for photo in photos])
    calibration = Calibration("none", 1.0, 0.5, "probability", 0.1, {})
    own = torch_probabilities(model, calibration)(pixels).argmax(axis=1)
    other = [*own[:2], (own[2] + 1) % 3]  # of the last image evaluate has predicted another class
    predictions(*[("test", digest, "A", "ABC"[answer]) for digest, answer in zip(digests, other, strict=True)])
    shutil.copy(ROOT / "params.yaml", project)
    (project / "fieldguide").symlink_to(ROOT / "fieldguide")
    ONNX.write_bytes(b"the model in use")
    seen = []

    def alone(model: Path, *given: Any) -> Alone:
        seen.append((ONNX.read_bytes(), model != ONNX))
        return run_alone(model, *given)

    monkeypatch.setattr(export_onnx, "run_alone", alone)
    with pytest.raises(UserError, match=r"model\.onnx: 1 of 3 test images are predicted as another class than evaluate"):
        export_onnx.main()
    assert seen == [(b"the model in use", True)]
    assert ONNX.read_bytes() == b"the model in use"
    assert [file.name for file in ONNX.parent.iterdir() if file.suffix != ".safetensors"] == ["model.onnx"]
