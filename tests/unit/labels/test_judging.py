"""Planted wrong labels are found, right ones are left alone, whatever the number and the sizes of the classes."""

import tracemalloc
from itertools import product

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fieldguide.checks.splits import assign_folds
from fieldguide.labels import judging
from fieldguide.labels.findings import SUSPECTED
from fieldguide.labels.judging import Judgement, judge, out_of_fold, unit_vectors
from support.labelled import clusters, manifest_rows, plant


def recall_and_precision(judgement: Judgement, planted: np.ndarray) -> tuple[float, float]:
    suspects = np.flatnonzero(judgement.wrong >= SUSPECTED)
    n_found = len(np.intersect1d(suspects, planted))
    return n_found / len(planted), n_found / max(len(suspects), 1)


@pytest.mark.parametrize(
    ("sizes", "noise", "share"),
    [
        ([40] * 12, 0.7, 0.02),
        ([40] * 12, 0.7, 0.15),
        ([*range(8, 60, 4)] * 8, 0.5, 0.02),  # 104 classes of different sizes
        ([8] * 800, 0.3, 0.02),
        pytest.param([8] * 5000, 0.3, 0.02, marks=pytest.mark.slow),
    ],
    ids=["12", "12, many wrong", "104", "800", "5000"],
)
def test_planted_wrong_labels_are_suspected_and_few_others(sizes: list[int], noise: float, share: float) -> None:
    vectors, truth = clusters(sizes, noise)
    labels, planted = plant(truth, share)
    judgement = judge(vectors, manifest_rows(labels))
    recall, precision = recall_and_precision(judgement, planted)
    assert recall >= 0.9
    assert precision >= 0.9
    assert (judgement.suggested[planted] == truth[planted]).mean() >= 0.95
    assert judgement.judged.all()
    assert 0.5 * share <= judgement.error_rate <= 1.5 * share


def test_clean_labels_give_no_suspects() -> None:
    vectors, truth = clusters([30] * 10)
    judgement = judge(vectors, manifest_rows(truth))
    assert (judgement.wrong < SUSPECTED).all()
    assert judgement.agrees.all()


def test_scores_are_probabilities_that_a_label_is_wrong() -> None:
    """On classes that overlap, so that many scores are neither 0 nor 1: calibrated within 0.1 in each third."""
    parts = []
    for seed in range(6):
        vectors, truth = clusters([60] * 8, noise=1.6, size=16, seed=seed)
        labels, planted = plant(truth, 0.1, seed)
        judgement = judge(vectors, manifest_rows(labels))
        parts.append((judgement.wrong, np.isin(np.arange(len(truth)), planted) & (judgement.suggested == truth)))
    score, is_wrong = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert score.min() >= 0 and score.max() <= 1
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 1.01)):
        some = (score >= low) & (score < high)
        assert some.sum() >= 40
        assert abs(score[some].mean() - is_wrong[some].mean()) <= 0.1


def test_classes_of_one_image_are_not_judged_and_disturb_no_other() -> None:
    vectors, truth = clusters([20] * 5 + [1] * 7)
    judgement = judge(vectors, manifest_rows(truth))
    assert judgement.judged.tolist() == [True] * 100 + [False] * 7
    assert (judgement.wrong[100:] == 0).all()
    assert judgement.agrees[:100].all()


def test_a_class_whose_images_are_one_unit_is_not_judged() -> None:
    vectors, truth = clusters([10, 10, 6])
    units = np.where(truth == 2, 1000, np.arange(len(truth)))
    judgement = judge(vectors, manifest_rows(truth, unit=units))
    assert np.array_equal(judgement.judged, truth != 2)


def test_two_classes_are_judged() -> None:
    vectors, truth = clusters([30, 30])
    labels, planted = plant(truth, 0.05)
    judgement = judge(vectors, manifest_rows(labels))
    assert np.array_equal(np.flatnonzero(judgement.wrong >= SUSPECTED), planted)


@pytest.mark.parametrize(
    ("sizes", "units"), [([], []), ([1], [0]), ([9], range(9)), ([1, 1], [0, 1]), ([1, 1], [0, 0]), ([1, 1, 1], range(3))]
)
def test_where_nothing_can_be_compared_nothing_is_judged(sizes: list[int], units: list[int]) -> None:
    """No rows, one class, one image of each class, both images in one unit."""
    vectors, truth = clusters(sizes)
    rows = manifest_rows(truth, unit=pd.Series(units, dtype="int64"))
    judgement = judge(vectors, rows)
    for name in ("given_probability", "suggested", "suggested_probability", "wrong", "similarity", "judged"):
        assert len(getattr(judgement, name)) == len(truth), name
    assert not judgement.judged.any()
    assert not judgement.wrong.any()
    assert judgement.close.shape == (0, 2)


def test_a_copy_never_vouches_for_a_wrong_label() -> None:
    """A photograph that is there three times under a wrong label is found all three times."""
    vectors, truth = clusters([25] * 6)
    labels, copies = truth.copy(), np.array([0, 1, 2])
    vectors[copies] = vectors[0]
    labels[copies] = 3
    together = np.where(np.isin(np.arange(len(truth)), copies), 1000, np.arange(len(truth)))
    assert (judge(vectors, manifest_rows(labels, unit=together)).wrong[copies] > 0.9).all()
    apart = judge(vectors, manifest_rows(labels))
    assert (apart.wrong[copies] < 0.9).all()  # each has the others as evidence
    assert {(0, 1), (0, 2), (1, 2)} <= set(map(tuple, apart.close.tolist()))  # and a person is asked whether they are copies


def test_images_of_one_unit_are_never_in_two_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[pd.Series] = []
    monkeypatch.setattr(judging, "assign_folds", lambda *given: drawn.append(assign_folds(*given)) or drawn[-1])
    vectors, truth = clusters([20] * 4)
    units = np.random.default_rng(0).integers(0, 30, len(truth))
    judge(vectors, manifest_rows(truth, unit=units))
    (folds,) = drawn
    assert folds.groupby(units).nunique().max() == 1
    assert folds.nunique() == judging.N_FOLDS


def test_discriminants_are_those_of_scikit_learn() -> None:
    """Fitted on all images; scikit-learn shrinks towards the mean variance too, and shares the covariance."""
    vectors, truth = clusters([30] * 5, size=16)
    unit = unit_vectors(vectors, np.arange(len(truth)))
    counts = np.bincount(truth).astype(float)
    sums = np.stack([unit[truth == k].sum(axis=0) for k in range(5)])
    weights, bias = judging._discriminants((unit.T @ unit).astype(float), sums, counts)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=judging.SHRINKAGE).fit(unit.astype(float), truth)
    ours = unit @ weights.T + bias
    theirs = reference.decision_function(unit.astype(float))
    difference = (ours - ours[:, :1]) - (theirs - theirs[:, :1])
    assert np.abs(difference).max() <= 0.02 * np.abs(theirs).max()  # it standardises before it shrinks
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))


def test_similarity_is_the_mean_cosine_to_the_three_nearest_of_other_units() -> None:
    vectors, truth = clusters([6, 6], size=8)
    units = np.arange(12)
    units[1] = 0
    found = out_of_fold(vectors, manifest_rows(truth, unit=units))
    unit = unit_vectors(vectors, np.arange(12))
    cosine = unit @ unit.T
    cosine[units[:, None] == units] = -2
    expected = [max(np.sort(cosine[k, truth == label])[-3:].mean() for label in (0, 1)) for k in range(12)]
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
    assert found.classes[:, 0].tolist() == truth.tolist()
    np.testing.assert_allclose(found.probability.sum(axis=1), 1)


def test_close_pairs_are_of_nearest_images_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = clusters([40] * 3, noise=0.2)
    rows = manifest_rows(truth)
    unit = unit_vectors(vectors, np.arange(len(truth)))
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1)
    expected = {}
    for image, number in product(range(len(truth)), range(3)):
        members = np.flatnonzero(truth == number)
        for other in members[np.argsort(-cosine[image, members])[:3]]:
            if cosine[image, other] > 0.9:
                expected[min(image, other), max(image, other)] = cosine[image, other]
    assert set(map(tuple, judge(vectors, rows).close.tolist())) == set(expected)
    monkeypatch.setattr(judging, "MAX_CLOSE", 50)
    monkeypatch.setattr(judging, "CHUNK", 16)
    closest = sorted(expected, key=expected.__getitem__, reverse=True)[:50]
    assert set(map(tuple, judge(vectors, rows).close.tolist())) == set(closest)


def test_an_image_like_no_other_is_unlike_its_class_too() -> None:
    vectors, truth = clusters([25] * 4)
    vectors[7] = np.random.default_rng(9).standard_normal(vectors.shape[1])
    judgement = judge(vectors, manifest_rows(truth))
    assert judgement.similarity.argmin() == 7


def test_equal_embeddings_are_judged_without_a_warning() -> None:
    vectors = np.ones((12, 8), np.float16)
    for some in (vectors, np.zeros_like(vectors)):
        judgement = judge(some, manifest_rows(np.arange(12) % 3))
        assert ((judgement.wrong >= 0) & (judgement.wrong <= 1)).all()


def test_equal_input_gives_equal_bits_in_any_chunks_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = clusters([15] * 9, noise=1.0)
    labels, _ = plant(truth, 0.05)
    rows = manifest_rows(labels)
    first, again = judge(vectors, rows), judge(vectors, rows)
    assert first.wrong.tobytes() == again.wrong.tobytes()
    assert first.close.tobytes() == again.close.tobytes()
    order = np.random.default_rng(0).permutation(len(rows))
    mixed = judge(vectors[order], rows.iloc[order].reset_index(drop=True))
    np.testing.assert_allclose(mixed.wrong, first.wrong[order], atol=1e-3)
    monkeypatch.setattr(judging, "CHUNK", 7)
    np.testing.assert_allclose(judge(vectors, rows).wrong, first.wrong, atol=1e-3)


def test_a_class_with_more_images_than_are_compared_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "N_REFERENCES", 20)
    monkeypatch.setattr(judging, "N_FITTED", 50)
    vectors, truth = clusters([100, 10, 30])
    labels, planted = plant(truth, 0.03)
    assert np.array_equal(np.flatnonzero(judge(vectors, manifest_rows(labels)).wrong >= SUSPECTED), planted)


def peak_megabytes(n_images: int, n_classes: int) -> float:
    """Of what judging that many images allocates beside the embeddings and the table."""
    vectors, truth = clusters([n_images // n_classes] * n_classes, size=16)
    rows = manifest_rows(truth)
    tracemalloc.start()
    judge(vectors, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def test_memory_does_not_grow_with_images_times_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "CHUNK", 256)
    few, many = peak_megabytes(3000, 50), peak_megabytes(3000, 600)
    assert many - few < 3000 * 550 * 4 / 1e6 / 2  # half of float32 images times classes


def test_memory_is_bounded_where_all_images_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cameras at fixed places take millions of pairs of similar images."""
    monkeypatch.setattr(judging, "CHUNK", 256)
    monkeypatch.setattr(judging, "MAX_CLOSE", 1000)
    vectors = (1 + 0.05 * np.random.default_rng(0).standard_normal((2000, 16))).astype(np.float16)
    rows = manifest_rows(np.arange(2000) % 2)
    tracemalloc.start()
    close = judge(vectors, rows).close
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert close.shape == (1000, 2)
    assert peak < 2000 * 2000 * 8 / 2  # a quarter of two int64 for each pair
