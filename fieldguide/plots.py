"""Figures from arrays: the only module that imports matplotlib. The data of each figure are saved beside it by the caller."""

import string
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from fieldguide.files import atomic_path

MAX_CELL_LABELS = 20  # more classes than this leave no room for a number in each cell
MAX_TICK_LABELS = 110  # more class names than this cannot be read along an axis


def save_png(figure: Figure, target: Path) -> None:
    """The figure as PNG, atomically; names no program version and no date, so that equal figures give equal bytes."""
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def curves(
    epochs: Sequence[int], loss: dict[str, list[float]], accuracy: dict[str, list[float]], best: int, rates: Sequence[float]
) -> Figure:
    """Loss and accuracy (0..1) over epochs, a line for each split, the best epoch marked; the learning rate of every step."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[2].plot(np.linspace(0, epochs[-1], len(rates)), rates, color="black")
    axes[2].set_ylabel("learning rate")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis, name, lines in ((axes[0], "loss (nats)", loss), (axes[1], "accuracy", accuracy)):
        for (split, values), style in zip(lines.items(), ("--", "-"), strict=True):
            axis.plot(
                epochs,
                values,
                style,
                label=split,
                marker="." if len(epochs) == 1 else "",
                color="black" if style == "-" else "tab:orange",
            )
        axis.axvline(best, color="grey", linewidth=0.8, linestyle=":")
        axis.set_ylabel(name)
        axis.legend(frameon=False)
    figure.suptitle(f"Best epoch {best} of {epochs[-1]}: valid accuracy {accuracy['valid'][epochs.index(best)]:.1%}")
    return figure


def confusion(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts `[K, K]`, truth down, prediction across; each row is shown as shares of its truth."""
    n_classes = len(names)
    side = min(max(7.0, 0.22 * n_classes + 2), 20)
    figure = Figure(figsize=(side, 0.95 * side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Greys", norm=PowerNorm(0.5, vmin=0, vmax=1))  # so that a few errors can be seen
    if n_classes <= MAX_CELL_LABELS:
        for truth, predicted in zip(*np.nonzero(counts), strict=True):
            shade = "white" if shares[truth, predicted] > 0.25 else "black"
            axis.text(predicted, truth, str(counts[truth, predicted]), ha="center", va="center", color=shade)
    step = 1 if n_classes <= MAX_TICK_LABELS else 1 + n_classes // MAX_TICK_LABELS
    ticks = list(range(0, n_classes, step))
    labels = [string.capwords(str(names[k])) for k in ticks]
    size = 9 if n_classes <= 20 else 6
    axis.set_xticks(ticks, labels, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth")
    axis.set_title(title)
    figure.colorbar(image, ax=axis, label="share of the truth", shrink=0.6)
    return figure


def image_grid(
    rows: Sequence[np.ndarray], row_titles: Sequence[str], title: str, captions: Sequence[Sequence[str]] = ()
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
            axis.set_xticks([])
            axis.set_yticks([])
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
    axes[0].set_yticks(np.arange(n_classes), [string.capwords(str(names[k])) for k in order], fontsize=size, parse_math=False)
    return figure


def sizes_and_mean(widths: np.ndarray, heights: np.ndarray, means: dict[str, np.ndarray]) -> Figure:
    """Histogram of the images' smaller and larger sides (pixels) and the mean image of each split, uint8 `[H, W, 3]`."""
    figure = Figure(figsize=(3.6 + 2.2 * len(means), 2.8), layout="constrained")
    axes = figure.subplots(1, 1 + len(means), squeeze=False, width_ratios=[1.7, *[1] * len(means)])[0]
    sides = [np.minimum(widths, heights), np.maximum(widths, heights)]
    low, high = sides[0].min(), sides[1].max()
    bounds = (low, high) if low < high else (0.9 * low, 1.1 * high)
    axes[0].hist(sides, bins=20, range=bounds, label=["smaller side", "larger side"], color=["0.2", "0.65"])
    axes[0].set_xlabel("pixels")
    axes[0].set_ylabel("images")
    axes[0].legend(frameon=False, fontsize=8)
    axes[0].set_title(f"{len(widths)} images of {low} to {high} px", fontsize=9)
    for axis, (split, mean) in zip(axes[1:], means.items(), strict=True):
        axis.imshow(mean)
        axis.set_title(f"mean of {split}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def accuracy_latency(points: dict[str, tuple[float, float, float]], title: str) -> Figure:
    """Accuracy (0..1) against milliseconds an image at batch 1; points: p50, p95 and accuracy of each backend."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, (name, (p50, p95, accuracy)) in enumerate(points.items()):
        axis.errorbar([p50], [accuracy], xerr=[[0], [p95 - p50]], fmt="osD^vP*X"[number % 8], capsize=3, label=name)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(ScalarFormatter())
    axis.set_xlabel("latency at batch 1, p50 (bar: to p95), milliseconds")
    axis.set_ylabel("accuracy")
    axis.legend(frameon=False, fontsize=8)
    axis.set_title(title)
    return figure
