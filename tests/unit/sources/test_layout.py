"""What a path inside a data set means, from the ways in which people spell and wrap their folders."""

import re
import unicodedata
import zipfile
from collections import Counter
from pathlib import PurePosixPath

import pytest

from fieldguide.core.errors import UserError
from fieldguide.core.names import SPLITS
from fieldguide.sources.layout import (
    SPLIT_NAMES,
    check_class_folders,
    check_classes,
    check_splits,
    class_alone,
    class_key,
    class_name,
    is_image,
    is_shard,
    resolution_of,
    shard_split,
    split_and_class,
    wrapper_of,
)
from support import REAL_DATA


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.JPEG", "x/a.Png", "a.webp", "a.bmp", "a.gif", "a.tif", "a.TIFF", "蝴蝶/1.jpg", "a.b.jpg", "x y/ a.jpg"]
)
def test_images_are_told_by_their_suffix_in_any_case(name: str) -> None:
    assert is_image(name)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a.txt",
        "a.jpg.txt",
        "a.zip",
        "Thumbs.db",
        ".jpg",
        ".DS_Store",
        "._a.jpg",
        "x/._a.jpg",
        ".cache/a.jpg",
        "__MACOSX/a.jpg",
        "x/__MACOSX/train/A/a.jpg",
        "jpg",
        "a.svg",
        "a.heic",
    ],
)
def test_hidden_files_what_macos_leaves_and_other_kinds_are_no_images(name: str) -> None:
    assert not is_image(name)


@pytest.mark.parametrize(
    ("names", "depth"),
    [
        (["train/A/1.jpg", "valid/A/1.jpg"], 0),
        (["moths/train/A/1.jpg", "moths/valid/A/1.jpg"], 1),
        (["a/b/Train/A/1.jpg", "a/b/VAL/A/1.jpg"], 2),
        (["train/A/1.jpg", "train/A/2.jpg"], 0),
        (["Train/A/1.jpg", "Train/B/2.jpg"], 0),
        (["x/train/A/1.jpg", "x/train/B/1.jpg"], 1),
        (["one/train/A/1.jpg", "two/train/A/1.jpg"], 0),
        (["x/train/A/1.jpg", "x/preview.jpg"], 1),
        (["x/A/1.jpg", "x/B/1.jpg"], 1),
        (["A/1.jpg", "B/1.jpg"], 0),
        (["1.jpg", "2.jpg"], 0),
        ([], 0),
    ],
)
def test_the_wrapper_is_what_all_names_share_above_the_splits(names: list[str], depth: int) -> None:
    expected = PurePosixPath(*PurePosixPath(names[0]).parts[:depth]) if names else PurePosixPath()
    assert wrapper_of(names) == expected
    assert wrapper_of(["cover.jpg", *names]) == expected  # a loose picture beside it changes nothing
    assert wrapper_of(iter(names)) == expected


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("valid", "valid"),
        ("val", "valid"),
        ("Validation", "valid"),
        ("TEST", "test"),
        ("testing", "test"),
    ],
)
def test_splits_are_known_under_their_usual_spellings(folder: str, split: str) -> None:
    assert split_and_class(f"{folder}/MONARCH/1.jpg") == (split, "MONARCH")


def test_every_spelling_stands_for_one_of_the_three_splits() -> None:
    assert set(SPLIT_NAMES.values()) == set(SPLITS) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    "name", ["1.jpg", "train/1.jpg", "train", "A/1.jpg", "trains/A/1.jpg", "images/train/A/1.jpg", "dev/A/1.jpg", ""]
)
def test_a_name_outside_split_and_class_has_no_place(name: str) -> None:
    assert split_and_class(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/PAPER KITE /1.jpg", "PAPER KITE "),  # as the butterfly archive has it
        ("train/A/more/2.jpg", "A"),
        ("train/蝴蝶/1.jpg", "蝴蝶"),
        ("train/train/1.jpg", "train"),
    ],
)
def test_the_class_is_the_folder_below_the_split(name: str, expected: str) -> None:
    assert split_and_class(name) == ("train", expected)


def test_folders_of_one_class_differ_in_case_space_or_unicode_form_only() -> None:
    folders = ["Königin", " KÖNIGIN ", unicodedata.normalize("NFD", "königin")]
    assert len({class_key(folder) for folder in folders}) == 1
    assert class_name(folders[1]) == "KÖNIGIN"
    assert class_key("Königin I") != class_key("Königin II")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([("train", "A"), ("valid", "A ")], r"x: only one class \(a\); a classifier needs at least two class folders"),
        ([("train", "A"), ("train", " ")], "x: class folder ' ' has no name; rename it"),
        ([("", "train"), ("", "Val")], "x: Val contains images without class folders; move them to Val/<CLASS>/"),
    ],
)
def test_folders_that_cannot_be_meant_as_classes_are_refused(places: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        check_classes(places, "x")


def test_class_folders_without_splits_leave_the_split_open() -> None:
    assert class_alone("MONARCH /7.jpg") == ("", "MONARCH ")
    assert class_alone("MONARCH/more/7.jpg") == ("", "MONARCH")
    assert class_alone("7.jpg") is None


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("00-192x192-798.tfrec", True),
        ("x/a.TFRecord", True),
        ("train.tfrecords", True),
        ("train-00000-of-00010", True),
        ("a.tfrecord-00000-of-00002", True),
        ("._a.tfrec", False),
        ("__MACOSX/a.tfrec", False),
        ("a.jpg", False),
        ("tfrec", False),
        ("train-0-of-1", False),
    ],
)
def test_shards_are_told_by_their_name(name: str, shard: bool) -> None:
    assert is_shard(name) is shard


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/00-192x192-798.tfrec", "train"),
        ("tfrecords-jpeg-192x192/val/00-192x192-232.tfrec", "valid"),
        ("train-00000-of-00010", "train"),
        ("validation.tfrecord", "valid"),
        ("Test_3.tfrec", "test"),
        ("oxford_flowers-train.tfrecord-00000-of-00001", "train"),
        ("oxford_flowers102/2.1.1/oxford_flowers102-validation.tfrecord-00003-of-00010", "valid"),
        ("flowers_train_00000-of-00005.tfrecord", "train"),
        ("flowers_validation_00000-of-00005.tfrecord", "valid"),
        ("train_01.tfrec", "train"),
        ("train0-1024.tfrec", "train"),
        ("ld_test00-507.tfrec", "test"),
        ("dogs-dev.tfrecord", "valid"),
        ("train/test_3.tfrec", "train"),
        ("dev/3.tfrec", None),
        ("train_and_test.tfrec", None),
        ("train_training.tfrec", "train"),
        ("trainer-00000-of-00010", None),
        ("00-192x192-798.tfrec", None),
        ("other/0.tfrec", None),
    ],
)
def test_the_split_of_a_shard_is_in_its_folder_or_its_name(name: str, split: str | None) -> None:
    assert shard_split(name) == split


def test_the_resolution_of_a_shard_is_in_its_folder() -> None:
    assert resolution_of("tfrecords-jpeg-331x331/train/00-331x331-798.tfrec") == 331
    assert resolution_of("train/00-331x331-798.tfrec") is None


def test_the_first_split_that_is_needed_and_not_there_is_named() -> None:
    check_splits({"train", "valid", "test"}, SPLITS, "here")
    check_splits({"train"}, ("train",), "here")
    arrange = "arrange the photographs as train/<CLASS>/, valid/<CLASS>/, test/<CLASS>/"
    for present, missing in (({"valid", "test"}, "train"), ({"train"}, "valid"), ({"train", "valid"}, "test")):
        with pytest.raises(UserError, match=f"^here: no {missing} split; {arrange}$"):
            check_splits(present, SPLITS, "here")
    with pytest.raises(UserError, match=f"^here: no class folder with images; {arrange}$"):
        check_splits(set(), ("",), "here")


def test_a_class_folder_without_images_is_named() -> None:
    names = ["train/A/1.jpg", "val/A/more/2.jpg"]
    check_class_folders(names, ["train", "train/A", "val", "val/A", "val/A/more", "docs", "docs/empty"], "here", depth=2)
    said = "here: class folder val/B contains no image; add images or remove the folder"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        check_class_folders(names, ["train/A", "val/B", "val/C"], "here", depth=2)
    check_class_folders(names, [".", "train/A", "val/A"], "here", depth=2)  # a folder that wraps it all
    check_class_folders(["A/1.jpg"], ["A", "A/empty"], "here", depth=1)
    with pytest.raises(UserError, match=r"^here: class folder B contains no image; add images or remove the folder$"):
        check_class_folders(["A/1.jpg"], ["A", "B"], "here", depth=1)


@pytest.mark.parametrize("folder", ["train/.ipynb_checkpoints", "train/__MACOSX", ".git/hooks"])
def test_a_hidden_folder_is_no_class(folder: str) -> None:
    check_class_folders(["train/A/1.jpg"], ["train/A", folder], "here", depth=2)


@pytest.mark.real
def test_every_photograph_of_the_butterflies_has_a_split_and_a_class() -> None:
    with zipfile.ZipFile(REAL_DATA / "butterflies.zip") as archive:
        places = [split_and_class(name) for name in archive.namelist() if is_image(name)]
    assert None not in places
    assert Counter(split for split, _ in places) == {"train": 5098, "valid": 235, "test": 235}
    assert len({name for _, name in places}) == 47
