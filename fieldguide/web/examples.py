"""A training photograph of each class, where the manifest and the raw data are at hand; absent otherwise."""

import csv
import hashlib
import threading
from functools import lru_cache
from pathlib import Path

from fieldguide.core.images import UnreadableImage, decode, encode_jpeg, read_encoded
from fieldguide.web.model import file_stamp

SIDE_PX = 256
N_KEPT = 2048


class Examples:
    """The first training image in use of each class, read and made small when it is first asked for, then kept.

    A manifest that has changed is read again.
    """

    def __init__(self, manifest: Path, raw: Path) -> None:
        self.manifest, self.raw = manifest, raw
        self.stamp: tuple[int, int, int] | None = None
        self.known: dict[str, dict[str, str]] = {}
        self.reading = threading.Lock()
        self.made = lru_cache(maxsize=N_KEPT)(self._made)

    def __contains__(self, class_name: str) -> bool:
        rows = self._rows()
        return class_name in rows and (self.raw / rows[class_name]["file"]).is_file()

    def jpeg(self, class_name: str) -> bytes | None:
        """The centre square of the class's example, JPEG; None where there is none or its bytes are not the manifest's."""
        row = self._rows().get(class_name)
        try:
            return self.made(row["file"], int(row["offset"]), int(row["length"]), row["sha256"]) if row else None
        except (KeyError, OSError, ValueError, UnreadableImage):
            return None

    def _rows(self) -> dict[str, dict[str, str]]:
        """By class name."""
        with self.reading:
            stamp = file_stamp(self.manifest)
            if stamp != self.stamp:
                self.stamp, self.known = stamp, _first_rows(self.manifest)
            return self.known

    def _made(self, file: str, offset: int, length: int, sha256: str) -> bytes:
        encoded = read_encoded(self.raw / file, offset, length)
        if hashlib.sha256(encoded).hexdigest() != sha256:
            raise ValueError("other bytes than the manifest's")
        return encode_jpeg(decode(encoded, SIDE_PX), SIDE_PX)


def _first_rows(manifest: Path) -> dict[str, dict[str, str]]:
    """The first training row in use of each class; nothing where there is no manifest."""
    rows: dict[str, dict[str, str]] = {}
    try:
        with manifest.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["split"] == "train" and row["use"] == "True":
                    rows.setdefault(row["class_name"], row)
    except (OSError, ValueError, KeyError, csv.Error):
        return {}
    return rows
