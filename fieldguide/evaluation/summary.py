"""The content of metrics/evaluate.json."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.core.artifacts import CleanMetrics, EvaluateMetrics, RankMetrics, SplitMetrics, Thresholds, TtaMetrics
from fieldguide.core.intervals import accuracy_interval
from fieldguide.core.manifest import Classes, held_out_split, is_corrected, leaked
from fieldguide.core.params import Evaluate
from fieldguide.core.taxonomy import narrowest
from fieldguide.evaluation.answers import targets_of
from fieldguide.evaluation.metrics import Answers, accuracy_metrics, band_metrics, ood_metrics, split_metrics
from fieldguide.network.calibration import Calibration, verdicts
from fieldguide.network.checkpoint import Checkpoint
from fieldguide.network.inference import N_VIEWS


@dataclass(frozen=True)
class LabelledSplit:
    """The images of one split, with truth and predictions."""

    name: str
    class_names: np.ndarray
    rows: pd.DataFrame
    targets: np.ndarray  # int64 [N]; in valid and test of the labels that the data give
    answers: Answers
    calibration: Calibration

    @property
    def confidence(self) -> np.ndarray:
        """float64 `[N]`."""
        return self.answers.confidence

    @cached_property
    def right(self) -> np.ndarray:
        """bool `[N]`."""
        return self.answers.predicted == self.targets

    @cached_property
    def verdict(self) -> np.ndarray:
        """sure, unsure or unknown: `[N]`."""
        return verdicts(self.confidence, self.answers.known, self.calibration)

    @cached_property
    def told(self) -> np.ndarray:
        """The place of the rank at which an unsure prediction is told, int64 `[N]`; -1 where it is at none."""
        answers = self.answers
        told = narrowest(answers.ranks, answers.groups, answers.group_probability, self.calibration.taxa_below)
        return np.where(self.verdict == "unsure", told, -1)

    @cached_property
    def right_groups(self) -> np.ndarray:
        """Whether the most probable group at each rank is that of the truth: bool `[N, R]`."""
        truth = [rank.of_class[self.targets] for rank in self.answers.ranks]
        return self.answers.groups == np.stack(truth, axis=1) if truth else np.empty((len(self.targets), 0), bool)


@dataclass(frozen=True)
class Evaluation:
    """Rows of the manifest and predictions by labelled split, and the calibration."""

    facts: Checkpoint
    rows: dict[str, pd.DataFrame]
    answers: dict[str, Answers]
    calibration: Calibration

    @property
    def held_out(self) -> str:
        """The split on which the network is evaluated."""
        return held_out_split(self.rows)

    @cached_property
    def splits(self) -> dict[str, LabelledSplit]:
        names, classes = np.array(self.facts.class_names, dtype=object), self.facts.classes
        return {
            name: LabelledSplit(name, names, rows, targets_of(classes, name, rows), self.answers[name], self.calibration)
            for name, rows in self.rows.items()
        }

    @property
    def train_images(self) -> np.ndarray:
        """Train images of each class, int64 `[K]`."""
        train = self.splits["train"]
        return np.bincount(train.targets, minlength=len(train.class_names))

    @property
    def unseen(self) -> list[LabelledSplit]:
        """The splits on which the network was not trained."""
        return [split for name, split in self.splits.items() if name != "train"]


def evaluate_metrics(evaluation: Evaluation, ood: dict[str, np.ndarray], evaluate: Evaluate) -> EvaluateMetrics:
    """Metrics of every labelled split; `ood`: known scores of out-of-distribution images by kind."""
    calibration, splits = evaluation.calibration, evaluation.splits
    metrics: dict[str, Any] = {}
    gains: dict[str, float] = {}
    for name, split in splits.items():
        figures = split_metrics(split.answers, split.targets, evaluate.ece_bins)
        further: dict[str, Any] = {}
        if name != "train":
            further |= verdict_metrics(split)
            further["by_class_size"] = band_metrics(split.targets, split.right, evaluation.train_images)
            further |= taxon_metrics(split)
        if name != "train" and is_corrected(split.rows):
            further["as_corrected"] = corrected_metrics(split, evaluation.facts.classes)
        metrics[name] = SplitMetrics(**figures | further)
        if calibration.tta != "none":
            gains[f"{name}_accuracy_gain"] = figures["accuracy"] - float((split.answers.first_view == split.targets).mean())
    if "test" in splits:
        metrics["test_without_leaks"] = clean_metrics(splits["test"])
    known = evaluation.answers[evaluation.held_out].known
    return EvaluateMetrics(
        classes=len(evaluation.facts.class_names),
        **metrics,
        tta=TtaMetrics(forward_passes=N_VIEWS[calibration.tta], **gains),
        calibration=Thresholds(
            temperature=calibration.temperature,
            unsure_below=calibration.unsure_below,
            unknown_below=calibration.unknown_below,
        ),
        strangers={kind: ood_metrics(known, scores, calibration.unknown_below) for kind, scores in ood.items()},
    )


def clean_metrics(test: LabelledSplit) -> CleanMetrics:
    """Metrics of the test images that are in no other split."""
    clean = ~leaked(test.rows)
    return _metrics_of(test.targets[clean], test.answers.predicted[clean])


def corrected_metrics(split: LabelledSplit, classes: Classes) -> CleanMetrics:
    """Metrics of a split by its corrected labels, without the images that were dropped."""
    kept = split.rows["decision"].ne("drop").to_numpy(dtype=bool)
    return _metrics_of(classes.targets(split.rows[kept]), split.answers.predicted[kept])


def _metrics_of(targets: np.ndarray, predicted: np.ndarray) -> CleanMetrics:
    return CleanMetrics(**accuracy_metrics(targets, predicted)) if len(targets) else CleanMetrics(accuracy=None, n=0)


def verdict_metrics(split: LabelledSplit) -> dict[str, float | None]:
    """Shares of a split's images with the verdicts known and sure, and the accuracy of the sure ones."""
    verdict = split.verdict
    sure = verdict == "sure"
    return {
        "known": float((verdict != "unknown").mean()),
        "sure": float(sure.mean()),
        "accuracy_when_sure": float(split.right[sure].mean()) if sure.any() else None,
    }


def taxon_metrics(split: LabelledSplit) -> dict[str, Any]:
    """`by_rank` and `useful` of a split; nothing without a taxonomy."""
    if not split.answers.ranks:
        return {}
    by_rank = {}
    for place, rank in enumerate(split.answers.ranks):
        right, told = split.right_groups[:, place], split.told == place
        low, high = accuracy_interval(int(right.sum()), len(right))
        by_rank[rank.name] = RankMetrics(
            accuracy=float(right.mean()),
            accuracy_low=low,
            accuracy_high=high,
            groups=len(rank.names),
            told=float(told.mean()),
            accuracy_when_told=float(right[told].mean()) if told.any() else None,
        )
    useful = (split.verdict == "sure") & split.right
    (rows,) = np.nonzero(split.told >= 0)
    useful[rows] = split.right_groups[rows, split.told[rows]]
    return {"by_rank": by_rank, "useful": float(useful.mean())}


def headline(metrics: EvaluateMetrics, split: str) -> str:
    """Accuracy and calibration of a split, in two lines, and one more each for corrected labels and a taxonomy."""
    figures, fitted = metrics.splits[split], metrics.calibration
    right = "" if figures.accuracy_when_sure is None else f" (accuracy {figures.accuracy_when_sure:.2%})"
    return (
        f"{split} accuracy {figures.accuracy:.2%}, 95 % interval {figures.accuracy_low:.1%} to"
        f" {figures.accuracy_high:.1%} (n={figures.n}); macro F1 {figures.macro_f1:.4f}"
        + ("" if figures.classes == metrics.classes else f" over {figures.classes} of {metrics.classes} classes")
        + (f"; valid accuracy {metrics.valid.accuracy:.2%}" if split != "valid" else "")
        + f"\ntemperature {fitted.temperature:.3f}: calibration error {figures.ece_uncalibrated:.4f} -> {figures.ece:.4f};"
        f" sure {figures.sure:.1%}{right}; accepted as known {figures.known:.1%}"
        + (f"\nas corrected: {split} {in_words(figures.as_corrected)}" if figures.as_corrected else "")
        + (f"\n{_taxa_in_words(figures)}" if figures.by_rank else "")
    )


def _taxa_in_words(figures: SplitMetrics) -> str:
    told = [
        f"{rank} {score.told:.1%}" + ("" if score.accuracy_when_told is None else f" (accuracy {score.accuracy_when_told:.2%})")
        for rank, score in (figures.by_rank or {}).items()
    ]
    return f"unsure of the class but told at a wider rank: {', '.join(told)}; right and told {figures.useful or 0:.1%}"


def in_words(figures: CleanMetrics) -> str:
    """Accuracy with interval and n, and macro F1."""
    if figures.accuracy is None or figures.accuracy_low is None or figures.accuracy_high is None:
        return "no image"
    return (
        f"accuracy {figures.accuracy:.2%}, 95 % interval {figures.accuracy_low:.1%} to {figures.accuracy_high:.1%}"
        f" (n={figures.n}); macro F1 {figures.macro_f1:.4f}"
    )
