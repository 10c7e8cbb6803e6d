"""Speed, accuracy, size and memory of the model in torch and in ONNX Runtime, on the same test images.

Reads models/model.safetensors, models/calibration.safetensors, models/model.onnx and its smaller forms, data/manifest.csv,
data/raw and `benchmark` of params.yaml; writes metrics/benchmark.json and metrics/throughput.csv. The figures are those
of this machine, which the file describes; repeat them on another with `dvc repro -f -s benchmark`.
"""

from fieldguide.benchmark.backends import describe_hardware, load_backends
from fieldguide.benchmark.footprint import footprint
from fieldguide.benchmark.measure import accuracies, compare_int8, end_to_end_latency, measure_speed, summary_line
from fieldguide.benchmark.reference import peer
from fieldguide.benchmark.timing import percentiles
from fieldguide.core.artifacts import BackendMetrics, BenchmarkMetrics, LibraryMetrics
from fieldguide.core.errors import run_command
from fieldguide.core.headlines import write_metrics
from fieldguide.core.images import read_encoded
from fieldguide.core.manifest import held_out, read_manifest, write_table
from fieldguide.core.params import read_params
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    MANIFEST,
    ONNX,
    ONNX_FP16,
    ONNX_INT8,
    RAW,
    THROUGHPUT_CSV,
    stage_metrics,
)
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.device import pick_device, set_up
from fieldguide.network.loader import decode_pixels
from fieldguide.onnx.sample import draw
from fieldguide.tracking import run as tracking

ONNX_FILES = {"onnxruntime": ONNX, "onnxruntime_fp16": ONNX_FP16, "onnxruntime_int8": ONNX_INT8}  # by backend


def main() -> None:
    params = read_params()
    settings, device = params.benchmark, pick_device(params.runtime.device)
    set_up(device)
    model, facts = load_checkpoint(CHECKPOINT)
    _, rows = held_out(read_manifest(MANIFEST))
    test = draw(rows, facts.classes.given_targets(rows), RAW, facts.image_px, params.runtime.n_workers)
    pixels = decode_pixels(rows[: max(settings.batch_sizes)], RAW, facts.image_px, params.runtime.n_workers)
    encoded = read_encoded(RAW / rows["file"][0], int(rows["offset"][0]), int(rows["length"][0]))
    backends = load_backends(CHECKPOINT, CALIBRATION, ONNX_FILES, device, settings.compile)
    speeds, throughput = measure_speed(backends, pixels, settings)
    library = peer(facts.model, model, facts.image_px)
    times = end_to_end_latency(backends, library, encoded, facts.image_px, settings)
    accuracy, figures = accuracies(backends, test), {}
    for name, backend in backends.items():
        figures[name] = BackendMetrics(
            **speeds[name].as_dict(),
            bytes_to_answer_ms=percentiles(times[name]),
            accuracy=accuracy[name],
            n=len(test),
            bytes=backend.n_bytes,
            **(footprint(*backend.start) if backend.start else {}),
        )
        print(summary_line(name, figures[name]))
    libraries = {name: LibraryMetrics(bytes_to_answer_ms=percentiles(times[name])) for name in times if name not in backends}
    int8 = compare_int8(figures["onnxruntime"], figures["onnxruntime_int8"])
    metrics = BenchmarkMetrics(backends=figures, libraries=libraries, int8=int8, hardware=describe_hardware(device))
    write_metrics("benchmark", metrics)
    write_table(throughput, THROUGHPUT_CSV)
    with tracking.stage_run("benchmark", settings, CHECKPOINT) as run:
        run.log(metrics.as_dict(), stage_metrics("benchmark"), THROUGHPUT_CSV)
    for name, entry in libraries.items():
        print(f"{name:18s} bytes to answer p50 {entry.bytes_to_answer_ms.p50:6.2f} ms")
    print(f"INT8: {int8.advice()}")
    print(f"-> {stage_metrics('benchmark')} {THROUGHPUT_CSV}")


if __name__ == "__main__":
    run_command(main)
