"""Figures from arrays: the only module that imports matplotlib. The data of each figure are saved beside it by the caller."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fieldguide.files import atomic_path

MAX_TICK_LABELS = 60  # more class names than this cannot be read along an axis


def save_png(figure: Figure, target: Path) -> None:
    """The figure as PNG, atomically; names no program version and no date, so that equal figures give equal bytes."""
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def curves(epochs: Sequence[int], loss: dict[str, list[float]], accuracy: dict[str, list[float]], best: int) -> Figure:
    """Loss and accuracy (0..1) over epochs, a line for each split; the best epoch is marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, lines in ((axes[0], "loss (nats)", loss), (axes[1], "accuracy", accuracy)):
        for (split, values), style in zip(lines.items(), ("--", "-"), strict=True):
            axis.plot(epochs, values, style, label=split, color="black" if style == "-" else "tab:orange")
        axis.axvline(best, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xlabel("epoch")
        axis.set_ylabel(name)
        axis.legend(frameon=False)
    figure.suptitle(f"Best epoch {best} of {epochs[-1]}: valid accuracy {accuracy['valid'][epochs.index(best)]:.1%}")
    return figure


def confusion(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts `[K, K]`, truth down, prediction across; each row is shown as shares of its truth."""
    n_classes = len(names)
    side = min(max(4.5, 0.22 * n_classes + 2), 18)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    step = 1 if n_classes <= MAX_TICK_LABELS else 1 + n_classes // MAX_TICK_LABELS
    ticks = list(range(0, n_classes, step))
    labels = [str(names[k]).title() for k in ticks]
    size = 9 if n_classes <= 20 else 6
    axis.set_xticks(ticks, labels, rotation=90, fontsize=size)
    axis.set_yticks(ticks, labels, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth")
    axis.set_title(title)
    figure.colorbar(image, ax=axis, label="share of the truth", fraction=0.046)
    return figure


def image_grid(rows: Sequence[np.ndarray], row_titles: Sequence[str], title: str) -> Figure:
    """Rows of pictures, each uint8 `[N, H, W, 3]`, one above the other."""
    n_columns = len(rows[0])
    figure = Figure(figsize=(1.1 * n_columns, 1.25 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for pictures, row_title, line in zip(rows, row_titles, axes, strict=True):
        for picture, axis in zip(pictures, line, strict=True):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(row_title)
    figure.suptitle(title)
    return figure
