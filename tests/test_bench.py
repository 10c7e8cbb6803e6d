"""Timing: what is counted, in which turn, and what the percentiles are of."""

import time
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fieldguide import bench
from fieldguide.bench import interleaved_ms, percentiles, timed_ms

PIXELS = np.zeros((2, 4, 4, 3), np.uint8)


def recorders(calls: list[str], *names: str) -> dict[str, bench.Predict]:
    def backend(name: str) -> bench.Predict:
        def predict(pixels: np.ndarray) -> np.ndarray:
            assert pixels is PIXELS
            calls.append(name)
            return np.zeros((len(pixels), 2), np.float32)

        return predict

    return {name: backend(name) for name in names}


def test_backends_take_turns_after_a_warm_up_of_each() -> None:
    calls: list[str] = []
    times = interleaved_ms(recorders(calls, "a", "b"), PIXELS, warmup_runs=3, runs=2)
    assert calls == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 2
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("warmup_runs", [0, 1, 7])
def test_warm_up_runs_are_made_and_not_timed(warmup_runs: int) -> None:
    calls: list[str] = []
    times = interleaved_ms(recorders(calls, "a"), PIXELS, warmup_runs, runs=4)
    assert len(calls) == warmup_runs + 4
    assert times["a"].shape == (4,)


def test_times_belong_to_the_backend_that_took_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def lasting(milliseconds: count) -> bench.Predict:
        def predict(pixels: np.ndarray) -> np.ndarray:
            clock.now += next(milliseconds) / 1000
            return pixels

        return predict

    times = interleaved_ms({"slow": lasting(count(100, 10)), "fast": lasting(count(1))}, PIXELS, warmup_runs=1, runs=3)
    assert times["slow"] == pytest.approx([110, 120, 130])
    assert times["fast"] == pytest.approx([2, 3, 4])


def test_one_call_is_timed_in_milliseconds() -> None:
    assert 20 <= timed_ms(lambda: time.sleep(0.02)) < 1000


def test_the_accelerator_is_waited_for_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    clock = SimpleNamespace(perf_counter=lambda: events.append("clock") or 0.0)
    monkeypatch.setattr(bench, "time", clock)
    timed_ms(lambda: events.append("call"))
    assert events == ["wait", "clock", "call", "wait", "clock"]


def test_percentiles_of_known_times() -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))  # 1 to 101 ms
    assert percentiles(shuffled) == pytest.approx({"p50": 51, "p95": 96, "p99": 100})
    assert percentiles(np.array([1.0, 2.0])) == pytest.approx({"p50": 1.5, "p95": 1.95, "p99": 1.99})


def test_percentiles_of_one_time_are_that_time_as_plain_numbers() -> None:
    found = percentiles(np.array([7.5]))
    assert found == {"p50": 7.5, "p95": 7.5, "p99": 7.5}
    assert {type(value) for value in found.values()} == {float}
