"""Figures of merit against scikit-learn, torch and sums done by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from fieldguide.metrics import accuracy_interval, expected_calibration_error, split_metrics

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def case(n_images: int, n_classes: int, seed: int = 0, n_present: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than chance; targets of the first `n_present` classes."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, n_present or n_classes, n_images)
    logits = generator.normal(size=(n_images, n_classes)).astype(np.float32)
    logits[np.arange(n_images), targets] += 1
    return logits, targets


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


@pytest.mark.parametrize(
    ("n_images", "n_classes", "n_present"),
    [(250, 50, 50), (40, 6, 6), (30, 12, 11), (5, 104, 104), (20, 7, 2), (9, 9, 1), (1, 8, 8)],
)
def test_metrics_are_scikit_learns(n_images: int, n_classes: int, n_present: int) -> None:
    logits, targets = case(n_images, n_classes, n_present=n_present)
    probabilities, labels = softmax(logits), np.arange(n_classes)
    found = split_metrics(logits, targets, 15)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, probabilities.argmax(1)))
    assert found["top5_accuracy"] == pytest.approx(top_k_accuracy_score(targets, probabilities, k=5, labels=labels))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, probabilities.argmax(1), average="macro", zero_division=0))
    assert found["loss"] == pytest.approx(log_loss(targets, probabilities, labels=labels))
    assert found["n"] == n_images
    assert all(type(value) in (float, int) for value in found.values())


def test_top5_by_hand() -> None:
    logits = np.array([[6, 5, 4, 3, 2, 1, 0]] * 3, np.float32)
    assert split_metrics(logits, np.array([4, 5, 0]), 15)["top5_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_top5_of_five_classes_or_fewer_is_one(n_classes: int) -> None:
    logits, targets = case(20, n_classes)
    assert split_metrics(-logits, targets, 15)["top5_accuracy"] == 1


def test_macro_f1_by_hand_leaves_out_a_class_that_occurs_nowhere() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]  # predicted 0 0 1 1; classes 2 and 3 occur nowhere
    f1_of_0, f1_of_1 = 2 / 3, 4 / 5  # precision 1/2 and recall 1; precision 1 and recall 2/3
    assert split_metrics(logits, np.array([0, 1, 1, 1]), 15)["macro_f1"] == pytest.approx((f1_of_0 + f1_of_1) / 2)


def test_macro_f1_counts_a_class_that_is_only_predicted_as_zero() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 2]]
    assert split_metrics(logits, np.array([0, 0]), 15)["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_loss_is_torchs_cross_entropy_however_sure_the_network_is(scale: float) -> None:
    logits, targets = case(40, 7)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double() * scale, torch.from_numpy(targets))
    assert split_metrics(logits * np.float32(scale), targets, 15)["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_ece_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.85, 0.15], [0.65, 0.35], [0.65, 0.35], [0.45, 0.55]])
    targets = np.array([0, 1, 0, 1, 1])  # right, wrong, right, wrong, right
    gaps = [1 * abs(1 - 0.95), 1 * abs(0 - 0.85), 2 * abs(1 / 2 - 0.65), 1 * abs(1 - 0.55)]
    assert expected_calibration_error(probabilities, targets, 10) == pytest.approx(sum(gaps) / 5)


def test_ece_within_a_bin_is_the_gap_of_the_means() -> None:
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4]])  # one bin of two: confidence 0.7, accuracy 1/2
    assert expected_calibration_error(probabilities, np.array([1, 0]), 2) == pytest.approx(0.2)


def test_ece_bins_exclude_their_lower_and_include_their_upper_end() -> None:
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]])  # with 4 bins: (0.5, 0.75] and (0.25, 0.5]
    targets = np.array([1, 0])  # wrong, right
    assert expected_calibration_error(probabilities, targets, 4) == pytest.approx((0.75 + 0.5) / 2)
    shared = np.array([[0.75, 0.25], [0.625, 0.375]])  # both in (0.5, 0.75]: confidence 0.6875, accuracy 1/2
    assert expected_calibration_error(shared, targets, 4) == pytest.approx(0.6875 - 0.5)


@pytest.mark.parametrize("n_bins", [2, 10, 15, 1000])
def test_ece_is_zero_when_certain_and_right_and_one_when_certain_and_wrong(n_bins: int) -> None:
    certain = np.eye(3)[[0, 1, 2, 2]]
    assert expected_calibration_error(certain, np.array([0, 1, 2, 2]), n_bins) == 0
    assert expected_calibration_error(certain, np.array([1, 2, 0, 0]), n_bins) == 1


def test_ece_is_near_zero_for_targets_drawn_from_the_probabilities() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(5), 20_000)
    targets = (probabilities.cumsum(1) < generator.random((20_000, 1))).sum(1)
    assert expected_calibration_error(probabilities, targets, 15) < 0.02
    assert expected_calibration_error(probabilities, (targets + 1) % 5, 15) > 0.2


@pytest.mark.parametrize(("n_right", "n"), [(223, 250), (0, 10), (10, 10), (1, 1), (482, 500), (1, 3)])
def test_the_interval_is_wilsons_formula(n_right: int, n: int) -> None:
    share = n_right / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    assert accuracy_interval(n_right, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(n_right: int, n: int, low: float, high: float) -> None:
    found = accuracy_interval(n_right, n)  # against Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    assert found == pytest.approx((low, high), abs=6e-5)
    assert [type(end) for end in found] == [float, float]
