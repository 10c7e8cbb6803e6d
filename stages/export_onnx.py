"""The checkpoint as an ONNX file, and the proof that both give the same answers.

Reads models/model.safetensors, data/manifest.csv, data/raw and `export` of params.yaml; writes models/model.onnx and
metrics/export_onnx.json. Fails when ONNX Runtime and torch disagree on any test image.
Run it with `dvc repro export_onnx`.
"""

import numpy as np
import torch

from fieldguide import tracking
from fieldguide.checkpoint import Checkpoint, load_checkpoint
from fieldguide.classifier import OnnxClassifier
from fieldguide.errors import UserError, run_command
from fieldguide.files import file_hash, write_json
from fieldguide.images import RESIZE_RULE
from fieldguide.loader import decode_all
from fieldguide.manifest import held_out, read_manifest
from fieldguide.onnx_export import Exported, export
from fieldguide.params import Export, read_params
from fieldguide.paths import CHECKPOINT, MANIFEST, ONNX, RAW, stage_metrics

BATCH_SIZES = (1, 2, 7, 64)  # at which the two are compared; the batch must be dynamic


def main() -> None:
    params = read_params()
    model, facts = load_checkpoint(CHECKPOINT)
    split, rows = held_out(read_manifest(MANIFEST))
    images = decode_all(rows, RAW, facts.image_px, params.runtime.n_workers)
    export(model, facts.image_px, params.export.opset, onnx_metadata(facts), ONNX)
    metrics = compare(Exported(model).eval(), OnnxClassifier(ONNX), images, params.export)
    write_json(stage_metrics("export_onnx"), metrics)
    with tracking.stage_run("export_onnx", params.export, CHECKPOINT) as run:
        run.log(metrics, ONNX, stage_metrics("export_onnx"))
    agreement, difference = metrics["top1_agreement"], metrics["max_abs_difference"]
    print(f"{ONNX.stat().st_size / 1e6:.1f} MB, opset {params.export.opset}; same top 1 as torch on {agreement:.2%}")
    print(f"of {len(images)} {split} images, probabilities within {difference:.1e}")
    print(f"-> {ONNX} {stage_metrics('export_onnx')}")


def onnx_metadata(facts: Checkpoint) -> dict[str, object]:
    """What a user of the file must know; names no date and no folder, so that equal networks give equal files."""
    return {
        "class_names": facts.class_names,
        "labels": facts.labels,
        "image_px": facts.image_px,
        "resize": RESIZE_RULE,
        "input": "uint8 [N, image_px, image_px, 3], RGB",
        "model": facts.model,
        "epoch": facts.epoch,
        "checkpoint_sha256": file_hash(CHECKPOINT),
        "manifest_sha256": facts.manifest_sha256,
    }


@torch.inference_mode()
def compare(exported: Exported, classifier: OnnxClassifier, images: torch.Tensor, settings: Export) -> dict[str, float]:
    """The content of metrics/export_onnx.json; raises `UserError` unless both agree on every image at every batch size.

    images: uint8 `[N, 3, H, W]`.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous()  # [N, H, W, 3]
    expected = torch.cat([exported(part) for part in pixels.split(max(BATCH_SIZES))]).numpy()
    agreement, difference = 1.0, 0.0
    for batch_size in BATCH_SIZES:
        part = pixels.numpy() if batch_size == max(BATCH_SIZES) else pixels[: 16 * batch_size].numpy()
        got = np.concatenate([classifier.probabilities(part[i : i + batch_size]) for i in range(0, len(part), batch_size)])
        agreement = min(agreement, float((got.argmax(axis=1) == expected[: len(got)].argmax(axis=1)).mean()))
        difference = max(difference, float(np.abs(got - expected[: len(got)]).max()))
    if agreement < 1 or difference > settings.max_abs_difference:
        ONNX.unlink()
        raise UserError(
            f"{ONNX}: ONNX Runtime and torch agree on {agreement:.2%} of the test images and differ by up to {difference:.1e}"
            f" (allowed {settings.max_abs_difference:.1e}); the file was removed, try another export.opset"
        )
    return {
        "top1_agreement": agreement,
        "max_abs_difference": difference,
        "bytes": classifier.file_bytes,
        "opset": settings.opset,
    }


if __name__ == "__main__":
    run_command(main)
