"""The manifest comes back as it was written, whatever the classes are called, and what is none is refused in one line."""

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fieldguide.core.errors import UserError
from fieldguide.core.manifest import (
    COLUMNS,
    DROPPED,
    LEAK,
    NUMBERS,
    as_labelled,
    classes_of,
    held_out,
    leaked,
    read_manifest,
    rows_of,
    splits_in_use,
    write_manifest,
)
from fieldguide.core.names import SPLITS

NAMES = [
    "PAPER KITE",
    "A,B",
    'say "hi"',
    "it's",
    "NA",
    "N/A",
    "nan",
    "NaN",
    "None",
    "null",
    "<NA>",
    "",
    "007",
    "1.0",
    "1e5",
    "inf",
    "True",
    "#1",
    " lead",
    "trail ",
    "-",
    "a\\b",
    "a\nb",
    "a\tb",
    "Ä",
    "蝴蝶",
    "Бабочка",
    "پروانه\u200cها",
    "🦋",
    "=1+1",
]


def row(**values: Any) -> dict[str, Any]:
    """A row in use, of class A in train, with some values changed."""
    usual = {
        "split": "train",
        "label": 0,
        "class_name": "A",
        "id": "train/A/1.jpg",
        "file": "images.zip",
        "offset": 41,
        "length": 3,
        "width": 4,
        "height": 5,
        "sha256": "0" * 64,
        "phash": "f" * 16,
        "use": True,
        "reason": "",
    }
    usual |= {"given_label": values.get("label", 0), "given": values.get("class_name", "A"), "decision": "", "unit": 0}
    assert values.keys() <= usual.keys()
    return usual | values


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, "Int64"))


def round_trip(frame: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    write_manifest(frame, folder / "manifest.csv")
    return read_manifest(folder / "manifest.csv").to_dict("records")


@pytest.mark.parametrize("name", NAMES)
def test_any_class_name_comes_back(tmp_path: Path, name: str) -> None:
    expected = row(class_name=name, id=f"train/{name}/1.jpg", reason=f"leak: {name}")
    assert round_trip(table(expected), tmp_path) == [expected]


def test_all_names_come_back_together_in_their_order(tmp_path: Path) -> None:
    expected = [row(class_name=name, label=label) for label, name in enumerate(NAMES)]
    assert round_trip(table(*expected), tmp_path) == expected


def test_numbers_beyond_4_gb_and_both_truths_come_back(tmp_path: Path) -> None:
    expected = [row(offset=5_000_000_000, length=3_000_000_000), row(use=False, reason="unreadable: x")]
    assert round_trip(table(*expected), tmp_path) == expected


def test_what_is_not_known_comes_back_as_not_known(tmp_path: Path) -> None:
    frame = table(row(), row(split="unlabelled", label=None, class_name="", width=None, height=None))
    write_manifest(frame, tmp_path / "manifest.csv")
    read = read_manifest(tmp_path / "manifest.csv")
    assert read["label"].isna().tolist() == read["width"].isna().tolist() == read["height"].isna().tolist() == [False, True]
    assert read.loc[1, "class_name"] == ""
    assert {name: str(dtype) for name, dtype in read.dtypes.items()} == COLUMNS


def test_the_file_is_plain_csv_in_the_stated_order(tmp_path: Path) -> None:
    extra = table(row(class_name="A,B", width=None)).assign(more=1)
    write_manifest(extra[sorted(extra.columns)], tmp_path / "manifest.csv")
    assert (tmp_path / "manifest.csv").read_text(encoding="utf-8") == (
        "split,label,class_name,id,file,offset,length,width,height,sha256,phash,use,reason,given_label,given,decision,unit\n"
        f'train,0,"A,B",train/A/1.jpg,images.zip,41,3,,5,{"0" * 64},{"f" * 16},True,,0,"A,B",,0\n'
    )
    assert stat.S_IMODE((tmp_path / "manifest.csv").stat().st_mode) == 0o644


def test_no_rows_are_still_a_manifest(tmp_path: Path) -> None:
    assert round_trip(table(), tmp_path) == []


def test_a_missing_manifest_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path / "manifest.csv")
    assert str(caught.value) == (f"{tmp_path}/manifest.csv: No such file or directory; create it with: dvc repro split_check")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "", "not a manifest \\(No columns to parse from file\\)"),
        (lambda text: text.replace(",use,", ",used,"), "unexpected columns \\[.*'used'.*\\]"),
        (lambda text: text.replace("split,label", "label,split"), "not a manifest|unexpected columns"),
        (lambda text: text.replace(",41,", ",x,"), "not a manifest \\(.*\\)"),
        (lambda text: text.replace(",41,", ",,"), "not a manifest \\(.*\\)"),
        (lambda text: text.replace(",True,", ",maybe,"), "not a manifest \\(.*\\)"),
        (lambda text: text + "1,2,3,4,5,6,7,8,9,10,11,12,13,14\n", "not a manifest \\(.*\\)"),
        (lambda text: text.replace(",A,", ',"A,'), "not a manifest \\(.*\\)"),
    ],
    ids=["empty", "renamed", "swapped", "text", "blank", "no truth", "long", "quote"],
)
def test_what_is_no_manifest_is_one_line(tmp_path: Path, change: Any, said: str) -> None:
    file = tmp_path / "manifest.csv"
    write_manifest(table(row()), file)
    changed = change(file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    with pytest.raises(UserError, match=rf"(?s)^{file}: ({said}).*; (re)?create it with: dvc repro (-f )?split_check$"):
        read_manifest(file)


def test_bytes_that_are_no_utf_8_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "manifest.csv"
    write_manifest(table(row()), file)
    file.write_bytes(file.read_bytes().replace(b"train/A", b"train/\xc4"))
    with pytest.raises(UserError, match=r"manifest\.csv: not a manifest \('utf-8' codec can't decode"):
        read_manifest(file)


def test_classes_are_in_the_order_of_their_numbers_with_gaps_kept() -> None:
    frame = table(
        row(label=30, class_name="C"),
        row(label=2, class_name="A"),
        row(label=30, class_name="C"),
        row(label=7, class_name="B", use=False),
        row(label=None, class_name="", split="unlabelled"),
    )
    classes = classes_of(frame)
    assert classes.names == ("A", "B", "C")
    assert classes.labels == (2, 7, 30)
    targets = classes.targets(frame[frame["label"].notna()])
    assert targets.dtype == np.int64
    assert targets.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("changes", [{"label": 3}, {"label": 9}, {"class_name": "Other"}])
def test_a_class_that_the_network_does_not_have_is_refused(changes: dict[str, Any]) -> None:
    classes = classes_of(table(row(label=2, class_name="A"), row(label=7, class_name="A")))
    with pytest.raises(UserError, match=r"^data/manifest\.csv: class \d, \w+, is not among the 2 classes of the network"):
        classes.targets(table(row(label=2, class_name="A"), row(**{"label": 7, "class_name": "A"} | changes)))


def test_dropping_a_class_does_not_renumber_the_others() -> None:
    rows = [row(label=label, class_name=name) for label, name in enumerate("ABC")]
    rows[1]["use"] = False
    assert classes_of(table(*rows)).names == ("A", "B", "C")


def test_a_class_whose_images_were_all_corrected_keeps_its_number_and_its_output() -> None:
    rows = [row(label=2, class_name="A"), row(label=7, class_name="C", given_label=5, given="B"), row(label=7, class_name="C")]
    classes = classes_of(table(*rows))
    assert (classes.names, classes.labels) == (("A", "B", "C"), (2, 5, 7))
    assert classes.targets(table(*rows)).tolist() == [0, 2, 2]
    assert classes.given_targets(table(*rows)).tolist() == [0, 1, 2]


def test_an_evaluation_as_labelled_includes_what_only_a_correction_dropped_from_valid_and_test() -> None:
    dropped = {"use": False, "decision": "drop", "reason": f"{DROPPED} (blurred)"}
    rows = [row(split=split, **dropped) for split in SPLITS]
    rows += [row(split="test", **dropped | {"reason": reason}) for reason in ("unreadable: x", "leak: same bytes as test x")]
    rows += [row(split="test", **dropped | {"reason": f"{LEAK}same bytes as train x; {DROPPED}"}), row(split="test", use=False)]
    frame = table(*rows, row(split="test"))
    assert as_labelled(frame)["use"].tolist() == [False, True, True, False, False, True, False, True]
    assert len(held_out(frame)[1]) == 3
    assert len(rows_of(frame, "test")) == 1


def test_no_labels_are_no_classes() -> None:
    classes = classes_of(table(row(label=None, split="unlabelled", class_name="")))
    assert (classes.names, classes.labels) == ((), ())


def test_rows_of_a_split_are_those_in_use_in_their_order() -> None:
    frame = table(row(id="3"), row(id="1", use=False), row(id="2"), row(id="0", split="test"))
    rows = rows_of(frame, "train")
    assert rows["id"].tolist() == ["3", "2"]
    assert rows.index.tolist() == [0, 1]


@pytest.mark.parametrize("split", ["valid", "test", "unlabelled"])
def test_a_split_without_rows_in_use_is_one_line(split: str) -> None:
    said = f"^data/manifest.csv: split {split} has no image in use; see the column reason, and metrics/findings.csv$"
    with pytest.raises(UserError, match=said):
        rows_of(table(row(), row(split="test", use=False)), split)


def test_the_held_out_split_is_test_or_valid_where_test_has_no_labels() -> None:
    splits = [row(split=split, id=split) for split in ("valid", "test", "train")]
    assert splits_in_use(table(*splits)) == ["train", "valid", "test"]
    assert held_out(table(*splits))[0] == "test"
    unlabelled = row(split="unlabelled", label=None)
    split, rows = held_out(table(splits[0], splits[2], unlabelled))
    assert (split, rows["id"].tolist()) == ("valid", ["valid"])
    assert splits_in_use(table(splits[2], row(split="valid", use=False))) == ["train"]


def test_nothing_in_use_at_all_is_one_line() -> None:
    with pytest.raises(UserError, match="no image in use"):
        held_out(table(row(use=False)))


def test_leaked_rows_are_told_by_how_their_reason_begins(tmp_path: Path) -> None:
    frame = table(row(), row(reason=f"{LEAK}same bytes as test test/A/1.jpg"), row(reason="not a leak: no"), row(reason="leak"))
    for rows in (frame, pd.DataFrame(round_trip(frame, tmp_path))):
        assert leaked(rows).tolist() == [False, True, False, False]
        assert leaked(rows).dtype == bool
    assert leaked(table()).tolist() == []
