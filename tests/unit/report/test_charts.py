"""Charts as SVG: well-formed, values at their places, and text escaped."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.ticker import MaxNLocator

from fieldguide.report.charts import HEIGHT, WIDTH, Line, confusion, lines, reliability, strip, ticks

NASTY = '<script>alert("1")</script> & Ü'


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text for element in parsed(svg).iter("text")]


def places(svg: str, kind: str) -> list[tuple[float, float]]:
    """The points of the first path of a class."""
    path = next(element for element in parsed(svg).iter("path") if element.get("class") == kind)
    steps = path.get("d").replace("M", "L").split("L")[1:]
    return [tuple(map(float, step.split())) for step in steps]


@pytest.mark.parametrize("bounds", [(0, 1), (0.9512, 1), (0, 5.7), (1, 100), (-3, 4), (0, 3e-4), (99.6, 100)])
def test_ticks_are_few_round_numbers_inside_as_matplotlibs(bounds: tuple[float, float]) -> None:
    found = ticks(*bounds)
    assert 3 <= len(found) <= 8
    assert bounds[0] - 1e-9 <= found[0] < found[-1] <= bounds[1] + 1e-9
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    reference = MaxNLocator(nbins=len(found) + 1, steps=[1, 2, 5, 10]).tick_values(*bounds)
    assert np.isclose(steps[0], np.diff(reference)[0])


def test_lines_rise_where_values_rise_and_stay_inside() -> None:
    svg = lines(
        [Line("train", [1, 2, 3], [0.1, 0.5, 0.4]), Line("valid", [1, 2, 3], [0.2, 0.3, 0.9])], "epoch", "share", "text"
    )
    xs, ys = zip(*places(svg, "line train"), strict=True)
    assert xs[0] < xs[1] < xs[2]
    assert ys[0] > ys[2] > ys[1]  # SVG counts from the top
    assert all(0 <= x <= WIDTH for x in xs)
    assert all(0 <= y <= HEIGHT for y in ys)
    assert {"train", "valid", "epoch", "share"} <= set(texts(svg))


def test_equal_values_have_equal_places_in_both_lines() -> None:
    svg = lines([Line("train", [1, 2], [0.1, 0.7]), Line("valid", [1, 2], [0.7, 0.1])], "epoch", "share", "text")
    (_, low), (_, high) = places(svg, "line train")
    assert [y for _, y in places(svg, "line valid")] == [high, low]


@pytest.mark.parametrize("ys", [[float("nan"), float("inf")], [2.0, float("nan"), 1.0, 3.0], [0.0, 0.0], [5.0]])
def test_values_that_are_not_finite_or_all_equal_still_give_a_chart(ys: list[float]) -> None:
    svg = lines([Line("train", list(range(1, len(ys) + 1)), ys)], "epoch", "loss", "text", mark=1)
    assert "nan" not in svg
    assert "inf" not in svg
    assert parsed(svg).get("aria-label") == "text"


def test_a_line_breaks_at_a_value_that_is_not_finite() -> None:
    svg = lines([Line("train", [1, 2, 3, 4], [1.0, float("nan"), 2.0, 3.0])], "epoch", "loss", "text")
    path = next(element for element in parsed(svg).iter("path") if element.get("class") == "line train")
    assert path.get("d").count("M") == 2


def test_accuracy_is_in_percent_and_never_above_100() -> None:
    svg = lines([Line("valid", [1, 2, 3], [0.5, 0.98, 1.0])], "epoch", "share", "text", percent=True)
    shown = [float(text.removesuffix(" %")) for text in texts(svg) if text.endswith(" %")]
    assert max(shown) == 100


def test_reliability_puts_a_perfect_bin_on_the_diagonal_and_skips_empty_ones() -> None:
    nan = float("nan")
    svg = reliability([0, 10, 30], [nan, 0.5, 0.9], [nan, 0.5, 1.0], [nan, 0.3, 0.9], [nan, 0.7, 1.0], "text")
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in parsed(svg).iter("circle")]
    (x0, y0), (x1, y1) = places(svg, "mark")
    assert len(dots) == 2
    assert dots[0] == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.1)
    heights = [float(bar.get("height")) for bar in parsed(svg).iter("rect")]
    assert heights[0] / heights[1] == pytest.approx(1 / 3)
    assert "nan" not in svg


def test_confusion_has_a_field_for_each_count_and_numbers_on_mistakes() -> None:
    counts = np.diag([5] * 30)
    counts[3, 7], counts[3, 3] = 2, 3
    svg = confusion(counts, [f"Name {k}" for k in range(30)], "text")
    fields = [field for field in parsed(svg).iter("rect") if "cell" in field.get("class")]
    assert len(fields) == 31
    (wrong,) = [field for field in fields if field.get("class") == "cell wrong"]
    assert wrong[0].text == "Name 3 taken for Name 7: 2 (40.0%)"
    diagonal = next(field for field in fields if field[0].text.startswith("Name 7 taken for Name 7"))
    assert wrong.get("x") == diagonal.get("x")
    assert [text for text in texts(svg) if text and text.isdigit()] == ["2"]


@pytest.mark.parametrize("n_classes", [2, 12, 50, 104])
def test_confusion_names_fit_their_margin_and_rows(n_classes: int) -> None:
    svg = parsed(confusion(np.eye(n_classes, dtype=int), ["Hard-leaved Pocket Orchid"] * n_classes, "text"))
    rows = sorted(float(text.get("y")) for text in svg.iter("text") if text.get("text-anchor") == "end")
    size, margin = float(svg.get("font-size")), float(next(svg.iter("rect")).get("x"))
    assert min(np.diff(rows)) >= size
    assert margin >= 0.5 * size * len("Hard-leaved Pocket Orchid")  # half an em is a sans serif's mean width
    assert float(svg.get("width")) <= 1240  # a desktop shows it whole


def test_a_strip_has_a_bar_for_each_class() -> None:
    bars = list(parsed(strip([3, 0, 6], "text")).iter("rect"))
    assert [float(bar.get("height")) for bar in bars] == [90, 45, 0]
    assert parsed(strip([0, 0], "text")) is not None


def test_names_are_escaped() -> None:
    for svg in (
        confusion(np.array([[1, 1], [0, 1]]), [NASTY, "B"], NASTY),
        lines([Line("train", [1, 2], [0, 1])], NASTY, NASTY, NASTY),
        strip([1], NASTY),
    ):
        assert "<script" not in svg
        assert parsed(svg).get("aria-label") == NASTY
