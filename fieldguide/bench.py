"""Timing that can be trusted: warm-up first, the device synchronised, candidates interleaved, percentiles reported."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 [B, H, W, 3] to probabilities [B, K]


def timed_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call; waits for the accelerator on both sides."""
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return (time.perf_counter() - start) * 1000


def interleaved_ms(backends: Mapping[str, Predict], pixels: np.ndarray, warmup_runs: int, runs: int) -> dict[str, np.ndarray]:
    """Times of each backend on the same batch, taken in turn so that a machine that slows down slows all: `[runs]` each."""
    for predict in backends.values():
        for _ in range(warmup_runs):
            predict(pixels)
    times: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(runs):
        for name, predict in backends.items():
            times[name].append(timed_ms(lambda predict=predict: predict(pixels)))
    return {name: np.array(values) for name, values in times.items()}


def percentiles(times_ms: np.ndarray) -> dict[str, float]:
    """p50, p95 and p99."""
    return {f"p{q}": float(np.percentile(times_ms, q)) for q in (50, 95, 99)}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
