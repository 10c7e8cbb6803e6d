"""What is fitted on valid and train: temperature, thresholds and known scores, against references and by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax
from sklearn.covariance import EmpiricalCovariance, shrunk_covariance
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity

from fieldguide.core.errors import UserError
from fieldguide.core.taxonomy import Rank, Taxon, narrowest, ranks_of
from fieldguide.evaluation.metrics import expected_calibration_error
from fieldguide.network import calibration
from fieldguide.network.calibration import (
    NEVER,
    SCORES,
    SHRINKAGE,
    TEMPERATURES,
    Calibration,
    KnownScore,
    Moments,
    fit_taxa_below,
    fit_temperature,
    fit_unknown_below,
    fit_unsure_below,
    load_calibration,
    sample_of,
    save_calibration,
    score_tensors,
    verdicts,
)

FITTED = Calibration("mirror", 0.7, 0.9, "cosine", 0.25, {"centre": torch.ones(3), "directions": torch.eye(3)[:, :2]})


def drawn(n_images: int, n_classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and targets drawn from their probabilities at `temperature`."""
    generator = np.random.default_rng(n_images)
    logits = generator.normal(scale=2, size=(n_images, n_classes)).astype(np.float32)
    cumulated = softmax(logits.astype(np.float64) / temperature, axis=1).cumsum(axis=1)
    return logits, (cumulated < generator.random((n_images, 1))).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_behind_the_targets_is_found(temperature: float) -> None:
    logits, targets = drawn(20_000, 5, temperature)
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(temperature, rel=0.05)
    calibrated = softmax(logits / found, axis=1)
    assert expected_calibration_error(calibrated.max(axis=1), calibrated.argmax(axis=1) == targets, 15) < 0.015


def test_at_the_temperature_the_slope_of_the_log_loss_is_zero() -> None:
    logits, targets = drawn(150, 4, 1.5)

    def slope(temperature: float) -> float:  # of scikit-learn's log loss
        above, below = (log_loss(targets, softmax(logits / (temperature + step), axis=1)) for step in (1e-3, -1e-3))
        return above - below

    assert fit_temperature(logits, targets) == pytest.approx(brentq(slope, 0.5, 5), abs=1e-2)


@pytest.mark.parametrize(("n", "n_classes"), [(1, 2), (240, 12)])
def test_without_a_wrong_answer_the_mean_probability_is_that_of_the_rule_of_succession(n: int, n_classes: int) -> None:
    targets = np.arange(n) % n_classes
    logits = 3 * np.eye(n_classes, dtype=np.float32)[targets]
    top = softmax(logits / fit_temperature(logits, targets), axis=1).max(axis=1)
    assert top.mean() == pytest.approx((n + 1) / (n + 2), abs=1e-4)


def test_with_wrong_answers_only_the_temperature_is_the_largest() -> None:
    logits = 5 * np.eye(3, dtype=np.float32)
    assert fit_temperature(logits, np.array([1, 2, 0])) == pytest.approx(TEMPERATURES[1], rel=1e-3)


@pytest.mark.parametrize("chunk", [30, 1000])
def test_the_temperature_does_not_depend_on_the_size_of_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = drawn(400, 6, 1.7)
    expected = fit_temperature(logits, targets), fit_temperature(logits, logits.argmax(axis=1))
    monkeypatch.setattr(calibration, "CHUNK", chunk)
    assert (fit_temperature(logits, targets), fit_temperature(logits, logits.argmax(axis=1))) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_temperature_is_fitted_on_a_stated_number_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.arange(10_000)[sample_of(10_000, 1000)].tolist() == list(range(10_000))
    monkeypatch.setattr(calibration, "FITTED", 100)
    assert np.arange(10)[sample_of(10, 10)].tolist() == list(range(10))
    assert np.arange(11)[sample_of(11, 10)].tolist() == [0, 2, 4, 6, 8, 10]
    assert len(np.arange(10_000)[sample_of(10_000, 7)]) * 7 <= 100 + 7
    assert sample_of(0, 10) == slice(None, None, 1)


def test_large_logits_do_not_overflow() -> None:
    logits, targets = drawn(100, 4, 1.0)
    found = fit_temperature(logits * np.float32(10), targets)
    assert found == pytest.approx(10 * fit_temperature(logits, targets), rel=1e-4)
    assert np.isfinite(log_softmax(logits * 10 / found, axis=1)).all()


@pytest.mark.parametrize(
    ("right", "accuracy", "expected"),
    [
        ("1111", 1.0, 0.6),  # all are good enough: the least confidence
        ("1110", 1.0, 0.65),  # half way between 0.7 and 0.6
        ("1101", 1.0, 0.75),
        ("1101", 0.75, 0.6),
        ("1011", 0.75, 0.6),  # the largest number of answers, though two of them are not good enough
        ("0111", 0.7, 0.6),
        ("0111", 0.9, NEVER),
        ("0000", 0.5, NEVER),
    ],
)
def test_sure_is_the_largest_number_of_answers_that_are_right_often_enough(
    right: str, accuracy: float, expected: float
) -> None:
    order = [2, 0, 3, 1]  # the order of the images does not matter
    confidence, is_right = np.array([0.9, 0.8, 0.7, 0.6])[order], np.array([mark == "1" for mark in right])[order]
    assert fit_unsure_below(confidence, is_right, accuracy) == pytest.approx(expected)


def test_answers_of_equal_confidence_are_sure_together_or_not_at_all() -> None:
    confidence, right = np.array([0.9, 0.8, 0.8, 0.5]), np.array([True, True, False, True])
    assert fit_unsure_below(confidence, right, 1.0) == pytest.approx(0.85)


@pytest.mark.parametrize("accept", [0.95, 0.9, 0.5, 1.0, 0.01])
@pytest.mark.parametrize("n", [1, 10, 20, 234])
def test_at_least_the_share_asked_for_is_accepted_and_no_image_more(n: int, accept: float) -> None:
    scores = np.random.default_rng(n).normal(size=n).astype(np.float32)
    accepted = (scores >= fit_unknown_below(scores, accept)).sum()
    assert accepted == max(math.ceil(n * accept - 1e-9), 1)


def test_equal_scores_are_accepted_together() -> None:
    assert (np.ones(20) >= fit_unknown_below(np.ones(20), 0.5)).all()


def test_verdicts_by_hand() -> None:
    found = verdicts(np.array([0.9, 0.89, 0.9, 0.1]), np.array([0.25, 0.25, 0.24, 0.24]), FITTED)
    assert found.tolist() == ["sure", "unsure", "unknown", "unknown"]


@pytest.fixture(scope="module")
def embedded() -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of three of four classes, correlated and off the origin; and their classes."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    means, mixing = 4 * torch.randn(3, 6, generator=generator), torch.randn(6, 6, generator=generator)
    return 5 + means[targets] + torch.randn(90, 6, generator=generator) @ mixing, targets


def moments_of(embeddings: torch.Tensor, targets: torch.Tensor, batch_size: int = 7, n_classes: int = 4) -> Moments:
    moments = Moments(n_classes, embeddings.shape[1])
    for rows in torch.arange(len(targets)).split(batch_size):
        moments.add(embeddings[rows], targets[rows])
    return moments


def known(score: str, moments: Moments, embeddings: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
    calibration = replace(FITTED, score=score, tensors=score_tensors(score, moments))
    return KnownScore(calibration)(torch.zeros(len(embeddings), 4) if logits is None else logits, embeddings)


def within(embeddings: torch.Tensor, targets: torch.Tensor) -> EmpiricalCovariance:
    """scikit-learn's covariance of the embeddings around their class means."""
    means = torch.stack([embeddings[targets == k].mean(0) for k in range(3)])
    return EmpiricalCovariance(assume_centered=True).fit((embeddings - means[targets]).double().numpy())


def test_moments_are_means_and_covariance_however_cut_into_batches(embedded: tuple[torch.Tensor, torch.Tensor]) -> None:
    embeddings, targets = embedded
    for batch_size in (1, 7, 90):
        moments = moments_of(embeddings, targets, batch_size)
        expected = torch.stack([embeddings[targets == k].mean(0) for k in range(3)]).double()  # the fourth has no image
        torch.testing.assert_close(moments.means(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(moments.centre(), embeddings.double().mean(0), rtol=1e-6, atol=0)
        shrunk = shrunk_covariance(within(embeddings, targets).covariance_, SHRINKAGE)
        whitening = moments.whitening()
        np.testing.assert_allclose(whitening @ whitening.T, np.linalg.inv(shrunk), rtol=1e-4, atol=1e-6)


def test_mahalanobis_is_scikit_learns_distance_to_the_nearest_mean(embedded: tuple[torch.Tensor, torch.Tensor]) -> None:
    embeddings, targets = embedded
    covariance = within(embeddings, targets)
    covariance._set_covariance(shrunk_covariance(covariance.covariance_, SHRINKAGE))
    strangers = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)) * 9
    distances = []
    for k in range(3):
        covariance.location_ = embeddings[targets == k].double().mean(0).numpy()
        distances.append(covariance.mahalanobis(strangers.double().numpy()))
    found = known("mahalanobis", moments_of(embeddings, targets), strangers)
    np.testing.assert_allclose(found, -np.min(distances, axis=0), rtol=1e-4)


def test_cosines_are_scikit_learns(embedded: tuple[torch.Tensor, torch.Tensor]) -> None:
    embeddings, targets = embedded
    moments, centre = moments_of(embeddings, targets), embeddings.mean(0)
    means = torch.stack([embeddings[targets == k].mean(0) for k in range(3)]) - centre
    expected = cosine_similarity(embeddings - centre, means).max(axis=1)
    np.testing.assert_allclose(known("cosine", moments, embeddings), expected, atol=1e-5)
    shrunk = shrunk_covariance(within(embeddings, targets).covariance_, SHRINKAGE)
    values, vectors = np.linalg.eigh(shrunk)
    root = vectors / np.sqrt(values)  # another whitening of the same covariance: cosines do not see the rotation between
    expected = cosine_similarity((embeddings - centre).numpy() @ root, means.numpy() @ root).max(axis=1)
    np.testing.assert_allclose(known("whitened_cosine", moments, embeddings), expected, atol=1e-4)


def test_probability_and_energy_are_torchs() -> None:
    logits = 3 * torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    empty = torch.empty(9, 0)
    nothing = Moments(5, 0)
    torch.testing.assert_close(known("probability", nothing, empty, logits), torch.softmax(logits, 1).max(1).values)
    torch.testing.assert_close(known("energy", nothing, empty, logits), torch.logsumexp(logits, 1))


@pytest.mark.parametrize("score", SCORES)
def test_images_like_those_of_training_are_better_known_than_strangers(
    score: str, embedded: tuple[torch.Tensor, torch.Tensor]
) -> None:
    embeddings, targets = embedded
    moments = moments_of(embeddings, targets)
    strangers = moments.centre().float() + torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    near, far = (
        known(score, moments, seen, -torch.cdist(seen, moments.means().float()).square() / 20)
        for seen in (embeddings, strangers)
    )
    assert near.shape == (90,)
    assert near.median() > far.median()


def test_without_spread_within_classes_nothing_is_whitened() -> None:
    embeddings = 100 * torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    whitening = moments_of(embeddings, torch.arange(40), n_classes=40).whitening()
    assert torch.equal(whitening, torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("score", SCORES)
def test_one_image_for_each_class_is_enough(score: str) -> None:
    embeddings = torch.eye(2, 3)
    found = known(score, moments_of(embeddings, torch.arange(2), n_classes=2), embeddings, torch.eye(2))
    assert torch.isfinite(found).all()
    assert found[0] == pytest.approx(found[1].item())


@pytest.mark.parametrize("score", SCORES)
def test_a_single_image_gives_numbers(score: str) -> None:
    found = known(score, moments_of(torch.ones(1, 3), torch.tensor([1]), n_classes=2), torch.rand(4, 3), torch.rand(4, 2))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("score", SCORES)
def test_a_calibration_comes_back_as_it_was_saved(
    tmp_path: Path, score: str, embedded: tuple[torch.Tensor, torch.Tensor]
) -> None:
    embeddings, targets = embedded
    tensors = score_tensors(score, moments_of(embeddings, targets))
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.float32}
    calibration = replace(FITTED, score=score, tensors=tensors)
    contents = []
    for _ in range(2):
        save_calibration(tmp_path / "calibration", calibration)
        contents.append((tmp_path / "calibration").read_bytes())
    assert contents[0] == contents[1]
    found = load_calibration(tmp_path / "calibration")
    assert replace(found, tensors={}) == replace(calibration, tensors={})
    assert found.tensors.keys() == tensors.keys()
    assert all(found.tensors[name].equal(tensors[name]) for name in tensors)


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    file = tmp_path / "calibration"
    save_calibration(file, FITTED)
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"create it with: dvc repro -f evaluate$"):
            load_calibration(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone does not exist; create it with: dvc repro evaluate$"):
        load_calibration(tmp_path / "gone")


def unsealed(file: Path) -> None:
    save_file({"a": torch.zeros(2)}, file, metadata={"fieldguide": '{"tta": "none"}'})


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda file: file.write_bytes(b"no tensors"), "not a calibration of fieldguide"),
        (lambda file: save_file({"a": torch.zeros(2)}, file), "not a calibration of fieldguide"),
        (unsealed, "not a calibration of fieldguide \\(.*'temperature'"),
    ],
    ids=["other bytes", "other tensors", "other facts"],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, write: Callable[[Path], None], reason: str) -> None:
    file = tmp_path / "calibration"
    write(file)
    with pytest.raises(UserError, match=rf"^{file}: {reason}.*; create it with: dvc repro -f evaluate$"):
        load_calibration(file)


def drawn_taxa(seed: int) -> tuple[tuple[Rank, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Ranks of 24 classes, probabilities of 3,000 images, targets drawn from them, and which are told as no class."""
    names = [f"class {k}" for k in range(24)]
    table = {name: Taxon(genus=f"g{k // 2}", family=f"f{k // 6}", order=f"o{k // 12}") for k, name in enumerate(names)}
    generator = np.random.default_rng(seed)
    near = generator.integers(24, size=3000)
    logits = (
        generator.normal(size=(3000, 24)) + 3 * (np.arange(24) // 2 == near[:, None] // 2) + (np.arange(24) == near[:, None])
    )
    probabilities = softmax(1.5 * logits, axis=1)
    targets = (probabilities.cumsum(axis=1) < generator.random((3000, 1))).sum(axis=1)
    return ranks_of(table, names), probabilities, targets, probabilities.max(axis=1) < 0.9


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("accuracy", [0.9, 0.99])
def test_what_is_told_at_each_rank_keeps_the_accuracy_where_it_was_fitted(seed: int, accuracy: float) -> None:
    ranks, probabilities, targets, unsettled = drawn_taxa(seed)
    found = [rank.best(probabilities) for rank in ranks]
    of_ranks = [(rank, *best, rank.of_class[targets]) for rank, best in zip(ranks, found, strict=True)]
    thresholds = fit_taxa_below(of_ranks, unsettled, accuracy)
    assert list(thresholds) == ["genus", "family", "order"]
    told = narrowest(ranks, *(np.stack(parts, axis=1) for parts in zip(*found, strict=True)), thresholds)
    for place, (_, group, probability, truth) in enumerate(of_ranks):
        here = unsettled & (told == place)
        assert here.any()
        assert (group == truth)[here].mean() >= accuracy
        above = (probability >= thresholds[ranks[place].name]) & ranks[place].answerable[group]
        assert (group == truth)[above].mean() >= accuracy


def test_a_rank_that_no_image_speaks_for_is_never_told() -> None:
    ranks, probabilities, targets, _ = drawn_taxa(0)
    of_ranks = [(rank, *rank.best(probabilities), rank.of_class[targets]) for rank in ranks]
    everything_settled = np.zeros(len(targets), bool)
    assert set(fit_taxa_below(of_ranks, everything_settled, 0.99).values()) == {NEVER}
    assert fit_taxa_below([], everything_settled, 0.99) == {}


def test_taxonomy_and_thresholds_of_taxa_are_saved(tmp_path: Path) -> None:
    fitted = replace(FITTED, taxa_below={"genus": 0.9}, taxonomy={"孔雀蛺蝶": {"genus": "Aglais"}})
    save_calibration(tmp_path / "calibration.safetensors", fitted)
    loaded = load_calibration(tmp_path / "calibration.safetensors")
    assert (loaded.taxa_below, loaded.taxonomy) == (fitted.taxa_below, fitted.taxonomy)


def test_nothing_of_an_image_without_numbers_is_sure() -> None:
    nan, one = np.array([np.nan, 0.95, np.nan]), np.array([np.nan, np.nan, 1.0])
    assert verdicts(nan, one, FITTED).tolist() == ["unknown", "unknown", "unsure"]


def test_the_threshold_between_neighbouring_floats_admits_none_that_is_wrong() -> None:
    low = 0.9
    for _ in range(200):
        high = np.nextafter(low, 1)
        threshold = fit_unsure_below(np.array([high, low]), np.array([True, False]), 0.99)
        assert low < threshold <= high
        low = high
