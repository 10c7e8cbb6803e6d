"""Speed, accuracy and size of the model in torch and in ONNX Runtime, on the same test images.

Reads models/model.safetensors, models/model.onnx, data/manifest.csv, data/raw and `benchmark` of params.yaml; writes
metrics/benchmark.json and metrics/throughput.csv. The figures belong to this machine, which the file names:
measure again on another with `dvc repro -f -s benchmark`.
"""

import os
import platform

import numpy as np
import onnxruntime
import pandas as pd
import torch

from fieldguide import tracking
from fieldguide.bench import Predict, interleaved_ms, percentiles
from fieldguide.checkpoint import load_checkpoint
from fieldguide.classifier import OnnxClassifier
from fieldguide.device import device_name, pick_device
from fieldguide.errors import run_command
from fieldguide.files import write_json
from fieldguide.loader import decode_all
from fieldguide.manifest import held_out, read_manifest, write_table
from fieldguide.models import Classifier
from fieldguide.onnx_export import Exported
from fieldguide.params import Benchmark, read_params
from fieldguide.paths import CHECKPOINT, MANIFEST, ONNX, RAW, THROUGHPUT_CSV, stage_metrics


def main() -> None:
    params = read_params()
    device = pick_device(params.runtime.device)
    model, facts = load_checkpoint(CHECKPOINT)
    _, rows = held_out(read_manifest(MANIFEST))
    pixels = decode_all(rows, RAW, facts.image_px, params.runtime.n_workers).permute(0, 2, 3, 1).numpy()
    targets = facts.classes.targets(rows)
    backends = {
        "torch": torch_backend(model, device),
        "onnxruntime": OnnxClassifier(ONNX, torch.get_num_threads()).probabilities,
    }
    n_bytes = {"torch": CHECKPOINT.stat().st_size, "onnxruntime": ONNX.stat().st_size}

    metrics, throughput = measure(backends, pixels, params.benchmark)
    for name, predict in backends.items():
        metrics[name] |= {"accuracy": accuracy(predict, pixels, targets), "bytes": n_bytes[name]}
        latency = metrics[name]["latency_ms"]
        print(
            f"{name:12s} batch 1 p50 {latency['p50']:6.2f} ms  p99 {latency['p99']:6.2f} ms"
            f"  {metrics[name]['images_per_second']:7.0f} images/s  accuracy {metrics[name]['accuracy']:.2%}"
        )
    metrics["hardware"] = hardware(device)
    write_json(stage_metrics("benchmark"), metrics)
    write_table(throughput, THROUGHPUT_CSV)
    with tracking.stage_run("benchmark", params.benchmark, CHECKPOINT) as run:
        run.log(metrics, stage_metrics("benchmark"), THROUGHPUT_CSV)
    print(f"-> {stage_metrics('benchmark')} {THROUGHPUT_CSV}")


def torch_backend(model: Classifier, device: torch.device) -> Predict:
    """The checkpoint in torch, eager, fp32: uint8 `[B, H, W, 3]` to probabilities `[B, K]`, transfers included."""
    exported = Exported(model).eval().to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> np.ndarray:
        return exported(torch.from_numpy(pixels).to(device)).cpu().numpy()

    return predict


def measure(
    backends: dict[str, Predict], pixels: np.ndarray, settings: Benchmark
) -> tuple[dict[str, dict[str, object]], pd.DataFrame]:
    """Latency at batch 1 and the best throughput of each backend, and the table of all batch sizes.

    pixels: uint8 `[N, H, W, 3]`; batches larger than N repeat images.
    """
    latency = interleaved_ms(backends, pixels[:1], settings.warmup_runs, settings.latency_runs)
    lines = []
    for batch_size in settings.batch_sizes:
        batch = pixels[np.arange(batch_size) % len(pixels)]
        for name, times in interleaved_ms(backends, batch, 2, settings.throughput_runs).items():
            rates = batch_size / times * 1000
            lines.append((name, batch_size, float(np.median(rates)), float(rates.min()), float(rates.max())))
    table = pd.DataFrame(lines, columns=["backend", "batch_size", "images_per_second", "slowest", "fastest"])
    best = table.groupby("backend")["images_per_second"].max()
    metrics: dict[str, dict[str, object]] = {
        name: {"latency_ms": percentiles(latency[name]), "images_per_second": float(best[name])} for name in backends
    }
    return metrics, table


def accuracy(predict: Predict, pixels: np.ndarray, targets: np.ndarray) -> float:
    """Share of test images whose top 1 is right, through this backend."""
    parts = [predict(pixels[start : start + 64]).argmax(axis=1) for start in range(0, len(pixels), 64)]
    return float((np.concatenate(parts) == targets).mean())


def hardware(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "device": device_name(device),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),  # of torch and of ONNX Runtime
        "system": platform.platform(terse=True),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _cpu_model() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    run_command(main)
