"""Speed, accuracy, size and memory of the model in torch and in ONNX Runtime, on the same test images.

Reads models/model.safetensors, models/calibration.safetensors, models/model.onnx and its smaller forms, data/manifest.csv,
data/raw and `benchmark` of params.yaml; writes metrics/benchmark.json, metrics/throughput.csv and metrics/speed.png. The
figures belong to this machine, which the file names: measure again on another with `dvc repro -f -s benchmark`.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch

from fieldguide.benchmark.footprint import footprint
from fieldguide.benchmark.reference import peer
from fieldguide.benchmark.timing import Predict, interleaved_ms, joules, percentiles, spread
from fieldguide.core.errors import run_command
from fieldguide.core.files import write_json
from fieldguide.core.images import decode, read_encoded
from fieldguide.core.manifest import held_out, read_manifest, write_table
from fieldguide.core.params import Benchmark, read_params
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    MANIFEST,
    ONNX,
    ONNX_FP16,
    ONNX_INT8,
    RAW,
    SPEED_PNG,
    THROUGHPUT_CSV,
    stage_metrics,
)
from fieldguide.network.calibration import load_calibration
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.device import device_name, pick_device
from fieldguide.network.loader import decode_all
from fieldguide.onnx.classifier import OnnxClassifier, has_provider
from fieldguide.onnx.export import torch_probabilities
from fieldguide.report import plots
from fieldguide.tracking import run as tracking

POINTS_LOST = 0.5  # of accuracy, in points of 100, that a smaller form may lose to be worth its speed
FORMS = {"onnxruntime": ONNX, "onnxruntime_fp16": ONNX_FP16, "onnxruntime_int8": ONNX_INT8}
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Backend:
    """A way to predict: with all threads, with one (None on an accelerator), its file's bytes, and how it starts."""

    predict: Predict
    alone: Predict | None
    n_bytes: int
    start: tuple[str, ...] = ()


def main() -> None:
    params = read_params()
    device = pick_device(params.runtime.device)
    model, facts = load_checkpoint(CHECKPOINT)
    split, rows = held_out(read_manifest(MANIFEST))
    pixels = decode_all(rows, RAW, facts.image_px, params.runtime.n_workers).permute(0, 2, 3, 1).numpy()
    targets = facts.classes.targets(rows)
    encoded = read_encoded(RAW / rows["file"][0], int(rows["offset"][0]), int(rows["length"][0]))
    found = backends(params.benchmark, device)

    metrics, throughput = measure(found, pixels, params.benchmark)
    answer_ms = whole_way(found, peer(facts.model, model, facts.image_px), encoded, facts.image_px, params.benchmark)
    for name, times in answer_ms.items():
        metrics.setdefault(name, {})["bytes_to_answer_ms"] = percentiles(times)
    for name, backend in found.items():
        metrics[name] |= {"accuracy": accuracy(backend.predict, pixels, targets), "bytes": backend.n_bytes}
        metrics[name] |= footprint(*backend.start) if backend.start else {}
        print(sentence(name, metrics[name]))
    metrics["int8"] = worth(metrics)
    metrics["hardware"] = hardware(device)
    write_json(stage_metrics("benchmark"), metrics)
    write_table(throughput, THROUGHPUT_CSV)
    points = {
        name: (metrics[name]["latency_ms"]["p50"], metrics[name]["latency_ms"]["p95"], metrics[name]["accuracy"])
        for name in found
    }
    title = f"{facts.model} at {facts.image_px} px, {len(rows)} {split} images, {metrics['hardware']['device']}"
    plots.save_png(plots.accuracy_latency(points, title), SPEED_PNG)
    with tracking.stage_run("benchmark", params.benchmark, CHECKPOINT) as run:
        run.log(metrics, stage_metrics("benchmark"), THROUGHPUT_CSV, SPEED_PNG)
    for name in set(answer_ms) - set(found):
        print(f"{name:18s} bytes to answer p50 {metrics[name]['bytes_to_answer_ms']['p50']:6.2f} ms")
    print(f"INT8: {advice(metrics['int8'])}")
    print(f"-> {stage_metrics('benchmark')} {THROUGHPUT_CSV} {SPEED_PNG}")


def backends(settings: Benchmark, device: torch.device) -> dict[str, Backend]:
    """All ways to predict that this machine has, by name; each loads its own copy of the network."""
    n_threads = torch.get_num_threads()
    calibration = load_calibration(CALIBRATION)
    n_bytes = CHECKPOINT.stat().st_size

    def of_torch(on: torch.device, compiled: bool = False) -> Predict:
        return torch_probabilities(load_checkpoint(CHECKPOINT)[0].to(on), calibration, compiled)

    eager = of_torch(torch.device("cpu"))
    found = {"torch": Backend(eager, _one_thread(eager), n_bytes, ("torch", str(CHECKPOINT), str(CALIBRATION)))}
    if settings.compile:
        compiled = of_torch(torch.device("cpu"), compiled=True)
        found["torch_compile"] = Backend(compiled, _one_thread(compiled), n_bytes)
    if device.type != "cpu":
        found[f"torch_{device.type}"] = Backend(of_torch(device), None, n_bytes)
    for name, source in FORMS.items():
        together, alone = (OnnxClassifier(source, threads).probabilities for threads in (n_threads, 1))
        found[name] = Backend(together, alone, source.stat().st_size, ("onnx", str(source)))
        if device.type == "cuda" and has_provider(CUDA):
            on_gpu = OnnxClassifier(source, provider=CUDA).probabilities
            found[f"{name}_cuda"] = Backend(on_gpu, None, source.stat().st_size)
    return found


def _one_thread(predict: Predict) -> Predict:
    def alone(pixels: np.ndarray) -> np.ndarray:
        with _threads(1):
            return predict(pixels)

    return alone


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    found: dict[str, Backend], pixels: np.ndarray, settings: Benchmark
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Latency at batch 1 and the best throughput of each backend with all threads and with one, and the table of all sizes.

    pixels: uint8 `[N, H, W, 3]`; batches larger than N repeat images.
    """
    metrics: dict[str, dict[str, Any]] = {name: {} for name in found}
    lines = []
    groups = {
        "": {name: backend.predict for name, backend in found.items()},
        "_one_thread": {name: backend.alone for name, backend in found.items() if backend.alone},
    }
    for suffix, calls in groups.items():
        for name, times in interleaved_ms(calls, pixels[:1], settings.warmup_runs, settings.latency_runs).items():
            metrics[name][f"latency_ms{suffix}"] = percentiles(times) | {"p50_rounds": spread(times)}
        for batch_size in settings.batch_sizes:
            batch = pixels[np.arange(batch_size) % len(pixels)]
            for name, times in interleaved_ms(calls, batch, 2, settings.throughput_runs).items():
                rates = batch_size / times * 1000
                threads = 1 if suffix else torch.get_num_threads()
                lines.append((name, threads, batch_size, float(np.median(rates)), float(rates.min()), float(rates.max())))
                best = metrics[name].get(f"images_per_second{suffix}", 0.0)
                metrics[name][f"images_per_second{suffix}"] = max(best, float(np.median(rates)))
    for name, backend in found.items():
        energy = joules(partial(_repeated, backend.predict, batch, settings.throughput_runs))
        if energy is not None:
            metrics[name]["joules_per_image"] = energy / (settings.throughput_runs * len(batch))
    return metrics, pd.DataFrame(lines, columns=["backend", "threads", "batch_size", "images_per_second", "slowest", "fastest"])


def _repeated(predict: Predict, batch: np.ndarray, runs: int) -> None:
    for _ in range(runs):
        predict(batch)


def _decoded_and_answered(predict: Predict, image_px: int, content: bytes) -> np.ndarray:
    return predict(np.stack([decode(content, image_px)]))[0]


def whole_way(
    found: dict[str, Backend],
    own_library: tuple[str, Callable[[bytes], np.ndarray]] | None,
    encoded: bytes,
    image_px: int,
    settings: Benchmark,
) -> dict[str, np.ndarray]:
    """Milliseconds from the bytes of one photograph to its probabilities, of each backend and of the network's library."""
    ways: dict[str, Callable[[bytes], np.ndarray]] = {
        name: partial(_decoded_and_answered, backend.predict, image_px) for name, backend in found.items()
    }
    if own_library:
        ways[f"{own_library[0]}_own_inference"] = own_library[1]
    return interleaved_ms(ways, encoded, settings.warmup_runs, settings.latency_runs)


def accuracy(predict: Predict, pixels: np.ndarray, targets: np.ndarray) -> float:
    """Share of test images whose top 1 is right, through this backend."""
    parts = [predict(pixels[start : start + 64]).argmax(axis=1) for start in range(0, len(pixels), 64)]
    return float((np.concatenate(parts) == targets).mean())


def worth(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether the INT8 file should be taken in place of the fp32 one on this machine."""
    full, small = metrics["onnxruntime"], metrics["onnxruntime_int8"]
    speedup = small["images_per_second"] / full["images_per_second"]
    points_lost = 100 * (full["accuracy"] - small["accuracy"])
    return {"speedup": speedup, "points_lost": points_lost, "offered": speedup > 1 and points_lost <= POINTS_LOST}


def advice(int8: dict[str, Any]) -> str:
    """What `worth` found, in words."""
    gain = f"{int8['speedup']:.2f} times the throughput of fp32, {int8['points_lost']:.2f} points of accuracy lost; "
    return gain + (f"worth it: give {ONNX_INT8} to predict" if int8["offered"] else f"not worth it here: stay with {ONNX}")


def sentence(name: str, figures: dict[str, Any]) -> str:
    latency = figures["latency_ms"]
    return (
        f"{name:18s} batch 1 p50 {latency['p50']:6.2f} ms  p99 {latency['p99']:6.2f} ms"
        f"  {figures['images_per_second']:7.0f} images/s  accuracy {figures['accuracy']:.2%}  {figures['bytes'] / 1e6:.1f} MB"
    )


def hardware(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "device": device_name(device),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),  # of torch and of ONNX Runtime
        "int8_dot_products": _has_vnni(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _has_vnni() -> bool | None:
    """Whether the processor multiplies bytes at once; None where the system does not tell."""
    try:
        with open("/proc/cpuinfo") as lines:
            return "vnni" in lines.read()
    except OSError:
        return None


def _cpu_model() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    run_command(main)
