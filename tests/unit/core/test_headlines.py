"""The headlines: few, with names of their own, of figures that the stages' metrics have, and what DVC is told to show."""

import json
from collections import Counter
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from fieldguide.core.artifacts import (
    BenchmarkMetrics,
    EvaluateMetrics,
    ExportMetrics,
    LabelCheckMetrics,
    SplitCheckMetrics,
    TrainMetrics,
)
from fieldguide.core.headlines import HEADLINES, TRACKED, headlines, tracked_headlines, write_metrics
from fieldguide.core.names import flat
from fieldguide.core.paths import headlines_json, stage_metrics
from support import ROOT

TYPES = {
    "split_check": SplitCheckMetrics,
    "label_check": LabelCheckMetrics,
    "train": TrainMetrics,
    "evaluate": EvaluateMetrics,
    "export_onnx": ExportMetrics,
    "benchmark": BenchmarkMetrics,
}
MAX_HEADLINES = 40  # so that `dvc metrics diff` fits a screen


def figure_type(kind: Any, path: list[str]) -> Any:
    """The type of a figure in an artifact; raises `KeyError` for a key that it does not have."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    if not path:
        return kind
    if get_origin(kind) is dict:
        return figure_type(get_args(kind)[1], path[1:])
    assert issubclass(kind, BaseModel), f"{kind} has no {path[0]}"
    if kind is BenchmarkMetrics and path[0] not in kind.model_fields:  # its file has the backends beside the other keys
        return figure_type(kind.model_fields["backends"].annotation, path)
    return figure_type(kind.model_fields[path[0]].annotation, path[1:])


@pytest.mark.parametrize("stage", HEADLINES)
def test_every_headline_is_a_number_or_a_group_of_numbers_of_its_artifact(stage: str) -> None:
    for path in HEADLINES[stage].values():
        kind = figure_type(TYPES[stage], path.split("."))
        assert kind in (int, float) or kind == dict[str, int], path


def test_names_are_few_and_unique_also_among_the_parameters() -> None:
    names = [name for paths in HEADLINES.values() for name in paths]
    params = list(flat(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))))
    assert [name for name, n in Counter(names + params).items() if n > 1] == []
    assert len(set(TRACKED.values())) == len(names) <= MAX_HEADLINES


def test_the_headlines_are_all_that_dvc_shows_as_metrics() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    declared = {name: stage["metrics"] for name, stage in stages.items() if "metrics" in stage}
    assert declared == {stage: [{str(headlines_json(stage)): {"cache": False}}] for stage in HEADLINES}
    for stage in HEADLINES:
        assert str(stage_metrics(stage)) in stages[stage]["outs"]  # in DVC's cache: out of it no stage could be restored


def test_a_figure_that_a_run_lacks_has_no_headline_and_a_group_is_added_up() -> None:
    assert headlines("label_check", {"suspected.train": 2, "suspected.valid": 0, "suspected.test": 1, "doubtful": 9}) == {
        "suspected_labels": 3
    }
    assert headlines("split_check", {"leaks": None, "dropped": 0}) == {"dropped": 0}
    without_test = headlines("evaluate", {"valid.accuracy": 0.5, "train.accuracy": 1.0})
    assert without_test == {"valid_accuracy": 0.5, "train_accuracy": 1.0}


def test_mlflows_metrics_have_the_same_headlines_once_a_run_was_sent_by_sync_too() -> None:
    trained = {"label_check.suspected.train": 2.0, "label_check.suspected.test": 1.0, "train.valid.loss": 0.5, "lr": 0.1}
    restored = {"label_check.suspected": 3.0, "train.valid.loss": 0.5}
    assert tracked_headlines(trained) == tracked_headlines(restored) == restored


def test_a_stage_writes_its_metrics_and_their_headlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ROOT / "tests" / "support" / "metrics" / "benchmark.json"
    monkeypatch.chdir(tmp_path)
    write_metrics("benchmark", BenchmarkMetrics.read(source))
    assert Path("metrics/benchmark.json").read_bytes() == source.read_bytes()
    content = json.loads(source.read_text())
    written = json.loads(Path("metrics/headlines/benchmark.json").read_text())
    assert written["latency_ms"] == content["onnxruntime"]["latency_ms"]["p50"]
    assert list(written) == list(HEADLINES["benchmark"])
