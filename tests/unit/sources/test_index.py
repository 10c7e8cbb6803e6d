"""Raw data to rows: shards with and without labels, and the faults that only the whole set shows."""

from pathlib import Path

import pandas as pd
import pytest

from fieldguide.checks.policies import number_classes
from fieldguide.core.artifacts import RawFile, Receipt
from fieldguide.core.errors import UserError
from fieldguide.core.params import Features
from fieldguide.sources.index import INDEX_COLUMNS, index_shards, united_classes
from support.tfrecords import JPEG, example, flower, texts, write

FEATURES = {"image": "image", "label": "class", "id": "id"}


def receipt(
    *files: str, dataset: str = "flowers", features: dict[str, str] = FEATURES, class_names: list[str] | None = None
) -> Receipt:
    return Receipt(
        **dict.fromkeys(("title", "home", "licence", "source", "version", "release"), ""),
        dataset=dataset,
        layout="tfrecords",
        features=Features(**features),
        images={},
        ignored={},
        class_names=class_names,
        files={file: RawFile(bytes=0, sha256="") for file in files},
    )


def shard(raw: Path, split: str, *payloads: bytes) -> str:
    (raw / split).mkdir(parents=True, exist_ok=True)
    return write(raw / split, *payloads, name="00.tfrec").relative_to(raw).as_posix()


def nameless(name: bytes) -> bytes:
    return example(("image", texts(JPEG)), ("id", texts(name)))


def test_rows_carry_split_label_name_id_and_place(tmp_path: Path) -> None:
    files = [shard(tmp_path, "train", flower(name=b"a", label=53)), shard(tmp_path, "val", flower(name=b"b", label=0))]
    frame = index_shards(receipt(*files), tmp_path)
    assert list(frame.columns) == INDEX_COLUMNS
    assert frame[["split", "label", "class_name", "id", "file"]].to_numpy().tolist() == [
        ["train", 53, "sunflower", "a", "train/00.tfrec"],
        ["valid", 0, "pink primrose", "b", "val/00.tfrec"],
    ]
    row = frame.iloc[0]
    assert (tmp_path / row["file"]).read_bytes()[row["offset"] : row["offset"] + row["length"]] == JPEG


def test_a_test_split_without_labels_is_unlabelled(tmp_path: Path) -> None:
    frame = index_shards(receipt(shard(tmp_path, "test", nameless(b"a"), nameless(b"b"))), tmp_path)
    assert frame["split"].tolist() == ["unlabelled"] * 2
    assert frame["label"].isna().all()
    assert frame["class_name"].tolist() == ["", ""]


def test_a_test_split_with_labels_is_a_test_split(tmp_path: Path) -> None:
    frame = index_shards(receipt(shard(tmp_path, "test", flower(label=3))), tmp_path)
    assert frame["split"].tolist() == ["test"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_labels_elsewhere_name_shard_record_and_remedy(tmp_path: Path, split: str) -> None:
    file = shard(tmp_path, split, nameless(b"a"))
    with pytest.raises(UserError, match=rf"{file}: record 0, image at byte \d+: no label in feature 'class' .*"):
        index_shards(receipt(file), tmp_path)


def test_a_class_number_beyond_the_names_is_refused(tmp_path: Path) -> None:
    file = shard(tmp_path, "train", flower(label=104))
    with pytest.raises(
        UserError, match=r"record 0, image at byte .*: class 104, but there are 104 class names, for 0 to 103; .*"
    ):
        index_shards(receipt(file), tmp_path)


def test_own_shards_name_classes_by_number(tmp_path: Path) -> None:
    frame = index_shards(receipt(shard(tmp_path, "train", flower(label=104)), dataset="tfrecords"), tmp_path)
    assert frame["class_name"].tolist() == ["class 0104"]


def named(label: bytes) -> bytes:
    return example(("image", texts(JPEG)), ("class", texts(label)), ("id", texts(b"of " + label)))


def test_labels_that_are_names_have_no_number_yet(tmp_path: Path) -> None:
    file = shard(tmp_path, "train", named(b"rose"), named(b" daisy "))
    frame = index_shards(receipt(file, dataset="tfrecords"), tmp_path)
    assert frame["class_name"].tolist() == ["rose", "daisy"]
    assert frame["label"].isna().all()
    assert number_classes(frame, [])["label"].tolist() == [1, 0]


def test_unlabelled_rows_get_no_number(tmp_path: Path) -> None:
    files = [shard(tmp_path, "train", named(b"rose"), named(b"daisy")), shard(tmp_path, "test", nameless(b"a"))]
    frame = number_classes(index_shards(receipt(*files, dataset="tfrecords"), tmp_path), [])
    assert frame["label"].fillna(-1).tolist() == [1, 0, -1]
    assert frame["class_name"].tolist() == ["rose", "daisy", ""]


def test_a_list_of_names_gives_numbers_their_names_and_names_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["tulip", "daisy", "rose"]
    for payload in (flower(label=1), named(b"Daisy")):
        frame = index_shards(receipt(shard(tmp_path, "train", payload), dataset="tfrecords", class_names=names), tmp_path)
        assert frame[["label", "class_name"]].to_numpy().tolist() == [[1, "daisy"]]
        assert capsys.readouterr().out == "2 of 3 class names have no image: rose, tulip\n"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (
            flower(label=2),
            r"class 2, but there are 2 class names, for 0 to 1; correct data\.class_names or data\.features\.label",
        ),
        (named(b"rose"), r"class 'rose' is not among the 2 class names; correct data\.class_names"),
        (named(b" "), r"label ' ' is not a class name; set data\.features\.label"),
        (named(b"a\x00"), r"label 'a\\x00' is not a class name; set data\.features\.label"),
    ],
)
def test_a_label_outside_the_list_of_names_is_refused(tmp_path: Path, payload: bytes, said: str) -> None:
    file = shard(tmp_path, "train", payload)
    with pytest.raises(UserError, match=rf": record 0, image at byte \d+: {said}$"):
        index_shards(receipt(file, dataset="tfrecords", class_names=["tulip", "daisy"]), tmp_path)


def test_names_beside_numbers_are_refused(tmp_path: Path) -> None:
    files = [shard(tmp_path, "train", flower(label=1)), shard(tmp_path, "val", named(b"rose"))]
    with pytest.raises(UserError, match=r"label 'rose', but the first is 1; use only names or only numbers$"):
        index_shards(receipt(*files, dataset="tfrecords"), tmp_path)


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    files = [shard(tmp_path, "train", flower(name=b"same")), shard(tmp_path, "val", flower(name=b"same"))]
    with pytest.raises(UserError, match=r"id 'same' occurs in two records; set data\.features\.id"):
        index_shards(receipt(*files), tmp_path)


def test_ids_that_are_made_up_tell_shards_of_one_name_apart(tmp_path: Path) -> None:
    files = [shard(tmp_path, split, flower()) for split in ("train", "val")]
    frame = index_shards(receipt(*files, features=FEATURES | {"id": ""}), tmp_path)
    assert frame["id"].tolist() == ["train/00.tfrec/0", "val/00.tfrec/0"]


def test_folders_that_differ_in_case_take_the_spelling_of_most_images() -> None:
    frame = pd.DataFrame({"class_name": ["Monarch", "MONARCH", "MONARCH", "adonis"]})
    assert united_classes(frame).tolist() == ["MONARCH"] * 3 + ["adonis"]


def test_a_tie_of_spellings_is_decided_by_the_alphabet() -> None:
    assert united_classes(pd.DataFrame({"class_name": ["b", "B"]})).tolist() == ["B", "B"]


def test_shards_without_a_record_are_one_line(tmp_path: Path) -> None:
    files = shard(tmp_path, "train"), shard(tmp_path, "valid")
    with pytest.raises(UserError, match=r": 2 shards contain no record; change data\.path$"):
        index_shards(receipt(*files), tmp_path)
