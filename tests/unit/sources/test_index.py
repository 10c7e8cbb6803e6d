"""Raw data to rows: shards with and without labels, and the faults that only the whole set shows."""

from pathlib import Path

import pandas as pd
import pytest

from fieldguide.core.artifacts import RawFile, Receipt
from fieldguide.core.errors import UserError
from fieldguide.core.params import Features
from fieldguide.sources.index import INDEX_COLUMNS, index_shards, united_classes
from support.tfrecords import JPEG, example, flower, texts, write

FEATURES = {"image": "image", "label": "class", "id": "id"}


def receipt(*files: str, dataset: str = "flowers", features: dict[str, str] = FEATURES) -> Receipt:
    return Receipt(
        **dict.fromkeys(("title", "home", "licence", "source", "version", "release"), ""),
        dataset=dataset,
        layout="tfrecords",
        features=Features(**features),
        images={},
        ignored={},
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
    with pytest.raises(UserError, match=rf"{file}: record 0, image at byte \d+: no feature 'class'; set data.features.label"):
        index_shards(receipt(file), tmp_path)


def test_a_class_number_beyond_the_names_is_refused(tmp_path: Path) -> None:
    file = shard(tmp_path, "train", flower(label=104))
    with pytest.raises(UserError, match=r"record 0, image at byte .*: class 104, but flowers has 104 classes"):
        index_shards(receipt(file), tmp_path)


def test_own_shards_name_classes_by_number(tmp_path: Path) -> None:
    frame = index_shards(receipt(shard(tmp_path, "train", flower(label=104)), dataset="tfrecords"), tmp_path)
    assert frame["class_name"].tolist() == ["class 0104"]


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
