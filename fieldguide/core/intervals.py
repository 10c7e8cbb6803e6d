"""The confidence interval of an accuracy."""

from scipy.stats import binomtest


def accuracy_interval(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy."""
    interval = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
