"""The content of metrics/evaluate.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from fieldguide.core.artifacts import CleanMetrics, EvaluateMetrics, OodMetrics, SplitMetrics, Thresholds, TtaMetrics
from fieldguide.core.manifest import held_out_split, leaked
from fieldguide.core.params import Evaluate
from fieldguide.evaluation.answers import Answers
from fieldguide.evaluation.metrics import accuracy_interval, ood_metrics, split_metrics
from fieldguide.network.calibration import Calibration, verdicts
from fieldguide.network.checkpoint import Checkpoint
from fieldguide.network.inference import N_VIEWS


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

    def targets(self, split: str) -> np.ndarray:
        """int64 `[N]`."""
        return self.facts.classes.targets(self.rows[split])

    def probabilities(self, split: str) -> np.ndarray:
        """Calibrated probabilities: float64 `[N, K]`."""
        return self.answers[split].probabilities(self.calibration.temperature)


def evaluate_metrics(evaluation: Evaluation, ood: dict[str, np.ndarray], evaluate: Evaluate) -> EvaluateMetrics:
    """Metrics of every labelled split; `ood`: known scores of out-of-distribution images by kind."""
    calibration, rows = evaluation.calibration, evaluation.rows
    splits: dict[str, SplitMetrics] = {}
    gains: dict[str, float] = {}
    for split in rows:
        targets, answers = evaluation.targets(split), evaluation.answers[split]
        figures: dict[str, Any] = dict(split_metrics(answers.logits, targets, calibration.temperature, evaluate.ece_bins))
        verdict: dict[str, Any] = verdict_metrics(answers, targets, calibration) if split != "train" else {}
        splits[split] = SplitMetrics(**figures, **verdict)
        if calibration.tta != "none":
            gains[f"{split}_accuracy_gain"] = splits[split].accuracy - float((answers.first_view == targets).mean())
    test: dict[str, Any] = {"test": splits["test"], "test_without_leaks": clean_metrics(evaluation)} if "test" in rows else {}
    known = evaluation.answers[evaluation.held_out].known
    return EvaluateMetrics(
        train=splits["train"],
        valid=splits["valid"],
        **test,
        tta=TtaMetrics(forward_passes=N_VIEWS[calibration.tta], **gains),
        calibration=Thresholds(
            temperature=calibration.temperature,
            unsure_below=calibration.unsure_below,
            unknown_below=calibration.unknown_below,
        ),
        strangers={kind: _ood(known, scores, calibration.unknown_below) for kind, scores in ood.items()},
    )


def _ood(known: np.ndarray, scores: np.ndarray, threshold: float) -> OodMetrics:
    figures = ood_metrics(known, scores, threshold)
    return OodMetrics(refused=figures["ood_refused"], auroc=figures["auroc"], n=len(scores))


def clean_metrics(evaluation: Evaluation) -> CleanMetrics:
    """Metrics of the test images that are in no other split."""
    clean = ~leaked(evaluation.rows["test"])
    targets, predicted = evaluation.targets("test")[clean], evaluation.answers["test"].predicted[clean]
    if not len(targets):
        return CleanMetrics(accuracy=None, n=0)
    n_right = int((predicted == targets).sum())
    low, high = accuracy_interval(n_right, len(targets))
    return CleanMetrics(
        accuracy=n_right / len(targets),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(f1_score(targets, predicted, average="macro", zero_division=0)),
        weighted_f1=float(f1_score(targets, predicted, average="weighted", zero_division=0)),
        n=len(targets),
    )


def verdict_metrics(answers: Answers, targets: np.ndarray, calibration: Calibration) -> dict[str, float | None]:
    """Shares of a split's images with the verdicts known and sure, and the accuracy of the sure ones."""
    verdict = verdicts(answers.probabilities(calibration.temperature).max(axis=1), answers.known, calibration)
    sure = verdict == "sure"
    right = answers.predicted == targets
    return {
        "known": float((verdict != "unknown").mean()),
        "sure": float(sure.mean()),
        "accuracy_when_sure": float(right[sure].mean()) if sure.any() else None,
    }


def headline(metrics: EvaluateMetrics, split: str) -> str:
    """Accuracy and calibration of a split, in two lines."""
    figures, fitted = metrics.splits[split], metrics.calibration
    right = "" if figures.accuracy_when_sure is None else f" (accuracy {figures.accuracy_when_sure:.2%})"
    return (
        f"{split} accuracy {figures.accuracy:.2%}, 95 % interval {figures.accuracy_low:.1%} to"
        f" {figures.accuracy_high:.1%} (n={figures.n}); macro F1 {figures.macro_f1:.4f}"
        + (f"; valid accuracy {metrics.valid.accuracy:.2%}" if split != "valid" else "")
        + f"\ntemperature {fitted.temperature:.3f}: calibration error {figures.ece_uncalibrated:.4f} -> {figures.ece:.4f};"
        f" sure {figures.sure:.1%}{right}; accepted as known {figures.known:.1%}"
    )
