"""`data/corrections.csv`: people's decisions about images, by content, kept in git; `split_check` applies them.

A decision goes with the bytes of an image, so that it survives a new download, another archive and renamed files.
"""

import csv
import fcntl
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

from fieldguide.core.errors import UserError
from fieldguide.core.files import text_of, write_bytes

DECISIONS = ("keep", "relabel", "drop")
SHA256 = re.compile(r"[0-9a-f]{64}")
BY_RULE = "rule"  # the value of `by` for decisions without a person


class Correction(NamedTuple):
    """A decision about an image: a line of data/corrections.csv."""

    sha256: str  # of the encoded bytes; all copies with these bytes are meant
    file: str  # the image's id when it was decided, for people
    decision: str  # keep (the label is right) | relabel | drop (do not use the image)
    label: str  # the class name to use; only of relabel
    reason: str
    by: str  # who decided
    date: str  # YYYY-MM-DD


def read_corrections(source: Path) -> dict[str, Correction]:
    """The decisions by SHA-256, in the order of the file; none if there is no file. Raises what `read_numbered` does."""
    return {correction.sha256: correction for correction in read_numbered(source).values()}


def read_numbered(source: Path) -> dict[int, Correction]:
    """The decisions by the number of their first line; none if there is no file.

    Raises `UserError`, which names the line, for any fault; then no decision counts.
    """
    reader = csv.reader(io.StringIO(text_of(source), newline=""), strict=True)
    found: dict[int, Correction] = {}
    lines: dict[str, int] = {}
    try:
        header = next(reader, list(Correction._fields))
        if header != list(Correction._fields):
            raise UserError(
                f"{source}, line 1: the columns are {', '.join(header)}; they must be {', '.join(Correction._fields)}"
            )
        start = reader.line_num + 1
        for values in reader:
            if values:
                correction = _checked(values, f"{source}, line {start}")
                if other := lines.get(correction.sha256):
                    raise UserError(
                        f"{source}, line {start}: a second decision about {correction.file}, whose content line {other}"
                        " decided; remove one of them"
                    )
                found[start], lines[correction.sha256] = correction, start
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: not CSV ({error}); correct the line") from error
    return found


def _checked(values: Sequence[str], where: str) -> Correction:
    """A line as a correction; raises `UserError`, whose text begins with `where`."""
    if len(values) != len(Correction._fields):
        raise UserError(
            f"{where}: {len(values)} values; there must be {len(Correction._fields)}: {', '.join(Correction._fields)}"
        )
    correction = Correction(*values)
    if not SHA256.fullmatch(correction.sha256):
        raise UserError(f"{where}: sha256 is {correction.sha256!r}; it must be 64 hexadecimal digits in lower case")
    if correction.decision not in DECISIONS:
        raise UserError(
            f"{where}: decision is {correction.decision!r}; it must be {', '.join(DECISIONS[:-1])} or {DECISIONS[-1]}"
        )
    if (correction.decision == "relabel") != bool(correction.label):
        must = "needs a class in the column label" if correction.decision == "relabel" else "has no label"
        raise UserError(f"{where}: decision {correction.decision} {must}, got {correction.label!r}")
    try:
        is_day = date.fromisoformat(correction.date).isoformat() == correction.date  # else 20261129 or a week's day
    except ValueError:
        is_day = False
    if not is_day:
        raise UserError(f"{where}: date is {correction.date!r}; it must be a day such as 2026-11-29")
    return correction


def decide(target: Path, corrections: Iterable[Correction], withdrawn: Iterable[str] = ()) -> dict[str, Correction]:
    """Adds decisions, of which a later one replaces an earlier one about the same image, and removes the `withdrawn` (SHA-256).

    Returns all decisions that are then on disk. Other processes that decide at the same time lose nothing. Raises `UserError`
    for a decision that could not be read again, and for a file that cannot be read or written; then nothing has changed.
    """
    with changing(target) as decided:
        for correction in corrections:
            decided[correction.sha256] = _checked(correction, f"decision about {correction.file}")
        for sha256 in withdrawn:
            decided.pop(sha256, None)
    return decided


@contextmanager
def changing(target: Path) -> Iterator[dict[str, Correction]]:
    """The decisions on disk, written again when the block ends without an error; no other process writes them meanwhile."""
    lock = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held = lock.open("w")
        with ExitStack() as stack:
            stack.enter_context(held)
            fcntl.flock(held, fcntl.LOCK_EX)
            stack.pop_all()
    except OSError as error:
        raise UserError(f"{lock}: {error.strerror}; fix the permissions of the folder") from error
    with held:
        decided = read_corrections(target)
        yield decided
        write_bytes(target, as_csv(decided).encode())


def as_csv(corrections: Mapping[str, Correction]) -> str:
    """The content of data/corrections.csv."""
    with io.StringIO(newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(Correction._fields)
        writer.writerows(corrections.values())
        return stream.getvalue()
