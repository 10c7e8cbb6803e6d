"""How commands print: errors in one line, and every name, whatever the terminal's encoding."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fieldguide.__main__ import main
from fieldguide.core.errors import UserError, run_command, write_utf8
from support.app_server import png, write_model

NAME = "März 孔雀 " + os.fsdecode(b"M\xe4rz")  # the last as an old disk or zip has it, in Latin-1


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str, errors: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)

    @property
    def written(self) -> bytes:
        return self.buffer.getvalue()


TERMINALS = {"utf-8": "strict", "ascii": "surrogateescape", "cp1252": "strict", "latin-1": "strict"}
ESCAPED = {
    "utf-8": "März 孔雀 M\\udce4rz\n",
    "ascii": "M\\xe4rz \\u5b54\\u96c0 M\\udce4rz\n",
    "cp1252": "März \\u5b54\\u96c0 M\\udce4rz\n",
    "latin-1": "März \\u5b54\\u96c0 M\\udce4rz\n",
}


each_terminal = pytest.mark.parametrize("encoding", TERMINALS)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Terminal]:
    """`use(encoding)`: makes a terminal of this encoding standard output, and another standard error."""

    def replace(encoding: str) -> Terminal:
        for name in ("stderr", "stdout"):
            monkeypatch.setattr(sys, name, Terminal(encoding, TERMINALS[encoding]))
        return sys.stdout

    return replace


@each_terminal
def test_a_command_prints_what_a_terminal_lacks_escaped(use: Callable[[str], Terminal], encoding: str) -> None:
    def command() -> None:
        print(NAME)
        print(NAME, file=sys.stderr)

    terminal = use(encoding)
    run_command(command)
    assert terminal.written.decode(encoding) == ESCAPED[encoding]
    assert sys.stderr.written == terminal.written


@each_terminal
def test_an_error_names_what_a_terminal_lacks_escaped(use: Callable[[str], Terminal], encoding: str) -> None:
    def command() -> None:
        raise UserError(f"{NAME}: gone\nfrom here")

    use(encoding)
    with pytest.raises(SystemExit) as ended:
        run_command(command)
    assert ended.value.code == 1
    expected = f"error: {ESCAPED[encoding].strip()}: gone from here\n"
    assert sys.stderr.written.decode(encoding) == expected


@each_terminal
def test_csv_and_json_are_utf8_on_every_terminal(use: Callable[[str], Terminal], encoding: str) -> None:
    def command() -> None:
        write_utf8()
        print(json.dumps({"image": NAME}, ensure_ascii=False))

    terminal = use(encoding)
    run_command(command)
    text = terminal.written.decode("utf-8")
    assert text == '{"image": "März 孔雀 M\\udce4rz"}\n'
    assert json.loads(text)["image"] == NAME  # the file's own name


@each_terminal
@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl"])
def test_predict_names_files_that_the_terminal_cannot_say_and_goes_on(
    use: Callable[[str], Terminal], encoding: str, tmp_path: Path, form: str
) -> None:
    for name in ("1.png", f"{NAME}.png", "z.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / f"{NAME} broken.png").write_bytes(b"")
    terminal = use(encoding)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main(["predict", str(tmp_path), "--model", str(write_model(tmp_path)), "--format", form]))
    assert ended.value.code == 3
    assert f"{ESCAPED[encoding].strip()} broken.png: " in sys.stderr.written.decode(encoding)
    text = terminal.written.decode(encoding if form == "table" else "utf-8")
    if form == "table":
        names = [line.split("  ")[0] for line in text.splitlines() if not line.startswith(" ")]
        assert [Path(name).name for name in names] == ["1.png", f"{ESCAPED[encoding].strip()}.png", "z.png"]
        return
    rows = {"csv": lambda: list(csv.DictReader(io.StringIO(text))), "json": lambda: json.loads(text)}
    found = rows.get(form, lambda: [json.loads(line) for line in text.splitlines()])()
    name = NAME if form != "csv" else ESCAPED["utf-8"].strip()
    assert [Path(row["image"]).name for row in found] == ["1.png", f"{name} broken.png", f"{name}.png", "z.png"]


BLANK = {
    "predict": [[""], ["a.jpg", " "], ["a.jpg", "--model", ""], ["a.jpg", "--annotate", "\t"]],
    "serve": [["--model", ""], ["--raw", " "], ["--manifest", ""], ["--host", ""], ["--allowed-host", ""]],
    "review": [[""], ["--by", " "], ["a", "--into", ""], ["a", "--model", ""], ["--host", ""]],
    "champion": [[""], [" "]],
    "search": [["--name", ""], ["-S", ""]],
}


@pytest.mark.parametrize(("command", "options"), [(name, each) for name, some in BLANK.items() for each in some])
def test_a_blank_argument_is_an_error_and_not_the_current_folder(
    command: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, *options])
    assert ended.value.code == 2
    assert "is blank; a variable of your shell may be unset" in capsys.readouterr().err
