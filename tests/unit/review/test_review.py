"""The review of labels in process: what is offered, what is stored and when, what is refused, and what two windows see."""

import csv
import io
import re
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from fieldguide.checks.duplicates import exact_pairs
from fieldguide.checks.policies import Finding
from fieldguide.checks.summary import INTERNAL, pair_table
from fieldguide.core.corrections import BY_RULE, Correction, decide, read_corrections
from fieldguide.core.errors import UserError
from fieldguide.labels.findings import COLUMNS
from fieldguide.review.app import create_app
from fieldguide.review.labels import FINDINGS, LABEL_ERRORS, NEAR_DUPLICATES, LabelDesk
from fieldguide.web.app import HEADERS
from support.reviews import CONFLICT, NAMES, SUSPECTS, field, reviewing, write_reviewed

ORDER = [*CONFLICT, *SUSPECTS]
TODAY = datetime.now(UTC).date().isoformat()
HTML = {"Accept": "text/html"}


@pytest.fixture
def project(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    write_reviewed(tmp_path, make_jpeg)
    return tmp_path


@pytest.fixture
def hashes(project: Path) -> dict[str, str]:
    with (project / "data" / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return {row["id"]: row["sha256"] for row in csv.DictReader(stream)}


@pytest.fixture
def client(project: Path) -> FlaskClient:
    return client_of(project)


def client_of(project: Path, by: str = "Ann") -> FlaskClient:
    return create_app(LabelDesk(project, by)).test_client()


def fields(page: str, form: str = "/decide") -> dict[str, str]:
    return {name: field(page, name, form) for name in ("token", "sha256", "version")}


def choose(client: FlaskClient, page: str, choice: str, **more: str) -> TestResponse:
    return client.post("/decide", data=fields(page) | {"choice": choice} | more, headers=HTML)


def corrections(project: Path) -> dict[str, Correction]:
    return read_corrections(project / "data" / "corrections.csv")


def shown(page: str) -> str:
    """The id of the image that a page asks about."""
    return re.search(r'<figcaption class="path">([^<]+)<', page)[1]


# what is offered


def test_conflicts_come_first_then_suspects_with_the_most_certain_first(client: FlaskClient) -> None:
    page, seen = client.get("/").text, []
    while "Which" not in page and len(seen) < len(ORDER):
        seen.append(shown(page))
        following = re.search(r'data-key="s"[^>]* href="([^"]+)"', page)
        page = client.get(following[1].replace("&amp;", "&")).text
    assert seen == ORDER


def test_the_page_names_class_suggestion_score_kind_and_split(client: FlaskClient, hashes: dict[str, str]) -> None:
    page = client.get(f"/?at={hashes['train/0/0.jpg']}").text
    assert "Is this Blue Morpho?" in page
    assert "Suspected label · wrong with probability 0.97 · train" in page
    assert re.search(r'value="relabel MONARCH" data-key="r"', page)
    assert [int(number) for number in re.findall(r"<li>[A-Z][^<]* 0/(\d+)</li>", page)] == [2, 3, 1, 1]
    assert "<strong>0</strong> of 7 decided" in page


def test_names_are_escaped(client: FlaskClient, hashes: dict[str, str]) -> None:
    page = client.get(f"/?at={hashes['valid/1/0.jpg']}").text
    assert "ADMIRAL&gt; &amp; &#34;CO&#34;" in page or "Admiral&gt; &amp; &#34;co&#34;" in page
    assert "<ADMIRAL>" not in page


def test_examples_are_of_the_class_preferably_of_other_splits_and_never_suspects(project: Path, hashes: dict[str, str]) -> None:
    desk = LabelDesk(project, "Ann")
    item = desk.items[hashes["train/0/0.jpg"]]
    examples = desk.examples(NAMES[1], item)
    assert [place.id for place in examples[:3]] == ["test/1/0.jpg", "test/1/1.jpg", "valid/1/1.jpg"]
    assert {place.class_name for place in examples} == {NAMES[1]}
    assert not {place.id for place in examples} & set(ORDER)
    decide(project / "data" / "corrections.csv", [Correction(examples[0].sha256, "", "drop", "", "", "Bo", TODAY)])
    assert desk.examples(NAMES[1], item)[0].id == "test/1/1.jpg"


def test_filters_are_in_the_address_and_stay(client: FlaskClient) -> None:
    page = client.get("/?kind=label&class=MONARCH").text
    assert "of 2 decided" in page and shown(page) == "train/0/0.jpg"
    answer = choose(client, page, "keep", kind="label", **{"class": "MONARCH"})
    assert "kind=label" in answer.location and "class=MONARCH" in answer.location
    assert shown(client.get(answer.location).text) == "valid/1/0.jpg"
    assert "Nothing matches the filter" in client.get("/?kind=unsure").text
    assert "of 7 decided" in client.get("/?kind=no&class=such").text


def test_within_a_kind_the_score_of_that_kind_counts(project: Path, hashes: dict[str, str]) -> None:
    with (project / "metrics" / "label_errors.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"{CONFLICT[0]},train,{NAMES[0]},{NAMES[1]},label,0.8,,,{hashes[CONFLICT[0]]}\n")
    client, seen = client_of(project), []
    for _ in range(4):
        page = client.get("/?kind=label").text
        seen.append(shown(page))
        choose(client, page, "keep", kind="label")
    assert seen == ["train/0/0.jpg", "valid/1/0.jpg", CONFLICT[0], "test/2/0.jpg"]


def test_without_a_label_check_the_others_are_offered_and_a_line_says_what_makes_it(project: Path) -> None:
    (project / "metrics" / "label_errors.csv").unlink()
    desk = LabelDesk(project, "Ann")
    assert [item.name for item in desk.items.values()] == [*CONFLICT]
    assert desk.notes == [
        "metrics/label_errors.csv is missing, so suspected labels are not offered; create it with: dvc repro label_check"
    ]


def test_suspects_that_the_manifest_lacks_are_counted(project: Path) -> None:
    with (project / "metrics" / "label_errors.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"gone.jpg,train,MONARCH,MONARCH,label,0.1,,,{'0' * 64}\n")
    desk = LabelDesk(project, "Ann")
    assert len(desk.items) == 7
    assert desk.notes == ["1 suspects are not in data/manifest.csv, which is newer; update them with: dvc repro"]


def test_a_duplicate_is_offered_by_its_copy_in_train(project: Path) -> None:
    row = f"1,0.99,same,test,{NAMES[1]},test/1/0.jpg,train,{NAMES[1]},train/1/2.jpg\n"
    with (project / "metrics" / "near_duplicates.csv").open("a", encoding="utf-8") as stream:
        stream.write(row)
    last = list(LabelDesk(project, "Ann").items.values())[-1]
    assert (last.name, last.suspicions[0].kind, last.suspicions[0].other.id) == ("train/1/2.jpg", "duplicate", "test/1/0.jpg")


def test_a_conflict_that_the_split_check_does_not_list_is_settled(project: Path) -> None:
    findings = project / "metrics" / "findings.csv"
    findings.write_text(findings.read_text(encoding="utf-8").partition("\n")[0] + "\n", encoding="utf-8")
    assert [item.name for item in LabelDesk(project, "Ann").items.values()] == [*SUSPECTS]


def test_a_copy_under_another_class_that_no_hash_found_is_a_conflict(project: Path, hashes: dict[str, str]) -> None:
    one, other = "train/0/1.jpg", "train/1/2.jpg"
    with (project / "metrics" / "label_errors.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"{one},train,{NAMES[0]},,duplicate,0.98,,{other},{hashes[one]}\n")
    items = LabelDesk(project, "Ann").items
    assert [(items[hashes[name]].kinds, items[hashes[name]].suggested) for name in (one, other)] == [
        ({"conflict"}, NAMES[1]),
        ({"conflict"}, NAMES[0]),
    ]


def test_all_copies_of_a_photograph_are_shown(project: Path, hashes: dict[str, str]) -> None:
    with (project / "metrics" / "label_errors.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"train/2/2.jpg,train,x,,duplicate,0.3,,test/2/0.jpg,{hashes['train/2/2.jpg']}\n")
    item = LabelDesk(project, "Ann").items[hashes["train/2/2.jpg"]]
    assert [each.other.id for each in item.suspicions] == ["test/2/1.jpg", "test/2/0.jpg"]


def test_the_tables_of_the_split_check_have_the_columns_that_are_read() -> None:
    frame = pd.DataFrame(columns=["split", "class_name", "id"])
    assert set(NEAR_DUPLICATES) <= set(pair_table(frame, [], exact_pairs(frame["id"])).drop(columns=INTERNAL))
    assert set(FINDINGS) <= set(Finding._fields)
    assert set(LABEL_ERRORS) <= set(COLUMNS)


def test_of_equal_bytes_under_two_classes_one_class_is_decided_for_both(project: Path, hashes: dict[str, str]) -> None:
    one, other = hashes["train/0/2.jpg"], hashes["train/1/2.jpg"]
    manifest = project / "data" / "manifest.csv"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    place = next(line for line in lines if one in line).split(",")
    copy = next(number for number, line in enumerate(lines) if other in line)
    lines[copy] = ",".join([*lines[copy].split(",")[:5], *place[5:]])
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (project / "metrics" / "near_duplicates.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"0,1.0,identical,train,{NAMES[0]},train/0/2.jpg,train,{NAMES[1]},train/1/2.jpg\n")
        stream.write(f"0,1.0,identical,train,{NAMES[0]},train/0/2.jpg,train,{NAMES[0]},train/1/2.jpg\n")
    with (project / "metrics" / "findings.csv").open("a", encoding="utf-8") as stream:
        stream.write(f"label conflict,train,{NAMES[0]},train/0/2.jpg,also under {NAMES[1]},dropped\n")
    client = client_of(project)
    page = client.get(f"/?at={one}").text
    assert re.findall(r'value="([^"]+)" data-key="[krd]"', page) == [f"relabel {NAMES[0]}", f"relabel {NAMES[1]}", "drop"]
    assert [item.kinds for item in LabelDesk(project, "Ann").items.values() if item.sha256 == one] == [{"conflict"}]


def test_classes_are_those_of_the_data_before_corrections(project: Path) -> None:
    path = project / "data" / "manifest.csv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([f"{header},given,decision", *(f"{line},OLD," for line in lines)]) + "\n", encoding="utf-8")
    assert LabelDesk(project, "Ann").class_names == ("OLD",)


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        ("data/manifest.csv", None, "", "data/manifest.csv is missing; create it with: dvc repro split_check"),
        ("data/manifest.csv", "sha256", "sha1", "data/manifest.csv: no column sha256; create it again with: dvc repro -f"),
        ("data/manifest.csv", ",4,", ",x,", "data/manifest.csv: not a manifest"),
        ("metrics/label_errors.csv", "0.97", "high", "metrics/label_errors.csv, line 2: score is 'high'; it must be a number"),
        ("metrics/label_errors.csv", "atypical", "odd", "line 5: kind is 'odd'; it must be one of label, atypical, duplicate"),
        ("metrics/label_errors.csv", "0.97,", "", "metrics/label_errors.csv, line 2: not 9 values"),
        ("metrics/label_errors.csv", "suggested", "better", "metrics/label_errors.csv: no column suggested"),
    ],
)
def test_tables_that_no_stage_has_written_are_refused_in_one_line(
    project: Path, file: str, old: str | None, new: str, line: str
) -> None:
    path = project / file
    if old is None:
        path.unlink()
    else:
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(line)):
        LabelDesk(project, "Ann")


# what is stored


@pytest.mark.parametrize(
    ("choice", "more", "stored"),
    [
        ("keep", {}, ("keep", "")),
        ("drop", {}, ("drop", "")),
        ("relabel MONARCH", {}, ("relabel", "MONARCH")),
        ("relabel", {"label": NAMES[2]}, ("relabel", NAMES[2])),
        ("relabel", {"label": " blue morpho "}, ("relabel", NAMES[0])),
    ],
)
def test_a_decision_is_on_disk_when_it_is_answered(
    client: FlaskClient, project: Path, hashes: dict[str, str], choice: str, more: dict[str, str], stored: tuple[str, str]
) -> None:
    page = client.get(f"/?at={hashes['train/0/0.jpg']}").text
    answer = choose(client, page, choice, **more)
    assert answer.status_code == 303
    assert list(corrections(project).values()) == [
        Correction(hashes["train/0/0.jpg"], "train/0/0.jpg", *stored, "label, score 0.970", "Ann", TODAY)
    ]
    page = client.get(answer.location).text
    assert "<strong>1</strong> of 7 decided" in page
    assert f"stored: {stored[0]}" in page and "train/0/0.jpg" in page
    assert shown(page) == "valid/1/0.jpg"


@pytest.mark.parametrize(
    ("choice", "more", "text"),
    [
        ("relabel", {"label": "DODO"}, "There is no class &#39;DODO&#39;; choose one of the list."),
        ("relabel", {}, "There is no class"),
        ("burn", {}, "&#39;burn&#39; is not a decision; use keep, relabel, drop."),
        ("", {}, "is not a decision"),
    ],
)
def test_what_is_no_decision_is_refused_and_not_stored(
    client: FlaskClient, project: Path, choice: str, more: dict[str, str], text: str
) -> None:
    answer = choose(client, client.get("/").text, choice, **more)
    assert answer.status_code == 400
    assert text in answer.text and shown(answer.text) == CONFLICT[0]
    assert corrections(project) == {}


def test_when_all_is_decided_the_next_step_is_named(client: FlaskClient) -> None:
    page = client.get("/").text
    for _ in ORDER:
        page = client.get(choose(client, page, "keep").location).text
    assert "All decided" in page and "Next: dvc repro" in page
    assert "<strong>7</strong> of 7 decided" in page


def test_undo_withdraws_the_last_decision_of_this_person_also_after_a_restart(client: FlaskClient, project: Path) -> None:
    page = client.get("/").text
    page = client.get(choose(client, page, "keep").location).text
    choose(client, page, "drop")
    bo = client_of(project, "Bo")
    choose(bo, bo.get("/").text, "keep")
    assert len(corrections(project)) == 3
    again = client_of(project)
    for left in ({CONFLICT[0], ORDER[2]}, {ORDER[2]}):
        page = again.get("/").text
        answer = again.post("/undo", data=fields(page, "/undo"))
        assert answer.status_code == 303
        assert {one.file for one in corrections(project).values()} == left
        assert "withdrawn: " in again.get(answer.location).text
    assert 'action="/undo"' not in again.get("/").text


def test_undo_brings_back_the_decision_that_was_replaced(client: FlaskClient, project: Path) -> None:
    bo = client_of(project, "Bo")
    choose(bo, bo.get("/").text, "keep")
    (first,) = corrections(project).values()
    page = client.get(f"/?at={first.sha256}").text
    for choice in ("drop", f"relabel {NAMES[1]}"):
        page = client.get(f"/?at={first.sha256}").text
        choose(client, page, choice)
    seen = []
    for _ in range(2):
        answer = client.post("/undo", data=fields(client.get("/").text, "/undo"))
        seen += [one.decision for one in corrections(project).values()]
    assert seen == ["drop", "keep"]
    assert corrections(project) == {first.sha256: first}
    assert "withdrawn" not in client.get(answer.location).text and "stored: keep" in client.get(answer.location).text


def test_a_later_decision_is_the_one_that_undo_withdraws(client: FlaskClient, project: Path, hashes: dict[str, str]) -> None:
    for one in (*CONFLICT, CONFLICT[0]):
        choose(client, client.get(f"/?at={hashes[one]}").text, "keep" if one == CONFLICT[1] else "drop")
    client.post("/undo", data=fields(client.get("/").text, "/undo"))
    assert [one.file for one in corrections(project).values()] == [CONFLICT[1]]


def test_of_two_copies_both_are_kept_or_one_is_dropped(client: FlaskClient, hashes: dict[str, str]) -> None:
    page = client.get(f"/?at={hashes['train/2/2.jpg']}").text
    assert "Is this a copy of the other one?" in page and "test/2/1.jpg" in page
    assert re.findall(r'value="(\w+)" data-key="[kd]".*?<span>([^<]+)</span>', page) == [
        ("keep", "Keep both"),
        ("drop", "Drop this one"),
    ]


def test_every_key_has_a_visible_button(client: FlaskClient, hashes: dict[str, str]) -> None:
    page = client.get(choose(client, client.get("/").text, "keep").location).text
    keys = re.findall(r'data-key="(\w+)"[^>]*><kbd>([^<]+)</kbd>', page)
    assert dict(keys) == {"k": "k", "r": "r", "d": "d", "s": "s", "u": "u", "arrowleft": "←", "arrowright": "→"}
    page = client.get(f"/?at={hashes['train/1/1.jpg']}").text
    assert 'data-key="r"' not in page and 'data-key="k"' in page  # nothing is suggested


# two windows


def test_a_second_window_sees_what_the_first_has_decided(client: FlaskClient, project: Path) -> None:
    other = client_of(project, "Bo")
    choose(client, client.get("/").text, "keep")
    page = other.get("/").text
    assert shown(page) == CONFLICT[1] and "<strong>1</strong> of 7 decided" in page
    page = client_of(project, "Bo").get(f"/?at={next(iter(corrections(project)))}").text
    assert f"by Ann on {TODAY}" in page


def test_a_stale_decision_is_shown_and_not_silently_replaced(client: FlaskClient, project: Path) -> None:
    other = client_of(project, "Bo")
    page, theirs = client.get("/").text, other.get("/").text
    after = client.get(choose(client, page, "relabel MONARCH").location).text
    answer = choose(other, theirs, "drop")
    assert answer.status_code == 409
    assert "decided elsewhere meanwhile: relabel as Monarch by Ann. Nothing was changed" in answer.text
    assert [one.decision for one in corrections(project).values()] == ["relabel"]
    assert choose(other, answer.text, "drop").status_code == 303  # having seen it
    assert [(one.decision, one.by) for one in corrections(project).values()] == [("drop", "Bo")]
    undone = client.post("/undo", data=fields(after, "/undo"))
    assert (undone.status_code, len(corrections(project))) == (409, 1)


def test_decisions_at_the_same_time_lose_nothing(project: Path, hashes: dict[str, str]) -> None:
    def work(by: str, ids: list[str]) -> None:
        client = client_of(project, by)
        for one in ids:
            assert choose(client, client.get(f"/?at={hashes[one]}").text, "keep").status_code == 303

    threads = [threading.Thread(target=work, args=(by, ORDER[start::2])) for start, by in enumerate(("Ann", "Bo"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.file for one in corrections(project).values()} == set(ORDER)


def test_a_spoilt_file_of_corrections_is_named_and_left_alone(client: FlaskClient, project: Path) -> None:
    page, target = client.get("/").text, project / "data" / "corrections.csv"
    target.write_text("spoilt\n", encoding="utf-8")
    answer = choose(client, page, "keep")
    assert answer.status_code == 500
    assert "Nothing was stored." in answer.text and "line 1: the columns are spoilt" in answer.text
    assert target.read_text(encoding="utf-8") == "spoilt\n"


def test_a_folder_that_cannot_be_written_is_told(client: FlaskClient, project: Path) -> None:
    page = client.get("/").text
    (project / "data" / ".corrections.csv.lock").mkdir()
    answer = choose(client, page, "keep")
    assert answer.status_code == 500
    assert "Nothing was stored." in answer.text and "Is a directory; fix the permissions of" in answer.text


@pytest.mark.slow
def test_a_kill_after_the_answer_loses_nothing(project: Path, hashes: dict[str, str]) -> None:
    for number, one in enumerate(ORDER[:3], 1):
        with reviewing(project, "--by", "Ann") as running:
            page = running.page()
            assert field(page, "sha256") == hashes[one]
            assert running.decide(page, "keep") == 303
            running.process.send_signal(signal.SIGKILL)
        assert len(corrections(project)) == number
    assert not list((project / "data").glob("*.tmp"))


# who may ask


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7:8001", "localhost.", ""])
def test_other_host_names_are_refused(client: FlaskClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8001", "127.0.0.1", "[::1]:8001", "LOCALHOST"])
def test_names_of_this_machine_are_accepted(client: FlaskClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"Origin": "https://evil.example"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:9"}, True),
        ({"Origin": "null"}, True),
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_forms_of_other_sites_or_without_the_token_change_nothing(
    client: FlaskClient, project: Path, headers: dict[str, str], token: bool
) -> None:
    data = fields(client.get("/").text) | {"choice": "keep"} | ({} if token else {"token": "guess"})
    for path in ("/decide", "/undo"):
        assert client.post(path, data=data, headers=headers).status_code == 403
    assert corrections(project) == {}


def test_nothing_is_changed_by_a_link(client: FlaskClient) -> None:
    for path in ("/decide", "/undo"):
        assert client.get(path).status_code == 405


def test_every_answer_has_the_headers_and_no_script_of_its_own(client: FlaskClient) -> None:
    for path in ("/", "/nothing", "/?kind=unsure"):
        answer = client.get(path, headers=HTML)
        assert all(answer.headers[name] == value for name, value in HEADERS.items())
        assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", answer.text)
        assert answer.headers["Cache-Control"] == "no-store"
    for linked in re.findall(r'(?:href|src)="(/(?:static|guide)/[^"]+)"', client.get("/").text):
        with client.get(linked) as answer:
            assert answer.status_code == 200


# images


def test_images_are_scaled_and_kept_by_the_browser(client: FlaskClient, hashes: dict[str, str]) -> None:
    path = f"/photographs/{hashes['train/0/0.jpg']}/320.jpg"
    answer = client.get(path)
    assert answer.mimetype == "image/jpeg" and "immutable" in answer.headers["Cache-Control"]
    assert Image.open(io.BytesIO(answer.data)).size == (48, 40)
    assert client.get(path, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


def test_only_images_of_the_manifest_are_given(client: FlaskClient, hashes: dict[str, str]) -> None:
    own = hashes["train/0/0.jpg"]
    for path in (f"{own}/999.jpg", f"{'0' * 64}/320.jpg", "..%2f..%2fmanifest.csv/320.jpg", f"../{own}/320.jpg"):
        assert client.get(f"/photographs/{path}").status_code == 404
    assert client.get("/static/../../../etc/passwd").status_code == 404
    assert client.get("/guide/..%2fsettings.py").status_code == 404


@pytest.mark.parametrize("file", ["../manifest.csv", "/etc/hostname"])
def test_a_manifest_cannot_lead_out_of_the_raw_data(project: Path, hashes: dict[str, str], file: str) -> None:
    path = project / "data" / "manifest.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("images.zip", file, 1), encoding="utf-8")
    assert client_of(project).get(f"/photographs/{hashes['train/0/0.jpg']}/320.jpg").status_code == 404


def test_images_that_changed_or_went_are_told(project: Path, client: FlaskClient, hashes: dict[str, str]) -> None:
    raw = project / "data" / "raw" / "images.zip"
    content = raw.read_bytes()
    raw.write_bytes(b"x" * len(content))
    answer = client.get(f"/photographs/{hashes['train/0/0.jpg']}/320.jpg")
    assert (answer.status_code, answer.json["code"]) == (422, "unreadable")
    raw.unlink()
    assert client.get(f"/photographs/{hashes['train/0/0.jpg']}/320.jpg").status_code == 404


# without a person


def test_certain_suspects_are_relabelled_by_the_rule_and_people_are_left_alone(project: Path, hashes: dict[str, str]) -> None:
    target = project / "data" / "corrections.csv"
    kept = Correction(hashes["valid/1/0.jpg"], "valid/1/0.jpg", "keep", "", "", "Bo", "2026-01-02")
    decide(target, [kept])
    desk = LabelDesk(project, "Ann")
    relabelled, left = desk.accept_above(0.6)
    assert (dict(relabelled), dict(left)) == ({"train": 1}, {"decided by a person": 1})
    rule = Correction(hashes["train/0/0.jpg"], "train/0/0.jpg", "relabel", NAMES[1], "score 0.970 > 0.6", BY_RULE, TODAY)
    assert list(corrections(project).values()) == [kept, rule]
    relabelled, left = desk.accept_above(0.5)
    assert (dict(relabelled), left["relabelled before"]) == ({"test": 1}, 1)
    page = client_of(project).get("/").text
    assert 'action="/undo"' not in page  # a rule is nobody
