"""What an evaluation looks like: pictures, and the tables beside them, from arrays.

`stages/evaluate.py` calls `save_pictures`; `report` shows the same data on one page.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from fieldguide.core.files import write_json
from fieldguide.core.images import encode_jpeg
from fieldguide.core.manifest import write_table
from fieldguide.core.names import SPLITS, common_name
from fieldguide.core.paths import (
    ACTIVATION_PNG,
    CONFUSED_PAIRS_CSV,
    CONFUSED_PAIRS_PNG,
    COVERAGE_PNG,
    GALLERY_JSON,
    PER_CLASS_PNG,
    RELIABILITY_CSV,
    RELIABILITY_PNG,
    RIGHT_PNG,
    WRONG_PNG,
    confusion_csv,
    confusion_png,
)
from fieldguide.evaluation.metrics import accuracy_interval, confidence_bins, coverage_table, per_class_table
from fieldguide.onnx.heatmap import overlay, supporting
from fieldguide.report import plots

THUMBNAIL_PX = 144  # side of the photographs in all pictures
N_COLUMNS = 8
N_WRONG, N_RIGHT = 32, 24  # photographs in the galleries
N_PAIRS = 8  # rows of confused pairs
N_MISTAKEN, N_TYPICAL = 4, 2  # photographs in such a row: mistaken ones, and right ones of either class

Thumbnails = Callable[[str, np.ndarray], np.ndarray]
"""Split and rows, int `[n]`, to these photographs: uint8 `[n, THUMBNAIL_PX, THUMBNAIL_PX, 3]`."""
Activations = Callable[[str, np.ndarray, np.ndarray], np.ndarray]
"""Split, rows and a class for each, int `[n]`, to class activation maps: float `[n, h, w]`, of any scale."""


@dataclass(frozen=True)
class Answers:
    """What a network said about the images of one split: the class that each shows, int `[N]`, and probabilities `[N, K]`."""

    targets: np.ndarray
    probabilities: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """int `[N]`."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The largest probability, float `[N]`."""
        return self.probabilities.max(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """bool `[N]`."""
        return self.predicted == self.targets

    def surest(self, rows: np.ndarray) -> np.ndarray:
        """`rows` by falling confidence."""
        return rows[np.argsort(-self.confidence[rows], kind="stable")]


def save_pictures(
    names: Sequence[str],
    answers: dict[str, Answers],
    n_bins: int,
    thumbnails: Thumbnails,
    activations: Activations | None,
) -> list[Path]:
    """Writes every picture of an evaluation and the tables beside them under metrics/; returns their paths.

    `answers` by split, at least one of train, valid and test. Galleries show the last of them; pairs those from which
    nothing was learned. What cannot be shown (a split without labels, a network without activation maps: `None`) is a
    picture that says so.
    """
    return [
        *save_confusions(names, answers),
        *save_per_class(names, answers),
        *save_reliability(answers, n_bins),
        *save_coverage(answers),
        *save_galleries(names, answers, thumbnails, activations),
    ]


def save_confusions(names: Sequence[str], answers: dict[str, Answers]) -> list[Path]:
    """For each split truth against prediction: a table for `dvc plots`, and a heat map."""
    known = np.array(names, dtype=object)
    for split in SPLITS:
        if split not in answers:
            write_table(pd.DataFrame({"truth": [], "predicted": []}), confusion_csv(split))
            plots.save_png(plots.notice(f"{split}: there are no images with labels"), confusion_png(split))
            continue
        said = answers[split]
        table = pd.DataFrame({"truth": known[said.targets], "predicted": known[said.predicted]})
        write_table(table, confusion_csv(split))
        title = f"{split}: {said.right.sum()} of {len(said.right)} right ({said.right.mean():.1%})"
        plots.save_png(plots.confusion(confusion_of(said), names, title), confusion_png(split))
    return [path(split) for split in SPLITS for path in (confusion_csv, confusion_png)]


def confusion_of(said: Answers) -> np.ndarray:
    """How often each class, down, was taken for each, across: int `[K, K]`."""
    return confusion_matrix(said.targets, said.predicted, labels=np.arange(said.probabilities.shape[1]))


def save_per_class(names: Sequence[str], answers: dict[str, Answers]) -> list[Path]:
    """F1 of every class of the held-out split, the worst first."""
    split, said = list(answers.items())[-1]
    table = per_class_table(said.targets, said.predicted, np.array(names, dtype=object))
    f1 = table["f1"].where((table["support"] > 0) | np.isin(table.index, said.predicted))
    title = f"{split}: macro F1 {f1.mean():.3f}; {(f1 < 0.9).sum()} of {f1.notna().sum()} classes below 0.9"
    plots.save_png(plots.class_scores(f1.to_numpy(), table["support"].to_numpy(), names, title), PER_CLASS_PNG)
    return [PER_CLASS_PNG]


def save_reliability(answers: dict[str, Answers], n_bins: int) -> list[Path]:
    """How often answers of each confidence are right: a table and a picture."""
    tables = {split: reliability_of(said, n_bins) for split, said in answers.items()}
    write_table(pd.concat([table.assign(split=split) for split, table in tables.items()]), RELIABILITY_CSV)
    columns = ("n", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    panels = {split: tuple(tables[split][column].to_numpy() for column in columns) for split in unseen(answers)}
    split = list(answers)[-1]
    mean, accuracy = answers[split].confidence.mean(), answers[split].right.mean()
    title = f"{split}: {mean:.1%} sure on average, {accuracy:.1%} right"
    plots.save_png(plots.reliability(panels, title), RELIABILITY_PNG)
    return [RELIABILITY_CSV, RELIABILITY_PNG]


def reliability_of(said: Answers, n_bins: int) -> pd.DataFrame:
    """For each equal bin (low, high] of the confidence: n, mean confidence, share right and its 95 % interval.

    NaN where a bin is empty.
    """
    bins = confidence_bins(said.confidence, n_bins)
    counts = np.bincount(bins, minlength=n_bins)
    n_right = np.bincount(bins[said.right], minlength=n_bins)
    intervals = [
        accuracy_interval(k, n) if n else (np.nan, np.nan) for k, n in zip(n_right.tolist(), counts.tolist(), strict=True)
    ]
    divisor = np.where(counts, counts, np.nan)
    edges = np.arange(n_bins + 1) / n_bins
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "n": counts,
            "confidence": np.bincount(bins, said.confidence, minlength=n_bins) / divisor,
            "accuracy": n_right / divisor,
            "accuracy_low": [low for low, _ in intervals],
            "accuracy_high": [high for _, high in intervals],
        }
    )


def save_coverage(answers: dict[str, Answers]) -> list[Path]:
    """How accurate the answers are when the least certain images are refused."""
    chosen = {split: answers[split] for split in unseen(answers)}
    confidence, right = ({split: getattr(said, key) for split, said in chosen.items()} for key in ("confidence", "right"))
    table = coverage_table(confidence, right)
    lines = {split: (table["coverage"].to_numpy(), table[split].to_numpy()) for split in chosen}
    split = list(chosen)[-1]
    title = f"{split}: {right[split].mean():.1%} right; without the tenth that is least sure {table[split].iloc[-11]:.1%}"
    plots.save_png(plots.coverage(lines, title), COVERAGE_PNG)
    return [COVERAGE_PNG]


def unseen(answers: dict[str, Answers]) -> list[str]:
    """The splits from which nothing was learned; train where there is no other."""
    return [split for split in answers if split != "train"] or list(answers)


def confused_pairs(answers: dict[str, Answers]) -> pd.DataFrame:
    """Which class (by number) was taken for which in each split, and the share of the truth that this is.

    The held-out split first, the most frequent pairs of each split first.
    """
    tables = []
    for split, said in reversed(answers.items()):
        counts = confusion_of(said)
        n_truth = counts.sum(axis=1)
        np.fill_diagonal(counts, 0)
        truth, predicted = np.nonzero(counts)
        columns = {"truth": truth, "predicted": predicted, "n": counts[truth, predicted], "n_truth": n_truth[truth]}
        table = pd.DataFrame({"split": split} | columns)
        table["share"] = table["n"] / table["n_truth"]
        tables.append(table.sort_values(["n", "share"], ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Photograph:
    """One image of a gallery, where the network looked for its answer (`None` where it cannot tell), and that answer."""

    pixels: np.ndarray
    activation: np.ndarray | None
    truth: str
    predicted: str
    probability: float
    right: bool

    @property
    def caption(self) -> str:
        """The answer, how sure it is, and OK or NO with the truth."""
        verdict = "OK" if self.right else f"NO → {self.truth}"
        return f"{self.predicted} {self.probability:.0%}\n{verdict}"

    def cell(self) -> plots.Cell:
        return plots.Cell(self.pixels, self.caption, self.right)


@dataclass(frozen=True)
class _Camera:
    """Makes photographs of chosen rows."""

    names: tuple[str, ...]
    answers: dict[str, Answers]
    thumbnails: Thumbnails
    activations: Activations | None

    def photographs(self, split: str, rows: np.ndarray, activation: bool = False) -> list[Photograph]:
        """Those of `rows`, int `[n]`, in their order."""
        if not len(rows):
            return []
        said, pixels = self.answers[split], self.thumbnails(split, rows)
        maps: Sequence[np.ndarray | None] = [None] * len(rows)
        if activation and self.activations:
            found = self.activations(split, rows, said.predicted[rows])
            maps = [overlay(picture, supporting(one)) for picture, one in zip(pixels, found, strict=True)]
        return [
            Photograph(
                picture,
                one,
                self.names[said.targets[row]],
                self.names[said.predicted[row]],
                float(said.confidence[row]),
                bool(said.right[row]),
            )
            for picture, one, row in zip(pixels, maps, rows, strict=True)
        ]


def save_galleries(
    names: Sequence[str], answers: dict[str, Answers], thumbnails: Thumbnails, activations: Activations | None
) -> list[Path]:
    """Pictures of wrong and right answers, of where the network looked, and of the most confused pairs.

    The same photographs stand, small, in metrics/gallery.json for the report.
    """
    camera = _Camera(tuple(map(common_name, names)), answers, thumbnails, activations)
    split = list(answers)[-1]
    said = answers[split]
    wrong, right = (said.surest(np.flatnonzero(said.right == value)) for value in (False, True))
    spread = np.unique(np.linspace(0, len(right) - 1, N_RIGHT).round().astype(int)) if len(right) else np.array([], int)
    mistakes = camera.photographs(split, wrong[:N_WRONG], activation=True)
    hits = camera.photographs(split, right[spread], activation=True)
    table = confused_pairs(answers)
    pairs = pair_examples(camera, table)

    shown = f", the {len(mistakes)} surest" if len(mistakes) < len(wrong) else ", the surest first"
    title = f"{split}: {len(wrong)} of {len(said.right)} answers are wrong" + (shown if len(wrong) > 1 else "")
    save_grid([one.cell() for one in mistakes], title, f"{split}: no answer is wrong", WRONG_PNG)
    title = f"{split}: {len(hits)} of {len(right)} right answers, from the surest to the least sure"
    save_grid([one.cell() for one in hits], title, f"{split}: no answer is right", RIGHT_PNG)
    chosen = mistakes[: 2 * N_COLUMNS] + hits[:: max(1, len(hits) // N_COLUMNS)]
    looked = [(one.cell(), plots.Cell(one.activation, "where it looked")) for one in chosen if one.activation is not None]
    cells = [cell for pair in looked for cell in pair]
    title = f"{split}: where the network looked for its answer, wrong answers first"
    save_grid(cells, title, "This network gives no class activation map", ACTIVATION_PNG)
    save_pairs(pairs, " and ".join(unseen(answers)))
    known = np.array(names, dtype=object)
    named = {column: known[table[column].to_numpy(dtype=int)] for column in ("truth", "predicted")}
    write_table(table.assign(**named), CONFUSED_PAIRS_CSV)
    write_json(GALLERY_JSON, gallery_content(split, mistakes, hits, pairs))
    return [WRONG_PNG, RIGHT_PNG, ACTIVATION_PNG, CONFUSED_PAIRS_PNG, CONFUSED_PAIRS_CSV, GALLERY_JSON]


def save_grid(cells: Sequence[plots.Cell], title: str, otherwise: str, target: Path) -> None:
    """Cells in rows, or a picture that says why there are none."""
    rows = [cells[start : start + N_COLUMNS] for start in range(0, len(cells), N_COLUMNS)]
    plots.save_png(plots.gallery(rows, title) if rows else plots.notice(otherwise), target)


@dataclass(frozen=True)
class Pair:
    """A class that was taken for another: how often, of how many, and photographs of both."""

    truth: str
    predicted: str
    n: int
    n_truth: int
    mistaken: list[Photograph]
    of_truth: list[Photograph]
    of_predicted: list[Photograph]

    @property
    def heading(self) -> str:
        return f"{self.truth} taken for {self.predicted}: {self.n} of {self.n_truth}"


def pair_examples(camera: _Camera, table: pd.DataFrame) -> list[Pair]:
    """The most frequent pairs of the unseen splits together, with the surest mistakes and right answers of either class."""
    splits = unseen(camera.answers)
    sums = table[table["split"].isin(splits)].groupby(["truth", "predicted"])["n"].sum()
    pairs = []
    most: dict[Any, int] = sums.sort_values(ascending=False, kind="stable").head(N_PAIRS).to_dict()
    for (truth, predicted), n in most.items():
        mistaken = [
            one
            for split in splits
            for one in camera.photographs(split, _surest(camera.answers[split], truth, predicted)[:N_MISTAKEN])
        ]
        first = next(iter(camera.answers))
        typical = [camera.photographs(first, _surest(camera.answers[first], k, k)[:N_TYPICAL]) for k in (truth, predicted)]
        n_truth = sum(int((camera.answers[split].targets == truth).sum()) for split in splits)
        pairs.append(Pair(camera.names[truth], camera.names[predicted], int(n), n_truth, mistaken[:N_MISTAKEN], *typical))
    return pairs


def _surest(said: Answers, truth: int, predicted: int) -> np.ndarray:
    """Rows of one class that were taken for another (or the same), the surest first."""
    return said.surest(np.flatnonzero((said.targets == truth) & (said.predicted == predicted)))


def save_pairs(pairs: Sequence[Pair], splits: str) -> None:
    """A row for each pair: mistaken photographs, then right ones of the one class and of the other."""
    if not pairs:
        plots.save_png(plots.notice(f"{splits}: no class was taken for another"), CONFUSED_PAIRS_PNG)
        return
    rows = []
    for pair in pairs:
        empty = [None] * (N_MISTAKEN - len(pair.mistaken))
        typical = [
            [plots.Cell(one.pixels, f"a typical\n{one.truth}") for one in side] + [None] * (N_TYPICAL - len(side))
            for side in (pair.of_truth, pair.of_predicted)
        ]
        rows.append([one.cell() for one in pair.mistaken] + empty + typical[0] + typical[1])
    title = f"{splits}: the classes most often taken for another"
    plots.save_png(plots.gallery(rows, title, [pair.heading for pair in pairs]), CONFUSED_PAIRS_PNG)


def gallery_content(split: str, mistakes: list[Photograph], hits: list[Photograph], pairs: list[Pair]) -> dict[str, Any]:
    """The content of metrics/gallery.json; photographs are JPEGs in base64."""

    def listed(photographs: list[Photograph]) -> list[dict[str, Any]]:
        return [
            {
                "truth": one.truth,
                "predicted": one.predicted,
                "probability": one.probability,
                "right": one.right,
                "photograph": _jpeg(one.pixels),
                "activation": None if one.activation is None else _jpeg(one.activation),
            }
            for one in photographs
        ]

    sides = ("mistaken", "of_truth", "of_predicted")
    return {
        "split": split,
        "wrong": listed(mistakes),
        "right": listed(hits),
        "pairs": [
            {key: getattr(pair, key) for key in ("truth", "predicted", "n", "n_truth")}
            | {side: listed(getattr(pair, side)) for side in sides}
            for pair in pairs
        ],
    }


def _jpeg(pixels: np.ndarray) -> str:
    return base64.b64encode(encode_jpeg(pixels, THUMBNAIL_PX)).decode()
