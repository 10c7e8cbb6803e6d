"""Timing: what is counted, in which turn, and what the percentiles are of."""

import time
from collections.abc import Iterator
from itertools import count, groupby, repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fieldguide.benchmark import timing as bench
from fieldguide.benchmark.timing import interleaved_ms, percentiles, timed_ms

PIXELS = np.zeros((2, 4, 4, 3), np.uint8)
Events = list[tuple[str, object]]


class Clock:
    """A clock that moves only when something takes or asks for time, and a list of what happened."""

    def __init__(self) -> None:
        self.now, self.events = 100.0, []

    def perf_counter(self) -> float:
        self.events.append(("clock", None))
        return self.now

    def sleep(self, seconds: float) -> None:
        self.events.append(("pause", seconds))
        self.now += seconds

    def backend(self, name: str, milliseconds: Iterator[float]) -> bench.Predict:
        def predict(pixels: np.ndarray) -> np.ndarray:
            assert pixels is PIXELS
            taken = next(milliseconds)
            self.events.append((name, taken))
            self.now += taken / 1000
            return np.zeros((len(pixels), 2), np.float32)

        return predict


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(bench, "time", stopped)
    return stopped


def calls(events: Events) -> list[str]:
    return [name for name, _ in events if name not in ("clock", "pause")]


@pytest.mark.parametrize("runs", [1, 2, 9, 10, 23, 200])
@pytest.mark.parametrize("warmup_runs", [0, 1, 7])
def test_every_backend_is_timed_as_often_as_asked_after_its_warm_up(clock: Clock, warmup_runs: int, runs: int) -> None:
    backends = {"a": clock.backend("a", repeat(1)), "b": clock.backend("b", repeat(1))}
    times = interleaved_ms(backends, PIXELS, warmup_runs, runs)
    assert {name: values.shape for name, values in times.items()} == {"a": (runs,), "b": (runs,)}
    assert calls(clock.events)[: 2 * warmup_runs] == ["a"] * warmup_runs + ["b"] * warmup_runs
    assert sum(name == "clock" for name, _ in clock.events) == 2 * 2 * runs  # before and after each timed call


@pytest.mark.parametrize("runs", [1, 10, 23])
def test_backends_take_turns_block_by_block(clock: Clock, runs: int) -> None:
    names = ("a", "b", "c")
    interleaved_ms({name: clock.backend(name, repeat(1)) for name in names}, PIXELS, 3, runs)
    n_warmup = 3 * len(names)
    turns = [name for name, _ in groupby(calls(clock.events)[n_warmup:])]
    assert turns == list(names) * min(bench.ROUNDS, runs)


def test_a_block_begins_with_a_pause_and_calls_that_are_not_counted(clock: Clock) -> None:
    interleaved_ms({"a": clock.backend("a", repeat(1))}, PIXELS, warmup_runs=0, runs=1)
    pause, *uncounted, before, timed, after = [name for name, _ in clock.events]
    assert (pause, before, timed, after) == ("pause", "clock", "a", "clock")
    assert uncounted == ["a"] * bench.BLOCK_WARMUP_RUNS
    assert clock.events[0] == ("pause", bench.PAUSE_S)


def test_times_belong_to_the_backend_that_took_them_and_leave_out_warm_up_and_pauses(clock: Clock) -> None:
    backends = {"slow": clock.backend("slow", count(100)), "fast": clock.backend("fast", count(1))}
    times = interleaved_ms(backends, PIXELS, warmup_runs=4, runs=2)
    skipped = bench.BLOCK_WARMUP_RUNS
    counted = [4 + skipped, 4 + skipped + 1 + skipped]  # two blocks of one call, each behind calls not counted
    assert times["slow"] == pytest.approx([100 + place for place in counted])
    assert times["fast"] == pytest.approx([1 + place for place in counted])


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
    assert percentiles(shuffled).as_dict() == pytest.approx({"p50": 51, "p95": 96, "p99": 100})
    assert percentiles(np.array([1.0, 2.0])).as_dict() == pytest.approx({"p50": 1.5, "p95": 1.95, "p99": 1.99})


def test_percentiles_of_one_time_are_that_time_as_plain_numbers() -> None:
    found = percentiles(np.array([7.5])).as_dict()
    assert found == {"p50": 7.5, "p95": 7.5, "p99": 7.5}
    assert {type(value) for value in found.values()} == {float}


def test_the_spread_is_that_of_the_medians_of_blocks() -> None:
    times = np.repeat(np.arange(1.0, 1 + bench.ROUNDS), 20)  # blocks, each level
    times[::20] = 500  # the odd slow call in each
    assert bench.latency(times).p50_rounds == (1, bench.ROUNDS)
    assert bench.latency(np.array([3.0, 1.0])).as_dict()["p50_rounds"] == [1, 3]
