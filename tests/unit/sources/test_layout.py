"""What a path inside a data set means, from the ways in which people spell and wrap their folders."""

import re
import unicodedata
import zipfile
from collections import Counter
from pathlib import PurePosixPath

import pytest

from fieldguide.core.errors import UserError
from fieldguide.core.formats import claims_photograph
from fieldguide.core.names import SPLITS, ClassFrom
from fieldguide.sources.layout import (
    SPLIT_NAMES,
    check_classes,
    check_empty_folders,
    check_splits,
    class_key,
    class_name,
    class_names,
    is_shard,
    is_split,
    is_system,
    read_layout,
    resolution_of,
    shard_split,
    splits_among,
    wrapper_of,
)
from support import REAL_DATA


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "x/#recycle/1.jpg", "$RECYCLE.BIN/$R1.jpg", "RECYCLER/S-1-5/1.jpg"),
        *("System Volume Information/1.jpg", "lost+found/1", "x/Thumbs.db", "thumbs.db", "Desktop.ini", "x/._1.jpg"),
        *("__MACOSX/train/A/._1.jpg", ".DS_Store", ".Trash-1000/files/1.jpg", "x/.ipynb_checkpoints/1-checkpoint.jpg"),
        *("@Recycle/1.jpg", "x/.thumbnails/1.jpg", ".hidden", "x/1.jpg@SynoEAStream", "Icon\r", "#snapshot/A/1.jpg"),
    ],
)
def test_what_systems_leave_is_never_a_photograph_or_a_class(name: str) -> None:
    assert is_system(name)


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "x/Recycling beetle/1.jpg",
        "lost and found/1.jpg",
        "@home/1.jpg",
        "# 1/1.jpg",
        "a.b/1",
        "Thumbs/1.jpg",
        "Recycled/1.jpg",
    ],
)
def test_other_names_are_kept(name: str) -> None:
    assert not is_system(name)


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
        *(("train", "train"), ("Training", "train"), ("valid", "valid"), ("val", "valid"), ("Validation", "valid")),
        *(("TEST", "test"), ("testing", "test"), ("Training Set", "train"), ("train_images", "train"), ("1_train", "train")),
        *(("dataset-train", "train"), ("TrainImages", "train"), ("testset", "test"), ("val2017", "valid"), ("test1", "test")),
        *(("Original Training Data", "train"), ("images.test", "test"), ("TEST SET (2)", "test"), ("valid-jpg", "valid")),
    ],
)
def test_splits_are_known_under_their_usual_spellings(folder: str, split: str) -> None:
    assert is_split(folder)
    assert splits_among([folder, "other"]) == {folder: split}


@pytest.mark.parametrize(
    "folder",
    [
        *("train oil beetle", "test tube coral", "Trainer", "contest", "validus", "oak", "Valid name wasp", "trains", "dev"),
        *("train_test", "Testudo", "latest", "1", "image", "Val d'Isère moth"),
    ],
)
def test_a_species_with_a_word_for_a_split_stays_a_class(folder: str) -> None:
    assert not is_split(folder)
    assert splits_among([folder, "oak", "ash", "test tube coral", "train oil beetle"]) == {}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["seg_train", "seg_test", "seg_pred"], {"seg_train": "train", "seg_test": "test"}),
        (["butterfly-training", "butterfly-val"], {"butterfly-training": "train", "butterfly-val": "valid"}),
        (["asl_alphabet_train", "asl_alphabet_test"], {"asl_alphabet_train": "train", "asl_alphabet_test": "test"}),
        (["seg_test", "seg_pred"], {}),
        (["oak_train", "ash_test"], {}),
    ],
)
def test_siblings_that_differ_in_the_split_alone_are_splits(folders: list[str], splits: dict[str, str]) -> None:
    assert splits_among(folders) == splits


def test_every_spelling_stands_for_one_of_the_three_splits() -> None:
    assert set(SPLIT_NAMES.values()) == set(SPLITS) == {"train", "valid", "test"}


def placed(*names: str, class_from: ClassFrom = "last") -> dict[str, str]:
    """`split/class` of each image, `-` and the reason for those without a place."""
    layout = read_layout(names, [], "here")
    classes = class_names(layout, class_from, "here")
    found = {name: f"{place.split}/{classes[name]}" for name, place in layout.places.items()}
    return found | {name: f"- {reason}" for name, reason in layout.outside.items()}


DOUBLED = [  # the folders around oak/1.jpg of train and of test
    *(
        ("train", "test"),
        ("train/train", "test/test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("images/train", "images/test"),
    ),
    *(("a/b/Training Set", "a/b/Test Set"), ("train_images", "test_images"), ("dataset-train", "dataset-test")),
    *(("1_train", "2_test"), ("moths_train/train", "moths_test/test"), ("data/TRAIN/Training", "data/TEST/Testing")),
]


@pytest.mark.parametrize(("train", "test"), DOUBLED)
def test_folders_that_repeat_or_decorate_a_split_are_looked_through(train: str, test: str) -> None:
    names = {f"{train}/oak/1.jpg": "train/oak", f"{train}/ash/1.jpg": "train/ash", f"{test}/oak/1.jpg": "test/oak"}
    assert placed(*names) == names
    assert placed(*names, "cover.jpg")["cover.jpg"].startswith("- ")
    nested = {name.replace("oak/", "tree/oak/").replace("ash/", "tree/ash/"): place for name, place in names.items()}
    assert placed(*nested) == nested


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (("train/a/1", "train/b/1", "extra/a/1"), ["train/a", "train/b", "- outside the splits"]),
        (("x/train/a/1", "x/train/b/1", "y/1"), ["train/a", "train/b", "- beside the wrapping folder"]),
        (("x/train/a/1", "x/train/b/1", "x/1"), ["train/a", "train/b", "- outside class folders"]),
        (("train/a/1", "train/b/1", "train/1"), ["train/a", "train/b", "- outside class folders"]),
        (("a/1", "b/1", "1"), ["/a", "/b", "- outside class folders"]),
        (("x/a/1", "x/b/1"), ["/a", "/b"]),
        (("train oil beetle/1", "test tube coral/1", "oak/1"), ["/train oil beetle", "/test tube coral", "/oak"]),
    ],
)
def test_every_image_has_a_place_or_a_reason(names: tuple[str, ...], places: list[str]) -> None:
    assert [placed(*names)[name] for name in names] == places


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["oak/train/1", "oak/test/1"], "oak/train contains images without class folders; move them to oak/train/<CLASS>/"),
        (["oak/train/1", "ash/train/1"], "ash and oak each contain a train folder; set data.path to one of them, or, if"),
        (["train/oak/test/1", "train/ash/1"], "train/oak/test has the name of a split, but lies where classes are; arrange"),
        (["train/test/oak/1", "train/train/oak/1"], "train/test is a split in another split; move it beside train"),
        (["train/1", "train/2", "test/1"], "train contains images without class folders; move them to train/<CLASS>/"),
        (["train/a/1", "train/b/1", "val/1"], "val contains images without class folders; move them to val/<CLASS>/"),
        (["train/a/1", "train/ /1"], "class folder ' ' has no name; rename it"),
        (["oak/test/1", "ash/1"], "oak/test has the name of a split, but lies where classes are"),
        (["oak/1", "Val/1"], "Val contains images without class folders; move them to Val/<CLASS>/"),
    ],
)
def test_a_folder_with_the_name_of_a_split_is_never_a_class(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"^here: {re.escape(said)}"):
        placed(*names)


TRAIN = {"train/a/1": "train/a", "train/b/1": "train/b"}


@pytest.mark.parametrize(
    "names",
    [
        *(TRAIN | {f"{folder}/1": "unlabelled/"} for folder in ("unlabelled", "Unlabeled", "unlabelled_images", "test")),
        *(
            TRAIN | {f"test/{folder}/1": "unlabelled/"}
            for folder in ("unknown", "unlabelled", "Unlabeled images", "test", "images")
        ),
        TRAIN | {"test/a/1": "test/a", "test/unknown/1": "unlabelled/"},
        TRAIN | {"test/a/1": "test/a", "test/1": "- outside class folders"},
        TRAIN | {"train/unknown/1": "train/unknown", "test/unknown/1": "test/unknown"},
        {"a/1": "/a", "b/1": "/b", "unlabelled/deep/1": "unlabelled/"},
        {"a/1": "/a", "b/1": "/b", "test/1": "unlabelled/"},
        {"a/1": "/a", "b/1": "/b", "unknown/1": "/unknown"},
    ],
)
def test_images_without_a_class_that_train_has_are_unlabelled(names: dict[str, str]) -> None:
    assert placed(*names) == names


@pytest.mark.parametrize(
    ("class_from", "classes"),
    [
        ("last", ["robur", "rubra", "rubra"]),
        ("first", ["Quercus", "Acer", "Acer"]),
        ("path", ["Quercus robur", "Acer rubra", "Acer rubra"]),
    ],
)
def test_the_class_of_nested_folders_is_the_last_the_first_or_all(class_from: ClassFrom, classes: list[str]) -> None:
    names = ["train/Quercus/robur/1", "train/Acer/rubra/1", "test/Acer/rubra/1"]
    found = placed(*names, class_from=class_from)
    assert [found[name].partition("/")[2] for name in names] == classes


@pytest.mark.parametrize(
    ("names", "class_from", "said"),
    [
        (["a/x/1", "b/x/1"], "last", "a/x and b/x would be one class; set data.class_from to path, or to first"),
        (["train/a/x/1", "train/b/y/1", "test/b/X /1"], "last", "b/X  and a/x would be one class; set data.class_from"),
        (["oak/1", "ash/1", "oak/summer/2"], "last", "images lie at different depths (oak/1, oak/summer/2), so the last"),
        (["train/oak/1", "train/ash/1", "test/x/oak/1"], "last", "images lie at different depths (train/oak/1, test/x/oak/1)"),
        (["train/oak/images/1", "train/ash/images/2", "val/images/3"], "first", "val/images contains images without class"),
        (["a b/c/1", "a/b c/1"], "path", "a/b c and a b/c would be one class; rename one"),
    ],
)
def test_classes_that_are_ambiguous_stop(names: list[str], class_from: ClassFrom, said: str) -> None:
    with pytest.raises(UserError, match=f"^here: {re.escape(said)}"):
        placed(*names, class_from=class_from)


def test_a_folder_of_images_is_unlabelled_where_classes_have_such_folders() -> None:
    names = ["train/oak/images/1", "train/ash/images/2", "test/images/3"]
    assert [placed(*names, class_from="first")[name] for name in names] == ["train/oak", "train/ash", "unlabelled/"]


def test_mixed_depths_are_settled_by_first_and_by_path() -> None:
    names = ["oak/1", "ash/1", "oak/summer/2"]
    assert [placed(*names, class_from="first")[name] for name in names] == ["/oak", "/ash", "/oak"]
    assert [placed(*names, class_from="path")[name] for name in names] == ["/oak", "/ash", "/oak summer"]


def test_folders_of_one_class_differ_in_case_space_or_unicode_form_only() -> None:
    folders = ["Königin", " KÖNIGIN ", unicodedata.normalize("NFD", "königin")]
    assert len({class_key(folder) for folder in folders}) == 1
    assert class_name(folders[1]) == "KÖNIGIN"
    assert class_key("Königin I") != class_key("Königin II")


@pytest.mark.parametrize("names", [["A"], ["A", "a "], ["", "A"]])
def test_a_single_class_is_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"^x: only one class: [Aa]; a classifier needs at least two class folders$"):
        check_classes(names, "x")
    check_classes([*names, "B"], "x")


@pytest.mark.parametrize("names", [["images", "masks"], ["Image_1", "labels", "image_2"], ["photos", "pictures"]])
def test_folders_of_images_and_masks_are_not_classes(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"^x: .* and .* are not names of classes; arrange the photographs as train/<CLASS>/"):
        check_classes(names, "x")
    check_classes([*names, "oak"], "x")


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


@pytest.mark.parametrize(
    ("folders", "empty"),
    [
        (["train", "train/A", "train/B", "val", "val/A", "val/A/more", "docs", "docs/empty", "unlabelled/x"], None),
        (["train/A", "val/B", "val/C"], "valid/B"),
        (["train/train/C"], "train/C"),
        ([".", "x"], None),
    ],
)
def test_a_class_folder_without_images_is_named(folders: list[str], empty: str | None) -> None:
    layout = read_layout(["train/A/1", "train/B/1", "val/A/1"], folders, "here")
    if not empty:
        return check_empty_folders(layout, "here", "")
    with pytest.raises(UserError, match=rf"^here: class folder {empty} contains no image; add images or remove the folder$"):
        check_empty_folders(layout, "here", "")
    with pytest.raises(UserError, match=rf"^here: class folder {empty} contains no image that is read \(2 RAW left out\); add"):
        check_empty_folders(layout, "here", "2 RAW")


def test_a_class_folder_without_images_is_named_where_there_are_no_splits_or_nested_ones() -> None:
    for names, folders, empty in (
        (["A/1", "B/1"], ["A", "A/empty", "B", "C"], "C"),
        (["A/a/1", "B/b/1"], ["A", "A/a", "A/a/empty", "B", "B/c"], "B/c"),
        (["w/A/1", "w/B/1"], ["w", "w/A", "w/B", "w/D"], "w/D"),
    ):
        with pytest.raises(UserError, match=rf"^here: class folder {empty} contains no image; "):
            check_empty_folders(read_layout(names, folders, "here"), "here", "")


@pytest.mark.real
def test_every_photograph_of_the_butterflies_has_a_split_and_a_class() -> None:
    with zipfile.ZipFile(REAL_DATA / "butterflies.zip") as archive:
        names = [name for name in archive.namelist() if claims_photograph(name) and not is_system(name)]
    layout = read_layout(names, [], "here")
    assert layout.outside == {}
    assert Counter(place.split for place in layout.places.values()) == {"train": 5098, "valid": 235, "test": 235}
    assert len(set(class_names(layout, "last", "here").values())) == 47
