"""Figures of merit against scikit-learn, torch and sums done by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, auc, f1_score, log_loss, roc_curve, top_k_accuracy_score

from fieldguide.core.intervals import accuracy_interval
from fieldguide.evaluation.metrics import (
    SHARES,
    Answers,
    band_metrics,
    coverage_curve,
    largest,
    macro_f1_interval,
    ood_metrics,
    paired_difference,
    risk_coverage_area,
    split_metrics,
)
from fieldguide.evaluation.metrics import expected_calibration_error as calibration_error

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def case(n_images: int, n_classes: int, seed: int = 0, n_present: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than chance; targets of the first `n_present` classes."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, n_present or n_classes, n_images)
    logits = generator.normal(size=(n_images, n_classes)).astype(np.float32)
    logits[np.arange(n_images), targets] += 1
    return logits, targets


def answers_of(logits: np.ndarray, targets: np.ndarray | None, temperature: float) -> Answers:
    """The answers of all images, in two batches."""
    answers = Answers.unfilled(len(logits))
    for rows in np.array_split(np.arange(len(logits)), 2):
        answers.put(rows, logits[rows], None if targets is None else targets[rows], temperature)
    return answers


def metrics_of(logits: np.ndarray, targets: np.ndarray, temperature: float, ece_bins: int) -> dict[str, Any]:
    return split_metrics(answers_of(logits, targets, temperature), targets, ece_bins)


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, n_bins: int) -> float:
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets, n_bins)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


@pytest.mark.parametrize(
    ("n_images", "n_classes", "n_present"),
    [(250, 50, 50), (40, 6, 6), (30, 12, 11), (5, 104, 104), (20, 7, 2), (9, 9, 1), (1, 8, 8)],
)
def test_metrics_are_scikit_learns(n_images: int, n_classes: int, n_present: int) -> None:
    logits, targets = case(n_images, n_classes, n_present=n_present)
    probabilities, labels = softmax(logits), np.arange(n_classes)
    found = metrics_of(logits, targets, 1.0, 15)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, probabilities.argmax(1)))
    assert found["top5_accuracy"] == pytest.approx(top_k_accuracy_score(targets, probabilities, k=5, labels=labels))
    for mean in ("macro", "weighted"):
        f1 = f1_score(targets, probabilities.argmax(1), labels=np.unique(targets), average=mean, zero_division=0)
        assert found[f"{mean}_f1"] == pytest.approx(f1)
    assert found["classes"] == len(set(targets.tolist()))
    assert found["loss"] == pytest.approx(log_loss(targets, probabilities, labels=labels))
    assert found["n"] == n_images
    assert all(type(value) in (float, int) for value in found.values())


def test_top5_by_hand() -> None:
    logits = np.array([[6, 5, 4, 3, 2, 1, 0]] * 3, np.float32)
    assert metrics_of(logits, np.array([4, 5, 0]), 1.0, 15)["top5_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_top5_of_five_classes_or_fewer_is_one(n_classes: int) -> None:
    logits, targets = case(20, n_classes)
    assert metrics_of(-logits, targets, 1.0, 15)["top5_accuracy"] == 1


def test_macro_f1_by_hand_leaves_out_a_class_that_occurs_nowhere() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]  # predicted 0 0 1 1; classes 2 and 3 occur nowhere
    f1_of_0, f1_of_1 = 2 / 3, 4 / 5  # precision 1/2 and recall 1; precision 1 and recall 2/3
    assert metrics_of(logits, np.array([0, 1, 1, 1]), 1.0, 15)["macro_f1"] == pytest.approx((f1_of_0 + f1_of_1) / 2)


def test_macro_f1_does_not_measure_a_class_that_is_only_predicted() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 2, 1]]
    found = metrics_of(logits, np.array([0, 0, 1]), 1.0, 15)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["classes"] == 2


@pytest.mark.parametrize("n_classes", [2, 4, 5, 6, 300])
def test_the_largest_logits_are_those_of_a_stable_sort(n_classes: int) -> None:
    logits = np.random.default_rng(n_classes).integers(0, 6, (40, n_classes)).astype(np.float32)  # with many equal ones
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert np.array_equal(largest(logits), expected)
    answers = answers_of(logits, None, 2.0)
    probabilities = softmax(logits / 2)
    assert np.allclose(answers.probabilities[:, : expected.shape[1]], np.take_along_axis(probabilities, expected, axis=1))
    assert (answers.best[:, n_classes:] == -1).all()
    assert np.isnan(answers.probabilities[:, n_classes:]).all()
    assert np.isnan(answers.log_likelihood).all()  # no truth is known


def test_accuracy_by_the_size_of_the_class_by_hand() -> None:
    train_images = np.array([0, 1, 5, 6, 20, 21, 100, 101, 7])  # of nine classes; the last has no image here
    targets = np.array([0, 1, 2, 2, 3, 4, 5, 6, 7, 7])
    right = np.array([False, True, True, False, True, True, False, False, True, True])
    found = band_metrics(targets, right, train_images)
    figures = {name: (band.accuracy, band.n, band.classes) for name, band in found.items()}
    assert figures == {
        "0": (0, 1, 1),
        "1-5": (2 / 3, 3, 2),
        "6-20": (1, 2, 2),
        "21-100": (0, 2, 2),
        "101+": (1, 2, 1),
    }
    assert (found["1-5"].accuracy_low, found["1-5"].accuracy_high) == accuracy_interval(2, 3)
    assert "0" not in band_metrics(targets[1:], right[1:], train_images)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_loss_is_torchs_cross_entropy_however_sure_the_network_is(scale: float) -> None:
    logits, targets = case(40, 7)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double() * scale, torch.from_numpy(targets))
    assert metrics_of(logits * np.float32(scale), targets, 1.0, 15)["loss"] == pytest.approx(expected.item(), rel=1e-5)


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


def paired(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `n` images two models have right, both those that are in neither count."""
    images = np.arange(n)
    return (images < gained) | (images >= gained + lost), images >= gained


def test_the_interval_of_a_difference_is_the_published_one() -> None:
    found = paired_difference(*paired(1, 7, 21))  # Fagerland et al. 2014, Statistics in Medicine 33:2850, table V
    assert found == pytest.approx((-6 / 21, -0.508, -0.013), abs=6e-4)
    reverse = paired_difference(*reversed(paired(1, 7, 21)))
    assert reverse == pytest.approx((6 / 21, 0.013, 0.508), abs=6e-4)


def test_the_interval_of_a_difference_stays_within_the_possible_and_holds_0_where_both_are_the_same() -> None:
    assert paired_difference(*paired(3, 0, 3))[2] == 1.0
    assert paired_difference(*paired(0, 3, 3))[1] == -1.0
    difference, low, high = paired_difference(*paired(0, 0, 240))
    assert difference == 0
    assert low == pytest.approx(-high)
    assert 0.001 < high < 0.02


@pytest.mark.parametrize(("gains", "losses", "n"), [(0.05, 0.05, 240), (0.02, 0.02, 100), (0.1, 0.02, 240), (0.02, 0.01, 1000)])
def test_the_interval_of_a_difference_holds_the_true_one_as_often_as_it_says(gains: float, losses: float, n: int) -> None:
    counts = np.random.default_rng(1).multinomial(n, [gains, losses, 1 - gains - losses], 20_000)[:, :2]
    tables, times = np.unique(counts, axis=0, return_counts=True)
    intervals = np.array([paired_difference(*paired(*table, n))[1:] for table in tables])
    covered = (intervals[:, 0] <= gains - losses) & (gains - losses <= intervals[:, 1])
    assert times[covered].sum() / times.sum() > 0.945
    if gains == losses:
        assert times[intervals[:, 0] > 0].sum() / times.sum() < 0.025  # an equal model that would win


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_loss_and_ece_are_those_of_the_calibrated_probabilities_and_nothing_else_changes(temperature: float) -> None:
    logits, targets = case(60, 7)
    found, plain = metrics_of(logits, targets, temperature, 15), metrics_of(logits, targets, 1.0, 15)
    scaled = metrics_of(logits / np.float32(temperature), targets, 1.0, 15)
    for key in ("loss", "ece"):
        assert found[key] == pytest.approx(scaled[key], rel=1e-5)
        assert found[f"{key}_uncalibrated"] == plain[key] == plain[f"{key}_uncalibrated"]
    for key in ("accuracy", "accuracy_low", "top5_accuracy", "macro_f1", "macro_f1_low", "weighted_f1", "n"):
        assert found[key] == plain[key]


@pytest.mark.slow
def test_the_interval_of_macro_f1_is_scipys_bootstrap_of_scikit_learns_macro_f1() -> None:
    generator = np.random.default_rng(3)
    targets = generator.integers(0, 4, 80)
    predicted = np.where(generator.random(80) < 0.7, targets, generator.integers(0, 4, 80))

    def macro_f1(targets: np.ndarray, predicted: np.ndarray) -> float:
        return f1_score(targets, predicted, average="macro")

    options = {"paired": True, "vectorized": False, "n_resamples": 999, "method": "percentile", "rng": 0}
    expected = bootstrap((targets, predicted), macro_f1, **options).confidence_interval
    assert macro_f1_interval(targets, predicted) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_the_interval_of_macro_f1_is_the_same_each_time_and_holds_the_figure() -> None:
    logits, targets = case(200, 12, seed=5)
    found, again = (metrics_of(logits, targets, 1.0, 15) for _ in range(2))
    assert found == again
    assert found["macro_f1_low"] < found["macro_f1"] < found["macro_f1_high"]


def test_the_interval_of_macro_f1_leaves_out_classes_that_a_resample_lacks() -> None:
    targets = np.array([0, 1, 2, 7])
    assert macro_f1_interval(targets, targets) == (1, 1)
    assert macro_f1_interval(np.array([5]), np.array([0])) == (0, 0)


CONFIDENCE = np.array([0.9, 0.3, 0.8, 0.5])
RIGHT = np.array([True, False, False, True])  # by falling confidence: right, wrong, right, wrong


def test_accuracy_at_coverage_by_hand() -> None:
    accuracy, _ = coverage_curve(CONFIDENCE, RIGHT)
    shares = (1, 25, 26, 50, 75, 100)
    assert [accuracy[share - 1] for share in shares] == pytest.approx([1, 1, 1 / 2, 1 / 2, 2 / 3, 1 / 2])


def test_coverage_counts_whole_images_despite_rounding() -> None:
    right = np.repeat([True, False], [19, 1])
    assert coverage_curve(np.linspace(1, 0.5, 20), right)[0][94] == 1  # 0.95 * 20 is 19.000000000000004


def test_the_area_under_risk_and_coverage_by_hand() -> None:
    assert risk_coverage_area(CONFIDENCE, RIGHT) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_the_coverage_curve_gives_each_hundredth() -> None:
    accuracy, lowest = (pd.Series(column, SHARES) for column in coverage_curve(CONFIDENCE, RIGHT))
    assert SHARES.tolist() == [share / 100 for share in range(1, 101)]
    assert accuracy[[0.01, 0.25, 0.26, 0.5, 0.51, 1.0]].tolist() == pytest.approx([1, 1, 1 / 2, 1 / 2, 2 / 3, 1 / 2])
    assert lowest[[0.25, 0.26, 1.0]].tolist() == [0.9, 0.8, 0.3]
    assert set(coverage_curve(CONFIDENCE[:1], RIGHT[:1])[0]) == {1}


def test_strangers_are_told_apart_as_scikit_learn_says() -> None:
    generator = np.random.default_rng(0)
    known, strange = generator.normal(1, 1, 50), generator.normal(0, 1, 70)
    found = ood_metrics(known, strange, 0.5)
    false, true, _ = roc_curve(np.repeat([1, 0], [50, 70]), np.concatenate([known, strange]))
    assert found.auroc == pytest.approx(auc(false, true))
    assert found.refused == sum(score < 0.5 for score in strange) / 70
    assert found.n == 70


def test_a_threshold_belongs_to_the_known() -> None:
    assert ood_metrics(np.array([0.5]), np.array([0.5]), 0.5).refused == 0
