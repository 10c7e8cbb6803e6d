"""The metadata of an ONNX file: usage, accuracy, provenance and licence."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from fieldguide.core.artifacts import Receipt, SplitAccuracy
from fieldguide.core.colours import RULE as COLOUR_RULE
from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.images import RESIZE_RULE
from fieldguide.core.intervals import accuracy_interval
from fieldguide.core.params import Model
from fieldguide.core.paths import CALIBRATION, CHECKPOINT, LOCK
from fieldguide.network.calibration import Calibration
from fieldguide.network.checkpoint import Checkpoint

UPSTREAM = ("download", "split_check", "train", "evaluate")  # stages whose entries in dvc.lock give a model's provenance
CODE = ("fieldguide/network/models.py", "fieldguide/onnx/export.py")  # files that define the computation


class Evaluated(NamedTuple):
    """What evaluate found on the held-out split: its accuracy, and the prediction for each image, int64 `[N]`."""

    accuracy: SplitAccuracy
    predicted: np.ndarray


def read_evaluated(source: Path, split: str, rows: pd.DataFrame, class_names: Sequence[str]) -> Evaluated:
    """The predictions of metrics/predictions.csv for `rows` of the manifest; raises `UserError` if they are of other images."""
    columns = ["split", "sha256", "truth", "answer_1"]
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False, usecols=columns)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; create it with: dvc repro evaluate") from error
    except ValueError as error:
        raise UserError(f"{source}: not a table of predictions ({error}); recreate it with: dvc repro -f evaluate") from error
    table, numbers = table[table["split"] == split], {name: number for number, name in enumerate(class_names)}
    known = table["answer_1"].isin(numbers).all()
    if not known or table["sha256"].tolist() != rows["sha256"].tolist():
        fault = f"not of the {len(rows)} {split} images in use" if known else "of other classes than the network's"
        raise UserError(f"{source}: its {len(table)} {split} predictions are {fault}; recreate it with: dvc repro -f evaluate")
    n_right = int((table["answer_1"] == table["truth"]).sum())
    return Evaluated(split_accuracy(split, n_right, len(table)), table["answer_1"].map(numbers).to_numpy(dtype=np.int64))


def split_accuracy(split: str, n_right: int, n: int) -> SplitAccuracy:
    """`n_right` of `n` as an accuracy with its interval."""
    low, high = accuracy_interval(n_right, n)
    return SplitAccuracy(split=split, accuracy=n_right / n, accuracy_low=low, accuracy_high=high, n=n)


def onnx_metadata(
    facts: Checkpoint, calibration: Calibration, reported: SplitAccuracy, settings: Model, receipt: Receipt
) -> dict[str, Any]:
    """The metadata for users of the file. Contains no date and no path, so that equal networks give equal files."""
    return {
        "class_names": facts.class_names,
        "labels": facts.labels,
        "image_px": facts.image_px,
        "resize": RESIZE_RULE,
        "colours": COLOUR_RULE,
        "input": "uint8 [N, image_px, image_px, 3], RGB",
        "activation": "[N, n_maps, h, w] of the most probable classes; n_maps, int64 [1], may be left out: 0",
        "model": facts.model,
        "epoch": facts.epoch,
        "precision": "fp32",
        "calibration": {name: value for name, value in vars(calibration).items() if name not in ("tensors", "taxonomy")},
        "taxonomy": calibration.taxonomy,
        "dataset": receipt.model_dump(include={"dataset", "title", "home", "licence", "version", "release"}),
        "evaluate": reported.as_dict(),
        "hashes": {
            "manifest_sha256": facts.manifest_sha256,
            "checkpoint_sha256": file_hash(CHECKPOINT),
            "calibration_sha256": file_hash(CALIBRATION),
            "dvc_lock_sha256": pipeline_hash(),
            "git_blobs": {source: git_blob(Path(source)) for source in CODE},
        },
        "licence": licence(settings, receipt.licence),
    }


def pipeline_hash() -> str | None:
    """SHA-256 of the entries of earlier stages in dvc.lock; None if they do not contain this checkpoint.

    It is not the hash of the file, which will contain the output of this stage.
    """
    try:
        stages = yaml.safe_load(LOCK.read_text())["stages"]
        recorded = {name: stages[name] for name in UPSTREAM}
        md5 = {out["path"]: out["md5"] for out in recorded["train"]["outs"]}[str(CHECKPOINT)]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None
    if md5 != file_hash(CHECKPOINT, "md5"):
        return None
    return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()


def git_blob(source: Path) -> str:
    """Git's hash of the file's content; `git log --find-object=` finds its commits."""
    content = source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def licence(settings: Model, of_data: str) -> str:
    """The licence of the weights, as far as the pipeline can know it."""
    trained = f"trained here on data of licence: {of_data or 'not stated'}"
    if settings.weights == "none":
        return trained
    if settings.weights != "imagenet":
        return f"{trained}; began with weights of a file of one's own, whose terms go on"
    if settings.name.startswith("timm/"):
        import timm

        published = timm.get_pretrained_cfg(settings.name.removeprefix("timm/"))
        assert published is not None  # its weights were loaded
        return f"{trained}; began with weights of timm, {published.license or 'see ' + str(published.hf_hub_id)}"
    return f"{trained}; began with weights of torchvision (BSD-3-Clause), made on ImageNet (for research)"
