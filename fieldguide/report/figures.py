"""The charts of a run, drawn from what its stages wrote: each once, as a PNG and, in the page, as SVG."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fieldguide.core.artifacts import GalleryPair, GalleryPhotograph
from fieldguide.core.images import inspect
from fieldguide.core.paths import (
    ACTIVATION_PNG,
    CONFUSED_PAIRS_PNG,
    COVERAGE_PNG,
    CURVES_PNG,
    PER_CLASS_PNG,
    RELIABILITY_PNG,
    RIGHT_PNG,
    WRONG_PNG,
    confusion_png,
)
from fieldguide.report import plots
from fieldguide.report.facts import Facts

N_COLUMNS = 8  # photographs in a row
FULL_PX = 1024  # more than a photograph of a gallery has: decoded at full size
N_MISTAKEN, N_TYPICAL = 4, 2  # photographs in a row of a confused pair: mistaken ones, and right ones of either class


def figures_of(facts: Facts) -> dict[Path, Figure]:
    """Every chart of training and evaluation by the path of its PNG, as far as the stages have run."""
    figures: dict[Path, Figure] = {}
    if facts.train is not None and len(facts.rows("history")):
        figures[CURVES_PNG] = curves(facts)
    if facts.evaluate is not None:
        drawn = {"per_class": (PER_CLASS_PNG, per_class), "reliability": (RELIABILITY_PNG, reliability)}
        drawn |= {"coverage": (COVERAGE_PNG, coverage)}
        figures |= {path: draw(facts) for table, (path, draw) in drawn.items() if table in facts.tables}
        figures |= {confusion_png(split): confusion(facts, split) for split in facts.confusions}
    if facts.gallery is not None and facts.gallery.split in facts.confusions:
        figures |= galleries(facts)
    return figures


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
    assert facts.train is not None
    history = facts.rows("history")
    loss, accuracy = (
        {split: history[f"{split}_{key}"].tolist() for split in ("train", "valid")} for key in ("loss", "accuracy")
    )
    return plots.curves(history["epoch"].tolist(), loss, accuracy, facts.train.best_epoch, history["lr"].tolist())


def confusion(facts: Facts, split: str) -> Figure:
    """Truth against prediction, or a notice where the split has no labels."""
    table = facts.confusions.get(split, pd.DataFrame())
    if table.empty:
        return plots.notice(f"{split}: there are no images with labels")
    counts, names = confusion_counts(facts, split)
    n_right = int(np.trace(counts))
    return plots.confusion(counts, names, f"{split}: {n_right} of {len(table)} right ({n_right / len(table):.1%})")


def confusion_counts(facts: Facts, split: str) -> tuple[np.ndarray, list[str]]:
    """How often each class, down, was answered as each, across, int `[K, K]`; and the names of the classes."""
    table = facts.confusions[split]
    listed = facts.tables["classes"]["class_name"] if "classes" in facts.tables else sorted(table["truth"].unique())
    names = list(dict.fromkeys([*listed, *table["truth"], *table["predicted"]]))
    places = {name: place for place, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (table["truth"].map(places), table["predicted"].map(places)), 1)
    return counts, names


def per_class(facts: Facts) -> Figure:
    """F1 of every class of the held-out split, the worst first."""
    split = facts.held_out
    table = facts.rows("per_class", split)
    predicted = facts.confusions.get(str(split), pd.DataFrame({"predicted": []}))["predicted"]
    f1 = table["f1"].where((table["support"] > 0) | table["class_name"].isin(predicted))
    title = f"{split}: macro F1 {f1.mean():.3f}; {(f1 < 0.9).sum()} of {f1.notna().sum()} classes below 0.9"
    return plots.class_scores(f1.to_numpy(), table["support"].to_numpy(), table["class_name"].tolist(), title)


def reliability(facts: Facts) -> Figure:
    """How often answers of each confidence are right, in valid and test."""
    columns = ("n", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    tables = {split: facts.rows("reliability", split) for split in ("valid", "test")}
    panels = {split: tuple(table[column].to_numpy() for column in columns) for split, table in tables.items() if len(table)}
    counts, confidence, accuracy = panels[str(facts.held_out)][:3]
    mean, right = (np.nansum(counts * values) / counts.sum() for values in (confidence, accuracy))
    return plots.reliability(panels, f"{facts.held_out}: {mean:.1%} sure on average, {right:.1%} right")


def coverage(facts: Facts) -> Figure:
    """How accurate the answers are when the least certain images are refused."""
    table, split = facts.rows("coverage"), str(facts.held_out)
    lines = {
        name: (table["coverage"].to_numpy(), table[name].to_numpy()) for name in ("valid", "test") if table[name].notna().any()
    }
    title = f"{split}: {table[split].iloc[-1]:.1%} right; without the tenth that is least sure {table[split].iloc[-11]:.1%}"
    return plots.coverage(lines, title)


def galleries(facts: Facts) -> dict[Path, Figure]:
    """Wrong and right answers, where the network looked, and the most confused pairs."""
    assert facts.gallery is not None
    split, wrong, right = facts.gallery.split, facts.gallery.wrong, facts.gallery.right
    counts, _ = confusion_counts(facts, split)
    n_right = int(np.trace(counts))
    n_wrong = int(counts.sum()) - n_right
    shown = f", the {len(wrong)} surest" if len(wrong) < n_wrong else ", the surest first"
    wrong_title = f"{split}: {n_wrong} of {counts.sum()} answers are wrong" + (shown if n_wrong > 1 else "")
    right_title = f"{split}: {len(right)} of {n_right} right answers, from the surest to the least sure"
    chosen = wrong[: 2 * N_COLUMNS] + right[:: max(1, len(right) // N_COLUMNS)]
    pairs = [
        cell
        for one in chosen
        if one.activation is not None
        for cell in (_cell(one), plots.Cell(_pixels(one.activation), "where it looked"))
    ]
    looked_title = f"{split}: where the network looked for its answer, wrong answers first"
    return {
        WRONG_PNG: grid([_cell(one) for one in wrong], wrong_title, f"{split}: no answer is wrong"),
        RIGHT_PNG: grid([_cell(one) for one in right], right_title, f"{split}: no answer is right"),
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
    return plots.gallery(rows, "The pairs of classes most often confused, outside train", headings)


def _cell(one: GalleryPhotograph) -> plots.Cell:
    """The photograph above the answer, how sure it is, and OK or NO with the truth."""
    verdict = "OK" if one.right else f"NO → {one.truth}"
    return plots.Cell(_pixels(one.photograph), f"{one.predicted} {one.probability:.0%}\n{verdict}", one.right)


def _pixels(jpeg: str) -> np.ndarray:
    return inspect(base64.b64decode(jpeg), FULL_PX)[1]
