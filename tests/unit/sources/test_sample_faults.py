"""Planted faults: the list in the repository is the generator's, they show what it says, and small samples are spared."""

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from fieldguide.core.params import read_params
from fieldguide.sources.sample import SPLITS, change_copy, photographs, planted_faults
from fieldguide.sources.sample_faults import CHANGES, Fault, faults_csv, plant
from support import ROOT

LISTED = ROOT / "fieldguide" / "sources" / "sample_faults.csv"
COUNTS = {"test": 8, "train": 40, "valid": 8}
SIZES = {"n_species": 3, "train_images": 40, "valid_images": 8, "test_images": 8, "image_px": 32, "seed": 7}
NAMES = [f"SPECIES {letter}" for letter in "ABCDEFGHIJKL"]
DEFAULT = {"train": 40, "valid": 20, "test": 20}


def listed() -> list[Fault]:
    return [Fault(**row) for row in csv.DictReader(io.StringIO(LISTED.read_text(encoding="utf-8")))]


def test_the_list_in_the_repository_is_that_of_the_default_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sample = read_params().data.sample
    counts = {split: getattr(sample, f"{split}_images") for split in SPLITS}
    expected = faults_csv(planted_faults(sample.species, counts, sample.seed))
    remedy = "write it again: python -m fieldguide.sources.sample > fieldguide/sources/sample_faults.csv"
    assert LISTED.read_text(encoding="utf-8") == expected, remedy
    assert faults_csv(listed()) == expected


def test_each_kind_is_planted_and_every_label_of_test_is_right() -> None:
    kinds = Counter((Path(fault.file).parts[0], fault.kind) for fault in listed())
    assert kinds == {
        ("train", "wrong label"): 12,
        ("valid", "wrong label"): 1,
        ("train", "copy"): 6,
        ("valid", "copy"): 2,
        ("train", "label conflict"): 1,
        ("train", "no species"): 4,
    }
    assert {fault.detail for fault in listed() if fault.kind == "copy"} == set(CHANGES)


def test_a_photograph_has_one_fault_and_its_folder_is_what_was_given() -> None:
    faults = listed()
    places = [fault.file for fault in faults] + [fault.other for fault in faults if fault.other]
    assert len(set(places)) == len(places)
    for fault in faults:
        assert Path(fault.file).parts[1] == fault.given
        assert (fault.true == fault.given) == (fault.kind == "copy")
        assert not fault.other or Path(fault.other).parts[1] == fault.true


def test_faults_take_the_place_of_the_files_listed_and_of_no_others() -> None:
    clean, faulty = dict(photographs(**SIZES)), dict(photographs(**SIZES, faults=True))
    faults = planted_faults(3, COUNTS, 7)
    assert list(faulty) == list(clean)
    assert {file for file in clean if faulty[file] != clean[file]} == {fault.file for fault in faults}
    for fault in faults:
        if fault.other:
            assert faulty[fault.file] == change_copy(clean[fault.other], fault.detail)
    assert dict(photographs(**SIZES, faults=True)) == faulty


def test_a_wrong_label_shows_an_individual_that_occurs_nowhere_else() -> None:
    faulty = dict(photographs(**SIZES, faults=True))
    wrong = [fault.file for fault in planted_faults(3, COUNTS, 7) if fault.kind == "wrong label"]
    assert wrong
    counts = Counter([*dict(photographs(**SIZES)).values(), *(faulty[file] for file in wrong)])
    assert all(counts[faulty[file]] == 1 for file in wrong)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("px", [16, 33, 128])
def test_a_changed_copy_shows_what_the_original_does(change: str, px: int) -> None:
    wanted = {"n_species": 2, "train_images": 1, "valid_images": 0, "test_images": 0, "image_px": px, "seed": 3}
    _, jpeg = next(photographs(**wanted))
    copy = change_copy(jpeg, change)
    assert (copy == jpeg) == (change == "same bytes")
    one, other = (
        np.asarray(Image.open(io.BytesIO(each)).resize((10, 10), Image.Resampling.BOX), float) for each in (jpeg, copy)
    )
    other = other[:, ::-1] if change == "mirrored" else other
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.7


def test_the_order_of_the_splits_changes_nothing_and_the_seed_does() -> None:
    assert plant(NAMES, DEFAULT, default_rng(1)) == plant(NAMES, dict(reversed(DEFAULT.items())), default_rng(1))
    assert plant(NAMES, DEFAULT, default_rng(1)) != plant(NAMES, DEFAULT, default_rng(2))


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_nothing_is_planted_among_few_images(n: int) -> None:
    assert plant(NAMES, {"train": n, "valid": n, "test": n}, default_rng(1)) == []


@pytest.mark.parametrize("n_species", [2, 12, 200])
@pytest.mark.parametrize("counts", [(8, 8, 8), (8, 1, 1), (16, 4, 4), (200, 8, 20), (1000, 20, 8)])
def test_faults_are_spread_so_that_every_species_keeps_most_of_its_images(n_species: int, counts: tuple[int, ...]) -> None:
    sizes = dict(zip(("train", "valid", "test"), counts, strict=True))
    faults = plant([f"SPECIES {k}" for k in range(n_species)], sizes, default_rng(1))
    for (split, _), n_faults in Counter((Path(fault.file).parts[0], fault.given) for fault in faults).items():
        assert n_faults <= max(1, 0.1 * sizes[split])
