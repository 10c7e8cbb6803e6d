"""The metadata of an ONNX file: usage, accuracy, provenance and licence."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from fieldguide.core.artifacts import EvaluateMetrics, Receipt, SplitAccuracy
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


def reported_accuracy(source: Path, split: str) -> SplitAccuracy:
    """The accuracy on the split that metrics/evaluate.json reports, with its interval; raises `UserError` where it has none."""
    splits = EvaluateMetrics.read(source).splits
    if split not in splits:
        raise UserError(f"{source}: split {split} is missing; recreate it with: dvc repro -f evaluate")
    accuracy, n = splits[split].accuracy, splits[split].n
    return split_accuracy(split, round(accuracy * n), n)


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
        "model": facts.model,
        "epoch": facts.epoch,
        "precision": "fp32",
        "calibration": {name: value for name, value in vars(calibration).items() if name != "tensors"},
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
