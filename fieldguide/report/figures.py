"""The charts of a run, drawn from what its stages wrote: each once, as a PNG and, in the page, as SVG."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from fieldguide.core.artifacts import N_MISTAKEN, N_TYPICAL, GalleryPair, GalleryPhotograph
from fieldguide.core.images import inspect
from fieldguide.core.names import MAX_BLOCKS
from fieldguide.core.paths import (
    ACTIVATION_PNG,
    CONFUSED_PAIRS_PNG,
    COVERAGE_PNG,
    CURVES_PNG,
    LABEL_MAP_PNG,
    PER_CLASS_PNG,
    RELIABILITY_PNG,
    RIGHT_PNG,
    SPEED_PNG,
    WRONG_PNG,
    confusion_png,
)
from fieldguide.report import plots
from fieldguide.report.facts import Facts

N_COLUMNS = 8  # photographs in a row
FULL_PX = 1024  # more than a photograph of a gallery has: decoded at full size


def figures_of(facts: Facts) -> dict[Path, Figure]:
    """The charts of training, evaluation and benchmark, by the path of the PNG."""
    return {
        CURVES_PNG: curves(facts),
        PER_CLASS_PNG: per_class(facts),
        RELIABILITY_PNG: reliability(facts),
        COVERAGE_PNG: coverage(facts),
        SPEED_PNG: speed(facts),
        LABEL_MAP_PNG: plots.label_map(
            facts.tables["label_map"].fillna({"kind": ""}), facts.groups if facts.many_classes else None
        ),
        **{confusion_png(split): confusion(facts, split) for split in facts.confusions},
        **galleries(facts),
    }


def svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element named `label`: black is the text colour of the page, the ground is clear."""
    stream = io.StringIO()
    with plots.svg_settings():
        figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor").replace("<text ", '<text fill="currentColor" ')
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every figure, and in a page an id stands once
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def curves(facts: Facts) -> Figure:
    """Loss, accuracy and learning rate over the epochs."""
    history = facts.tables["history"]
    loss, accuracy = (
        {split: history[f"{split}_{key}"].tolist() for split in ("train", "valid")} for key in ("loss", "accuracy")
    )
    return plots.curves(history["epoch"].tolist(), loss, accuracy, facts.train.best_epoch, history["lr"].tolist())


def confusion(facts: Facts, split: str) -> Figure:
    """Truth against prediction, of many classes in blocks, or a notice where the split has no labels."""
    table = facts.confusions[split]
    if table.empty:
        return plots.notice(f"{split}: no labels")
    in_blocks = "n" in table
    blocks = sorted({*table["truth"], *table["predicted"]})  # the others come last
    names = blocks if in_blocks else list(dict.fromkeys([*facts.class_names, *table["truth"], *table["predicted"]]))
    counts = confusion_matrix(table["truth"], table["predicted"], labels=names, sample_weight=table["n"] if in_blocks else None)
    n_right, n_images = facts.n_right(split)
    title = f"{split}: {n_right} of {n_images} right ({n_right / n_images:.1%})"
    if in_blocks:
        return plots.confusion(counts, names, f"{title}\n{blocks_text(facts)}", "group" if facts.groups else "class")
    return plots.confusion(counts, names, title)


def blocks_text(facts: Facts) -> str:
    """What the rows of a confusion of many classes are."""
    groups = facts.class_groups
    what, n_blocks = (groups.what, len(set(groups.of_class))) if groups else ("classes", len(facts.class_names))
    if n_blocks <= MAX_BLOCKS:
        return f"{n_blocks} {what}; the diagonal is right"
    return f"the {MAX_BLOCKS - 1} most confused of {n_blocks:,} {what}, and the others"


def per_class(facts: Facts) -> Figure:
    """F1 of every class of the held-out split, the worst first; of many classes how it is spread, and the extremes."""
    split = facts.held_out
    table = facts.per_class(split)
    f1 = table["f1"]
    n_measured = int(f1.notna().sum())
    title = f"{split}: macro F1 {facts.measured.macro_f1:.3f}; {(f1 < 0.9).sum()} of {n_measured} classes below 0.9"
    if n_measured < len(table):
        title += f"; {len(table) - n_measured} not measured"
    if facts.many_classes:
        return plots.class_score_extremes(table, title)
    return plots.class_scores(f1.to_numpy(), table["support"].to_numpy(), table["class_name"].tolist(), title)


def reliability(facts: Facts) -> Figure:
    """How often answers of each confidence are right, in valid and test."""
    tables = {split: facts.rows("reliability", split) for split in facts.evaluate.splits if split != "train"}
    bins = tables[facts.held_out]
    mean, right = ((bins["n"] * bins[column]).sum() / bins["n"].sum() for column in ("confidence", "accuracy"))
    return plots.reliability(tables, f"{facts.held_out}: mean confidence {mean:.1%}, accuracy {right:.1%}")


def coverage(facts: Facts) -> Figure:
    """How accurate the answers are when the least certain images are refused."""
    table, split = facts.tables["coverage"].set_index("coverage"), facts.held_out
    title = f"{split}: accuracy {table[split].iloc[-1]:.1%}; {table[split].iloc[-11]:.1%} without the least confident 10 %"
    return plots.coverage(table[["valid", "test"]].dropna(axis="columns", how="all"), title)


def speed(facts: Facts) -> Figure:
    """Accuracy against latency of each backend."""
    metrics, model = facts.benchmark, facts.params["model"]
    points = {name: (one.latency_ms.p50, one.latency_ms.p95, one.accuracy) for name, one in metrics.backends.items()}
    images = f"{facts.measured.n} {facts.held_out} images"
    title = f"{model['name']} at {model['image_px']} px, {images}, {metrics.hardware.device}"
    return plots.accuracy_latency(points, title)


def galleries(facts: Facts) -> dict[Path, Figure]:
    """Wrong and right answers, where the network looked, and the most confused pairs."""
    split, wrong, right = facts.gallery.split, facts.gallery.wrong, facts.gallery.right
    n_right, n_images = facts.n_right(split)
    n_wrong = n_images - n_right
    shown = f", the {len(wrong)} most confident" if len(wrong) < n_wrong else ", most confident first"
    wrong_title = f"{split}: {n_wrong} of {n_images} predictions are wrong" + (shown if n_wrong > 1 else "")
    right_title = f"{split}: {len(right)} of {n_right} correct predictions, from most to least confident"
    chosen = wrong[: 2 * N_COLUMNS] + right[:: max(1, len(right) // N_COLUMNS)]
    pairs = [
        cell
        for one in chosen
        if one.activation is not None
        for cell in (_cell(one), plots.Cell(_pixels(one.activation), "activation"))
    ]
    looked_title = f"{split}: class activation maps, wrong predictions first"
    return {
        WRONG_PNG: grid([_cell(one) for one in wrong], wrong_title, f"{split}: no prediction is wrong"),
        RIGHT_PNG: grid([_cell(one) for one in right], right_title, f"{split}: no prediction is correct"),
        ACTIVATION_PNG: grid(pairs, looked_title, "This network gives no class activation map"),
        CONFUSED_PAIRS_PNG: confused_pairs(facts.gallery.pairs),
    }


def grid(cells: Sequence[plots.Cell], title: str, otherwise: str) -> Figure:
    """Cells in rows, or a notice that says why there are none."""
    rows = [cells[start : start + N_COLUMNS] for start in range(0, len(cells), N_COLUMNS)]
    return plots.gallery(rows, title) if rows else plots.notice(otherwise)


def confused_pairs(pairs: Sequence[GalleryPair]) -> Figure:
    """A row for each pair: mistaken photographs, then right ones of the one class and of the other."""
    if not pairs:
        return plots.notice("No class was mistaken for another")
    rows = []
    for pair in pairs:
        empty = [None] * (N_MISTAKEN - len(pair.mistaken))
        typical = [
            [plots.Cell(_pixels(one.photograph), f"a typical\n{one.truth}") for one in side] + [None] * (N_TYPICAL - len(side))
            for side in (pair.of_truth, pair.of_predicted)
        ]
        rows.append([_cell(one) for one in pair.mistaken] + empty + typical[0] + typical[1])
    headings = [f"{pair.truth} mistaken for {pair.predicted}: {pair.n} of {pair.n_truth}" for pair in pairs]
    return plots.gallery(rows, "Most frequent confusions on valid and test", headings)


def _cell(one: GalleryPhotograph) -> plots.Cell:
    """The photograph above the answer, how sure it is, and OK or NO with the truth."""
    verdict = "OK" if one.right else f"NO → {one.truth}"
    return plots.Cell(_pixels(one.photograph), f"{one.predicted} {one.probability:.0%}\n{verdict}", one.right)


def _pixels(jpeg: str) -> np.ndarray:
    return inspect(base64.b64decode(jpeg), FULL_PX)[1]
