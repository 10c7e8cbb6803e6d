"""Decisions about images: what is written is read again, each fault is one line, and no process loses another's decision."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fieldguide.core.corrections import Correction, as_csv, changing, decide, read_corrections, read_numbered
from fieldguide.core.errors import UserError
from support import ROOT

HEADER = "sha256,file,decision,label,reason,by,date\n"


def correction(number: int = 0, decision: str = "drop", label: str = "", **values: str) -> Correction:
    digest = hashlib.sha256(f"{number}".encode()).hexdigest()
    return Correction(digest, f"train/A/{number}.jpg", decision, label, "blurred", "ada", "2026-11-29")._replace(**values)


def line(*corrections: Correction) -> str:
    return as_csv({one.sha256: one for one in corrections}).removeprefix(HEADER)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "corrections.csv"


def written(target: Path, content: str | bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    return target


def test_the_file_of_the_checkout_has_no_decision() -> None:
    assert (ROOT / "data" / "corrections.csv").read_text(encoding="utf-8") == HEADER


@pytest.mark.parametrize("content", [None, "", HEADER, HEADER + "\n\n"], ids=["no file", "empty", "header", "blank lines"])
def test_a_file_without_a_decision_has_none(target: Path, content: str | None) -> None:
    if content is not None:
        written(target, content)
    assert read_corrections(target) == {}


def test_what_was_decided_is_read_again_in_the_order_of_the_file(target: Path) -> None:
    decided = [
        correction(2, "relabel", "RED ADMIRAL"),
        correction(0, "keep", reason='a "wing", torn'),
        correction(1, reason="two\nlines\r\nand\ra third", file="train/Kajiščio naktinukas/ä, b.jpg", by=""),
    ]
    assert list(decide(target, decided).values()) == decided
    assert list(read_corrections(target).values()) == decided
    assert list(read_corrections(target)) == [one.sha256 for one in decided]


def test_decisions_have_the_number_of_their_first_line(target: Path) -> None:
    decided = [correction(0, reason="two\nlines"), correction(1), correction(2)]
    written(target, HEADER + line(decided[0]) + "\n" + line(*decided[1:]))
    assert read_numbered(target) == {2: decided[0], 5: decided[1], 6: decided[2]}


def test_a_later_decision_replaces_an_earlier_one_and_one_can_be_withdrawn(target: Path) -> None:
    decide(target, [correction(0), correction(1), correction(2)])
    left = decide(target, [correction(0, "keep")], withdrawn=[correction(1).sha256, "f" * 64])
    assert left == read_corrections(target) == {one.sha256: one for one in (correction(0, "keep"), correction(2))}


@pytest.mark.parametrize(
    "spelled", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")], ids=["BOM", "CRLF"]
)
def test_files_as_spreadsheets_write_them_are_read(target: Path, spelled: object) -> None:
    written(target, spelled(HEADER + line(correction(0), correction(1, "relabel", "B"))))
    assert list(read_corrections(target).values()) == [correction(0), correction(1, "relabel", "B")]


GOOD = line(correction(9))
FAULTS = {
    "unknown column": ("sha256,file,decision\n", "line 1: the columns are sha256, file, decision; they must be sha256, file,"),
    "no header": (line(correction(0)), "line 1: the columns are 5feceb66"),
    "semicolons": (HEADER.replace(",", ";"), "line 1: the columns are sha256;file"),
    "two decisions": (
        HEADER + line(correction(0)) + GOOD + line(correction(0, "keep", file="copy.jpg")),
        "line 4: a second decision about copy.jpg, whose content line 2 decided; remove one of them",
    ),
    "ragged": (HEADER + GOOD + "a,b\n", "line 3: 2 values; there must be 7: sha256, file, decision,"),
    "too many": (HEADER + GOOD.replace("\n", ",\n"), "line 2: 8 values; there must be 7"),
    "sha256": (HEADER + line(correction(0, sha256="5FECEB66")), "line 2: sha256 is '5FECEB66'; it must be 64 hexadecimal"),
    "decision": (HEADER + line(correction(0, "Drop")), "line 2: decision is 'Drop'; it must be keep, relabel or drop"),
    "no label": (HEADER + line(correction(0, "relabel")), "line 2: decision relabel needs a class in the column label, got ''"),
    "label": (HEADER + line(correction(0, "drop", "B")), "line 2: decision drop has no label, got 'B'"),
    "day": (HEADER + line(correction(0, date="29.11.2026")), "line 2: date is '29.11.2026'; it must be a day such as"),
    "no such day": (HEADER + line(correction(0, date="2026-02-30")), "line 2: date is '2026-02-30'"),
    "other form of a day": (HEADER + line(correction(0, date="20261129")), "line 2: date is '20261129'"),
    "after lines in quotes": (
        HEADER + line(correction(0, reason="two\nlines")) + line(correction(1, "no")),
        "line 4: decision is 'no'",
    ),
    "quote": (HEADER + GOOD + 'a,"b', "line 3: not CSV (unexpected end of data); correct the line"),
    "text after a quote": (HEADER + '"a"b,c\n', "line 2: not CSV"),
    "Latin-1": (HEADER.encode() + GOOD.encode() + b"a\xe4,b\n", "line 3: not UTF-8 (byte 0xe4); save it as UTF-8"),
    "UTF-16": (HEADER.encode("utf-16"), "line 1: not UTF-8 (byte 0xff)"),
}


@pytest.mark.parametrize(("content", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line_and_no_decision_counts(target: Path, content: str | bytes, said: str) -> None:
    before = written(target, content).read_bytes()
    with pytest.raises(UserError, match=f"^{re.escape(f'{target}, {said}')}") as caught:
        read_corrections(target)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match=re.escape(said)):
        decide(target, [correction(7)])
    assert target.read_bytes() == before


def test_a_folder_in_its_place_is_one_line(target: Path) -> None:
    target.mkdir(parents=True)
    with pytest.raises(UserError, match=r"corrections\.csv: Is a directory; restore the file"):
        read_corrections(target)


@pytest.mark.parametrize("bad", [correction(1, "relabel"), correction(1, "keep", date="today"), correction(1, sha256="")])
def test_a_decision_that_could_not_be_read_again_is_not_written(target: Path, bad: Correction) -> None:
    decide(target, [correction(0)])
    with pytest.raises(UserError, match=r"^decision about train/A/1\.jpg: "):
        decide(target, [correction(2), bad])
    assert read_corrections(target) == {correction(0).sha256: correction(0)}


def test_an_error_inside_of_a_change_leaves_the_file_as_it_was(target: Path) -> None:
    decide(target, [correction(0)])
    with pytest.raises(RuntimeError), changing(target) as decided:
        decided.clear()
        raise RuntimeError
    assert len(read_corrections(target)) == 1
    assert {file.name for file in target.parent.iterdir()} == {target.name, f".{target.name}.lock"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(target: Path) -> None:
    decide(target, [correction(0)])
    (target.parent / f".{target.name}.lock").unlink()
    target.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied; fix the permissions of the folder"):
            decide(target, [correction(1)])
    finally:
        target.parent.chmod(0o700)


DECIDES = """
import hashlib, sys
from pathlib import Path
from fieldguide.core.corrections import Correction, decide
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    digest = hashlib.sha256(f"{number}".encode()).hexdigest()
    decide(Path(sys.argv[1]), [Correction(digest, f"train/A/{number}.jpg", "drop", "", "blurred", "ada", "2026-11-29")])
    print(number, flush=True)
"""


def deciding(target: Path, start: int, end: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DECIDES, str(target), str(start), str(end)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_and_threads_that_decide_at_the_same_time_lose_nothing(target: Path) -> None:
    processes = [deciding(target, start, start + 15) for start in range(0, 45, 15)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: decide(target, [correction(number)]), range(45, 75)))
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    expected = {correction(number).sha256: correction(number) for number in range(75)}
    assert read_corrections(target) == expected


def test_a_process_killed_at_any_moment_leaves_a_whole_file_with_all_that_it_had_decided(target: Path) -> None:
    first = 0
    for seconds in (0.0, 0.003, 0.01, 0.02):
        process = deciding(target, first, 10_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        done = int(rest[-1]) if rest else first
        found = read_corrections(target)
        assert {correction(number).sha256 for number in range(done + 1)} <= found.keys()
        assert set(found.values()) <= {correction(number) for number in range(done + 2)}
        first = len(found)
    assert decide(target, [correction(first)]).keys() == {correction(number).sha256 for number in range(first + 1)}
