"""A training photograph of each class, where the manifest and the raw data are at hand; absent otherwise."""

import csv
import hashlib
from functools import lru_cache
from pathlib import Path

from fieldguide.images import UnreadableImage, decode, encode_jpeg, read_encoded

SIDE_PX = 256


class Examples:
    """The first training image in use of each class, read and made small when it is first asked for, then kept."""

    def __init__(self, manifest: Path, raw: Path) -> None:
        self.raw = raw
        self.rows: dict[str, dict[str, str]] = {}  # class name: row
        try:
            with manifest.open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    if row["split"] == "train" and row["use"] == "True":
                        self.rows.setdefault(row["class_name"], row)
        except (OSError, ValueError, KeyError, csv.Error):
            self.rows = {}
        self.jpeg = lru_cache(maxsize=2048)(self._jpeg)

    def __contains__(self, class_name: str) -> bool:
        return class_name in self.rows and (self.raw / self.rows[class_name]["file"]).is_file()

    def _jpeg(self, class_name: str) -> bytes | None:
        """The centre square of the class's example, JPEG; None where there is none or its bytes are not the manifest's."""
        try:
            row = self.rows[class_name]
            encoded = read_encoded(self.raw / row["file"], int(row["offset"]), int(row["length"]))
            if hashlib.sha256(encoded).hexdigest() != row["sha256"]:
                return None
            return encode_jpeg(decode(encoded, SIDE_PX), SIDE_PX)
        except (KeyError, OSError, ValueError, UnreadableImage):
            return None
