"""A project with suspected labels, made in a moment, and `fieldguide review` in a process of its own."""

import contextlib
import csv
import hashlib
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from support import ROOT
from support.app_server import Served

NAMES = ("BLUE_MORPHO", "MONARCH", 'RED <ADMIRAL> & "CO" ' + 60 * "X")  # the last one is markup, and too long for a phone
PER_CLASS = {"train": 4, "valid": 2, "test": 2}
PLACES = (
    "split",
    "label",
    "class_name",
    "id",
    "file",
    "offset",
    "length",
    "width",
    "height",
    "sha256",
    "phash",
    "use",
    "reason",
)
ERRORS = ("file", "split", "given", "suggested", "kind", "score", "verdict", "other", "sha256")
PAIRS = (
    *("distance", "similarity", "verdict", "one_split", "one_class_name", "one_id"),
    *("other_split", "other_class_name", "other_id"),
)
FINDINGS = ("kind", "split", "class_name", "id", "detail", "action")
SUSPECTS = {  # id: kind, suggested, score, other; the most certain first
    "train/0/0.jpg": ("label", NAMES[1], 0.97, ""),
    "valid/1/0.jpg": ("label", NAMES[2], 0.9, ""),
    "test/2/0.jpg": ("label", NAMES[0], 0.6, ""),
    "train/1/1.jpg": ("atypical", "", 0.5, ""),
    "train/2/2.jpg": ("duplicate", "", 0.4, "test/2/1.jpg"),
}
CONFLICT = ("train/0/3.jpg", "train/1/3.jpg")


def write_rows(target: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def write_reviewed(project: Path, make_jpeg: Callable[..., bytes]) -> dict[str, str]:
    """A project as the pipeline leaves it, with `SUSPECTS` and a label conflict; returns SHA-256 by id."""
    hashes: dict[str, str] = {}
    classes: dict[str, str] = {}
    rows: list[tuple[object, ...]] = []
    raw = project / "data" / "raw"
    raw.mkdir(parents=True)
    with (raw / "images.zip").open("wb") as stream:
        stream.write(b"PK..")
        for label, name in enumerate(NAMES):
            for split, n in PER_CLASS.items():
                for number in range(n):
                    content, place = make_jpeg(len(rows), 48, 40), stream.tell()
                    stream.write(content)
                    one = f"{split}/{label}/{number}.jpg"
                    hashes[one], classes[one] = hashlib.sha256(content).hexdigest(), name
                    rows.append((split, label, name, one, "images.zip", place, len(content), 48, 40, hashes[one], "", True, ""))
    write_rows(project / "data" / "manifest.csv", PLACES, rows)
    errors = [
        (one, one.partition("/")[0], classes[one], suggested, kind, score, "", other, hashes[one])
        for one, (kind, suggested, score, other) in SUSPECTS.items()
    ]
    write_rows(project / "metrics" / "label_errors.csv", ERRORS, errors)
    sides = [part for one in CONFLICT for part in (one.partition("/")[0], classes[one], one)]
    write_rows(project / "metrics" / "near_duplicates.csv", PAIRS, [(2, 0.95, "same", *sides)])
    found = [("label conflict", "train", classes[one], one, "also under something", "kept") for one in CONFLICT]
    write_rows(project / "metrics" / "findings.csv", FINDINGS, found)
    return hashes


def field(page: str, name: str, form: str = "/decide") -> str:
    """The value of a hidden field in the first form with this action."""
    inside = page.partition(f'action="{form}"')[2]
    return re.search(rf'name="{name}" value="([^"]*)"', inside)[1]


class Reviewing(Served):
    """`python -m fieldguide review` in a folder; `port` is where it listens."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "fieldguide", "review", "--port", "0", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        self.process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout
        self.said: list[str] = []
        while not (found := re.match(r"-> http://\S+:(\d+)/", self.said[-1] if self.said else "")):
            line = self.process.stdout.readline().decode()
            assert line, (self.said, self.process.communicate())
            self.said.append(line)
        self.port = int(found[1])

    def page(self, path: str = "/") -> str:
        return self.ask("GET", path)[2].decode()

    def decide(self, page: str, choice: str) -> int:
        """Sends the first form of a page as a browser does; returns the status."""
        fields = {name: field(page, name) for name in ("token", "sha256", "version")} | {"choice": choice}
        body = urllib.parse.urlencode(fields).encode()
        return self.ask("POST", "/decide", body, Content_Type="application/x-www-form-urlencoded")[0]


@contextlib.contextmanager
def reviewing(folder: Path, *options: str) -> Iterator[Reviewing]:
    """A review for the block, which must write no traceback; it may be dead at the end."""
    running = Reviewing(folder, *options)
    try:
        yield running
    finally:
        running.process.kill()
        _, errors = running.process.communicate()
    assert b"Traceback" not in errors
