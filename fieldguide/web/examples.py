"""A training photograph of each class, if the manifest and the raw data exist."""

import csv
import hashlib
import threading
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fieldguide.core.images import UnreadableImage, decode, encode_jpeg, read_encoded
from fieldguide.web.model import file_stamp

SIDE_PX = 256
N_KEPT = 2048


class _Place(NamedTuple):
    """Where the encoded bytes of an image lie in the raw data, and their hash."""

    file: str
    offset: int
    length: int
    sha256: str


class Examples:
    """The first training image in use of each class, as a thumbnail; cached. Reads a changed manifest again."""

    def __init__(self, manifest: Path, raw: Path) -> None:
        self.manifest, self.raw = manifest, raw
        self.stamp: tuple[int, int, int] | None = None
        self.known: dict[str, _Place] = {}
        self.reading = threading.Lock()
        self.thumbnail = lru_cache(maxsize=N_KEPT)(self._thumbnail)

    def __contains__(self, class_name: str) -> bool:
        rows = self._rows()
        return class_name in rows and (self.raw / rows[class_name].file).is_file()

    def jpeg(self, class_name: str) -> bytes | None:
        """The centre square of the class's example, JPEG; None if there is none or its bytes differ from the manifest's."""
        row = self._rows().get(class_name)
        try:
            return self.thumbnail(*row) if row else None
        except (OSError, ValueError, UnreadableImage):
            return None

    def _rows(self) -> dict[str, _Place]:
        """Where the examples lie, by class name."""
        with self.reading:
            stamp = file_stamp(self.manifest)
            if stamp != self.stamp:
                self.stamp, self.known = stamp, _first_rows(self.manifest)
            return self.known

    def _thumbnail(self, file: str, offset: int, length: int, sha256: str) -> bytes:
        encoded = read_encoded(self.raw / file, offset, length)
        if hashlib.sha256(encoded).hexdigest() != sha256:
            raise ValueError("bytes differ from the manifest's")
        return encode_jpeg(decode(encoded, SIDE_PX), SIDE_PX)


def _first_rows(manifest: Path) -> dict[str, _Place]:
    """The first training row in use of each class; empty without a manifest."""
    rows: dict[str, _Place] = {}
    try:
        with manifest.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["split"] == "train" and row["use"] == "True" and row["class_name"] not in rows:
                    rows[row["class_name"]] = _Place(row["file"], int(row["offset"]), int(row["length"]), row["sha256"])
    except (OSError, ValueError, KeyError, csv.Error):
        return {}
    return rows
