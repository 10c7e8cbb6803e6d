"""Latency, throughput and accuracy of each backend on the same images, and the comparison of INT8 with fp32."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fieldguide.benchmark.backends import Backend
from fieldguide.benchmark.reference import Answer
from fieldguide.benchmark.timing import Predict, interleaved_ms, latency
from fieldguide.core.artifacts import BackendMetrics, Int8Comparison, Latency, Speed
from fieldguide.core.images import decode
from fieldguide.core.params import Benchmark
from fieldguide.onnx.sample import ImageSample, scores

POINTS_LOST = 0.5  # of accuracy, in percentage points: the largest acceptable loss of INT8
COLUMNS = ["backend", "threads", "batch_size", "images_per_second", "slowest", "fastest"]


def measure_speed(
    backends: Mapping[str, Backend], pixels: np.ndarray, settings: Benchmark
) -> tuple[dict[str, Speed], pd.DataFrame]:
    """Latency at batch size 1 and the best throughput of each backend with all threads and with one, and a table of all sizes.

    pixels: uint8 `[N, H, W, 3]`; batches larger than N repeat images.
    """
    together = {name: backend.predict for name, backend in backends.items()}
    alone = {name: backend.one_thread for name, backend in backends.items() if backend.one_thread}
    latencies, table = _timings(together, torch.get_num_threads(), pixels, settings)
    latencies_alone, table_alone = _timings(alone, 1, pixels, settings)
    best, best_alone = (each.groupby("backend")["images_per_second"].max() for each in (table, table_alone))
    speeds = {
        name: Speed(
            latency_ms=latencies[name],
            images_per_second=best[name],
            latency_ms_one_thread=latencies_alone.get(name),
            images_per_second_one_thread=best_alone.get(name),
        )
        for name in backends
    }
    return speeds, pd.concat([table, table_alone], ignore_index=True)


def _timings(
    calls: Mapping[str, Predict], n_threads: int, pixels: np.ndarray, settings: Benchmark
) -> tuple[dict[str, Latency], pd.DataFrame]:
    """Latency at batch size 1 by backend, and a table of the median throughput of each backend at each batch size.

    The throughput at batch size 1 is that of the calls whose latency was measured.
    """
    single = interleaved_ms(calls, pixels[:1], settings.warmup_runs, settings.latency_runs)
    lines = []
    threads = f"{n_threads} threads" if n_threads > 1 else "1 thread"
    for batch_size in tqdm(settings.batch_sizes, unit="size", desc=f"batches, {threads}", disable=None):
        batch = pixels[np.arange(batch_size) % len(pixels)]
        timed = single if batch_size == 1 else interleaved_ms(calls, batch, 0, settings.throughput_runs)
        for name, times in timed.items():
            rates = batch_size / times * 1000
            lines.append((name, n_threads, batch_size, np.median(rates), rates.min(), rates.max()))
    return {name: latency(times) for name, times in single.items()}, pd.DataFrame(lines, columns=COLUMNS)


def end_to_end_latency(
    backends: Mapping[str, Backend], library: Mapping[str, Answer], encoded: bytes, image_px: int, settings: Benchmark
) -> dict[str, np.ndarray]:
    """Milliseconds from the bytes of one photograph to its probabilities, of each backend and of the network's library."""

    def decode_and_predict(predict: Predict, content: bytes) -> np.ndarray:
        return predict(np.stack([decode(content, image_px)]))[0]

    calls = {name: partial(decode_and_predict, backend.predict) for name, backend in backends.items()}
    return interleaved_ms({**calls, **library}, encoded, settings.warmup_runs, settings.latency_runs)


def accuracies(backends: Mapping[str, Backend], sample: ImageSample) -> dict[str, float]:
    """Top-1 accuracy of each backend on the sample."""
    found = scores({name: backend.predict for name, backend in backends.items()}, sample)
    return {name: score.n_right / len(sample) for name, score in found.items()}


def compare_int8(fp32: BackendMetrics, int8: BackendMetrics) -> Int8Comparison:
    """Whether the INT8 file should replace the fp32 file on this machine."""
    speedup = int8.images_per_second / fp32.images_per_second
    points_lost = 100 * (fp32.accuracy - int8.accuracy)
    return Int8Comparison(speedup=speedup, points_lost=points_lost, offered=speedup > 1 and points_lost <= POINTS_LOST)


def summary_line(name: str, figures: BackendMetrics) -> str:
    return (
        f"{name:18s} batch 1 p50 {figures.latency_ms.p50:6.2f} ms  p99 {figures.latency_ms.p99:6.2f} ms"
        f"  {figures.images_per_second:7.0f} images/s  accuracy {figures.accuracy:.2%}  {figures.bytes / 1e6:.1f} MB"
    )
