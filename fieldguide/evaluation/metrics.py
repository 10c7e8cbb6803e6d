"""Metrics of predictions: NumPy arrays in, plain numbers out.

`probabilities` are float `[N, K]`, `targets` and `predicted` int `[N]`, `right` bool `[N]`, `confidence` (the largest
probability) float `[N]`.
"""

import math

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import norm
from sklearn.metrics import f1_score, precision_recall_fscore_support, roc_auc_score, top_k_accuracy_score

from fieldguide.core.intervals import accuracy_interval as accuracy_interval

COVERAGES = (0.8, 0.9, 0.95)  # shares of the images at which accuracy is reported
N_RESAMPLES = 1000  # of the bootstrap
SEED = 0  # of the bootstrap


def split_metrics(logits: np.ndarray, targets: np.ndarray, temperature: float, ece_bins: int) -> dict[str, float]:
    """The metrics of one split in `evaluate.json`; logits: float `[N, K]`, not divided by the temperature.

    `loss` (nats) and `ece` are those of the calibrated probabilities, `…_uncalibrated` those at temperature 1. Accuracy has
    Wilson's 95 % interval, macro F1 the bootstrap's; F1 is scikit-learn's over the classes that occur in truth or prediction.
    """
    predicted = logits.argmax(axis=1)
    right = predicted == targets
    low, high = accuracy_interval(int(right.sum()), len(right))
    f1_low, f1_high = macro_f1_interval(targets, predicted)
    loss, ece, confidence = _of_probabilities(logits, targets, temperature, ece_bins)
    loss_uncalibrated, ece_uncalibrated, _ = _of_probabilities(logits, targets, 1.0, ece_bins)
    return {
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "top5_accuracy": _top5_accuracy(logits, targets),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
        "weighted_f1": float(f1_score(targets, predicted, average="weighted", zero_division=0)),
        "loss": loss,
        "loss_uncalibrated": loss_uncalibrated,
        "ece": ece,
        "ece_uncalibrated": ece_uncalibrated,
        **{f"accuracy_at_coverage_{share * 100:.0f}": accuracy_at(share, confidence, right) for share in COVERAGES},
        "risk_coverage_area": risk_coverage_area(confidence, right),
        "n": len(targets),
    }


def _top5_accuracy(logits: np.ndarray, targets: np.ndarray) -> float:
    n_classes = logits.shape[1]
    if n_classes <= 5:
        return 1.0
    return float(top_k_accuracy_score(targets, logits, k=5, labels=np.arange(n_classes)))


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
    bins = confidence_bins(confidence, n_bins)
    gaps = np.bincount(bins, confidence - right, minlength=n_bins)
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


def accuracy_at(coverage: float, confidence: np.ndarray, right: np.ndarray) -> float:
    """Accuracy on the share `coverage` of the images with the highest confidence, rounded up."""
    n_kept = math.ceil(coverage * len(right) - 1e-9)  # in floats 0.95 * 20 > 19
    return float(right[np.argsort(-confidence, kind="stable")[:n_kept]].mean())


def risk_coverage_area(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean error rate on the n most confident images, over n from 1 to N (AURC; Geifman et al. 2019): lower is better."""
    n_wrong = np.cumsum(~right[np.argsort(-confidence, kind="stable")])
    return float((n_wrong / np.arange(1, len(right) + 1)).mean())


def coverage_table(confidence: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> pd.DataFrame:
    """Accuracy of each split on the most confident share of its images, in steps of 1 %.

    Columns: coverage; for each split its accuracy under the split's name and, as `<split>_probability`, the lowest confidence
    among these images.
    """
    shares = np.arange(1, 101) / 100
    table = pd.DataFrame({"coverage": shares})
    for split in right:
        order = np.argsort(-confidence[split], kind="stable")
        n_kept = np.ceil(shares * len(order) - 1e-9).astype(int)
        table[split] = (np.cumsum(right[split][order]) / np.arange(1, len(order) + 1))[n_kept - 1]
        table[f"{split}_probability"] = confidence[split][order][n_kept - 1]
    return table


def per_class_table(targets: np.ndarray, predicted: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """Precision, recall, F1 and support of each of the classes `names`, as scikit-learn defines them; 0 where undefined."""
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predicted, labels=np.arange(len(names)), zero_division=0
    )
    return pd.DataFrame({"class_name": names, "precision": precision, "recall": recall, "f1": f1, "support": support})


def ood_metrics(known: np.ndarray, ood: np.ndarray, threshold: float) -> dict[str, float]:
    """How well a score separates known from out-of-distribution images: AUROC, and the shares on either side of `threshold`.

    known, ood: scores `[N]` and `[M]`; higher is more likely known.
    """
    is_known = np.repeat([1, 0], [len(known), len(ood)])
    return {
        "auroc": float(roc_auc_score(is_known, np.concatenate([known, ood]))),
        "known_accepted": float((known >= threshold).mean()),
        "ood_refused": float((ood < threshold).mean()),
    }
