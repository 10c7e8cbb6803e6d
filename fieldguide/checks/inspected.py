"""What was found in each image and between all of them, kept by content, so that unchanged images are not decoded again.

An SQLite file below `.fieldguide/inspected` for each state of the code, the libraries that decode, and `max_megapixels`.
Results are the same bytes with and without it; a file that is damaged, locked or not writable is not used.
"""

import hashlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fieldguide.checks.near_duplicates import PROBES, RESULT, SMALL_PX, Fingerprint, Known
from fieldguide.core.caches import cache_key
from fieldguide.core.paths import inspected_cache

MEAN_PX = 64
MAX_BYTES = 2_000_000_000  # of all files, 140,000 images: a guess; the one in use may take more
DISK_SHARE = 0.1  # of the free space, that a larger file may take
MAX_WAITING = 1000  # images that are not yet written
SEARCHES = 4  # sets of images whose comparisons are kept
NAME = 32  # digits of a SHA-256 that identify an image among those of a search
LOCK_SECONDS = 30.0  # to wait for another process that writes
CODE = Path(__file__).with_name("inspection.py")  # on which the results depend, with all that it imports
DECODERS = ("numpy", "opencv-contrib-python-headless", "pillow", "pillow-heif")
TABLES = (
    "create table if not exists images (sha256 text primary key, width integer, height integer, side_px integer,"
    " content blob, digest blob)",
    "create table if not exists comparisons (key text primary key, images text, results blob, digest blob)",
)


class Inspected(NamedTuple):
    """The facts about an image; `reason` says why it could not be decoded."""

    width: int | None
    height: int | None
    sha256: str
    phash: str
    reason: str
    fingerprint: Fingerprint | None
    small: np.ndarray | None  # uint8 [MEAN_PX, MEAN_PX, 3]


class InspectedCache:
    """Readable images by SHA-256, and the results of comparing all images of a data set.

    After an error of the file it holds nothing, and the file is removed if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()  # threads share the connection
        self.connection: sqlite3.Connection | None = None
        self.waiting: dict[str, Inspected] = {}
        with self._guarded():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, LOCK_SECONDS, check_same_thread=False)
            for table in TABLES:
                self.connection.execute(table)

    def get(self, sha256: str, with_fingerprint: bool = True) -> Inspected | None:
        """What is known of these bytes; None if nothing is, if a fingerprint is asked for and missing, or if it is damaged."""
        row = None
        with self._guarded():
            if self.connection is not None:
                row = self.connection.execute("select * from images where sha256 = ?", [sha256]).fetchone()
        image = _from_row(row) if row else None
        if image and not with_fingerprint:
            return image._replace(fingerprint=None, phash="")
        return image if image and image.fingerprint is not None else None

    def put(self, image: Inspected) -> None:
        """Keeps a readable image; an unreadable one may be readable with another extra."""
        if image.reason:
            return
        with self.lock:
            self.waiting[image.sha256] = image
            is_full = len(self.waiting) >= MAX_WAITING
        if is_full:
            self.write()

    def write(self) -> None:
        """Writes what is waiting, all or nothing, unless the file is full."""
        with self._guarded():
            rows = [_as_row(image) for image in self.waiting.values()]
            self.waiting.clear()
            if self.connection is not None and rows and self._has_room():
                with self.connection:
                    self.connection.executemany("insert or replace into images values (?, ?, ?, ?, ?, ?)", rows)

    def results(self, sha256: Sequence[str]) -> Known:
        """What `put_results` got for exactly these images, or else for the images of the last search, in their new places."""
        row, names = None, [each[:NAME] for each in sha256]
        with self._guarded():
            if self.connection is not None:
                query = "select * from comparisons order by key = ? desc, rowid desc limit 1"
                row = self.connection.execute(query, [_key_of(names)]).fetchone()
        searched = np.zeros(len(names), bool)
        if not row or row[3] != _digest(tuple(row[:2]), row[2]):
            return Known(np.empty(0, RESULT), searched)
        place = {name: number for number, name in enumerate(names)}
        before = (row[1][start : start + NAME] for start in range(0, len(row[1]), NAME))
        places = np.array([place.get(name, -1) for name in before], np.int64)
        results = np.frombuffer(row[2], RESULT).copy()
        for side in ("i", "j"):
            results[side] = places[results[side]]
        if (np.diff(places, prepend=-1) > 0).all():  # with an image that is gone or moved, others are in other crowds
            searched[places] = True
        return Known(results[(results["i"] >= 0) & (results["j"] >= 0)], searched)

    def put_results(self, sha256: Sequence[str], results: np.ndarray) -> None:
        """Keeps the results, whose positions are those in `sha256`, unless the file is full."""
        names = [each[:NAME] for each in sha256]
        facts, content = (_key_of(names), "".join(names)), results.tobytes()
        with self._guarded():
            if self.connection is not None and self._has_room(len(facts[1]) + len(content)):
                with self.connection:
                    values = [*facts, content, _digest(facts, content)]
                    self.connection.execute("insert or replace into comparisons values (?, ?, ?, ?)", values)
                    newest = "select rowid from comparisons order by rowid desc limit ?"
                    self.connection.execute(f"delete from comparisons where rowid not in ({newest})", [SEARCHES])

    def _has_room(self, n_bytes: int = 0) -> bool:
        size = self.path.stat().st_size + n_bytes
        return size < max(MAX_BYTES, DISK_SHARE * shutil.disk_usage(self.path.parent).free)

    def close(self) -> None:
        self.write()
        self._disconnect()

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self.lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                self._disconnect()
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                    _remove(self.path)


@contextmanager
def inspected_images(max_megapixels: int) -> Iterator[InspectedCache]:
    """The cache of this code and these libraries; removes the oldest others if all together are too large."""
    folder = inspected_cache()
    cache = InspectedCache(folder / f"{cache_key([max_megapixels], CODE, DECODERS)}.db")
    with suppress(OSError):
        os.utime(cache.path)
        files = sorted(folder.glob("*.db"), key=lambda file: file.stat().st_mtime)
        for file in files[:-1]:
            if sum(each.stat().st_size for each in folder.glob("*.db")) >= MAX_BYTES:
                _remove(file)
    try:
        yield cache
    finally:
        cache.close()


def _remove(file: Path) -> None:
    for each in (file, file.with_name(f"{file.name}-journal")):
        with suppress(OSError):
            each.unlink(missing_ok=True)


def _as_row(image: Inspected) -> tuple[object, ...]:
    assert image.small is not None
    prints = image.fingerprint
    content = prints.hashes.tobytes() + prints.thumbnail.tobytes() if prints else b""
    content += image.small.tobytes()
    facts = (image.sha256, image.width, image.height, prints.side_px if prints else 0)
    return (*facts, content, _digest(facts, content))


def _from_row(row: tuple[Any, ...]) -> Inspected | None:
    """The image of a row; None if the row is not as it was written."""
    *facts, content, digest = row
    if digest != _digest(tuple(facts), content):
        return None
    sha256, width, height, side_px = facts
    small = np.frombuffer(content, np.uint8, offset=len(content) - MEAN_PX * MEAN_PX * 3).reshape(MEAN_PX, MEAN_PX, 3)
    if not side_px:
        return Inspected(width, height, sha256, "", "", None, small)
    hashes = np.frombuffer(content, np.uint64, len(PROBES))
    thumbnail = np.frombuffer(content, np.uint8, SMALL_PX * SMALL_PX, hashes.nbytes).reshape(SMALL_PX, SMALL_PX)
    return Inspected(width, height, sha256, f"{hashes[0]:016x}", "", Fingerprint(hashes, thumbnail, side_px), small)


def _key_of(names: Sequence[str]) -> str:
    return hashlib.sha256("".join(names).encode()).hexdigest()


def _digest(facts: tuple[object, ...], content: bytes) -> bytes:
    return hashlib.blake2b(repr(facts).encode() + content, digest_size=16).digest()
