"""`fieldguide review` as a command: what it refuses, what it prints, how it ends, and what it needs."""

import json
import os
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from fieldguide.__main__ import main
from fieldguide.core.corrections import BY_RULE, read_corrections
from fieldguide.core.errors import run_command
from support import ROOT
from support.app_server import png, write_model
from support.archives import write_folder, write_zip
from support.reviews import field, reviewing, write_reviewed


@pytest.fixture
def project(tmp_path: Path, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    write_reviewed(folder, make_jpeg)
    monkeypatch.chdir(folder)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and the last line on standard error."""
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main(["review", *arguments]))
    return ended.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org", "127.0.0.1.example.org"])
def test_it_listens_on_no_other_address(project: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    text = f"error: --host {host}: the page is for this machine only; use one of 127.0.0.1, localhost, ::1"
    assert refusal(capsys, "--host", host) == (1, text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--accept-above", "0"], "0 must be a number in (0, 1]"),
        (["--accept-above", "1.01"], "1.01 must be a number in (0, 1]"),
        (["--accept-above", "nan"], "nan must be a number in (0, 1]"),
        (["--accept-above", "much"], "much must be a number in (0, 1]"),
        (["--accept-above", "0.9", "photos"], "--accept-above is about the labels of the project; leave out PHOTOS"),
        (["--all"], "--model, --into and --all are about new photographs; name PHOTOS"),
        (["--into", "x"], "--model, --into and --all are about new photographs; name PHOTOS"),
        (["--port", "70000"], "70000 must be an integer in [0, 65535]"),
    ],
)
def test_arguments_without_a_meaning_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    status, line = refusal(capsys, *arguments)
    assert status == 2 and text in line


@pytest.mark.parametrize("name", [BY_RULE, "a\nb"])
def test_a_name_that_is_no_persons_is_refused(project: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, line = refusal(capsys, "--by", name)
    assert status == 1 and "are no person's name; use another --by NAME" in line


def test_outside_a_project_a_line_says_what_makes_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys) == (1, "error: data/manifest.csv is missing; create it with: dvc repro split_check")


def test_a_taken_port_is_an_error_of_one_line(project: Path) -> None:
    with reviewing(project) as running:
        command = [sys.executable, "-m", "fieldguide", "review", "--port", str(running.port)]
        ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stderr.startswith(f"error: 127.0.0.1:{running.port}: cannot listen")
    assert len(ended.stderr.splitlines()) == 1


def test_without_suspects_it_ends_at_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("label_errors", "near_duplicates", "findings"):
        (project / "metrics" / f"{name}.csv").unlink()
    main(["review"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:-1]] == ["dvc repro label_check", *["dvc repro split_check"] * 2]
    assert lines[-1] == "nothing to review"


def test_accept_above_prints_how_many_of_which_splits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["review", "--accept-above", "0.5"])
    assert capsys.readouterr().out.splitlines() == [
        "3 relabelled with a score above 0.5 (1 test, 1 train, 1 valid)",
        "-> data/corrections.csv; next: dvc repro",
    ]
    main(["review", "--accept-above", "0.5"])
    assert capsys.readouterr().out.splitlines()[:2] == [
        "0 relabelled with a score above 0.5",
        "3 left as they are: relabelled before",
    ]
    assert {one.by for one in read_corrections(project / "data" / "corrections.csv").values()} == {BY_RULE}


def test_it_says_where_it_is_and_at_the_end_what_was_decided(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "config", "user.name", "Ann Müller"], check=True)
    with reviewing(project) as running:
        assert running.said[0] == "0 of 7 decided; you are Ann Müller. End with Ctrl-C\n"
        for choice in ("keep", "drop", "keep"):
            assert running.decide(running.page(), choice) == 303
        page = running.page()
        fields = {name: field(page, name, "/undo") for name in ("token", "sha256", "version")}
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        assert running.ask("POST", "/undo", urllib.parse.urlencode(fields).encode(), **form)[0] == 303
        running.process.send_signal(signal.SIGINT)
        said, errors = running.process.communicate(timeout=30)
    assert running.process.returncode == 0 and errors == b""
    assert said.decode() == "2 kept, 1 dropped, 1 withdrawn; 2 of 7 decided; next: dvc repro\n"
    assert {one.by for one in read_corrections(project / "data" / "corrections.csv").values()} == {"Ann Müller"}


def test_new_photographs_of_which_the_model_is_not_sure_are_offered_and_copied(project: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path)
    members = {
        "red.png": png(),
        "a/grey.png": png((128, 128, 128)),
        "b/again.png": png((128, 128, 128)),
        "dark.png": png((5, 5, 5)),
    }
    archive = write_zip(tmp_path / "walk.zip", members)
    before = archive.read_bytes()
    with reviewing(project, str(archive), "--model", str(model), "--by", "Ann") as running:
        assert running.said[:2] == [
            "4 photographs: 1 sure, 1 unknown, 2 unsure\n",
            "0 of 2 decided; you are Ann. End with Ctrl-C\n",
        ]
        assert running.decide(running.page(), "relabel GREEN") == 303
        running.process.send_signal(signal.SIGKILL)
    added = project / "data" / "additions"
    copies = list((added / "GREEN").iterdir())
    assert [copy.read_bytes() for copy in copies] == [members["a/grey.png"]]
    assert archive.read_bytes() == before
    assert json.loads((added / ".review.jsonl").read_text(encoding="utf-8"))["label"] == "GREEN"
    with reviewing(project, str(archive), "--model", str(model), "--all") as running:
        assert running.said[1].startswith("1 of 3 decided; ")


def test_copies_in_the_folder_are_not_offered_again(project: Path, tmp_path: Path) -> None:
    walk = write_folder(tmp_path / "walk", {"new.png": png((128, 128, 128)), "added/RED/old.png": png((120, 120, 120))})
    options = ["--model", str(write_model(tmp_path)), "--into", str(walk / "added")]
    with reviewing(project, str(walk), *options) as running:
        assert running.said[0].startswith("1 photographs are in ")
        assert running.said[2].startswith("0 of 1 decided; ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-"], "error: -: standard input cannot be read again for the page; save it to a file"),
        (["nothing"], "error: nothing: no photograph that is read"),
        (["nothing.zip"], "error: nothing.zip does not exist"),
    ],
)
def test_sources_that_cannot_be_reviewed_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    (project / "nothing").mkdir()
    status, line = refusal(capsys, *arguments)
    assert status == 1 and line.startswith(text)


def test_it_needs_neither_torch_nor_dvc_nor_mlflow_nor_pandas() -> None:
    script = (
        "import sys, fieldguide.commands.review;"
        "print(sorted({'torch', 'dvc', 'mlflow', 'pandas', 'pydantic', 'cv2'} & {name.split('.')[0] for name in sys.modules}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
