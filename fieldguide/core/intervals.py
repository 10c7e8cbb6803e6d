"""The confidence interval of an accuracy."""

import math

from scipy.special import ndtri  # not scipy.stats, which takes half a second to import

Z95 = float(ndtri(0.975))  # quantile of the normal distribution


def accuracy_interval(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy (Newcombe 1998, Statistics in Medicine 17:857, method 3)."""
    share, denominator = n_right / n, 2 * (n + Z95**2)
    center = (2 * n * share + Z95**2) / denominator
    reach = Z95 / denominator * math.sqrt(4 * n * share * (1 - share) + Z95**2)
    return center - reach if n_right else 0.0, center + reach if n_right < n else 1.0
