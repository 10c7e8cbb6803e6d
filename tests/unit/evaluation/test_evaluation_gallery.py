"""The gallery: the right photographs under the right words, bounded in number."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fieldguide.core.artifacts import GalleryPhotograph
from fieldguide.evaluation import gallery
from fieldguide.evaluation.gallery import THUMBNAIL_PX, select_gallery
from support.evaluations import TEST, TRAIN, VALID, activations, evaluation, photographs

ALL = {"train": TRAIN, "valid": VALID, "test": TEST}


def row_of(one: GalleryPhotograph) -> tuple[int, int]:
    """Row and split of a photograph that `photographs` made."""
    pixels = Image.open(io.BytesIO(base64.b64decode(one.photograph))).convert("RGB")
    red, green, _ = np.asarray(pixels)[THUMBNAIL_PX // 2, THUMBNAIL_PX // 2].astype(int)
    return round(red / 20) - 1, round(green / 60) - 1


def test_wrong_answers_come_surest_first_with_truth_and_answer() -> None:
    found = select_gallery(evaluation(**ALL), photographs, activations)
    assert found.split == "test"
    shown = [(row_of(one)[0], one.truth, one.predicted, round(one.probability, 6)) for one in found.wrong]
    comma = "<b>COMMA</b>"
    assert shown == [(4, comma, "Peacock", 0.85), (3, comma, "Peacock", 0.75), (1, "Peacock", comma, 0.55)]
    assert [row_of(one)[0] for one in found.right] == [0, 2, 5, 6]
    assert [one.right for one in found.wrong + found.right] == [False] * 3 + [True] * 4


def test_pairs_count_valid_and_test_together_and_show_typical_photographs_of_both() -> None:
    first, second = select_gallery(evaluation(**ALL), photographs, activations).pairs
    assert (first.truth, first.predicted, first.n, first.n_truth) == ("<b>COMMA</b>", "Peacock", 3, 5)
    assert [row_of(one) for one in first.mistaken] == [(2, 1), (4, 2), (3, 2)]
    assert [row_of(one) for one in first.of_truth] == [(4, 0), (5, 0)]
    assert [row_of(one) for one in first.of_predicted] == [(2, 0), (3, 0)]
    assert (second.truth, second.n) == ("Peacock", 1)


def test_classes_that_differ_in_case_only_are_told_apart() -> None:
    chosen = evaluation(("comma", "COMMA", "PEACOCK"), train=TRAIN, test=([0, 1], [1, 1], [0.9, 0.8]))
    found = select_gallery(chosen, photographs, None)
    (pair,) = found.pairs
    assert [row_of(one) for one in pair.of_truth] == [(0, 0), (1, 0)]
    assert [row_of(one) for one in pair.of_predicted] == [(2, 0), (3, 0)]


def test_without_a_labelled_test_split_valid_takes_its_place() -> None:
    found = select_gallery(evaluation(train=TRAIN, valid=VALID), photographs, activations)
    assert (found.split, len(found.wrong), len(found.right)) == ("valid", 1, 3)


def test_no_mistake_and_no_right_answer_are_empty_lists() -> None:
    found = select_gallery(evaluation(train=TRAIN, test=([0, 1], [0, 1], [0.9, 0.8])), photographs, activations)
    assert found.wrong == found.pairs == []
    assert select_gallery(evaluation(train=TRAIN, test=([0, 1], [1, 0], [0.9, 0.8])), photographs, None).right == []


def test_a_network_without_activation_maps_has_none() -> None:
    found = select_gallery(evaluation(**ALL), photographs, None)
    assert all(one.activation is None for one in found.wrong + found.right)


def test_activation_is_that_of_the_answer_and_laid_over_the_photograph() -> None:
    asked = {}

    def look(split: str, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        asked.update(zip(rows.tolist(), classes.tolist(), strict=True))
        return activations(split, rows, classes)

    one = select_gallery(evaluation(train=TRAIN, test=TEST), photographs, look).wrong[0]
    assert asked == dict(enumerate(TEST[1]))
    photograph, overlay = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))), int) for jpeg in (one.photograph, one.activation)
    )
    change = np.abs(photograph - overlay).sum(axis=2)
    assert change[:20, :20].mean() > 100
    assert change[-20:, -20:].mean() < 10


def test_the_number_of_photographs_is_bounded_and_the_right_ones_are_spread() -> None:
    n = 300
    confidence = np.linspace(0.99, 0.4, n).tolist()
    many = ([0] * n + [0] * 50, [0] * n + [1] * 50, confidence + [0.7] * 50)
    decoded: list[int] = []

    def few(split: str, rows: np.ndarray, image_px: int) -> np.ndarray:
        decoded.extend(rows.tolist())
        return photographs("test", np.zeros(len(rows), int), image_px)

    found = select_gallery(evaluation(train=TRAIN, test=many), few, None)
    assert len(found.wrong) == gallery.N_WRONG
    shown = [one.probability for one in found.right]
    assert len(shown) == gallery.N_RIGHT
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == pytest.approx((0.99, 0.4))
    assert len(decoded) < 100  # of 350 photographs no more are decoded than shown
