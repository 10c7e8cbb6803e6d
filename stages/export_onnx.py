"""The checkpoint as an ONNX file, compared with torch on every held-out image, and its fp16 and INT8 forms.

Reads models/model.safetensors, models/calibration.safetensors, metrics/evaluate.json, data/manifest.csv, data/raw, and
`export` and `model` of params.yaml; writes models/model.onnx, models/model_fp16.onnx, models/model_int8.onnx and
metrics/export_onnx.json. Fails unless the file, in a process without torch, agrees with torch on every held-out image and has
the accuracy that evaluate reported. Run it with `dvc repro export_onnx`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fieldguide.core.artifacts import ExportMetrics, Receipt
from fieldguide.core.errors import run_command
from fieldguide.core.files import write_bytes
from fieldguide.core.headlines import write_metrics
from fieldguide.core.manifest import held_out, read_manifest, rows_of
from fieldguide.core.params import read_params
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    EVALUATE,
    MANIFEST,
    ONNX,
    ONNX_FP16,
    ONNX_INT8,
    RAW,
    RECEIPT,
    stage_metrics,
)
from fieldguide.network.calibration import load_calibration
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.loader import decode_pixels
from fieldguide.onnx.export import ExportableNetwork, export
from fieldguide.onnx.metadata import onnx_metadata, reported_accuracy
from fieldguide.onnx.proof import BATCH_SIZES, probabilities_alone, prove
from fieldguide.onnx.quantize import Labelled, write_fp16, write_int8
from fieldguide.tracking import run as tracking


def main() -> None:
    params = read_params()
    model, facts = load_checkpoint(CHECKPOINT)
    calibration, manifest = load_calibration(CALIBRATION), read_manifest(MANIFEST)
    split, rows = held_out(manifest)
    reported = reported_accuracy(EVALUATE, split)
    settings, image_px, n_workers = params.export, facts.image_px, params.runtime.n_workers
    test = Labelled(decode_pixels(rows, RAW, image_px, n_workers), facts.classes.given_targets(rows))
    exported = ExportableNetwork(model, calibration, image_px).eval()
    metadata = onnx_metadata(facts, calibration, reported, params.model, Receipt.read(RECEIPT))
    places = list(rows[["file", "offset", "length"]].itertuples(index=False, name=None))
    with torch.inference_mode():
        batches = torch.from_numpy(test.pixels).split(max(BATCH_SIZES))
        expected = torch.cat([exported(batch)[0] for batch in batches]).numpy()
    with TemporaryDirectory() as folder:
        unproved = Path(folder, ONNX.name)
        export(exported, image_px, settings.opset, metadata, unproved)
        alone = probabilities_alone(unproved, RAW, places)
        agreement = prove(expected, alone, test.targets, reported, settings.max_abs_difference)
        write_bytes(ONNX, unproved.read_bytes())

    valid, train = rows_of(manifest, "valid"), rows_of(manifest, "train")
    spread = np.unique(np.linspace(0, len(train) - 1, settings.int8_images).astype(int))  # rows are sorted by class
    calibrated_on = decode_pixels(train.iloc[spread].reset_index(drop=True), RAW, image_px, n_workers)
    checked_on = Labelled(decode_pixels(valid, RAW, image_px, n_workers), facts.classes.targets(valid))
    metrics = ExportMetrics(
        **agreement.as_dict(),
        bytes=ONNX.stat().st_size,
        opset=settings.opset,
        fp16=write_fp16(ONNX, ONNX_FP16, metadata, test),
        int8=write_int8(ONNX, ONNX_INT8, metadata, calibrated_on, checked_on, test),
    )
    write_metrics("export_onnx", metrics)
    with tracking.stage_run("export_onnx", params.export, CHECKPOINT) as run:
        run.log(metrics.as_dict(), ONNX_FP16, ONNX_INT8, stage_metrics("export_onnx"))
        run.log_model(ONNX, test.pixels[:1])
    print_headline(metrics, split)


def print_headline(metrics: ExportMetrics, split: str) -> None:
    print(f"{metrics.bytes / 1e6:.1f} MB, opset {metrics.opset}; same top 1 as torch on")
    print(
        f"{metrics.top1_agreement:.2%} of {metrics.n} {split} images at batches {', '.join(map(str, BATCH_SIZES))},"
        f" probabilities within {metrics.max_abs_difference:.1e}, accuracy {metrics.accuracy:.2%}"
    )
    for form, name in ((metrics.fp16, "fp16"), (metrics.int8, f"INT8 ({metrics.int8.method})")):
        print(f"{name}: {form.bytes / 1e6:.1f} MB, {split} accuracy {form.accuracy:.2%}")
    print(f"-> {ONNX} {ONNX_FP16} {ONNX_INT8} {stage_metrics('export_onnx')}")


if __name__ == "__main__":
    run_command(main)
