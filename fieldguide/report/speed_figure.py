"""The picture of the benchmark: accuracy against latency."""

from pathlib import Path

from fieldguide.core.artifacts import BenchmarkMetrics
from fieldguide.core.manifest import held_out, read_manifest
from fieldguide.core.params import Model
from fieldguide.core.paths import MANIFEST, SPEED_PNG, stage_metrics
from fieldguide.report import plots


def save_speed_figure(model: Model) -> list[Path]:
    """Draws metrics/speed.png from metrics/benchmark.json and the manifest, and returns its path."""
    metrics = BenchmarkMetrics.read(stage_metrics("benchmark"))
    split, rows = held_out(read_manifest(MANIFEST))
    points = {
        name: (figures.latency_ms.p50, figures.latency_ms.p95, figures.accuracy) for name, figures in metrics.backends.items()
    }
    title = f"{model.name} at {model.image_px} px, {len(rows)} {split} images, {metrics.hardware.device}"
    plots.save_png(plots.accuracy_latency(points, title), SPEED_PNG)
    return [SPEED_PNG]
