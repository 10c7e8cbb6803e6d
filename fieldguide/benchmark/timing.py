"""Timing with warm-up, device synchronisation, interleaved candidates and percentiles."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from fieldguide.core.artifacts import Latency, Percentiles

ROUNDS = 5  # blocks of timed calls per backend
PAUSE_S = 0.05  # measured on 2 cores: without it, torch at batch 1 took 3 times as long beside ONNX Runtime as alone
BLOCK_WARMUP_RUNS = 1

T = TypeVar("T")
Predict = Callable[[np.ndarray], np.ndarray]  # uint8 [B, H, W, 3] to probabilities [B, K]


def timed_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call; synchronises CUDA, if available, before and after it."""
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return (time.perf_counter() - start) * 1000


def interleaved_ms(
    backends: Mapping[str, Callable[[T], object]], pixels: T, warmup_runs: int, runs: int
) -> dict[str, np.ndarray]:
    """Times of each backend on the same input: `[runs]` each.

    Backends alternate block by block, so that a slower machine affects all of them. Each block starts with a pause and untimed
    calls, because the threads of the previous backend keep spinning for a while.
    """
    for predict in backends.values():
        for _ in range(warmup_runs):
            predict(pixels)
    times: dict[str, list[float]] = {name: [] for name in backends}
    for block in np.array_split(np.arange(runs), min(ROUNDS, runs)):
        for name, predict in backends.items():
            time.sleep(PAUSE_S)
            for _ in range(BLOCK_WARMUP_RUNS):
                predict(pixels)
            times[name] += [timed_ms(partial(predict, pixels)) for _ in block]
    return {name: np.array(values) for name, values in times.items()}


def percentiles(times_ms: np.ndarray) -> Percentiles:
    p50, p95, p99 = (float(np.percentile(times_ms, q)) for q in (50, 95, 99))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def latency(times_ms: np.ndarray) -> Latency:
    """The percentiles, and the lowest and the highest median of the blocks."""
    medians = [float(np.median(block)) for block in np.array_split(times_ms, min(ROUNDS, len(times_ms)))]
    return Latency(**percentiles(times_ms).model_dump(), p50_rounds=(min(medians), max(medians)))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
