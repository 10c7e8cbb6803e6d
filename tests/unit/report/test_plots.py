"""Figures: the same bytes from the same arrays, the right numbers in them, and names that can be read."""

import io
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import confusion_matrix

from fieldguide.report.plots import (
    Cell,
    accuracy_latency,
    class_score_extremes,
    class_scores,
    class_size_histograms,
    confusion,
    coverage,
    curves,
    gallery,
    image_grid,
    label_map,
    notice,
    reliability,
    save_png,
)
from support import ROOT

DRAW = """
import sys
from pathlib import Path
import numpy as np
from fieldguide.report.plots import confusion, curves, image_grid, save_png
target = Path(sys.argv[1])
series = {"train": [2.0, 1.0, 0.5], "valid": [2.1, 1.2, 0.8]}
save_png(curves([1, 2, 3], series, series, 3, [0.1, 0.2, 0.3]), target / "curves.png")
save_png(confusion(np.arange(16).reshape(4, 4), ["A", "B C", "D", "E"], "Test"), target / "confusion.png")
pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
save_png(image_grid([pictures, pictures], ["one", "two"], "Pictures"), target / "grid.png")
"""
GENERA = ("PAPILIO", "GRAPHIUM", "MORPHO", "HELICONIUS", "VANESSA", "PIERIS", "AGLAIS", "DANAUS", "ARGYNNIS", "COLIAS")
ENDINGS = ("ADONIS", "MACHAON", "ATALANTA", "CARDUI", "NAPI", "IO", "PLEXIPPUS", "PAPHIA", "CROCEUS", "PODALIRIUS", "SMALL")


def names(n_classes: int) -> list[str]:
    return [f"{GENERA[k % 10]} {ENDINGS[k % 11]}" for k in range(n_classes)]  # all different up to 110


def counts(n_classes: int) -> np.ndarray:
    return np.random.default_rng(n_classes).integers(0, 4, (n_classes, n_classes)) + 9 * np.eye(n_classes, dtype=int)


def rendered(figure: Figure) -> np.ndarray:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    with Image.open(stream) as image:
        return np.asarray(image.convert("RGB"))


def overlapping(labels: list, along: str) -> bool:
    """Whether the texts of neighbouring ticks touch along one direction, in the figure as drawn."""
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: getattr(box, f"{along}0"))
    return any(getattr(a, f"{along}1") > getattr(b, f"{along}0") for a, b in pairwise(boxes))


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


@pytest.mark.slow
def test_the_same_arrays_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, seed in zip(folders, ("1", "2"), strict=True):
        folder.mkdir()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-W", "error", "-c", DRAW, folder], env=environment, cwd=folder, check=True)
    for name in ("curves.png", "confusion.png", "grid.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_a_png_names_no_program_and_no_date_and_is_left_alone_in_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "metrics" / "curves.png"
    save_png(curves([1], {"train": [1.0], "valid": [1.0]}, {"train": [0.5], "valid": [0.5]}, 1, [0.1]), target)
    with Image.open(target) as image:
        assert image.format == "PNG"
        assert set(image.info) <= {"dpi"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 12, 50, 104])
def test_confusion_names_can_be_read_and_stay_inside_the_figure(n_classes: int) -> None:
    figure = confusion(counts(n_classes), names(n_classes), "Test: 223 of 250 right (89.2%)")
    figure.draw_without_rendering()
    axis = axes_of(figure)
    shown = [text for text in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.title) if text.get_text()]
    assert len(axis.get_yticklabels()) >= min(n_classes, 50)
    assert not overlapping(axis.get_yticklabels(), "y")
    assert not overlapping(axis.get_xticklabels(), "x")
    width, height = figure.bbox.size
    for text in shown:
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    assert max(figure.get_size_inches()) * 110 <= 2200  # pixels that a screen can still show


@pytest.mark.parametrize("n_classes", [2, 12, 50, 104])
def test_a_confusion_label_stands_at_the_class_that_it_names(n_classes: int) -> None:
    axis = axes_of(confusion(counts(n_classes), names(n_classes), "Test"))
    for ticks, labels in ((axis.get_xticks(), axis.get_xticklabels()), (axis.get_yticks(), axis.get_yticklabels())):
        found = {int(tick): label.get_text().upper() for tick, label in zip(ticks, labels, strict=True)}
        assert found == {k: names(n_classes)[k] for k in found}


def test_confusion_shows_shares_of_the_truth() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 4, 60), generator.integers(0, 4, 60)
    shown = axes_of(confusion(confusion_matrix(truth, predicted), names(4), "Test")).images[0]
    assert np.allclose(shown.get_array(), confusion_matrix(truth, predicted, normalize="true"))
    assert shown.get_clim() == (0, 1)


def test_a_class_without_images_is_an_empty_row() -> None:
    shown = axes_of(confusion(np.array([[3, 1], [0, 0]]), names(2), "Test")).images[0].get_array()
    assert shown.tolist() == [[0.75, 0.25], [0, 0]]


def test_confusion_has_the_truth_down_and_the_prediction_across() -> None:
    axis = axes_of(confusion(np.array([[0, 5], [0, 5]]), names(2), "All taken for the second"))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")
    assert axis.get_title() == "All taken for the second"
    assert axis.images[0].get_array()[0].tolist() == [0, 1]


def test_names_are_capitalized_as_words_are() -> None:
    labels = axes_of(confusion(counts(3), ["COLT'S FOOT", "BLACK-EYED SUSAN", "AN 88"], "Test")).get_yticklabels()
    first, second, third = (label.get_text() for label in labels)
    assert first == "Colt's Foot"
    assert second in ("Black-Eyed Susan", "Black-eyed Susan")
    assert third == "An 88"


@pytest.mark.parametrize("name", ["A$_$", "$\\FRAC$", "50 $ OR ^"])
def test_names_with_signs_of_mathematics_are_plain_text(tmp_path: Path, name: str) -> None:
    save_png(confusion(counts(2), [name, "B"], "Test"), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_curves_show_both_splits_with_units_and_the_best_epoch() -> None:
    loss = {"train": [2.0, 1.0, 0.5], "valid": [2.5, 1.5, 1.75]}
    accuracy = {"train": [0.2, 0.5, 0.9], "valid": [0.1, 0.625, 0.6]}
    figure = curves([1, 2, 3], loss, accuracy, 2, [0.1, 0.3, 0.2])
    assert figure.get_suptitle() == "Best epoch 2 of 3: valid accuracy 62.5%"
    for axis, unit, series in zip(figure.axes[:2], ("loss (nats)", "accuracy"), (loss, accuracy), strict=True):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", unit)
        lines = {line.get_label(): line for line in axis.lines}
        for split, values in series.items():
            assert list(lines[split].get_xdata()) == [1, 2, 3]
            assert list(lines[split].get_ydata()) == values
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train", "valid"]
        assert any(list(line.get_xdata()) == [2, 2] for line in axis.lines)
    assert (figure.axes[2].get_xlabel(), figure.axes[2].get_ylabel()) == ("epoch", "learning rate")
    (rates,) = figure.axes[2].lines
    assert list(rates.get_xdata()) == [1, 2, 3]
    assert list(rates.get_ydata()) == [0.1, 0.3, 0.2]


def test_the_lines_of_the_splits_differ_without_colour() -> None:
    figure = curves(
        [1, 2], {"train": [2.0, 1.0], "valid": [2.5, 1.5]}, {"train": [0.1, 0.2], "valid": [0.3, 0.4]}, 2, [0.1, 0.1]
    )
    for axis in figure.axes[:2]:
        styles = {line.get_label(): (line.get_linestyle(), line.get_marker()) for line in axis.lines}
        assert styles["train"] != styles["valid"]


def test_a_single_epoch_can_be_seen() -> None:
    figure = curves([1], {"train": [2.0], "valid": [1.0]}, {"train": [0.25], "valid": [0.5]}, 1, [0.1])
    for axis in figure.axes[:2]:
        axis.get_legend().remove()
    with_points = rendered(figure)
    for axis in figure.axes:
        for line in axis.lines:
            if line.get_label() in ("train", "valid"):
                line.set_visible(False)
    assert not np.array_equal(with_points, rendered(figure))


@pytest.mark.parametrize("n_epochs", [1, 2, 3, 12, 100])
def test_epochs_are_whole_numbers_on_the_axis(n_epochs: int) -> None:
    values = {split: list(np.linspace(1, 0, n_epochs)) for split in ("train", "valid")}
    figure = curves(list(range(1, n_epochs + 1)), values, values, 1, [0.1] * n_epochs)
    figure.draw_without_rendering()
    for axis in figure.axes:
        low, high = axis.get_xlim()
        assert [tick for tick in axis.get_xticks() if low <= tick <= high and tick != round(tick)] == []


def test_a_loss_that_is_not_finite_still_gives_a_figure(tmp_path: Path) -> None:
    loss = {"train": [2.0, float("nan")], "valid": [2.0, float("inf")]}
    accuracy = {"train": [0.1, 0.1], "valid": [0.1, 0.1]}
    save_png(curves([1, 2], loss, accuracy, 1, [0.1, 0.1]), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("n_pictures", [3, 10])
def test_a_grid_shows_every_picture_in_its_place(n_pictures: int) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 256, (n_pictures, side, side, 3), dtype=np.uint8) for side in (24, 16)]
    figure = image_grid(rows, ["decoded", "epoch 1"], "What the network sees")
    shown = [axis.images[0].get_array() for axis in figure.axes]
    expected = [picture for row in rows for picture in row]
    assert len(shown) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))
    assert [axis.get_ylabel() for axis in figure.axes[::n_pictures]] == ["decoded", "epoch 1"]
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert 0 <= title.x0 < title.x1 <= figure.bbox.width


def test_accuracy_stands_over_latency_for_each_backend() -> None:
    figure = accuracy_latency({"torch": (4.0, 6.0, 0.95), "int8": (1.5, 2.0, 0.94)}, "fieldnet, 100 images")
    axis = figure.axes[0]
    assert axis.get_title() == "fieldnet, 100 images"
    assert "milliseconds" in axis.get_xlabel()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["torch", "int8"]
    places = [container.lines[0].get_xydata()[0].tolist() for container in axis.containers]
    assert places == [[4.0, 0.95], [1.5, 0.94]]
    bars = [container.lines[2][0].get_segments()[0][:, 0].tolist() for container in axis.containers]
    assert bars == [[4.0, 6.0], [1.5, 2.0]]


@pytest.mark.parametrize("headings", [(), ("one", "two")])
def test_a_gallery_shows_photographs_pixel_by_pixel(tmp_path: Path, headings: tuple[str, ...]) -> None:
    photographs = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    cells = [Cell(pixels, "Papilio machaon 99%\nOK", True) for pixels in photographs]
    save_png(gallery([cells[:2], [None, cells[2]]], "Title", headings), tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as image:
        shown = np.asarray(image.convert("RGB"))
    for pixels in photographs:
        first = np.argwhere((shown == pixels[0, 0]).all(axis=2))
        assert any(np.array_equal(shown[y : y + 96, x : x + 96], pixels) for y, x in first)


@pytest.mark.parametrize("name", ["Hard-leaved Pocket Orchid", "A$_$", "Prince Of Wales Feathers " * 4])
def test_a_caption_stays_below_its_photograph(name: str) -> None:
    side = 144
    cells = [Cell(np.zeros((side, side, 3), np.uint8), f"{name} 100%\nNO → {name}", False)] * 3
    figure = gallery([cells, cells], "Title")
    figure.draw_without_rendering()
    captions = [text.get_window_extent() for text in figure.axes[0].texts[:-1]]
    assert len(captions) == 6
    upper, lower = captions[:3], captions[3:]
    assert all(not a.overlaps(b) for a, b in pairwise(upper))
    assert all(box.width <= side + 12 for box in captions)
    assert all(box.y0 > lower[0].y1 + side for box in upper)
    assert all(box.y0 >= 0 for box in lower)


def test_reliability_has_a_panel_for_each_split_with_its_dots_and_counts() -> None:
    nan = np.nan
    columns = {"n": [0, 4], "confidence": [nan, 0.75], "accuracy": [nan, 0.5], "accuracy_low": [nan, 0.2]}
    bins = pd.DataFrame(columns | {"accuracy_high": [nan, 0.8]})
    figure = reliability({"valid": bins, "test": bins}, "Title")
    above, _, below, _ = figure.axes
    (dots,) = [line for line in above.lines if line.get_marker() == "o"]
    assert np.array_equal(dots.get_xydata()[1], [0.75, 0.5])
    assert [bar.get_height() for bar in below.patches] == [0, 4]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["valid: 4 images", "test: 4 images"]


@pytest.mark.parametrize("n_classes", [2, 12, 50, 104])
def test_class_scores_start_with_the_worst_and_can_be_read(n_classes: int) -> None:
    f1 = np.random.default_rng(0).random(n_classes)
    f1[-1] = np.nan
    figure = class_scores(f1, np.arange(n_classes), names(n_classes), "Title")
    figure.draw_without_rendering()
    axis = axes_of(figure)
    labels = [label.get_text() for label in axis.get_yticklabels()]
    worst = int(np.nanargmin(f1))
    assert labels[0].upper() == f"{names(n_classes)[worst]} ({worst})"
    assert labels[-1].upper() == f"{names(n_classes)[-1]} ({n_classes - 1})"
    assert not overlapping(axis.get_yticklabels(), "y")
    assert axis.get_yticklabels()[0].get_window_extent().y0 > axis.get_yticklabels()[-1].get_window_extent().y0


def test_a_class_that_is_not_measured_has_no_dot_and_says_so() -> None:
    figure = class_scores(np.array([np.nan, 0.5, 0.0]), np.array([0, 3, 2]), ["A", "B", "C"], "Title")
    figure.draw_without_rendering()
    axis = axes_of(figure)
    dots = axis.lines[0].get_xydata()
    assert dots[:2].tolist() == [[0, 0], [0.5, 1]]
    assert np.isnan(dots[2, 0])
    assert [(text.get_text(), text.get_position()[1]) for text in axis.texts] == [("not measured: no images", 2)]
    assert axis.get_ylim()[0] > 2 > 0 > axis.get_ylim()[1]  # inside, from above


def many_scores(n_classes: int, n_unmeasured: int) -> pd.DataFrame:
    f1 = np.random.default_rng(0).random(n_classes).round(1)
    f1[:n_unmeasured] = np.nan
    support = np.where(np.isnan(f1), 0, 1 + np.arange(n_classes) % 9)
    return pd.DataFrame({"class_name": [f"CLASS {k}" for k in range(n_classes)], "f1": f1, "recall": f1, "support": support})


@pytest.mark.parametrize(
    ("n_classes", "n_unmeasured", "n_named"), [(151, 0, 40), (10_000, 3000, 40), (160, 110, 25), (151, 150, 1)]
)
def test_of_many_classes_the_spread_and_the_extremes_are_drawn(n_classes: int, n_unmeasured: int, n_named: int) -> None:
    scores = many_scores(n_classes, n_unmeasured)
    figure = class_score_extremes(scores, "Title")
    figure.draw_without_rendering()
    f1, recall, worst, best = figure.axes
    measured = scores.dropna().sort_values("f1", kind="stable")
    for axis in (f1, recall):
        assert sum(bar.get_height() for bar in axis.patches) == len(measured)
        assert f"over {len(measured):,} classes" in axis.get_title()
    for axis, end in ((worst, measured.head(n_named)), (best, measured.tail(n_named))):
        assert np.array_equal(np.sort(axis.lines[0].get_xdata()), end["f1"])
        assert not overlapping(axis.get_yticklabels(), "y")
    first, second = (int(label.get_text().split("(")[1][:-1]) for label in best.get_yticklabels()[:2] * (1 + (n_named == 1)))
    assert first >= second  # of equal F1 the class of more images


def test_many_class_sizes_are_counted_and_empty_classes_are_named() -> None:
    sizes = np.random.default_rng(0).integers(1, 3000, 10_000)
    figure = class_size_histograms({"train": sizes, "test": np.where(sizes > 1000, sizes, 0)})
    figure.draw_without_rendering()
    train, test = figure.axes
    assert [sum(bar.get_height() for bar in axis.patches) for axis in figure.axes] == [10_000, (sizes > 1000).sum()]
    assert "have none" not in train.get_title()
    assert f"; {(sizes <= 1000).sum():,} of 10,000 have none" in test.get_title()
    assert max(figure.get_size_inches()) * 110 <= 2200


def test_the_size_of_the_charts_does_not_grow_with_the_classes() -> None:
    sizes = [
        [tuple(figure.get_size_inches()) for figure in (class_size_histograms({"train": n}), class_score_extremes(scores, "T"))]
        for n, scores in ((np.arange(1, k + 1), many_scores(k, 5)) for k in (151, 10_000))
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("n_groups", "n_colours"), [(3, 3), (60, 60), (61, 1), (0, 1)])
def test_the_map_of_many_classes_has_a_colour_for_each_group_or_one(n_groups: int, n_colours: int) -> None:
    names = [f"class {k}" for k in range(200)]
    points = pd.DataFrame({"x": range(200), "y": range(200), "class_name": names, "kind": ""})
    groups = {name: f"group {k % n_groups}" for k, name in enumerate(names)} if n_groups else {}
    figure = label_map(points, groups)
    figure.draw_without_rendering()
    assert len(np.unique(axes_of(figure).collections[0].get_facecolors(), axis=0)) == n_colours
    assert len(np.unique(axes_of(label_map(points)).collections[0].get_facecolors(), axis=0)) > 100


def test_coverage_is_in_percent() -> None:
    axis = axes_of(coverage(pd.DataFrame({"valid": [1, 0.75], "test": [0.75, 0.5]}, index=[0.5, 1]), "T"))
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[50, 100], [100, 75]], [[50, 75], [100, 50]]]
    assert "%" in axis.get_xlabel()
    assert "%" in axis.get_ylabel()


def test_of_many_classes_the_mistakes_carry_their_number() -> None:
    shown = counts(2)
    assert len(axes_of(confusion(shown, names(2), "T")).texts) == np.count_nonzero(shown)
    many = 5 * np.eye(50, dtype=int)
    many[3, 7] = 2
    assert [(text.get_text(), text.get_position()) for text in axes_of(confusion(many, names(50), "T")).texts] == [
        ("2", (7, 3))
    ]


def test_a_notice_says_its_text() -> None:
    assert [text.get_text() for text in notice("test: nothing$").texts] == ["test: nothing$"]
