"""Metrics of predictions: NumPy arrays in, plain numbers out.

`targets` and `predicted` are int `[N]`, `right` bool `[N]`, `confidence` (the largest probability) float `[N]`.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import f1_score, roc_auc_score

from fieldguide.core.artifacts import BandMetrics, OodMetrics
from fieldguide.core.intervals import Z95, accuracy_interval
from fieldguide.core.taxonomy import Rank

SHARES = np.arange(1, 101) / 100  # of the images, for accuracy by coverage
COVERAGES = (80, 90, 95)  # percentages of the images at which accuracy is reported
N_RESAMPLES = 1000  # of the bootstrap
SEED = 0  # of the bootstrap
N_BEST = 5  # classes that are kept of each prediction
BANDS = (0, 5, 20, 100)  # train images of a class: the upper ends of the bands of class sizes


@dataclass(frozen=True)
class Answers:
    """What the metrics need of the predictions for N images: memory grows with the images, not with the classes.

    best: int64 `[N, N_BEST]`, the classes with the largest logits in descending order, of equal ones the first; -1 beyond the
    last class. probabilities: float64 `[N, N_BEST]`, theirs, calibrated; NaN beyond the last class. log_likelihood: float64
    `[N]`, the log-probability of the truth, calibrated; NaN without truth. first_view: int64 `[N]`, the answers without
    test-time augmentation. known: float32 `[N]`, known scores. `…_uncalibrated`: at temperature 1. groups, group_probability:
    int64 and float64 `[N, R]`, the most probable group at each of R ranks of a taxonomy, and its calibrated probability.
    """

    best: np.ndarray
    probabilities: np.ndarray
    log_likelihood: np.ndarray
    log_likelihood_uncalibrated: np.ndarray
    confidence_uncalibrated: np.ndarray
    first_view: np.ndarray
    known: np.ndarray
    groups: np.ndarray
    group_probability: np.ndarray
    ranks: tuple[Rank, ...] = ()

    @classmethod
    def unfilled(cls, n_images: int, ranks: tuple[Rank, ...] = ()) -> "Answers":
        """Allocated at once: parts kept from each batch fragment memory."""
        return cls(
            best=np.full((n_images, N_BEST), -1),
            probabilities=np.full((n_images, N_BEST), np.nan),
            log_likelihood=np.full(n_images, np.nan),
            log_likelihood_uncalibrated=np.full(n_images, np.nan),
            confidence_uncalibrated=np.full(n_images, np.nan),
            first_view=np.full(n_images, -1),
            known=np.full(n_images, np.nan, np.float32),
            groups=np.full((n_images, len(ranks)), -1),
            group_probability=np.full((n_images, len(ranks)), np.nan),
            ranks=ranks,
        )

    def put(self, rows: np.ndarray, logits: np.ndarray, targets: np.ndarray | None, temperature: float) -> None:
        """Fills all of the rows, int `[B]`, but `first_view` and `known`.

        logits: float32 `[B, K]`, not divided by the temperature; targets: the truth, int64 `[B]`, if it is known.
        """
        best = self.best[rows, : logits.shape[1]] = largest(logits)
        calibrated, plain = (log_softmax(logits / np.float64(divisor), axis=1) for divisor in (temperature, 1.0))
        self.probabilities[rows, : best.shape[1]] = np.exp(np.take_along_axis(calibrated, best, axis=1))
        self.confidence_uncalibrated[rows] = np.exp(plain.max(axis=1))
        if self.ranks:
            probabilities = np.exp(calibrated)
            for place, rank in enumerate(self.ranks):
                self.groups[rows, place], self.group_probability[rows, place] = rank.best(probabilities)
        if targets is not None:
            self.log_likelihood[rows] = calibrated[np.arange(len(rows)), targets]
            self.log_likelihood_uncalibrated[rows] = plain[np.arange(len(rows)), targets]

    @property
    def predicted(self) -> np.ndarray:
        """int64 `[N]`."""
        return self.best[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """The largest calibrated probability: float64 `[N]`."""
        return self.probabilities[:, 0]


def largest(logits: np.ndarray) -> np.ndarray:
    """The classes with the largest logits of each row, float `[B, K]`, in descending order: int64 `[B, min(K, N_BEST)]`."""
    rest, rows = logits.copy(), np.arange(len(logits))
    best = np.empty((len(logits), min(logits.shape[1], N_BEST)), np.int64)
    for place in range(best.shape[1]):
        best[:, place] = rest.argmax(axis=1)
        rest[rows, best[:, place]] = -np.inf
    return best


def accuracy_metrics(targets: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Accuracy with Wilson's 95 % interval, and F1 by scikit-learn: means over the `classes` that have images in `targets`."""
    n_right, n, measured = int((predicted == targets).sum()), len(targets), np.unique(targets)
    low, high = accuracy_interval(n_right, n)
    f1 = {
        f"{mean}_f1": float(f1_score(targets, predicted, labels=measured, average=mean, zero_division=0))
        for mean in ("macro", "weighted")
    }
    return {"accuracy": n_right / n, "accuracy_low": low, "accuracy_high": high, "n": n} | f1 | {"classes": len(measured)}


def split_metrics(answers: Answers, targets: np.ndarray, ece_bins: int) -> dict[str, Any]:
    """The metrics of one split in `evaluate.json`.

    `loss` (nats) and `ece` are those of the calibrated probabilities, `…_uncalibrated` those at temperature 1. The interval of
    macro F1 is the bootstrap's.
    """
    confidence, right = answers.confidence, answers.predicted == targets
    f1_low, f1_high = macro_f1_interval(targets, answers.predicted)
    accuracies, _ = coverage_curve(confidence, right)
    return accuracy_metrics(targets, answers.predicted) | {
        "top5_accuracy": float((answers.best == targets[:, None]).any(axis=1).mean()),
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
        "loss": -float(answers.log_likelihood.mean()),
        "loss_uncalibrated": -float(answers.log_likelihood_uncalibrated.mean()),
        "ece": expected_calibration_error(confidence, right, ece_bins),
        "ece_uncalibrated": expected_calibration_error(answers.confidence_uncalibrated, right, ece_bins),
        **{f"accuracy_at_coverage_{percent}": float(accuracies[percent - 1]) for percent in COVERAGES},
        "risk_coverage_area": risk_coverage_area(confidence, right),
    }


def band_metrics(targets: np.ndarray, right: np.ndarray, train_images: np.ndarray) -> dict[str, BandMetrics]:
    """Accuracy by the number of train images of the true class, int `[K]`; bands without images are left out."""
    band = np.searchsorted(BANDS, train_images)  # of each class
    names = [str(BANDS[0]), *(f"{low + 1}-{high}" for low, high in itertools.pairwise(BANDS)), f"{BANDS[-1] + 1}+"]
    metrics = {}
    for number, name in enumerate(names):
        within = band[targets] == number
        if n := int(within.sum()):
            n_right = int(right[within].sum())
            low, high = accuracy_interval(n_right, n)
            classes = len(np.unique(targets[within]))
            metrics[name] = BandMetrics(accuracy=n_right / n, accuracy_low=low, accuracy_high=high, n=n, classes=classes)
    return metrics


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, n_bins: int) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size (Guo et al. 2017)."""
    gaps = np.bincount(confidence_bins(confidence, n_bins), confidence - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(right))


def confidence_bins(confidence: np.ndarray, n_bins: int) -> np.ndarray:
    """The equal-width bin, (low, high] as in Guo et al. 2017, of each value in 0..1: int64 `[N]`."""
    return np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)


def paired_difference(right: np.ndarray, other_right: np.ndarray) -> tuple[float, float, float]:
    """The difference in accuracy on the same images, and its 95 % interval.

    Bonett and Price's adjusted Wald interval (2012), recommended for paired proportions by Fagerland et al. (2014).
    """
    n = len(right)
    gained, lost = int((right & ~other_right).sum()), int((~right & other_right).sum())
    share_gained, share_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    middle = share_gained - share_lost
    reach = Z95 * math.sqrt((share_gained + share_lost - middle**2) / (n + 2))
    return (gained - lost) / n, max(middle - reach, -1.0), min(middle + reach, 1.0)


def macro_f1_interval(targets: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval over the images of macro F1 over the classes of `targets`; deterministic."""
    generator = np.random.default_rng(SEED)
    n, n_classes = len(targets), int(max(targets.max(), predicted.max())) + 1
    measured = np.bincount(targets, minlength=n_classes) > 0
    scores = np.empty(N_RESAMPLES)
    for resample in range(N_RESAMPLES):
        rows = generator.integers(0, n, n)
        truth, answer = targets[rows], predicted[rows]
        n_right = np.bincount(truth[truth == answer], minlength=n_classes)
        n_both = np.bincount(truth, minlength=n_classes) + np.bincount(answer, minlength=n_classes)
        occurs = measured & (n_both > 0)
        scores[resample] = (2 * n_right[occurs] / n_both[occurs]).mean()
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def risk_coverage_area(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean error rate on the n most confident images, over n from 1 to N (AURC; Geifman et al. 2019): lower is better."""
    n_wrong = np.cumsum(~right[np.argsort(-confidence, kind="stable")])
    return float((n_wrong / np.arange(1, len(right) + 1)).mean())


def coverage_curve(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on each share of the images, the most confident ones, and their lowest confidence: float `[len(SHARES)]` each.

    The number of images is rounded up.
    """
    order = np.argsort(-confidence, kind="stable")
    last = np.ceil(SHARES * len(order) - 1e-9).astype(int) - 1  # in floats 0.95 * 20 > 19
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    return accuracy[last], confidence[order][last]


def ood_metrics(known: np.ndarray, ood: np.ndarray, threshold: float) -> OodMetrics:
    """How well a score separates known from out-of-distribution images: AUROC, and the share of these below `threshold`.

    known, ood: scores `[N]` and `[M]`; higher is more likely known.
    """
    is_known = np.repeat([1, 0], [len(known), len(ood)])
    auroc = float(roc_auc_score(is_known, np.concatenate([known, ood])))
    return OodMetrics(refused=float((ood < threshold).mean()), auroc=auroc, n=len(ood))
