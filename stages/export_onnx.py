"""The checkpoint as an ONNX file, compared with torch on held-out images, and its fp16 and INT8 forms.

Reads models/model.safetensors, models/calibration.safetensors, metrics/predictions.csv, data/manifest.csv, data/raw, and
`export` and `model` of params.yaml; writes models/model.onnx, models/model_fp16.onnx, models/model_int8.onnx and
metrics/export_onnx.json. Fails unless the file, in a process without torch, agrees with torch and with evaluate on 2,000
held-out images of all classes, or on all if there are fewer. Run it with `dvc repro export_onnx`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fieldguide.core.artifacts import ExportMetrics, Receipt
from fieldguide.core.errors import run_command
from fieldguide.core.files import write_bytes
from fieldguide.core.headlines import write_metrics
from fieldguide.core.manifest import held_out, read_manifest, rows_of
from fieldguide.core.params import read_params
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    MANIFEST,
    ONNX,
    ONNX_FP16,
    ONNX_INT8,
    PREDICTIONS_CSV,
    RAW,
    RECEIPT,
    stage_metrics,
)
from fieldguide.network.calibration import load_calibration
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.device import pick_device, set_up
from fieldguide.network.loader import decode_pixels
from fieldguide.onnx.export import ExportableNetwork, export, probabilities_of
from fieldguide.onnx.metadata import onnx_metadata, read_evaluated
from fieldguide.onnx.proof import BATCH_SIZES, prove, run_alone, write_expected
from fieldguide.onnx.quantize import smaller_forms, write_forms
from fieldguide.onnx.sample import draw
from fieldguide.tracking import run as tracking


def main() -> None:
    params = read_params()
    set_up(pick_device("cpu"))
    model, facts = load_checkpoint(CHECKPOINT)
    calibration, manifest = load_calibration(CALIBRATION), read_manifest(MANIFEST)
    split, rows = held_out(manifest)
    evaluated = read_evaluated(PREDICTIONS_CSV, split, rows, facts.class_names)
    settings, image_px, n_workers = params.export, facts.image_px, params.runtime.n_workers
    test = draw(rows, facts.classes.given_targets(rows), RAW, image_px, n_workers)
    exported = ExportableNetwork(model, calibration, image_px).eval()
    metadata = onnx_metadata(facts, calibration, evaluated.accuracy, params.model, Receipt.read(RECEIPT))
    with TemporaryDirectory() as folder:
        unproved, table = Path(folder, ONNX.name), Path(folder, "expected.npy")
        export(exported, image_px, settings.opset, metadata, unproved)
        shape = len(test), len(facts.class_names)
        expected = write_expected(probabilities_of(exported, test.batches("torch")), shape, table)
        alone = run_alone(unproved, RAW, test.places, table)
        predicted = evaluated.predicted[test.positions]
        agreement = prove(expected, alone, test.targets, predicted, split, settings.max_abs_difference)
        write_bytes(ONNX, unproved.read_bytes())

    valid, train = rows_of(manifest, "valid"), rows_of(manifest, "train")
    spread = np.unique(np.linspace(0, len(train) - 1, settings.int8_images).astype(int))  # rows of folders are sorted by class
    calibrated_on = decode_pixels(train.iloc[spread].reset_index(drop=True), RAW, image_px, n_workers)
    checked_on = draw(valid, facts.classes.targets(valid), RAW, image_px, n_workers)
    forms = smaller_forms(ONNX, metadata, calibrated_on, checked_on)
    fp16, int8 = write_forms(forms, ONNX_FP16, ONNX_INT8, metadata, test)
    size = ONNX.stat().st_size
    metrics = ExportMetrics(**agreement.as_dict(), bytes=size, opset=settings.opset, fp16=fp16, int8=int8)
    write_metrics("export_onnx", metrics)
    with tracking.stage_run("export_onnx", params.export, CHECKPOINT) as run:
        run.log(metrics.as_dict(), ONNX_FP16, ONNX_INT8, stage_metrics("export_onnx"))
        run.log_model(ONNX, decode_pixels(rows[:1], RAW, image_px, n_workers))
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
