"""Evaluation pictures: the right photographs under the right words, tables that agree with scikit-learn, equal bytes."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from fieldguide.core.paths import (
    ACTIVATION_PNG,
    CONFUSED_PAIRS_CSV,
    CONFUSED_PAIRS_PNG,
    GALLERY_JSON,
    RELIABILITY_CSV,
    RIGHT_PNG,
    WRONG_PNG,
    confusion_csv,
    confusion_png,
)
from fieldguide.report import pictures
from fieldguide.report.pictures import THUMBNAIL_PX, Answers, confused_pairs, reliability_of, save_pictures

NAMES = ["RED ADMIRAL", "PEACOCK", "<b>COMMA</b>"]


def answers_of(targets: list[int], predicted: list[int], confidence: list[float]) -> Answers:
    """Answers in which `predicted` has the given probability and the other classes share the rest."""
    probabilities = np.repeat((1 - np.array(confidence))[:, None] / (len(NAMES) - 1), len(NAMES), axis=1)
    probabilities[np.arange(len(targets)), predicted] = confidence
    return Answers(np.array(targets), probabilities)


TRAIN = answers_of([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0.9, 0.8, 0.9, 0.7, 0.9, 0.6])
VALID = answers_of([0, 1, 2, 2], [0, 1, 1, 2], [0.9, 0.8, 0.7, 0.6])
TEST = answers_of([0, 1, 1, 2, 2, 2, 0], [0, 2, 1, 1, 1, 2, 0], [0.95, 0.55, 0.9, 0.75, 0.85, 0.6, 0.5])


def thumbnails(split: str, rows: np.ndarray) -> np.ndarray:
    """A photograph's red says which row it is, its green which split."""
    shown = np.zeros((len(rows), THUMBNAIL_PX, THUMBNAIL_PX, 3), np.uint8)
    shown[..., 0] = (20 * (rows + 1))[:, None, None]
    shown[..., 1] = 60 * (1 + ["train", "valid", "test"].index(split))
    return shown


def activations(split: str, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Strong in the upper left corner."""
    maps = np.zeros((len(rows), 4, 4), np.float32)
    maps[:, 0, 0] = 5
    return maps


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(answers: dict[str, Answers], with_activation: bool = True) -> tuple[list[Path], dict]:
    written = save_pictures(NAMES, answers, 10, thumbnails, activations if with_activation else None)
    return written, json.loads(GALLERY_JSON.read_text())


def row_of(photograph: dict) -> tuple[int, int]:
    """Row and split of a photograph that `thumbnails` made."""
    pixels = Image.open(io.BytesIO(base64.b64decode(photograph["photograph"]))).convert("RGB")
    red, green, _ = np.asarray(pixels)[THUMBNAIL_PX // 2, THUMBNAIL_PX // 2].astype(int)
    return round(red / 20) - 1, round(green / 60) - 1


def height(picture: Path) -> int:
    """Pixels; a picture that only says something is less than 200 high."""
    with Image.open(picture) as image:
        return image.size[1]


@pytest.mark.slow
def test_every_file_is_written_and_named_and_the_same_twice(folder: Path) -> None:
    written, _ = saved({"train": TRAIN, "valid": VALID, "test": TEST})
    assert sorted(written) == sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    first = {path: path.read_bytes() for path in written}
    saved({"train": TRAIN, "valid": VALID, "test": TEST})
    assert {path: path.read_bytes() for path in written} == first


@pytest.mark.slow
def test_wrong_answers_come_surest_first_with_truth_and_answer(folder: Path) -> None:
    _, gallery = saved({"train": TRAIN, "valid": VALID, "test": TEST})
    assert gallery["split"] == "test"
    shown = [(row_of(one)[0], one["truth"], one["predicted"], round(one["probability"], 6)) for one in gallery["wrong"]]
    comma = "<b>COMMA</b>"
    assert shown == [(4, comma, "Peacock", 0.85), (3, comma, "Peacock", 0.75), (1, "Peacock", comma, 0.55)]
    assert [row_of(one)[0] for one in gallery["right"]] == [0, 2, 5, 6]


def test_pairs_count_the_unseen_splits_together_and_show_typical_photographs_of_both(folder: Path) -> None:
    _, gallery = saved({"train": TRAIN, "valid": VALID, "test": TEST})
    first, second = gallery["pairs"]
    assert (first["truth"], first["predicted"], first["n"], first["n_truth"]) == ("<b>COMMA</b>", "Peacock", 3, 5)
    assert [row_of(one) for one in first["mistaken"]] == [(2, 1), (4, 2), (3, 2)]
    assert [row_of(one) for one in first["of_truth"]] == [(4, 0), (5, 0)]
    assert [row_of(one) for one in first["of_predicted"]] == [(2, 0), (3, 0)]
    assert (second["truth"], second["n"]) == ("Peacock", 1)


def test_confused_pairs_are_the_off_diagonal_of_scikit_learns_matrix(folder: Path) -> None:
    table = confused_pairs({"train": TRAIN, "valid": VALID, "test": TEST})
    for split, said in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        expected = confusion_matrix(said.targets, said.predicted, labels=range(3))
        n_truth = expected.sum(axis=1)
        np.fill_diagonal(expected, 0)
        found = np.zeros((3, 3), int)
        for row in table[table["split"] == split].itertuples():
            found[row.truth, row.predicted] = row.n
            assert row.n_truth == n_truth[row.truth]
            assert row.share == row.n / row.n_truth
        assert np.array_equal(found, expected)
    assert table["split"].tolist() == ["test", "test", "valid"]
    assert table["n"].tolist() == [2, 1, 1]


@pytest.mark.slow
def test_the_table_of_pairs_has_names_as_the_data_have_them(folder: Path) -> None:
    saved({"train": TRAIN, "valid": VALID, "test": TEST})
    table = pd.read_csv(CONFUSED_PAIRS_CSV)
    assert table["truth"].tolist() == ["<b>COMMA</b>", "PEACOCK", "<b>COMMA</b>"]


def test_classes_that_differ_in_case_only_are_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "NAMES", ["comma", "COMMA", "PEACOCK"])
    _, gallery = saved({"train": TRAIN, "test": answers_of([0, 1], [1, 1], [0.9, 0.8])})
    (pair,) = gallery["pairs"]
    assert [row_of(one) for one in pair["of_truth"]] == [(0, 0), (1, 0)]
    assert [row_of(one) for one in pair["of_predicted"]] == [(2, 0), (3, 0)]
    assert len(gallery["wrong"]) == len(gallery["right"]) == 1
    assert [one["right"] for one in gallery["wrong"] + gallery["right"]] == [False, True]


@pytest.mark.slow
def test_confusion_tables_are_in_the_form_of_dvcs_template(folder: Path) -> None:
    saved({"train": TRAIN, "valid": VALID, "test": TEST})
    table = pd.read_csv(confusion_csv("test"))
    assert list(table.columns) == ["truth", "predicted"]
    assert table["truth"].tolist() == [NAMES[k] for k in TEST.targets]
    assert table["predicted"].tolist() == [NAMES[k] for k in TEST.predicted]


def test_a_split_without_labels_is_said_and_valid_takes_its_place(folder: Path) -> None:
    written, gallery = saved({"train": TRAIN, "valid": VALID})
    assert gallery["split"] == "valid"
    assert confusion_csv("test").read_text() == "truth,predicted\n"
    assert height(confusion_png("test")) < 200 < height(confusion_png("valid"))
    assert all(path.exists() for path in written)


def test_no_mistake_and_no_right_answer_are_said(folder: Path) -> None:
    right, wrong = answers_of([0, 1], [0, 1], [0.9, 0.8]), answers_of([0, 1], [1, 0], [0.9, 0.8])
    _, gallery = saved({"train": right, "test": right})
    assert gallery["wrong"] == gallery["pairs"] == []
    assert height(WRONG_PNG) < 200
    assert height(CONFUSED_PAIRS_PNG) < 200
    assert pd.read_csv(CONFUSED_PAIRS_CSV).empty
    _, gallery = saved({"train": right, "test": wrong})
    assert gallery["right"] == []
    assert height(RIGHT_PNG) < 200


def test_a_network_without_activation_maps_says_so(folder: Path) -> None:
    _, gallery = saved({"train": TRAIN, "test": TEST}, with_activation=False)
    assert all(one["activation"] is None for one in gallery["wrong"] + gallery["right"])
    assert height(ACTIVATION_PNG) < 200


def test_activation_is_asked_for_the_answer_and_laid_over_the_photograph(folder: Path) -> None:
    asked = {}

    def look(split: str, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        asked.update(zip(rows.tolist(), classes.tolist(), strict=True))
        return activations(split, rows, classes)

    save_pictures(NAMES, {"train": TRAIN, "test": TEST}, 10, thumbnails, look)
    assert asked == {row: TEST.predicted[row] for row in range(len(TEST.targets))}
    one = json.loads(GALLERY_JSON.read_text())["wrong"][0]
    photograph, overlay = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one[key]))), int) for key in ("photograph", "activation")
    )
    change = np.abs(photograph - overlay).sum(axis=2)
    assert change[:20, :20].mean() > 100
    assert change[-20:, -20:].mean() < 10


@pytest.mark.slow
def test_the_gallery_bounds_its_photographs_and_spreads_the_right_ones(folder: Path) -> None:
    n = 300
    confidence = np.linspace(0.99, 0.4, n).tolist()
    many = answers_of([0] * n + [0] * 50, [0] * n + [1] * 50, confidence + [0.7] * 50)
    asked: list[int] = []

    def few(split: str, rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return thumbnails("test", np.zeros(len(rows), int))

    save_pictures(NAMES, {"train": TRAIN, "test": many}, 10, few, None)
    gallery = json.loads(GALLERY_JSON.read_text())
    assert len(gallery["wrong"]) == pictures.N_WRONG
    shown = [one["probability"] for one in gallery["right"]]
    assert len(shown) == pictures.N_RIGHT
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == pytest.approx((0.99, 0.4))
    assert len(asked) < 100  # of 350 photographs no more are decoded than shown


def test_reliability_bins_are_closed_above_and_say_when_they_are_empty() -> None:
    table = reliability_of(answers_of([0, 0, 1, 0], [0, 0, 0, 0], [0.6, 0.95, 0.9, 1.0]), 10)
    assert table["n"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 2]
    assert table["accuracy"].tolist()[5::3] == [1, 0]
    assert table["accuracy"].iloc[9] == 1
    assert table["confidence"].iloc[9] == pytest.approx(0.975)
    empty = table[table["n"] == 0]
    assert empty[["confidence", "accuracy", "accuracy_low", "accuracy_high"]].isna().all(axis=None)
    full = table[table["n"] > 0]
    assert ((full["accuracy_low"] <= full["accuracy"]) & (full["accuracy"] <= full["accuracy_high"])).all()


@pytest.mark.slow
def test_reliability_counts_every_image_of_every_split(folder: Path) -> None:
    saved({"train": TRAIN, "valid": VALID, "test": TEST})
    table = pd.read_csv(RELIABILITY_CSV)
    assert table.groupby("split")["n"].sum().to_dict() == {"train": 6, "valid": 4, "test": 7}
