"""Files are written whole or not at all: errors, a full disk and a killed process leave what was there before."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fieldguide.core.errors import UserError
from fieldguide.core.files import CHUNK_BYTES, atomic_path, check_free_space, file_hash, read_json, write_bytes, write_json
from support import ROOT
from support.disk import on_a_tiny_disk


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_new_file_holds_what_was_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "deep" / "a.bin", b"\x00new")
    assert contents(tmp_path) == {"a.bin": b"\x00new"}


def test_an_old_file_is_replaced_and_not_appended_to(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"a much longer old content")
    write_bytes(target, b"new")
    assert contents(tmp_path) == {"a.bin": b"new"}


@pytest.mark.parametrize("name", ["a", ".hidden", "with space.csv", "蝴蝶.json", "n" * 255, "蝶" * 85])
def test_any_ordinary_name_can_be_written(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"")
    assert contents(tmp_path) == {name: b""}


def test_others_can_read_the_file_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_bytes(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_until_the_block_ends_readers_see_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == target.parent  # a rename is atomic within one file system only
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), UserError("said already")])
def test_an_error_in_the_block_passes_and_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert caught.value is error
    assert contents(tmp_path) == {"a": b"old"}


def test_an_error_in_the_block_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise ValueError("no")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize(("number", "text"), [(errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output error")])
def test_a_refusing_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, text: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "a"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(UserError) as caught:
        write_bytes(target, b"new")
    assert str(caught.value) == f"{target}: could not be written ({text}); free disk space or fix the permissions"
    assert contents(tmp_path) == {"a": b"old"}


def test_a_temporary_file_that_went_away_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a: could not be written \(No such file or directory\)"):  # noqa: SIM117
        with atomic_path(tmp_path / "a") as temporary:
            temporary.unlink()
    assert contents(tmp_path) == {}


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"a file")
    with pytest.raises(
        UserError,
        match=r"data/a: could not be written \((File exists|Not a directory)\); free disk space or fix the permissions",
    ):
        write_bytes(tmp_path / "data" / "a", b"new")
    assert contents(tmp_path) == {"data": b"a file"}


def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"a: could not be written \(Is a directory\); free disk space or fix the permissions"):
        write_bytes(tmp_path / "a", b"new")
    assert contents(tmp_path) == {}


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    code = (
        "import os, pathlib, signal, sys; from fieldguide.core.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from fieldguide.core.errors import UserError; from fieldguide.core.files import write_bytes\n"
        "folder = pathlib.Path(sys.argv[1]); target = folder / 'a'\n"
        "write_bytes(target, b'old')\n"
        "try: write_bytes(target, bytes(10**6))\n"
        "except UserError as error: print(str(error).replace(str(folder), 'DISK'))\n"
        "print(sorted(file.name for file in folder.iterdir()), target.read_bytes())"
    )
    done = on_a_tiny_disk(tmp_path, [sys.executable, "-c", code, str(tmp_path)])
    assert done.stderr == ""
    assert done.stdout == (
        "DISK/a: could not be written (No space left on device); free disk space or fix the permissions\n['a'] b'old'\n"
    )


def test_json_is_indented_utf_8_in_the_order_given(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": ["é", None, True, 0.1]})
    expected = '{\n  "b": 1,\n  "a": [\n    "é",\n    null,\n    true,\n    0.1\n  ]\n}\n'
    assert (tmp_path / "a.json").read_bytes() == expected.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_numbers_that_are_none(tmp_path: Path, number: float) -> None:
    (tmp_path / "a.json").write_bytes(b"{}\n")
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": number})
    assert contents(tmp_path) == {"a.json": b"{}\n"}


def test_json_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": [1, "é"]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"b": [1, "é"]}


def test_a_missing_json_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value) == f"{tmp_path}/a.json: No such file or directory; create it with: dvc repro"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"Expecting value: line 1 column 1 \(char 0\)"),
        (b'{"a": 1', r"Expecting ',' delimiter: line 1 column 8 \(char 7\)"),
        (b'{"a": "\xe9"}', "'utf-8' codec can't decode byte 0xe9 in position 7: invalid continuation byte"),
        (b"{}{}", r"Extra data: line 1 column 3 \(char 2\)"),
    ],
)
def test_a_damaged_json_says_where(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"/a\.json: not valid JSON \({reason}\); recreate it with: dvc repro -f$"):
        read_json(tmp_path / "a.json")


def test_the_hash_of_abc_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_hash(tmp_path / "a") == expected
    assert file_hash(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, appendix A.5


@pytest.mark.parametrize("n_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_hashing_in_chunks_is_hashing_at_once(tmp_path: Path, n_bytes: int, algorithm: str) -> None:
    content = (bytes(range(251)) * (n_bytes // 251 + 1))[:n_bytes]
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a", algorithm) == hashlib.new(algorithm, content).hexdigest()


def test_too_little_space_is_said_beforehand(tmp_path: Path) -> None:
    check_free_space(tmp_path, 1)
    with pytest.raises(UserError, match=r": 1000000000\.000 GB are needed, [0-9.]+ GB are free; free disk space$"):
        check_free_space(tmp_path, 10**18)
