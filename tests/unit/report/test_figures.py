"""The charts of a run: every PNG, equal bytes, a notice where there is nothing to show, and SVG that suits the page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldguide.core.paths import (
    ACTIVATION_PNG,
    CONFUSED_PAIRS_PNG,
    COVERAGE_PNG,
    CURVES_PNG,
    GALLERY_JSON,
    LABEL_MAP_PNG,
    PER_CLASS_PNG,
    RELIABILITY_PNG,
    RIGHT_PNG,
    SPEED_PNG,
    WRONG_PNG,
    confusion_png,
    stage_metrics,
)
from fieldguide.evaluation.gallery import select_gallery
from fieldguide.evaluation.summary import Evaluation, evaluate_metrics
from fieldguide.evaluation.tables import save_tables
from fieldguide.report.facts import read_facts
from fieldguide.report.figures import figures_of, svg
from fieldguide.report.plots import save_png
from support import ROOT
from support.evaluations import TEST, TRAIN, VALID, activations, evaluation, photographs
from support.reports import PARAMS as RUN
from support.reports import write_run
from support.settings import PARAMS

RIGHT = ([0, 1], [0, 1], [0.9, 0.8])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run("Papilio machaon")
    return tmp_path


def draw(chosen: Evaluation, with_activation: bool = True) -> set[Path]:
    """Writes what the evaluation leaves and draws its charts; their paths."""
    evaluate_metrics(chosen, {"noise": np.zeros(5)}, PARAMS.evaluate).write(stage_metrics("evaluate"))
    save_tables(chosen, 10)
    select_gallery(chosen, photographs, activations if with_activation else None).write(GALLERY_JSON)
    figures = figures_of(read_facts(RUN))
    for path, figure in figures.items():
        save_png(figure, path)
    return set(figures)


def height(picture: Path) -> int:
    """Pixels; a picture that only says something is less than 200 high."""
    with Image.open(picture) as image:
        return image.size[1]


def test_every_chart_of_an_evaluation_is_drawn_and_has_the_same_bytes_twice() -> None:
    chosen = evaluation(train=TRAIN, valid=VALID, test=TEST)
    drawn = draw(chosen)
    assert drawn == {
        *(confusion_png(split) for split in ("train", "valid", "test")),
        *(PER_CLASS_PNG, RELIABILITY_PNG, COVERAGE_PNG, WRONG_PNG, RIGHT_PNG, ACTIVATION_PNG, CONFUSED_PAIRS_PNG),
        *(CURVES_PNG, SPEED_PNG, LABEL_MAP_PNG),
    }
    assert min(map(height, drawn)) > 200
    first = {path: path.read_bytes() for path in drawn}
    draw(chosen)
    assert {path: path.read_bytes() for path in drawn} == first


@pytest.mark.slow
def test_a_split_without_labels_is_a_notice() -> None:
    draw(evaluation(train=TRAIN, valid=VALID))
    assert height(confusion_png("test")) < 200 < height(confusion_png("valid"))


@pytest.mark.slow
def test_no_mistake_no_right_answer_and_no_activation_map_are_notices() -> None:
    draw(evaluation(train=TRAIN, valid=RIGHT, test=RIGHT))
    assert height(WRONG_PNG) < 200
    assert height(CONFUSED_PAIRS_PNG) < 200
    draw(evaluation(train=TRAIN, valid=VALID, test=([0, 1], [1, 0], [0.9, 0.8])), with_activation=False)
    assert height(RIGHT_PNG) < 200
    assert height(ACTIVATION_PNG) < 200


@pytest.mark.slow
def test_svg_takes_the_colour_of_the_page_and_has_no_date_and_no_repeated_id() -> None:
    draw(evaluation(train=TRAIN, valid=VALID, test=TEST))
    figures = figures_of(read_facts(RUN))
    texts = [svg(figures[path], "a <label>") for path in (COVERAGE_PNG, RELIABILITY_PNG)]
    for text in texts:
        assert text.startswith('<svg role="img" aria-label="a &lt;label&gt;"')
        assert "currentColor" in text
        assert "#000000" not in text
        assert "<metadata" not in text
        assert not re.search(r"<g id=", text)
    figures = figures_of(read_facts(RUN))
    assert texts == [svg(figures[path], "a <label>") for path in (COVERAGE_PNG, RELIABILITY_PNG)]


def test_the_chart_of_speed_has_each_backend_and_says_what_was_measured() -> None:
    metrics = json.loads((ROOT / "tests" / "support" / "metrics" / "benchmark.json").read_text())
    metrics["timm_own_inference"] = {"bytes_to_answer_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}}
    stage_metrics("benchmark").write_text(json.dumps(metrics))
    (axis,) = figures_of(read_facts(RUN))[SPEED_PNG].axes
    assert axis.get_title() == f"fieldnet at 96 px, 4 test images, {metrics['hardware']['device']}"
    places = {container.get_label(): container.lines[0].get_xydata()[0].tolist() for container in axis.containers}
    assert places == {
        name: [metrics[name]["latency_ms"]["p50"], metrics[name]["accuracy"]]
        for name in ("torch", "onnxruntime", "onnxruntime_fp16", "onnxruntime_int8")
    }
