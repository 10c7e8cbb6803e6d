"""Metrics of predictions: NumPy arrays in, plain numbers out.

`probabilities` are float `[N, K]`, `targets` and `predicted` int `[N]`, `right` bool `[N]`, `confidence` (the largest
probability) float `[N]`.
"""

import math
from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import norm
from sklearn.metrics import f1_score, roc_auc_score, top_k_accuracy_score

from fieldguide.core.artifacts import OodMetrics
from fieldguide.core.intervals import accuracy_interval as accuracy_interval

SHARES = np.arange(1, 101) / 100  # of the images, for accuracy by coverage
COVERAGES = (80, 90, 95)  # percentages of the images at which accuracy is reported
N_RESAMPLES = 1000  # of the bootstrap
SEED = 0  # of the bootstrap


def accuracy_metrics(targets: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Accuracy with Wilson's 95 % interval, and F1 by scikit-learn over the classes that occur in truth or prediction."""
    n_right, n = int((predicted == targets).sum()), len(targets)
    low, high = accuracy_interval(n_right, n)
    f1 = {f"{mean}_f1": float(f1_score(targets, predicted, average=mean, zero_division=0)) for mean in ("macro", "weighted")}
    return {"accuracy": n_right / n, "accuracy_low": low, "accuracy_high": high, "n": n} | f1


def split_metrics(logits: np.ndarray, targets: np.ndarray, temperature: float, ece_bins: int) -> dict[str, Any]:
    """The metrics of one split in `evaluate.json`; logits: float `[N, K]`, not divided by the temperature.

    `loss` (nats) and `ece` are those of the calibrated probabilities, `…_uncalibrated` those at temperature 1. The interval of
    macro F1 is the bootstrap's.
    """
    predicted, n_classes = logits.argmax(axis=1), logits.shape[1]
    f1_low, f1_high = macro_f1_interval(targets, predicted)
    loss, ece, confidence = _of_probabilities(logits, targets, temperature, ece_bins)
    loss_uncalibrated, ece_uncalibrated, _ = _of_probabilities(logits, targets, 1.0, ece_bins)
    accuracies, _ = coverage_curve(confidence, predicted == targets)
    return accuracy_metrics(targets, predicted) | {
        "top5_accuracy": 1.0 if n_classes <= 5 else float(top_k_accuracy_score(targets, logits, k=5, labels=range(n_classes))),
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
        "loss": loss,
        "loss_uncalibrated": loss_uncalibrated,
        "ece": ece,
        "ece_uncalibrated": ece_uncalibrated,
        **{f"accuracy_at_coverage_{percent}": float(accuracies[percent - 1]) for percent in COVERAGES},
        "risk_coverage_area": risk_coverage_area(confidence, predicted == targets),
    }


def _of_probabilities(
    logits: np.ndarray, targets: np.ndarray, temperature: float, ece_bins: int
) -> tuple[float, float, np.ndarray]:
    """Log loss, calibration error and confidence at a temperature."""
    log_probabilities = log_softmax(logits / np.float64(temperature), axis=1)
    loss = float(-log_probabilities[np.arange(len(targets)), targets].mean())
    probabilities = np.exp(log_probabilities, out=log_probabilities)
    return loss, expected_calibration_error(probabilities, targets, ece_bins), probabilities.max(axis=1)


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, n_bins: int) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    gaps = np.bincount(confidence_bins(confidence, n_bins), confidence - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(targets))


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
    reach = float(norm.ppf(0.975)) * math.sqrt((share_gained + share_lost - middle**2) / (n + 2))
    return (gained - lost) / n, max(middle - reach, -1.0), min(middle + reach, 1.0)


def macro_f1_interval(targets: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of macro F1 over the images; deterministic."""
    generator = np.random.default_rng(SEED)
    n, n_classes = len(targets), int(max(targets.max(), predicted.max())) + 1
    scores = np.empty(N_RESAMPLES)
    for resample in range(N_RESAMPLES):
        rows = generator.integers(0, n, n)
        truth, answer = targets[rows], predicted[rows]
        n_right = np.bincount(truth[truth == answer], minlength=n_classes)
        n_both = np.bincount(truth, minlength=n_classes) + np.bincount(answer, minlength=n_classes)
        occurs = n_both > 0
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
