"""The benchmark of planted wrong labels: its rules on probabilities made by hand, and its table on embeddings."""

import importlib.util

import numpy as np
import pytest

from fieldguide.labels.judging import OutOfFold
from support import ROOT
from support.labelled import clusters, manifest_rows

spec = importlib.util.spec_from_file_location("labels_benchmark", ROOT / "benchmarks" / "labels.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def probabilities(*rows: tuple[list[int], list[float]]) -> OutOfFold:
    """Of each image its classes, the given one first, and their probabilities."""
    classes, values = (np.array(part) for part in zip(*rows, strict=True))
    n = len(rows)
    return OutOfFold(classes, values, np.ones(n), np.ones(n, bool), np.empty((0, 2), np.int64), 0.1)


def test_confident_learning_selects_what_exceeds_the_threshold_of_another_class() -> None:
    found = probabilities(
        ([0, 1], [0.9, 0.1]),
        ([0, 1], [0.7, 0.3]),
        ([0, 1], [0.2, 0.8]),  # above 0.6, the mean of class 0, is nothing; above 0.55, that of class 1, is 0.8
        ([1, 0], [0.6, 0.4]),
        ([1, 0], [0.5, 0.5]),  # below both thresholds
    )
    assert benchmark.confident_learning(found, 2).tolist() == [False, False, True, False, False]


def test_rankings_put_the_least_probable_labels_first() -> None:
    found = probabilities(([0, 1, 2], [0.1, 0.8, 0.1]), ([1, 0, 2], [0.1, 0.45, 0.45]), ([2, 0, 1], [0.9, 0.05, 0.05]))
    ranked = benchmark.rankings(found, 3)
    assert ranked["margin"] == pytest.approx([0.7, 0.35, -0.85])
    assert ranked["self-confidence"] == pytest.approx([-0.1, -0.1, -0.9])
    assert ranked["mixture"].argsort().tolist() == [2, 1, 0]
    planted = np.array([True, False, True])
    assert benchmark.n_looks(ranked["margin"], planted, 0.5) == 1
    assert benchmark.n_looks(ranked["margin"], planted, 0.95) == 3


def test_the_table_counts_what_was_planted_into_train(capsys: pytest.CaptureFixture[str]) -> None:
    vectors, truth = clusters([30] * 6)
    rows = manifest_rows(truth, ("train", "train", "test"))
    changed, planted = benchmark.plant(rows, 0.05, np.random.default_rng(0))
    assert planted.sum() == 6
    assert set(rows["split"][planted]) == {"train"}
    assert np.array_equal(changed["class_name"].ne(rows["class_name"]).to_numpy(), planted)
    benchmark.compare(vectors, rows, share=0.05, repeats=2, seed=3)
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head == "180 images, 6 classes, 5.0% of train planted, 2 repeats, seed 3"
    assert len(lines) == 8
    mixture = [line.split() for line in lines if " mixture " in line]
    assert [line[1:] for line in mixture] == [["6", "mixture", "6", "1.000", "1.000", "6", "6", "6"]] * 2
