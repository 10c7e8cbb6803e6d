"""The sample on which a model is proved and measured: every class alike, always the same images, one chunk in memory."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fieldguide.onnx import sample as samples
from fieldguide.onnx.proof import CHUNK
from fieldguide.onnx.sample import BATCH, SAMPLE_IMAGES, ImageSample, class_balanced, draw, scores


def table(*sizes: int) -> pd.DataFrame:
    """Rows of classes of these sizes, sorted by class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    hashes = [hashlib.sha256(f"{number}".encode()).hexdigest() for number in range(len(labels))]
    return pd.DataFrame({"given_label": pd.array(labels, dtype="Int64"), "sha256": hashes})


@pytest.mark.parametrize(
    ("sizes", "n", "taken"),
    [
        ((5, 3, 2), 10, [5, 3, 2]),
        ((5, 3, 2), 2_000, [5, 3, 2]),
        ((1_000, 500, 700), 600, [200, 200, 200]),
        ((1_000, 4, 700), 604, [300, 4, 300]),
        ((1, 50, 1, 50), 12, [1, 5, 1, 5]),
    ],
)
def test_every_class_is_taken_as_evenly_as_possible(sizes: tuple[int, ...], n: int, taken: list[int]) -> None:
    rows = table(*sizes)
    found = class_balanced(rows, n)
    assert np.bincount(rows["given_label"].iloc[found].astype(int)).tolist() == taken
    assert (np.diff(found) > 0).all()


def test_of_more_classes_than_images_each_gives_at_most_one() -> None:
    rows = table(*[3] * 50)
    found = class_balanced(rows, 20)
    assert len(found) == rows["given_label"].iloc[found].nunique() == 20


def test_the_images_depend_on_their_content_and_not_on_their_order_or_the_machine() -> None:
    rows = table(400, 300, 500)
    first = set(rows["sha256"].iloc[class_balanced(rows, 90)])
    mixed = rows.sample(frac=1, random_state=3)
    assert set(mixed["sha256"].iloc[class_balanced(mixed, 90)]) == first
    lowest = rows[rows["given_label"] == 1]["sha256"].sort_values().head(30)
    assert set(lowest) <= first


def test_more_images_leave_the_sample_much_as_it_was() -> None:
    rows = table(400, 300, 500)
    fewer = rows.drop(rows.index[::50])
    before, after = (set(one["sha256"].iloc[class_balanced(one, 90)]) for one in (fewer, rows))
    assert len(before & after) >= 80


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each decoding; an image is one pixel, of the value of its row."""
    sizes: list[int] = []

    def decode_pixels(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, progress: bool) -> np.ndarray:
        assert rows.index[0] == 0
        sizes.append(len(rows))
        return rows["given_label"].to_numpy(dtype=np.uint8)[:, None, None, None]

    monkeypatch.setattr(samples, "decode_pixels", decode_pixels)
    return sizes


def drawn(n_classes: int, each: int) -> ImageSample:
    rows = table(*[each] * n_classes)
    return draw(rows, rows["given_label"].to_numpy(dtype=np.int64), Path("raw"), 1, 1)


def test_a_large_split_is_read_in_chunks_and_never_whole(decoded: list[int]) -> None:
    sample = drawn(4, 1_000)
    assert len(sample) == SAMPLE_IMAGES == 2_000
    batches = list(sample.batches("look"))
    assert decoded == [CHUNK] * 4 + [2_000 - 4 * CHUNK]
    assert {len(batch) for batch in batches[:-1]} == {BATCH}
    assert (np.concatenate(batches)[:, 0, 0, 0] == sample.targets).all()
    assert (np.arange(4_000)[sample.positions] == sample.positions).all()


def test_scores_are_of_all_images_and_each_is_decoded_once(decoded: list[int]) -> None:
    sample = drawn(3, 200)

    def sure(pixels: np.ndarray) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[pixels[:, 0, 0, 0]]

    def first(pixels: np.ndarray) -> np.ndarray:
        return np.tile(np.array([0.5, 0.25, 0.25], np.float32), (len(pixels), 1))

    found = scores({"sure": sure, "first": first}, sample)
    assert sum(decoded) == 600
    assert (found["sure"].n_right, found["first"].n_right) == (600, 200)
    assert found["sure"].log_likelihood == 0
    assert found["first"].log_likelihood == pytest.approx((np.log(0.5) + 2 * np.log(0.25)) / 3)
    assert max(found, key=lambda name: found[name]) == "sure"


def test_equally_many_right_answers_are_told_apart_by_their_likelihood(decoded: list[int]) -> None:
    sample = drawn(2, 10)

    def predictor(surety: float):
        return lambda pixels: np.where(pixels[:, :, 0, 0] == [0, 1], surety, 1 - surety).astype(np.float32)

    found = scores({"less": predictor(0.6), "more": predictor(0.9)}, sample)
    assert found["less"].n_right == found["more"].n_right == 20
    assert found["more"] > found["less"]
