"""The proof: what the file alone answers, in another process, and what the export stage makes of it."""

import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from fieldguide.core.artifacts import Agreement
from fieldguide.core.errors import UserError
from fieldguide.core.images import decode
from fieldguide.onnx import proof
from fieldguide.onnx.classifier import OnnxClassifier
from fieldguide.onnx.proof import BATCH_SIZES, CHUNK, Alone, Place, compare, prove, run_alone, write_expected
from support.mean_colour import expected_probabilities, mean_colour_network, save

PX = 16
BOUND = 1e-4  # of a difference


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path, mean_colour_network())


@pytest.fixture
def places(tmp_path: Path, make_jpeg) -> list[Place]:
    """Of 73 images in one file."""
    found, content = [], b"other"
    for seed in range(73):
        encoded = make_jpeg(seed, 30, 24)
        found.append(("images.bin", len(content), len(encoded)))
        content += encoded
    (tmp_path / "images.bin").write_bytes(content)
    return found


@pytest.fixture
def probabilities(tmp_path: Path, places: list[Place]) -> np.ndarray:
    """Worked out by hand."""
    content = (tmp_path / "images.bin").read_bytes()
    pixels = np.stack([decode(content[offset : offset + length], PX) for _, offset, length in places])
    return expected_probabilities(pixels).astype(np.float32)


def test_the_file_alone_predicts_every_image_at_every_batch_size_from_its_bytes(
    tmp_path: Path, model: Path, places: list[Place], probabilities: np.ndarray
) -> None:
    given = np.split(probabilities, [10, 64])  # batches of any size
    expected = write_expected(given, probabilities.shape, tmp_path / "expected.npy")
    assert (expected.predicted == probabilities.argmax(axis=1)).all()
    ordered = np.sort(probabilities, axis=1)
    assert (expected.lead == ordered[:, -1] - ordered[:, -2]).all()
    found = run_alone(model, tmp_path, places, tmp_path / "expected.npy")
    assert list(found.predicted) == list(BATCH_SIZES) == [1, 2, 7, 64]
    assert all((row == expected.predicted).all() for row in found.predicted.values())
    assert 0 < found.max_abs_difference < 1e-6
    assert all(CHUNK % size == 0 for size in BATCH_SIZES)


def test_without_expected_probabilities_it_only_predicts(
    tmp_path: Path, model: Path, places: list[Place], probabilities: np.ndarray
) -> None:
    found = run_alone(model, tmp_path, places, batch_sizes=(7,))
    assert list(found.predicted) == [7]
    assert (found.predicted[7] == probabilities.argmax(axis=1)).all()
    assert found.max_abs_difference == 0


@pytest.mark.parametrize("image", [0, 13, 72], ids=["first chunk", "a later chunk", "last image"])
@pytest.mark.parametrize("value", [0.25, np.nan])
def test_one_probability_that_differs_is_found_in_every_chunk(
    tmp_path: Path,
    model: Path,
    places: list[Place],
    probabilities: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    image: int,
    value: float,
) -> None:
    monkeypatch.setattr(proof, "CHUNK", 14)
    classifier = OnnxClassifier(model, n_threads=1)
    classes, usual = compare(classifier, tmp_path, places, [7], probabilities)
    assert usual < 1e-6
    probabilities[image, 3] += value
    found, difference = compare(classifier, tmp_path, places, [7], probabilities)
    assert (found == classes).all()
    assert difference == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_no_more_images_are_decoded_ahead_than_a_chunk(
    tmp_path: Path, model: Path, places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "CHUNK", 14)
    classifier, events = OnnxClassifier(model, n_threads=1), []
    predict = classifier.probabilities
    monkeypatch.setattr(proof, "decode", lambda *given: events.append("decode") or decode(*given))
    monkeypatch.setattr(classifier, "probabilities", lambda pixels: events.append("predict") or predict(pixels))
    compare(classifier, tmp_path, places, [7], None)
    runs = [(event, len(list(run))) for event, run in groupby(events)]
    assert runs == [*[("decode", 14), ("predict", 2)] * 5, ("decode", 3), ("predict", 1)]


def test_a_file_that_fails_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"could not be run without torch \(error: .*not a usable ONNX model"):
        run_alone(tmp_path / "model.onnx", tmp_path, [])
    assert "torch" in sys.modules  # here; the other process had none


TARGETS = np.array([0, 1, 2, 0])
ANSWERS = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.40002, 0.40001, 0.19997]], np.float32)
"""Of four images: three clear, one in which two classes are level up to rounding."""


def proved(
    tmp_path: Path,
    alone: list[list[int]],
    difference: float = 0.0,
    evaluated: np.ndarray = TARGETS,
    targets: np.ndarray = TARGETS,
) -> Agreement:
    expected = write_expected([ANSWERS], ANSWERS.shape, tmp_path / "expected.npy")
    predicted = {size: np.array(row) for size, row in zip(BATCH_SIZES, alone, strict=True)}
    return prove(expected, Alone(predicted, difference), targets, evaluated, "test", BOUND)


SAME = [[0, 1, 2, 0]] * 4


def test_equal_answers_are_proven_and_counted(tmp_path: Path) -> None:
    found = proved(tmp_path, SAME)
    assert found.as_dict() == {"top1_agreement": 1.0, "max_abs_difference": 0.0, "ties": 1, "accuracy": 1.0, "n": 4}
    assert proved(tmp_path, SAME, targets=np.array([0, 1, 1, 1])).accuracy == 0.5


def test_rounding_may_exchange_two_that_are_level_and_nothing_else(tmp_path: Path) -> None:
    assert proved(tmp_path, [[0, 1, 2, 1]] * 4).accuracy == 0.75
    with pytest.raises(UserError, match=r"agree on 93.75% of 4 test images and differ by up to 5.0e-01"):
        proved(tmp_path, [*SAME[:3], [0, 0, 2, 0]], 0.5)


@pytest.mark.parametrize(("difference", "text"), [(2e-4, "2.0e-04"), (np.nan, "nan"), (np.inf, "inf")])
def test_a_difference_above_the_bound_is_refused(tmp_path: Path, difference: float, text: str) -> None:
    with pytest.raises(
        UserError, match=rf"agree on 100.00% .* differ by up to {text} \(allowed 1.0e-04\); no file was written"
    ):
        proved(tmp_path, SAME, difference)


def test_predictions_other_than_those_of_evaluate_are_refused(tmp_path: Path) -> None:
    assert proved(tmp_path, SAME, evaluated=np.array([0, 1, 2, 1])).accuracy == 1  # the last is a tie
    with pytest.raises(UserError, match=r"2 of 4 test images are predicted as another class than evaluate predicted"):
        proved(tmp_path, SAME, evaluated=np.array([1, 1, 0, 0]))
