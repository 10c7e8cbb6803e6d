"""Figures from arrays: the only module that imports matplotlib. The data of each figure are saved beside it by the caller."""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from fieldguide.core.files import atomic_path
from fieldguide.core.names import common_name

DPI = 110
RIGHT, WRONG = "#1a7f37", "#c4320a"  # of captions, which also say it in words
STYLES = {"train": ("0.6", ":"), "valid": ("tab:orange", "--"), "test": ("black", "-")}  # colour and dash of a split's line
MAX_CELL_LABELS = 20  # more classes than this, squared, leave no room for a number in each cell
MAX_MAP_NAMES = 60
GOLDEN = 0.618034  # turns by which colours of successive classes differ
FINDINGS = {  # on the map of labels: colour and words
    "label": ("#c4320a", "label in doubt"),
    "atypical": ("black", "of none of the classes"),
    "duplicate": ("#1f6feb", "copy that no hash found"),
}
MAX_TICK_LABELS = 110  # more class names than this cannot be read along an axis
N_EXTREMES = 40  # classes that a chart names at either end, of more than can be named


def svg_settings() -> AbstractContextManager[None]:
    """Text stays text, and equal figures give equal bytes."""
    return rc_context({"svg.fonttype": "none", "svg.hashsalt": "fieldguide"})


def save_png(figure: Figure, target: Path) -> None:
    """The figure as PNG, atomically; names no program version and no date, so that equal figures give equal bytes."""
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def curves(
    epochs: Sequence[int], loss: dict[str, list[float]], accuracy: dict[str, list[float]], best: int, rates: Sequence[float]
) -> Figure:
    """Loss and accuracy (0..1) over epochs, a line for each split, the best epoch marked; the rate at each epoch's start."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    marker = "." if len(epochs) == 1 else ""  # a line of one point is invisible
    axes[2].plot(epochs, rates, color="black", marker=marker)
    axes[2].set_ylabel("learning rate")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis, name, lines in ((axes[0], "loss (nats)", loss), (axes[1], "accuracy", accuracy)):
        for (split, values), style, color in zip(lines.items(), ("--", "-"), ("tab:orange", "black"), strict=True):
            axis.plot(epochs, values, style, label=split, marker=marker, color=color)
        axis.axvline(best, color="grey", linewidth=0.8, linestyle=":")
        axis.set_ylabel(name)
        axis.legend(frameon=False)
    figure.suptitle(f"Best epoch {best} of {epochs[-1]}: valid accuracy {accuracy['valid'][epochs.index(best)]:.1%}")
    return figure


def confusion(counts: np.ndarray, names: Sequence[str], title: str, what: str = "class") -> Figure:
    """Counts `[K, K]`, truth down, prediction across; each row is shown as shares of its truth. `what` has the names."""
    n_classes = len(names)
    side = min(max(7.0, 0.22 * n_classes + 2), 20)
    figure = Figure(figsize=(side, 0.95 * side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Greys", norm=PowerNorm(0.5, vmin=0, vmax=1))  # so that a few errors can be seen
    few = n_classes <= MAX_CELL_LABELS
    labelled = counts if few else counts * ~np.eye(n_classes, dtype=bool)  # of many classes the mistakes only
    if np.count_nonzero(labelled) <= MAX_CELL_LABELS**2:
        for truth, predicted in zip(*np.nonzero(labelled), strict=True):
            shade = "white" if shares[truth, predicted] > 0.25 else "black"
            text = str(counts[truth, predicted])
            axis.text(predicted, truth, text, ha="center", va="center", color=shade, fontsize=10 if few else 7)
    step = 1 if n_classes <= MAX_TICK_LABELS else 1 + n_classes // MAX_TICK_LABELS
    ticks = list(range(0, n_classes, step))
    labels = [common_name(str(names[k])) for k in ticks]
    size = 9 if n_classes <= 20 else 8 if n_classes <= 60 else 6
    axis.set_xticks(ticks, labels, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    axis.set(xlabel=f"predicted {what}", ylabel=f"true {what}", title=title)
    figure.colorbar(image, ax=axis, label=f"share of the true {what}", shrink=0.6)
    return figure


def image_grid(
    rows: Sequence[Sequence[np.ndarray] | np.ndarray],
    row_titles: Sequence[str],
    title: str,
    captions: Sequence[Sequence[str]] = (),
) -> Figure:
    """Rows of pictures, each uint8 `[N, H, W, 3]`, one above the other; `captions`, a text for each picture."""
    n_columns = len(rows[0])
    figure = Figure(figsize=(1.1 * n_columns, 1.25 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    texts = captions or [[""] * n_columns] * len(rows)
    for pictures, row_title, line, names in zip(rows, row_titles, axes, texts, strict=True):
        for picture, axis, name in zip(pictures, line, names, strict=True):
            axis.imshow(picture)
            axis.set_title(textwrap.shorten(name, 20, placeholder="…"), fontsize=6, pad=2, parse_math=False)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(row_title)
    figure.suptitle(title)
    return figure


def class_distribution(counts: dict[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Images of every class, a panel for each split; counts: int `[K]` by split. Classes by falling size in the first."""
    n_classes = len(names)
    order = np.argsort(-next(iter(counts.values())), kind="stable")[::-1]
    figure = Figure(figsize=(3.2 * len(counts) + 2, min(max(3.0, 0.17 * n_classes + 1.2), 20)), layout="constrained")
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, (split, values) in zip(axes, counts.items(), strict=True):
        axis.barh(np.arange(n_classes), values[order], color="0.35")
        axis.set_title(f"{split}: {values.sum()} images, {values.min()} to {values.max()} a class", fontsize=9)
        axis.set_xlabel("images")
        axis.margins(y=0.01)
    size = 9 if n_classes <= 20 else 6
    axes[0].set_yticks(np.arange(n_classes), [common_name(str(names[k])) for k in order], fontsize=size, parse_math=False)
    return figure


def class_size_histograms(counts: dict[str, np.ndarray]) -> Figure:
    """How many classes have how many images, a panel for each split; counts: int `[K]` by split. Both axes are logarithmic."""
    figure = Figure(figsize=(3.2 * len(counts) + 2, 3.6), layout="constrained")
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, (split, values) in zip(axes, counts.items(), strict=True):
        present = values[values > 0]
        steps = np.unique(np.geomspace(1, present.max() + 1, 21).round())  # of whole images: 1, 2, 3, 4 to 5, …
        axis.hist(present, bins=steps - 0.5, color="0.35")
        axis.set(xscale="log", yscale="log", xlabel="images a class")
        axis.set_ylim(bottom=0.7)  # a bar of one class can be seen
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
            side.set_minor_formatter(NullFormatter())
        without = f"; {len(values) - len(present):,} of {len(values):,} have none" if len(present) < len(values) else ""
        axis.set_title(f"{split}: {values.sum():,} images\n{present.min():,} to {present.max():,} a class{without}", fontsize=9)
    axes[0].set_ylabel("classes")
    return figure


def sizes_and_mean(widths: np.ndarray, heights: np.ndarray, means: dict[str, np.ndarray]) -> Figure:
    """Histogram of the images' smaller and larger sides (pixels) and the mean image of each split, uint8 `[H, W, 3]`."""
    figure = Figure(figsize=(3.6 + 2.2 * len(means), 2.8), layout="constrained")
    axes = figure.subplots(1, 1 + len(means), squeeze=False, width_ratios=[1.7, *[1] * len(means)])[0]
    sides = [np.minimum(widths, heights), np.maximum(widths, heights)]
    low, high = sides[0].min(), sides[1].max()
    bounds = (low, high) if low < high else (0.9 * low, 1.1 * high)
    axes[0].hist(sides, bins=20, range=bounds, label=["smaller side", "larger side"], color=["0.2", "0.65"])
    axes[0].set(xlabel="pixels", ylabel="images")
    axes[0].legend(frameon=False, fontsize=8)
    axes[0].set_title(f"{len(widths)} images of {low} to {high} px", fontsize=9)
    for axis, (split, mean) in zip(axes[1:], means.items(), strict=True):
        axis.imshow(mean)
        axis.set_title(f"mean of {split}", fontsize=9)
        axis.set(xticks=[], yticks=[])
    return figure


def accuracy_latency(points: dict[str, tuple[float, float, float]], title: str) -> Figure:
    """Accuracy (0..1) against milliseconds an image at batch 1; points: p50, p95 and accuracy of each backend."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, (name, (p50, p95, accuracy)) in enumerate(points.items()):
        axis.errorbar([p50], [accuracy], xerr=np.array([[0], [p95 - p50]]), fmt="osD^vP*X"[number % 8], capsize=3, label=name)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(ScalarFormatter())
    axis.set(xlabel="latency at batch 1, p50 (bar: to p95), milliseconds", ylabel="accuracy", title=title)
    axis.legend(frameon=False, fontsize=8)
    return figure


class Cell(NamedTuple):
    """A photograph, uint8 `[H, W, 3]`, what stands below it, and whether that is in the colour of right or wrong answers."""

    pixels: np.ndarray
    caption: str
    right: bool | None = None


def gallery(rows: Sequence[Sequence[Cell | None]], title: str, headings: Sequence[str] = ()) -> Figure:
    """Photographs of one size in rows, pixel by pixel, each above its caption; `None` leaves a place empty.

    `headings`, one for each row, stand above the rows.
    """
    side = next(cell.pixels.shape[0] for row in rows for cell in row if cell)
    gap, text_px, head_px, title_px = 12, 62, 22 if headings else 0, 40
    n_columns = max(map(len, rows))
    width, height = gap + n_columns * (side + gap), title_px + len(rows) * (head_px + side + text_px)
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    n_letters = int(side / 6.4)  # that fit below a photograph
    for number, row in enumerate(rows):
        top = title_px + number * (head_px + side + text_px)
        if headings:
            axis.text(gap, top + 4, headings[number], fontsize=9, fontweight="bold", va="top", parse_math=False)
        top += head_px
        for column, cell in enumerate(row):
            if cell:
                left = gap + column * (side + gap)
                canvas[top : top + side, left : left + side] = cell.pixels
                lines = [textwrap.wrap(line, n_letters, max_lines=2, placeholder="…") for line in cell.caption.split("\n")]
                text = "\n".join(piece for line in lines for piece in line)
                color = {True: RIGHT, False: WRONG, None: "black"}[cell.right]
                axis.text(left, top + side + 4, text, fontsize=7, va="top", color=color, parse_math=False, linespacing=1.1)
    axis.imshow(canvas, extent=(0, width, height, 0), interpolation="none", aspect="auto")
    axis.text(gap, 12, title, fontsize=12, va="top", parse_math=False)
    return figure


def notice(text: str) -> Figure:
    """A picture that says why there is none."""
    figure = Figure(figsize=(7, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11, parse_math=False)
    return figure


def reliability(splits: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """A panel for each split: how often the answers of each confidence are right, and below how many there are.

    By split, a row for each of B equal bins of the confidence: `n` answers, their mean `confidence` and `accuracy` with
    `accuracy_low` and `accuracy_high`, NaN where a bin is empty.
    """
    figure = Figure(figsize=(3.9 * len(splits) + 0.4, 4.8), layout="constrained")
    axes = figure.subplots(2, len(splits), sharex=True, squeeze=False, height_ratios=[3, 1])
    for (above, below), (split, bins) in zip(axes.T, splits.items(), strict=True):
        edges = np.linspace(0, 1, len(bins) + 1)
        above.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect calibration")
        above.bar(edges[:-1], bins["accuracy"], np.diff(edges), align="edge", color="0.85", edgecolor="0.5", linewidth=0.6)
        above.vlines(bins["confidence"], bins["accuracy_low"], bins["accuracy_high"], color="black", linewidth=1)
        above.plot(
            "confidence", "accuracy", "o", data=bins, color="black", markersize=4, label="bin of predictions, 95 % interval"
        )
        above.set(xlim=(0, 1), ylim=(0, 1.02))
        above.set_title(f"{split}: {bins['n'].sum()} images", fontsize=10)
        below.bar(edges[:-1], bins["n"], np.diff(edges), align="edge", color="0.35")
        below.set_xlabel("confidence (largest probability)")
        below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure


def class_scores(f1: np.ndarray, support: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """F1 of every class, the worst first; f1: float `[K]`, NaN where it is not measured; support: int `[K]`, images."""
    order = np.lexsort((np.arange(len(f1)), np.nan_to_num(f1, nan=2)))
    n_classes = len(order)
    figure = Figure(figsize=(8, min(max(3.0, 0.17 * n_classes + 1.2), 20)), layout="constrained")
    axis = figure.subplots()
    _score_lines(axis, f1[order], support[order], [names[k] for k in order])
    axis.set_title(title)
    return figure


def class_score_extremes(scores: pd.DataFrame, title: str) -> Figure:
    """Of many classes the histograms of F1 and recall, and the worst and best `N_EXTREMES` by F1.

    scores: a row per class with `class_name`, `f1`, `recall` (NaN where not measured) and `support` (images). Of equal F1 the
    classes of most images come first.
    """
    measured = scores[scores["f1"].notna()]
    figure = Figure(figsize=(14, 10), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.4, 7.6])[:, 0]
    for axis, name, text in zip(above.subplots(1, 2, sharey=True), ("f1", "recall"), ("F1", "recall"), strict=True):
        axis.hist(measured[name], bins=np.linspace(0, 1, 21).tolist(), color="0.35")
        axis.set(xlim=(0, 1), xlabel=text, ylabel="classes", axisbelow=True)
        axis.set_title(f"{text}: median {measured[name].median():.2f} over {len(measured):,} classes", fontsize=10)
        axis.grid(axis="y", color="0.9")
    n_named = min(N_EXTREMES, max(1, len(measured) // 2))
    for axis, worst in zip(below.subplots(1, 2), (True, False), strict=True):
        named = measured.sort_values(["f1", "support"], ascending=[worst, False], kind="stable").head(n_named)
        _score_lines(axis, named["f1"].to_numpy(), named["support"].to_numpy(), named["class_name"].tolist())
        axis.set_title(f"the {n_named} classes with the {'lowest' if worst else 'highest'} F1", fontsize=10)
    figure.suptitle(title)
    return figure


def _score_lines(axis: Axes, f1: np.ndarray, support: np.ndarray, names: Sequence[str]) -> None:
    """A line with a dot for each class from above; without one, and in words, where `f1` is NaN."""
    n_classes = len(names)
    places = np.arange(n_classes)
    axis.hlines(places, 0, f1, color="0.75", linewidth=1.5)
    axis.plot(f1, places, "o", color="black", markersize=4)
    axis.update_datalim([(0, 0), (0, n_classes - 1)])  # also where the first or the last is not measured
    size = 9 if n_classes <= 20 else 8 if n_classes <= 110 else 4
    labels = [f"{common_name(str(name))} ({n})" for name, n in zip(names, support, strict=True)]
    axis.set_yticks(places, labels, fontsize=size, parse_math=False)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set(xlim=(0, 1.02), xlabel="F1", ylabel="class (images)", axisbelow=True)
    axis.grid(axis="x", color="0.9")
    for place in places[np.isnan(f1)]:
        axis.text(0.01, place, "not measured: no images", fontsize=size, va="center", color="0.4")


def coverage(accuracy: pd.DataFrame, title: str) -> Figure:
    """Accuracy (0..1) of each split, a column, if only a share (0..1, the index) of the images, the most confident, is kept."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for split in accuracy:
        color, dash = STYLES[str(split)]
        axis.plot(100 * accuracy.index, 100 * accuracy[split], dash, color=color, label=split)
    axis.set(xlabel="coverage: images answered, most confident first (%)", ylabel="accuracy (%)", xlim=(0, 100), title=title)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.grid(color="0.9")
    axis.legend(frameon=False)
    return figure


def label_map(points: pd.DataFrame, groups: Mapping[str, str] | None = None) -> Figure:
    """Images by their embeddings: `x`, `y`, a colour per `class_name`, and a ring around those with a finding (`kind`).

    With `groups` (by class name) a colour per group; all points are grey if there are more than `MAX_MAP_NAMES` or none.
    """
    figure = Figure(figsize=(12, 9), layout="constrained")
    axis = figure.subplots()
    if groups is not None:
        few = len(set(groups.values())) <= MAX_MAP_NAMES
        points = points.assign(class_name=[groups.get(name, "") if few else "" for name in points["class_name"]])
    names = sorted(set(points["class_name"]))
    colours = {
        name: hsv_to_rgb((k * GOLDEN % 1, 0.55 + 0.4 * (k % 2), 0.85 - 0.25 * (k % 3 == 2))) for k, name in enumerate(names)
    }
    colours |= {"": hsv_to_rgb((0, 0, 0.6))}  # of no group
    axis.scatter(
        points["x"], points["y"], s=9, c=[colours[name] for name in points["class_name"]], linewidths=0, rasterized=True
    )
    for kind, (colour, text) in FINDINGS.items():
        found = points[points["kind"] == kind]
        if len(found):
            axis.scatter(
                found["x"], found["y"], s=40, facecolors="none", edgecolors=colour, linewidths=0.9, label=text, rasterized=True
            )
    if len(names) <= MAX_MAP_NAMES:
        for name, place in points.groupby("class_name")[["x", "y"]].median().iterrows():
            axis.annotate(
                common_name(str(name)), (place["x"], place["y"]), ha="center", va="center", fontsize=7, parse_math=False
            )
    axis.set(xticks=[], yticks=[], title=f"{len(points)} images: similar ones lie together")
    axis.set_frame_on(False)
    if points["kind"].ne("").any():
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0), ncols=len(FINDINGS))
    return figure
