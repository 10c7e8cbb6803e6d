"""What a run logs, on disk before it is sent: one folder for each run, entries as JSON lines.

`sender` sends the journal and marks the position that it has reached. Entries survive the process; sending one twice does no
harm, so the mark may lag behind. Files are copied, because DVC deletes outputs.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fieldguide.core.files import write_bytes
from fieldguide.core.paths import journals

LOOK_SECONDS = 10.0  # to wait for another process's sender that holds a journal


class Journal:
    """The entries of one run, in `folder`, which one process at a time holds (`held`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries, self.sent = folder / "entries.jsonl", folder / "sent"

    @property
    def key(self) -> str:
        """Identifies the run in the store, however often it is sent."""
        return self.folder.name.rpartition("-")[2]

    @property
    def store(self) -> str | None:
        """The address that it is to be sent to; None if the process ended before it was written."""
        name = self.folder / "store"
        return name.read_text() if name.exists() else None

    def append(self, kind: str, **content: Any) -> None:
        """Writes an entry with fsync; `time` in milliseconds since 1970."""
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **content})
        with self.entries.open("ab") as stream:
            stream.write(f"\n{line}\n".encode())  # the first newline ends an entry that was cut off
            stream.flush()
            os.fsync(stream.fileno())

    def keep(self, file: Path) -> str:
        """Copies a file into the journal; the copy's path, relative to the folder."""
        number = sum(1 for _ in self.folder.glob("files/*"))
        copy = self.folder / "files" / str(number) / file.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(file, copy)
        return str(copy.relative_to(self.folder))

    def read(self, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Each complete entry from a position on, and the position after it; skips a truncated line."""
        if self.entries.exists():
            with self.entries.open("rb") as stream:
                stream.seek(start)
                for line in stream:
                    start += len(line)
                    with suppress(ValueError):
                        entry = json.loads(line)
                        if line.endswith(b"\n"):
                            yield entry, start

    def unsent(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each complete entry after the mark, and the mark that would include it."""
        return self.read(int(self.sent.read_text()) if self.sent.exists() else 0)

    def n_unsent(self) -> int:
        """Number of unsent entries; 0 if another process has sent and removed the journal."""
        with suppress(FileNotFoundError):
            return sum(1 for _ in self.unsent())
        return 0

    def last(self) -> str:
        """The kind of the last complete entry, sent or not; empty if there is none."""
        return next(reversed([entry["kind"] for entry, _ in self.read()]), "")

    def mark(self, position: int) -> None:
        """Notes that all before this position is sent."""
        write_bytes(self.sent, str(position).encode())

    @contextmanager
    def held(self, seconds: float = 0.0) -> Iterator[bool]:
        """Locks the journal for the block; False if another process still holds it after so many seconds."""
        lock = FileLock(self.folder.with_suffix(".lock"), seconds, thread_local=False)
        with suppress(Timeout):
            lock.acquire()
        try:
            yield lock.is_locked
        finally:
            if lock.is_locked and not self.folder.exists():
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def new_journal(key: str, store: str) -> Journal:
    """An empty journal for a store; names sort by time."""
    journal = Journal(journals() / f"{time.time_ns():020d}-{key}")
    journal.folder.mkdir(parents=True)
    write_bytes(journal.folder / "store", store.encode())
    return journal


def all_journals() -> list[Journal]:
    """The journals of this project that are not completely sent, oldest first."""
    return [Journal(folder) for folder in sorted(journals().glob("*-*")) if folder.is_dir()]
