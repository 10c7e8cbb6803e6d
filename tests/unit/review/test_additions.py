"""New photographs: what is copied where, and what survives restarts, other windows and kills."""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from fieldguide.core.errors import UserError
from fieldguide.review.additions import JOURNAL, AdditionDesk, NewPhotograph, copy_name, is_class_folder
from fieldguide.review.app import create_app
from fieldguide.review.items import NotStored, Stale, Suggestion, version_of
from fieldguide.sources.layout import class_names, read_layout
from support.reviews import field

NAMES = ("BLUE", "GREEN", "RED", "A/B", "test", "..", "Wörter 孔雀", "OTHER", ".hidden")
ANSWERS = tuple(Suggestion(name, share) for name, share in zip(NAMES[:5], (0.5, 0.3, 0.1, 0.05, 0.05), strict=True))


@pytest.fixture
def photographs(make_jpeg: Callable[..., bytes]) -> list[NewPhotograph]:
    contents = [make_jpeg(seed, 40, 30) for seed in range(3)]
    names = ("walk/IMG 1.JPG", "zip/a.zip/IMG 1.JPG", "../..\x07/<odd>?.jpg")
    return [
        NewPhotograph(name, lambda content=content: content, hashlib.sha256(content).hexdigest(), verdict, ANSWERS)
        for name, content, verdict in zip(names, contents, ("unsure", "unknown", "unsure"), strict=True)
    ]


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "additions"


@pytest.fixture
def desk(photographs: list[NewPhotograph], into: Path) -> AdditionDesk:
    return AdditionDesk(photographs, NAMES, into, "Ann")


def files(into: Path) -> list[str]:
    return sorted(path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file() and path.name != JOURNAL)


def test_a_confirmed_photograph_is_copied_as_it_is_under_a_name_of_its_own(
    desk: AdditionDesk, photographs: list[NewPhotograph], into: Path
) -> None:
    for photograph in photographs:
        desk.decide(photograph.sha256, "relabel", "RED", "")
    assert files(into) == sorted(f"RED/{copy_name(one)}" for one in photographs)
    for photograph in photographs:
        assert (into / "RED" / copy_name(photograph)).read_bytes() == photograph.read()
    assert [one.label for one in desk.decisions().values()] == ["RED"] * 3


def test_names_of_copies_are_safe(photographs: list[NewPhotograph]) -> None:
    short = [photograph.sha256[:12] for photograph in photographs]
    assert [copy_name(one) for one in photographs] == [f"IMG_1-{short[0]}.JPG", f"IMG_1-{short[1]}.JPG", f"odd_-{short[2]}.jpg"]
    for name in ("", "..", "...", ".jpg", "/", "孔" * 200 + ".jpeg", "a." + "b" * 300, "\udce4.jpg"):
        made = copy_name(NewPhotograph(name, bytes, "0" * 64, "unsure", ANSWERS))
        assert "/" not in made and made[0] != "." and len(made.encode()) <= 255


def test_download_reads_the_copies_as_classes(desk: AdditionDesk, photographs: list[NewPhotograph], into: Path) -> None:
    for photograph, name in zip(photographs, ("RED", "Wörter 孔雀", "BLUE"), strict=True):
        desk.decide(photograph.sha256, "relabel", name, "")
    layout = read_layout(files(into), [], "additions")
    found = {Path(name).parts[0]: own for name, own in class_names(layout, "last", "additions").items()}
    assert found == {name: name for name in ("RED", "Wörter 孔雀", "BLUE")}


def test_another_decision_moves_the_copy_and_a_drop_or_undo_removes_it(
    desk: AdditionDesk, photographs: list[NewPhotograph], into: Path
) -> None:
    one = photographs[0]

    def version() -> str:
        return version_of(desk.decisions().get(one.sha256))

    desk.decide(one.sha256, "relabel", "RED", version())
    desk.decide(one.sha256, "relabel", "BLUE", version())
    assert files(into) == [f"BLUE/{copy_name(one)}"]
    desk.decide(one.sha256, "drop", "", version())
    assert (files(into), desk.decisions()[one.sha256].decision) == ([], "drop")
    desk.decide(one.sha256, "relabel", "GREEN", version())
    desk.withdraw(one.sha256, version())
    assert (files(into), dict(desk.decisions())) == ([], {})


def test_the_copy_under_another_name_is_found(desk: AdditionDesk, photographs: list[NewPhotograph], into: Path) -> None:
    one = photographs[0]
    desk.decide(one.sha256, "relabel", "RED", "")
    again = AdditionDesk([replace(one, name="renamed.jpg")], NAMES, into, "Ann")
    again.decide(one.sha256, "relabel", "BLUE", version_of(again.decisions()[one.sha256]))
    assert files(into) == [f"BLUE/renamed-{one.sha256[:12]}.jpg"]


def test_a_copy_that_somebody_has_changed_is_left(desk: AdditionDesk, photographs: list[NewPhotograph], into: Path) -> None:
    one = photographs[0]
    desk.decide(one.sha256, "relabel", "RED", "")
    (into / "RED" / copy_name(one)).write_bytes(b"cropped")
    desk.withdraw(one.sha256, version_of(desk.decisions()[one.sha256]))
    assert files(into) == [f"RED/{copy_name(one)}"]


def test_a_folder_in_another_case_is_used(desk: AdditionDesk, photographs: list[NewPhotograph], into: Path) -> None:
    (into / "red").mkdir(parents=True)
    desk.decide(photographs[0].sha256, "relabel", "RED", "")
    assert files(into) == [f"red/{copy_name(photographs[0])}"]


@pytest.mark.parametrize("name", ["A/B", "test", "..", ".hidden"])
def test_a_class_whose_name_no_folder_can_have_is_refused(
    desk: AdditionDesk, photographs: list[NewPhotograph], into: Path, name: str
) -> None:
    with pytest.raises(NotStored, match=f"The class {re.escape(repr(name))} cannot be the name of a folder"):
        desk.decide(photographs[0].sha256, "relabel", name, "")
    assert (files(into), dict(desk.decisions())) == ([], {})


def test_names_of_folders_that_download_reads_otherwise() -> None:
    refused = ("", ".", "..", "a/b", " a", "a\n", "train", "Valid images", "unlabelled", "Thumbs.db", "x" * 256)
    assert not any(is_class_folder(name) for name in refused)
    assert all(is_class_folder(name) for name in ("RED", "train oil beetle", "a.b", "C:\\x", "孔雀"))


def test_decisions_survive_a_restart_and_a_second_window_sees_them(
    desk: AdditionDesk, photographs: list[NewPhotograph], into: Path
) -> None:
    other = AdditionDesk(photographs, NAMES, into, "Bo")
    desk.decide(photographs[0].sha256, "relabel", "RED", "")
    assert other.decisions()[photographs[0].sha256].by == "Ann"
    with pytest.raises(Stale, match="decided elsewhere meanwhile: relabel as Red by Ann"):
        other.decide(photographs[0].sha256, "drop", "", "")
    assert AdditionDesk(photographs, NAMES, into, "Bo").decisions() == desk.decisions()


def test_a_line_that_a_kill_has_torn_counts_as_not_written(
    desk: AdditionDesk, photographs: list[NewPhotograph], into: Path
) -> None:
    desk.decide(photographs[0].sha256, "relabel", "RED", "")
    with (into / JOURNAL).open("ab") as journal:
        journal.write(b'{"sha256": "12')
    again = AdditionDesk(photographs, NAMES, into, "Ann")
    again.decide(photographs[1].sha256, "drop", "", "")
    lines = (into / JOURNAL).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["decision"] for line in lines] == ["relabel", "drop"]


def test_the_copy_of_an_interrupted_withdrawal_goes_at_the_next_start(
    desk: AdditionDesk, photographs: list[NewPhotograph], into: Path
) -> None:
    one = photographs[0]
    desk.decide(one.sha256, "relabel", "RED", "")
    copy = into / "RED" / copy_name(one)
    content = copy.read_bytes()
    desk.withdraw(one.sha256, version_of(desk.decisions()[one.sha256]))
    copy.write_bytes(content)  # as if killed before it was removed
    AdditionDesk(photographs, NAMES, into, "Ann")
    assert files(into) == []


@pytest.mark.parametrize("line", ["{}", "no JSON", '["a"]', '{"sha256": "x"}'])
def test_a_spoilt_journal_is_named_with_its_line(photographs: list[NewPhotograph], into: Path, line: str) -> None:
    into.mkdir()
    (into / JOURNAL).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"\.review\.jsonl, line 1: not a decision"):
        AdditionDesk(photographs, NAMES, into, "Ann").decisions()


def test_a_folder_of_splits_is_refused(photographs: list[NewPhotograph], into: Path) -> None:
    (into / "train" / "RED").mkdir(parents=True)
    with pytest.raises(UserError, match=r"contains the split train, not folders of classes; use --into .*train"):
        AdditionDesk(photographs, NAMES, into, "Ann")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(photographs: list[NewPhotograph]) -> None:
    with pytest.raises(UserError, match="could not be written"):
        AdditionDesk(photographs, NAMES, Path("/proc/additions"), "Ann")


def test_a_photograph_that_has_changed_or_gone_is_not_copied(photographs: list[NewPhotograph], into: Path) -> None:
    def gone() -> bytes:
        raise FileNotFoundError(2, "No such file")

    one, other, _ = photographs
    changed = [
        NewPhotograph(one.name, lambda: b"other", one.sha256, "unsure", ANSWERS),
        NewPhotograph(other.name, gone, other.sha256, "unsure", ANSWERS),
    ]
    desk = AdditionDesk(changed, NAMES, into, "Ann")
    for each, text in zip(changed, ("has changed since", "cannot be read any more"), strict=True):
        with pytest.raises(NotStored, match=text):
            desk.decide(each.sha256, "relabel", "RED", "")
    assert files(into) == []


# the page


@pytest.fixture
def client(desk: AdditionDesk) -> FlaskClient:
    return create_app(desk).test_client()


def test_the_answers_are_the_keys_1_to_5(client: FlaskClient) -> None:
    page = client.get("/").text
    keys = re.findall(r'value="([^"]+)" data-key="(\w+)"', page)
    assert keys == [*((f"relabel {name}", str(n)) for n, name in enumerate(NAMES[:5], 1)), ("drop", "d")]
    assert "50.0 %" in page and "Unsure" in page and "Which class is this?" in page


def test_a_key_confirms_and_the_next_photograph_is_shown(client: FlaskClient, into: Path) -> None:
    page = client.get("/").text
    data = {name: field(page, name) for name in ("token", "sha256", "version")}
    answer = client.post("/decide", data=data | {"choice": "relabel GREEN"})
    assert answer.status_code == 303 and len(files(into)) == 1
    following = client.get(answer.location).text
    assert "zip/a.zip/IMG 1.JPG" in following and "stored: relabel as Green" in following
    assert client.post("/decide", data=data | {"choice": "keep"}).status_code == 400
    assert client.post("/decide", data=data | {"choice": "relabel A/B"}).status_code == 400
    assert client.get(f"/photographs/{field(following, 'sha256')}/1280.jpg").mimetype == "image/jpeg"
