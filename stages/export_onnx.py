"""The checkpoint as an ONNX file, the proof that both give the same answers, and smaller forms of it.

Reads models/model.safetensors, models/calibration.safetensors, metrics/evaluate.json, data/manifest.csv, data/raw, and
`export` and `model` of params.yaml; writes models/model.onnx, models/model_fp16.onnx, models/model_int8.onnx and
metrics/export_onnx.json. Fails unless the file alone, in a process without torch, answers every test image as torch does,
and with the accuracy that evaluate reported.
Run it with `dvc repro export_onnx`.
"""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
import yaml

from fieldguide.core.errors import UserError, run_command
from fieldguide.core.files import file_hash, read_json, write_bytes, write_json
from fieldguide.core.images import RESIZE_RULE
from fieldguide.core.manifest import Classes, held_out, read_manifest, rows_of
from fieldguide.core.params import Export, Model, read_params
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    EVALUATE,
    LOCK,
    MANIFEST,
    ONNX,
    ONNX_FP16,
    ONNX_INT8,
    RAW,
    RECEIPT,
    stage_metrics,
)
from fieldguide.evaluation.metrics import accuracy_interval
from fieldguide.network.calibration import Calibration, load_calibration
from fieldguide.network.checkpoint import Checkpoint, load_checkpoint
from fieldguide.network.loader import decode_all
from fieldguide.onnx.classifier import OnnxClassifier
from fieldguide.onnx.export import Exported, export, save_model
from fieldguide.onnx.proof import BATCH_SIZES, probabilities_alone
from fieldguide.onnx.quantize import METHODS, to_fp16, to_int8
from fieldguide.tracking import run as tracking

UPSTREAM = ("download", "split_check", "train", "evaluate")  # the stages whose record in dvc.lock says where a model is from
TIE = 1e-4  # a lead of the first answer over the second below which rounding may exchange them


def main() -> None:
    params = read_params()
    model, facts = load_checkpoint(CHECKPOINT)
    calibration = load_calibration(CALIBRATION)
    manifest = read_manifest(MANIFEST)
    split, rows = held_out(manifest)
    evaluated = evaluation(split)
    n_workers = params.runtime.n_workers
    images = decode_all(rows, RAW, facts.image_px, n_workers).permute(0, 2, 3, 1).contiguous()  # [N, H, W, 3]
    exported = Exported(model, calibration, facts.image_px).eval()
    metadata = onnx_metadata(facts, calibration, evaluated, params.model)
    places = list(rows[["file", "offset", "length"]].itertuples(index=False, name=None))
    targets = facts.classes.targets(rows)
    with torch.inference_mode():
        expected = torch.cat([exported(part)[0] for part in images.split(max(BATCH_SIZES))]).numpy()
    with TemporaryDirectory() as folder:
        unproved = Path(folder, ONNX.name)
        export(exported, facts.image_px, params.export.opset, metadata, unproved)
        metrics = proof(expected, probabilities_alone(unproved, RAW, places), targets, evaluated, params.export)
        write_bytes(ONNX, unproved.read_bytes())
    metrics |= {"bytes": ONNX.stat().st_size, "opset": params.export.opset}
    metrics |= smaller_forms(manifest, facts.classes, images.numpy(), targets, metadata, params.export, n_workers)

    write_json(stage_metrics("export_onnx"), metrics)
    with tracking.stage_run("export_onnx", params.export, CHECKPOINT) as run:
        run.log(metrics, ONNX_FP16, ONNX_INT8, stage_metrics("export_onnx"))
        run.log_model(ONNX, images[:1].numpy())
    print(f"{ONNX.stat().st_size / 1e6:.1f} MB, opset {params.export.opset}; alone, without torch, the same top 1 as torch on")
    print(
        f"{metrics['top1_agreement']:.2%} of {len(rows)} {split} images at batches {', '.join(map(str, BATCH_SIZES))},"
        f" probabilities within {metrics['max_abs_difference']:.1e}, accuracy {metrics['accuracy']:.2%}"
    )
    for form, text in (("fp16", "fp16"), ("int8", f"INT8 ({metrics['int8']['method']})")):
        print(f"{text}: {metrics[form]['bytes'] / 1e6:.1f} MB, {split} accuracy {metrics[form]['accuracy']:.2%}")
    print(f"-> {ONNX} {ONNX_FP16} {ONNX_INT8} {stage_metrics('export_onnx')}")


def evaluation(split: str) -> dict[str, Any]:
    """What evaluate found on the split: its name, accuracy with the 95 % interval, and n."""
    metrics = read_json(EVALUATE)
    if split not in metrics:
        raise UserError(f"{EVALUATE}: nothing is said of {split}; make it again with: dvc repro -f evaluate")
    accuracy, n = metrics[split]["accuracy"], metrics[split]["n"]
    return measured(split, round(accuracy * n), n)


def measured(split: str, n_right: int, n: int) -> dict[str, Any]:
    """An accuracy as the metadata tell it."""
    low, high = accuracy_interval(n_right, n)
    return {"split": split, "accuracy": n_right / n, "accuracy_low": low, "accuracy_high": high, "n": n}


def onnx_metadata(facts: Checkpoint, calibration: Calibration, evaluated: dict[str, Any], settings: Model) -> dict[str, Any]:
    """What a user of the file must know; names no date and no folder, so that equal networks give equal files."""
    receipt = read_json(RECEIPT)
    return {
        "class_names": facts.class_names,
        "labels": facts.labels,
        "image_px": facts.image_px,
        "resize": RESIZE_RULE,
        "input": "uint8 [N, image_px, image_px, 3], RGB",
        "model": facts.model,
        "epoch": facts.epoch,
        "precision": "fp32",
        "calibration": {
            "tta": calibration.tta,
            "temperature": calibration.temperature,
            "unsure_below": calibration.unsure_below,
            "score": calibration.score,
            "unknown_below": calibration.unknown_below,
        },
        "dataset": {key: receipt[key] for key in ("dataset", "title", "home", "licence", "version", "release")},
        "evaluate": evaluated,
        "hashes": {
            "manifest_sha256": facts.manifest_sha256,
            "checkpoint_sha256": file_hash(CHECKPOINT),
            "calibration_sha256": file_hash(CALIBRATION),
            "dvc_lock_sha256": pipeline_hash(),
            "git_blobs": {
                source: git_blob(Path(source)) for source in ("fieldguide/network/models.py", "fieldguide/onnx/export.py")
            },
        },
        "licence": licence(settings, receipt["licence"]),
    }


def pipeline_hash() -> str | None:
    """SHA-256 of what dvc.lock records of the stages before this one; None where it does not know this checkpoint.

    Not of the whole file, in which this stage's own result is to stand.
    """
    try:
        stages = yaml.safe_load(LOCK.read_text())["stages"]
        recorded = {name: stages[name] for name in UPSTREAM}
        made = {out["path"]: out["md5"] for out in recorded["train"]["outs"]}[str(CHECKPOINT)]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None
    if made != file_hash(CHECKPOINT, "md5"):
        return None
    return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()


def git_blob(source: Path) -> str:
    """The name under which git keeps the file's content: `git log --find-object=` finds its commits, made before or after."""
    content = source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def licence(settings: Model, of_data: str) -> str:
    """Under which terms the weights are, as far as the pipeline can know."""
    trained = f"trained here on data of licence: {of_data or 'not stated'}"
    if settings.weights == "none":
        return trained
    if settings.weights != "imagenet":
        return f"{trained}; began with weights of a file of one's own, whose terms go on"
    if settings.name.startswith("timm/"):
        import timm

        published = timm.get_pretrained_cfg(settings.name.removeprefix("timm/"))
        assert published is not None  # its weights were taken
        return f"{trained}; began with weights of timm, {published.license or 'see ' + str(published.hf_hub_id)}"
    return f"{trained}; began with weights of torchvision (BSD-3-Clause), made on ImageNet (for research)"


def proof(
    expected: np.ndarray, alone: np.ndarray, targets: np.ndarray, evaluated: dict[str, Any], settings: Export
) -> dict[str, Any]:
    """The first part of metrics/export_onnx.json; raises `UserError` unless the file answers as torch does.

    expected: torch's probabilities, float32 `[N, K]`; alone: those of the file at each batch size, `[batch sizes, N, K]`.
    A top 1 counts as the same, too, where torch's own lead over its second is below `TIE`.
    """
    lead = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0]
    ties = lead < TIE
    same = (alone.argmax(axis=2) == expected.argmax(axis=1)) | ties
    agreement, difference = float(same.mean()), float(np.abs(alone - expected).max())
    if agreement < 1 or difference > settings.max_abs_difference:
        raise UserError(
            f"{ONNX}: ONNX Runtime and torch agree on {agreement:.2%} of the {evaluated['split']} images and differ by up to"
            f" {difference:.1e} (allowed {settings.max_abs_difference:.1e}); no file was written, try another export.opset"
        )
    n_right = int((alone[-1].argmax(axis=1) == targets).sum())
    n_reported = round(evaluated["accuracy"] * evaluated["n"])
    if evaluated["n"] != len(targets) or abs(n_right - n_reported) > ties.sum():
        raise UserError(
            f"{ONNX}: alone it has {n_right} of {len(targets)} {evaluated['split']} images right, evaluate reported "
            f"{n_reported} of {evaluated['n']}; no file was written, run: dvc repro -f evaluate"
        )
    return {
        "top1_agreement": agreement,
        "max_abs_difference": difference,
        "ties": int(ties.sum()),
        "accuracy": n_right / len(targets),
        "n": len(targets),
    }


def smaller_forms(
    manifest: pd.DataFrame,
    classes: Classes,
    test_pixels: np.ndarray,
    targets: np.ndarray,
    metadata: dict[str, Any],
    settings: Export,
    n_workers: int,
) -> dict[str, Any]:
    """fp16 and INT8 files, and what they lose; the range of INT8 activations is the method that is best on valid."""
    image_px = metadata["image_px"]
    valid = rows_of(manifest, "valid")
    valid_pixels = decode_all(valid, RAW, image_px, n_workers).permute(0, 2, 3, 1).numpy()
    train = rows_of(manifest, "train")
    spread = np.unique(np.linspace(0, len(train) - 1, settings.int8_images).astype(int))  # rows stand by class
    train_pixels = decode_all(train.iloc[spread].reset_index(drop=True), RAW, image_px, n_workers).permute(0, 2, 3, 1).numpy()

    def right(form: onnx.ModelProto, told: dict[str, Any], pixels: np.ndarray, truth: np.ndarray) -> tuple[int, float]:
        """Number of right answers, and minus the mean cross-entropy, which decides between equals."""
        with TemporaryDirectory() as folder:
            save_model(form, told, Path(folder, "form.onnx"))
            classifier = OnnxClassifier(Path(folder, "form.onnx"))
        batches = range(0, len(pixels), max(BATCH_SIZES))
        parts = [classifier.probabilities(pixels[start : start + max(BATCH_SIZES)]) for start in batches]
        probabilities = np.concatenate(parts)
        of_truth = probabilities[np.arange(len(truth)), truth]
        return int((probabilities.argmax(axis=1) == truth).sum()), float(np.log(np.maximum(of_truth, 1e-12)).mean())

    metrics: dict[str, Any] = {}
    candidates = {}
    for method in METHODS:
        form = to_int8(ONNX, train_pixels, method)
        candidates[method] = (right(form, metadata, valid_pixels, classes.targets(valid)), form)
    method = max(candidates, key=lambda name: candidates[name][0])
    for name, form, target, how in (
        ("fp16", to_fp16(ONNX), ONNX_FP16, {}),
        ("int8", candidates[method][1], ONNX_INT8, {"method": method}),
    ):
        told = metadata | {"precision": name} | how
        n_right, _ = right(form, told, test_pixels, targets)
        save_model(form, told | {"evaluate": measured(metadata["evaluate"]["split"], n_right, len(targets))}, target)
        metrics[name] = {"accuracy": n_right / len(targets), "bytes": target.stat().st_size} | how
    metrics["int8"]["valid_accuracy"] = {name: score[0] / len(valid) for name, (score, _) in candidates.items()}
    return metrics


if __name__ == "__main__":
    run_command(main)
