"""The headlines: the few figures of each stage that DVC shows as metrics, in files of their own.

A stage's metrics are in metrics/<stage>.json, an output like any other. Their headlines are in metrics/headlines/<stage>.json,
in git. Names are unique over all stages and plain, because they are the columns of `dvc exp show`.
"""

from collections.abc import Mapping
from typing import Any

from fieldguide.core.artifacts import Artifact
from fieldguide.core.files import write_json
from fieldguide.core.names import flat
from fieldguide.core.paths import headlines_json, stage_metrics

HEADLINES: dict[str, dict[str, str]] = {  # by stage: the name, and the figure in metrics/<stage>.json; of a group the sum
    "split_check": {
        "leaks": "leaks",
        "dropped": "dropped",
    },
    "label_check": {
        "suspected_labels": "suspected",
    },
    "train": {
        "epochs": "epochs",
        "best_epoch": "best_epoch",
        "best_loss": "valid.loss",
        "best_accuracy": "valid.accuracy",
    },
    "evaluate": {
        "test_accuracy": "test.accuracy",
        "test_macro_f1": "test.macro_f1",
        "test_ece": "test.ece",
        "test_accuracy_low": "test.accuracy_low",
        "test_accuracy_high": "test.accuracy_high",
        "test_loss": "test.loss",
        "test_known": "test.known",
        "test_sure": "test.sure",
        "test_accuracy_when_sure": "test.accuracy_when_sure",
        "test_accuracy_without_leaks": "test_without_leaks.accuracy",
        "valid_accuracy": "valid.accuracy",
        "valid_macro_f1": "valid.macro_f1",
        "valid_ece": "valid.ece",
        "valid_accuracy_low": "valid.accuracy_low",
        "valid_accuracy_high": "valid.accuracy_high",
        "valid_loss": "valid.loss",
        "train_accuracy": "train.accuracy",
    },
    "export_onnx": {
        "onnx_top1_agreement": "top1_agreement",
        "onnx_max_difference": "max_abs_difference",
        "onnx_bytes": "bytes",
        "fp16_accuracy": "fp16.accuracy",
        "int8_accuracy": "int8.accuracy",
        "int8_bytes": "int8.bytes",
    },
    "benchmark": {
        "latency_ms": "onnxruntime.latency_ms.p50",
        "images_per_second": "onnxruntime.images_per_second",
        "first_answer_s": "onnxruntime.first_answer_s",
        "peak_bytes": "onnxruntime.peak_bytes",
        "int8_speedup": "int8.speedup",
        "int8_points_lost": "int8.points_lost",
    },
}


def write_metrics(stage: str, metrics: Artifact) -> None:
    """Writes a stage's metrics and their headlines."""
    content = metrics.as_dict()
    write_json(stage_metrics(stage), content)
    write_json(headlines_json(stage), headlines(stage, flat(content)))


def headlines(stage: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The headlines by name, without those that a run does not have (a test split without labels); `metrics`: flat."""
    found = {name: _figure(path, metrics) for name, path in HEADLINES[stage].items()}
    return {name: value for name, value in found.items() if value is not None}


def tracked_headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    """The headlines among MLflow's metrics of a run, by MLflow's names (`TRACKED`)."""
    found = {tracked: _figure(tracked, metrics) for tracked in TRACKED.values()}
    return {tracked: value for tracked, value in found.items() if value is not None}


TRACKED = {name: f"{stage}.{path}" for stage, paths in HEADLINES.items() for name, path in paths.items()}  # MLflow's names


def _figure(path: str, metrics: Mapping[str, Any]) -> float | None:
    value = metrics.get(path)
    if isinstance(value, int | float):
        return value
    group = [value for name, value in metrics.items() if name.startswith(f"{path}.")]
    return sum(group) if group else None
