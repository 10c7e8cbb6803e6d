"""The embedded sample: the same bytes for the same seed, laid out as promised, and too hard for a linear model."""

import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from fieldguide.sources.sample import _catalogue, photographs

SMALL = {"n_species": 3, "train_images": 4, "valid_images": 1, "test_images": 2, "image_px": 32}
LINEAR_TOP1_BOUND = 0.6  # measured 0.38 to 0.43 over seeds 0 to 3


def species_names(n_species: int, seed: int) -> list[str]:
    return sorted(species.name for species in _catalogue(n_species, seed))


def pixels(jpeg: bytes, px: int) -> np.ndarray:
    image = Image.open(io.BytesIO(jpeg)).resize((px, px), Image.Resampling.BOX)
    return np.asarray(image, np.float64) / 255


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert list(photographs(**SMALL, seed=7)) == list(photographs(**SMALL, seed=7))


def test_another_seed_gives_other_species_and_other_photographs() -> None:
    assert species_names(12, 1) != species_names(12, 2)
    assert not set(dict(photographs(**SMALL, seed=1)).values()) & set(dict(photographs(**SMALL, seed=2)).values())


def test_no_two_photographs_are_the_same() -> None:
    jpegs = [jpeg for _, jpeg in photographs(**SMALL, seed=7)]
    assert len(set(jpegs)) == len(jpegs)


@pytest.mark.slow
def test_two_workers_yield_what_one_yields() -> None:
    wanted = {**SMALL, "train_images": 40}  # more chunks than may be under way at once
    assert list(photographs(**wanted, seed=7, workers=2)) == list(photographs(**wanted, seed=7))


def test_closing_early_ends_the_workers() -> None:
    stream = photographs(**{**SMALL, "train_images": 10_000}, seed=7, workers=2)
    first = next(stream)
    stream.close()
    assert first == next(photographs(**SMALL, seed=7))
    assert list(stream) == []


@pytest.mark.slow
def test_larger_counts_keep_the_earlier_photographs() -> None:
    larger = {**SMALL, "n_species": 30, "train_images": 5, "valid_images": 2, "test_images": 3}
    earlier, later = dict(photographs(**SMALL, seed=7)), dict(photographs(**larger, seed=7))
    assert earlier.items() <= later.items()


def test_members_are_sorted_and_counted_per_species() -> None:
    members = [member for member, _ in photographs(**SMALL, seed=7)]
    assert members == sorted(members)
    assert all(re.fullmatch(r"(test|train|valid)/[A-Z]+ [A-Z]+/\d{3}\.jpg", member) for member in members)
    folders = Counter(member.rpartition("/")[0] for member in members)
    counts = {"test": 2, "train": 4, "valid": 1}
    assert folders == {f"{split}/{name}": count for split, count in counts.items() for name in species_names(3, 7)}


@pytest.mark.parametrize("image_px", [16, 33, 96, 200, 512])
def test_photographs_are_rgb_jpegs_of_the_size_asked_for(image_px: int) -> None:
    wanted = {"n_species": 4, "train_images": 1, "valid_images": 0, "test_images": 0, "image_px": image_px}
    for _, jpeg in photographs(**wanted, seed=3):
        with Image.open(io.BytesIO(jpeg)) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (image_px, image_px))


def test_names_are_unique_and_sorted_and_kept_by_a_larger_sample() -> None:
    names = species_names(200, 0)
    assert len(set(names)) == 200
    assert names == sorted(names)
    assert set(species_names(12, 0)) <= set(names)


def test_more_species_than_names_are_refused() -> None:
    with pytest.raises(ValueError, match="n_species is 100000"):
        species_names(100_000, 0)


@pytest.mark.slow
def test_a_linear_model_on_pixels_fails() -> None:
    wanted = {"n_species": 12, "train_images": 40, "valid_images": 0, "test_images": 10, "image_px": 32}
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    for member, jpeg in photographs(**wanted, seed=0):
        split, name, _ = member.split("/")
        images[split].append(pixels(jpeg, 12).ravel())
        labels[split].append(name)
    linear = LogisticRegression(max_iter=1000).fit(images["train"], labels["train"])
    assert linear.score(images["train"], labels["train"]) > 0.8
    assert linear.score(images["test"], labels["test"]) < LINEAR_TOP1_BOUND
