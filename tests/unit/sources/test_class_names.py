"""Lists of class names beside TFRecord shards: the two usual forms, the choice among several, the faults."""

from pathlib import Path

import pytest

from fieldguide.core.errors import UserError
from fieldguide.sources.class_names import find_class_names, is_class_names, parse_class_names, read_class_names


@pytest.mark.parametrize(
    ("name", "is_list"),
    [
        ("labels.txt", True),
        ("2.1.1/label.labels.txt", True),
        ("flowers.tfrecord.labels.txt", True),
        ("Labels.TXT", True),
        ("mylabels.txt", False),
        (".labels.txt", False),
        ("__MACOSX/labels.txt", False),
        ("labels.csv", False),
    ],
)
def test_lists_are_recognized_by_their_name(name: str, is_list: bool) -> None:
    assert is_class_names(name) is is_list


@pytest.mark.parametrize(
    "content",
    [
        "daisy\ntulip rose\nété\n",
        "\ufeffdaisy\r\n tulip rose \r\néte\u0301",
        "0:daisy\n1:tulip rose\n2:été\n",
        "2:été\n0: daisy\n1:tulip rose\n\n",
    ],
)
def test_both_forms_give_the_names_by_number(content: str) -> None:
    assert parse_class_names(content.encode(), "x") == ["daisy", "tulip rose", "été"]


def test_a_colon_is_no_number_unless_all_lines_have_one() -> None:
    assert parse_class_names(b"3:10 to Yuma\nhigh noon", "x") == ["3:10 to Yuma", "high noon"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no class name; write one per line"),
        (b" \n\n", "no class name; write one per line"),
        (b"a\n\nb\n", "the name of class 1 is ''; write a name without control characters"),
        (b"a\n\x00b\n", r"the name of class 1 is '\x00b'; write a name without control characters"),
        (b"a\nb\nA\n", "'A' is the name of the classes 0 and 2; rename one"),
        (b"1:a\n2:b\n", "2 numbered names, but none for class 0; number them from 0 on"),
        (b"0:a\n0:b\n", "2 numbered names, but none for class 1; number them from 0 on"),
        (b"a\n\xff", "not UTF-8 at byte 2; save it as UTF-8"),
        (bytes(17 << 20), "more than 16 MiB, so not a list of class names; set data.class_names"),
    ],
)
def test_faults_are_one_line(content: bytes, said: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_class_names(content, "labels.txt")
    assert str(raised.value) == f"labels.txt: {said}"


def test_of_several_lists_that_of_the_feature_counts() -> None:
    files = {"coarse.labels.txt": b"tree\nherb", "label.labels.txt": b"oak\ndaisy", "x/labels.txt": b"oak\ndaisy"}
    assert find_class_names(list(files), files.__getitem__, "label", "here") == ["oak", "daisy"]
    assert find_class_names(list(files)[1:], files.__getitem__, "class", "here") == ["oak", "daisy"]
    with pytest.raises(UserError) as raised:
        find_class_names(list(files), files.__getitem__, "class", "here")
    lists = "coarse.labels.txt, label.labels.txt, x/labels.txt"
    assert str(raised.value) == f"here: several lists of class names ({lists}); set data.class_names to the right one"
    assert find_class_names([], files.__getitem__, "label", "here") == []


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert read_class_names(tmp_path / "names.txt") == ["a", "b"]
    with pytest.raises(UserError) as raised:
        read_class_names(tmp_path / "none.txt")
    wrong = f"data.class_names: {tmp_path}/none.txt cannot be read (No such file or directory)"
    assert str(raised.value) == f"{wrong}; give a text file of names"
