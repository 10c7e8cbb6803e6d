"""Figures of merit from predictions: NumPy in, plain numbers out."""

import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import f1_score, top_k_accuracy_score


def split_metrics(logits: np.ndarray, targets: np.ndarray, ece_bins: int) -> dict[str, float]:
    """Accuracy, top 5, macro F1, loss (nats), calibration error and n of one split.

    logits: float `[N, K]`; targets: int `[N]`. Macro F1 is scikit-learn's over the classes that occur in truth or prediction.
    """
    n_classes = logits.shape[1]
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(log_probabilities)
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(n_classes)
    top5 = 1.0 if n_classes <= 5 else top_k_accuracy_score(targets, probabilities, k=5, labels=classes)
    return {
        "accuracy": float((predicted == targets).mean()),
        "top5_accuracy": float(top5),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
        "loss": float(-log_probabilities[np.arange(len(targets)), targets].mean()),
        "ece": expected_calibration_error(probabilities, targets, ece_bins),
        "n": len(targets),
    }


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, n_bins: int) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size (Guo et al. 2017).

    probabilities: `[N, K]`; targets: int `[N]`. Bins are (low, high], as in the paper.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, confidence - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(targets))


def accuracy_interval(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy."""
    interval = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
