"""The proof: what the file alone answers, in another process, and what the export stage makes of it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fieldguide.core.artifacts import SplitAccuracy
from fieldguide.core.errors import UserError
from fieldguide.core.images import decode
from fieldguide.onnx.metadata import split_accuracy
from fieldguide.onnx.proof import BATCH_SIZES, CHUNK, probabilities_alone, prove
from support.mean_colour import NAMES, expected_probabilities, mean_colour_network, save

PX = 16
BOUND = 1e-4  # of a difference


def test_the_file_alone_answers_every_image_at_every_batch_size_from_its_bytes(tmp_path: Path, make_jpeg) -> None:
    model = save(tmp_path, mean_colour_network())
    encoded = [make_jpeg(seed, 30, 24) for seed in range(73)]
    places, offset = [], 5
    with (tmp_path / "images.bin").open("wb") as stream:
        stream.write(b"other")
        for content in encoded:
            stream.write(content)
            places.append(("images.bin", offset, len(content)))
            offset += len(content)
    found = probabilities_alone(model, tmp_path, places)
    assert found.shape == (len(BATCH_SIZES), 73, len(NAMES))
    expected = expected_probabilities(np.stack([decode(content, PX) for content in encoded]))
    for row in found:
        assert row == pytest.approx(expected, abs=1e-6)
    assert all(CHUNK % size == 0 for size in BATCH_SIZES)
    assert set(BATCH_SIZES) == {1, 2, 7, 64}


def test_a_file_that_fails_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"could not be run without torch \(error: .*not a usable ONNX model"):
        probabilities_alone(tmp_path / "model.onnx", tmp_path, [])
    assert "torch" in sys.modules  # here; the other process had none


def reported(n_right: int, n: int = 4) -> SplitAccuracy:
    return split_accuracy("test", n_right, n)


@pytest.fixture
def answers() -> np.ndarray:
    """Of four images: three clear, one in which two classes are level up to rounding."""
    return np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.40002, 0.40001, 0.19997]], np.float32)


TARGETS = np.array([0, 1, 2, 0])


def test_equal_answers_are_proven_and_counted(answers: np.ndarray) -> None:
    found = prove(answers, np.stack([answers] * 4), TARGETS, reported(4), BOUND)
    assert found.as_dict() == {"top1_agreement": 1.0, "max_abs_difference": 0.0, "ties": 1, "accuracy": 1.0, "n": 4}


def test_rounding_may_exchange_two_that_are_level_and_nothing_else(answers: np.ndarray) -> None:
    exchanged = answers.copy()
    exchanged[3] = answers[3][[1, 0, 2]]
    assert prove(answers, np.stack([exchanged] * 4), TARGETS, reported(4), BOUND).accuracy == 0.75
    other = answers.copy()
    other[1] = answers[1][[1, 0, 2]]
    with pytest.raises(UserError, match=r"agree on 93.75% of the test images and differ by up to 5.0e-01"):
        prove(answers, np.stack([answers, answers, answers, other]), TARGETS, reported(4), BOUND)


def test_a_difference_above_the_bound_at_one_batch_size_is_refused(answers: np.ndarray) -> None:
    off = answers.copy()
    off[0] += [2e-4, -1e-4, -1e-4]
    with pytest.raises(
        UserError, match=r"agree on 100.00% .* differ by up to 2.0e-04 \(allowed 1.0e-04\); no file was written"
    ):
        prove(answers, np.stack([answers, off, answers, answers]), TARGETS, reported(4), BOUND)


@pytest.mark.parametrize("other", [reported(2), reported(4, 5)], ids=["other accuracy", "other images"])
def test_an_accuracy_other_than_what_evaluate_reported_is_refused(answers: np.ndarray, other: SplitAccuracy) -> None:
    with pytest.raises(UserError, match=r"4 of 4 test images are right, but evaluate reported"):
        prove(answers, np.stack([answers] * 4), TARGETS, other, BOUND)
