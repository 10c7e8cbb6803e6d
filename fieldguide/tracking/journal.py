"""What a run has to tell, written down before anyone is told: one folder for each run, entries as lines of JSON.

The journal is the truth; `sender` sends it and marks how far it came. What was written survives the process, and what
was sent twice does no harm, so that a mark may lag behind. Files are copied beside the lines, as DVC deletes outputs.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fieldguide.core.files import write_bytes
from fieldguide.core.paths import journals

LOOK_SECONDS = 10.0  # that another process's sender may hold a journal


class Journal:
    """The entries of one run, in `folder`; one process at a time holds it (`held`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries, self.sent = folder / "entries.jsonl", folder / "sent"

    @property
    def key(self) -> str:
        """The run's own name, the same in every attempt to send it."""
        return self.folder.name.rpartition("-")[2]

    @property
    def store(self) -> str | None:
        """The address for which it was written; None where the process ended before it said so."""
        name = self.folder / "store"
        return name.read_text() if name.exists() else None

    def append(self, kind: str, **content: Any) -> None:
        """One more entry, on the disk when this returns; `time` in milliseconds since 1970."""
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **content})
        with self.entries.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read(1) == b"\n" else "\n" + line  # after one that was cut off
            stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def keep(self, file: Path) -> str:
        """A copy of `file`; its name, relative to the folder."""
        number = sum(1 for _ in self.folder.glob("files/*"))
        copy = self.folder / "files" / str(number) / file.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(file, copy)
        return str(copy.relative_to(self.folder))

    def unsent(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each whole entry that is not marked, and the mark that stands behind it."""
        return self._whole(int(self.sent.read_text()) if self.sent.exists() else 0)

    def has_unsent(self) -> bool:
        """Whether something is not marked; nothing is where another process has sent and removed it."""
        try:
            return any(True for _ in self.unsent())
        except FileNotFoundError:
            return False

    def _whole(self, start: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Entries from a place on, each with the place behind it; a line that was cut off is left out."""
        if not self.entries.exists():
            return
        with self.entries.open("rb") as stream:
            stream.seek(start)
            for line in stream:
                start += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if line.endswith(b"\n"):
                    yield entry, start

    def everything(self) -> Iterator[dict[str, Any]]:
        """Each whole entry, sent or not."""
        return (entry for entry, _ in self._whole(0))

    def first(self) -> dict[str, Any]:
        """The entry with which the run began."""
        return next(entry for entry, _ in self._whole(0))

    def last(self) -> str:
        """The kind of the last whole entry, sent or not; nothing where there is none."""
        kinds = [entry["kind"] for entry, _ in self._whole(0)]
        return kinds[-1] if kinds else ""

    def mark(self, place: int) -> None:
        """What stands before `place` is sent."""
        write_bytes(self.sent, str(place).encode())

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def held(self, seconds: float = 0.0) -> Iterator[bool]:
        """Whether no other process is at work on it, or not for so long; it is this process's until the block ends."""
        lock = FileLock(self.folder.with_suffix(".lock"), thread_local=False)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            if not self.folder.exists():
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def new_journal(key: str, store: str) -> Journal:
    """An empty journal for a store, named so that all stand in the order in which they were begun."""
    journal = Journal(journals() / f"{time.time_ns():020d}-{key}")
    journal.folder.mkdir(parents=True)
    write_bytes(journal.folder / "store", store.encode())
    return journal


def all_journals() -> list[Journal]:
    """Those of this project whose entries are not all sent, and those of runs that have not ended, oldest first."""
    return [Journal(folder) for folder in sorted(journals().glob("*-*")) if folder.is_dir()]


def find_journal(key: str) -> Journal | None:
    """The journal of a run, while it exists."""
    return next((journal for journal in all_journals() if journal.key == key), None)
