"""What the benchmark makes of its backends: speed with all threads and with one, accuracy, and whether INT8 is worth it."""

import json

import numpy as np
import pandas as pd
import pytest

from fieldguide.benchmark import measure
from fieldguide.benchmark.backends import Backend
from fieldguide.benchmark.measure import accuracies, compare_int8, end_to_end_latency, measure_speed, summary_line
from fieldguide.core.artifacts import BackendMetrics, BenchmarkMetrics
from fieldguide.core.params import Benchmark
from fieldguide.core.paths import RAW
from fieldguide.onnx import sample as samples
from fieldguide.onnx.sample import draw
from support import ROOT

SETTINGS = Benchmark(batch_sizes=(1, 3), warmup_runs=1, latency_runs=10, throughput_runs=3, compile=False)
PIXELS = np.arange(2, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)  # two images, of 0 and of 1


def predict(pixels: np.ndarray) -> np.ndarray:
    """Class 0 for an image of 0, class 1 for one of 1."""
    return np.eye(2, dtype=np.float32)[pixels[:, 0, 0, 0]]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """The backends and the batch size of each timing; an image takes 2 ms."""
    asked = []

    def interleaved_ms(calls, pixels, warmup_runs: int, runs: int) -> dict[str, np.ndarray]:
        asked.append((list(calls), len(pixels)))
        for call in calls.values():
            call(pixels)
        return {name: np.full(runs, 2.0 * len(pixels)) for name in calls}

    monkeypatch.setattr(measure, "interleaved_ms", interleaved_ms)
    return asked


def test_speed_is_measured_at_each_size_with_all_threads_and_with_one(times) -> None:
    backends = {"cpu": Backend(predict, predict, 1), "gpu": Backend(predict, None, 1)}
    speeds, table = measure_speed(backends, PIXELS, SETTINGS)
    assert times == [(["cpu", "gpu"], size) for size in (1, 3)] + [(["cpu"], size) for size in (1, 3)]
    assert speeds["cpu"].latency_ms.p50 == 2.0
    assert speeds["cpu"].images_per_second_one_thread == 500.0
    assert set(speeds["gpu"].as_dict()) == {"latency_ms", "images_per_second"}
    assert table[["backend", "batch_size"]].to_numpy().tolist() == [
        *(["cpu", 1], ["gpu", 1], ["cpu", 3], ["gpu", 3]),
        *(["cpu", 1], ["cpu", 3]),
    ]
    assert table["images_per_second"].eq(500).all()


def test_a_library_is_timed_beside_the_backends_from_the_bytes_on(make_jpeg) -> None:
    seen = []
    backends = {"cpu": Backend(lambda pixels: seen.append(pixels.shape) or np.zeros((1, 2)), None, 1)}
    found = end_to_end_latency(
        backends, {"timm_own_inference": lambda encoded: np.zeros(2)}, make_jpeg(0, 30, 20), 16, SETTINGS
    )
    assert {name: times.shape for name, times in found.items()} == {"cpu": (10,), "timm_own_inference": (10,)}
    assert set(seen) == {(1, 16, 16, 3)}


def test_accuracy_is_the_share_of_right_first_answers_on_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = pd.array([0, 1] * 50, dtype="Int64")  # more than one batch
    rows = pd.DataFrame({"given_label": labels, "sha256": [f"{number:03d}" for number in range(100)]})
    pixels = np.concatenate([PIXELS] * 50)
    monkeypatch.setattr(samples, "decode_pixels", lambda *_, **__: pixels)
    backends = {"right": Backend(predict, None, 1), "other": Backend(lambda images: 1 - predict(images), None, 1)}
    all_right = draw(rows, np.array([0, 1] * 50), RAW, 4, 1)
    assert accuracies(backends, all_right) == {"right": 1.0, "other": 0.0}
    quarter_wrong = draw(rows, np.array([0, 1] * 25 + [1, 1] * 25), RAW, 4, 1)
    assert accuracies(backends, quarter_wrong) == {"right": 0.75, "other": 0.25}


def backend(rate: float, accuracy: float) -> BackendMetrics:
    committed = json.loads((ROOT / "tests" / "support" / "metrics" / "benchmark.json").read_text())["onnxruntime"]
    return BackendMetrics(**committed | {"images_per_second": rate, "accuracy": accuracy})


@pytest.mark.parametrize(
    ("rate", "accuracy", "offered"), [(200, 0.90, True), (200, 0.896, True), (200, 0.894, False), (100, 0.90, False)]
)
def test_int8_is_offered_where_it_is_faster_and_loses_at_most_half_a_point(rate: float, accuracy: float, offered: bool) -> None:
    found = compare_int8(backend(100, 0.90), backend(rate, accuracy))
    assert found.offered is offered
    assert found.speedup == rate / 100
    assert found.points_lost == pytest.approx(90 - 100 * accuracy)


def test_a_summary_line_has_the_figures_with_their_units() -> None:
    figures = BenchmarkMetrics.read(ROOT / "tests" / "support" / "metrics" / "benchmark.json").backends["onnxruntime"]
    assert summary_line("onnxruntime", figures) == (
        f"onnxruntime        batch 1 p50 {figures.latency_ms.p50:6.2f} ms  p99 {figures.latency_ms.p99:6.2f} ms"
        f"  {figures.images_per_second:7.0f} images/s  accuracy {figures.accuracy:.2%}  {figures.bytes / 1e6:.1f} MB"
    )
