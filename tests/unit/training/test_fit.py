"""Which epoch is the best: by accuracy or by a loss that does not depend on how confident the network is."""

import math

import pytest
import torch
import torch.nn.functional as F

from fieldguide.network.calibration import FITTED
from fieldguide.training import fit
from fieldguide.training.fit import calibrated_loss, calibration_step, rank

TARGETS = torch.arange(400) % 8


def logits(noise: float, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.one_hot(TARGETS, 8).float() * 4 + noise * torch.randn(400, 8, generator=random)


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_loss_of_an_epoch_does_not_depend_on_the_networks_confidence(factor: float) -> None:
    assert calibrated_loss(logits(1.5) * factor, TARGETS) == pytest.approx(calibrated_loss(logits(1.5), TARGETS), rel=1e-4)


def test_smoothing_that_makes_a_network_less_confident_does_not_make_it_worse() -> None:
    early, late = logits(2.0), logits(1.6) * 0.3  # a better order, said with less confidence
    assert F.cross_entropy(late, TARGETS) > F.cross_entropy(early, TARGETS)
    assert calibrated_loss(late, TARGETS) < calibrated_loss(early, TARGETS) < math.log(8)


@pytest.mark.parametrize(("n_images", "n_classes", "step"), [(1, 8, 1), (4999, 8, 1), (5000, 8, 2), (100_000, 9, 21)])
def test_a_large_split_is_calibrated_on_a_part(n_images: int, n_classes: int, step: int) -> None:
    assert calibration_step(n_images, n_classes) == step
    assert n_images / step <= fit.N_FITTED
    assert n_images * 10**6 / calibration_step(n_images, 10**6) <= FITTED + 10**6  # logits of a million classes


@pytest.mark.parametrize(
    ("best_by", "winner"), [("accuracy", (0.9, 0.4)), ("loss", (0.8, 0.3))], ids=["accuracy first", "loss first"]
)
def test_an_epoch_is_ranked_by_its_metric_and_the_other_breaks_ties(best_by: str, winner: tuple[float, float]) -> None:
    epochs = [(0.9, 0.5), (0.9, 0.4), (0.8, 0.3), (0.7, 0.3)]
    lines = [{"valid_accuracy": accuracy, "valid_calibrated_loss": loss, "valid_loss": 1 - loss} for accuracy, loss in epochs]
    best = max(lines, key=lambda line: rank(line, best_by))
    assert (best["valid_accuracy"], best["valid_calibrated_loss"]) == winner
