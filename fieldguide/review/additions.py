"""New photographs: what the model answered, and the ones that a person names copied into folders of classes.

Below the folder lie `<CLASS>/<name>-<hash>.<suffix>`, as `download` reads them (`data.dataset=folder`), and `.review.jsonl`, a
line per decision. Download leaves hidden files out.
"""

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fieldguide.core.corrections import SHA256, Correction
from fieldguide.core.errors import UserError
from fieldguide.core.files import write_bytes
from fieldguide.review.items import Item, ManifestImage, NotStored, Suggestion, Suspicion, check_version
from fieldguide.review.labels import Images, today
from fieldguide.sources.layout import class_key, class_name, is_split, is_system, is_unlabelled, splits_among
from fieldguide.sources.members import READ_ERRORS, is_writable
from fieldguide.web.model import file_stamp

JOURNAL = ".review.jsonl"
DECISIONS = ("relabel", "drop")  # `relabel` gives a photograph its class
WITHDRAWN = "withdrawn"
NAME_BYTES, STEM_LETTERS = 255, 50  # the limit of file systems; of a file's name before its hash
FORBIDDEN = re.compile(r'[<>:"/\\|?*\s]+')  # in names of files; Windows' list and spaces


@dataclass(frozen=True)
class NewPhotograph:
    """A photograph that is not in the data set, with the model's answers, best first."""

    name: str
    read: Callable[[], bytes]
    sha256: str
    verdict: str  # sure, unsure or unknown
    suggestions: tuple[Suggestion, ...]


def item_of_photograph(photograph: NewPhotograph) -> Item:
    suspicion = Suspicion(photograph.verdict, "", photograph.suggestions[0].probability)
    return Item(photograph.sha256, photograph.name, "", "", (suspicion,), photograph.suggestions)


class AdditionDesk:
    """Offers new photographs; its decisions are the journal and the copies in `into`. Never touches the photographs."""

    is_of_labels = False

    def __init__(
        self, photographs: list[NewPhotograph], class_names: tuple[str, ...], into: Path, by: str, images: Images | None = None
    ) -> None:
        """images: of the project, for examples. Raises `UserError` for a folder of splits or a spoilt journal."""
        self.by, self.into, self.images = by, into, images
        self.after = f"look through {into}, then move its folders to your photographs and run: dvc repro"
        self.class_names = tuple(sorted(class_names))
        self.photographs = {each.sha256: each for each in photographs}
        self.items: Mapping[str, Item] = {each.sha256: item_of_photograph(each) for each in photographs}
        if splits := splits_among(self._folders()):
            first = sorted(splits)[0]
            raise UserError(f"--into {into}: contains the split {first}, not folders of classes; use --into {into / first}")
        self.reading = threading.Lock()
        self.stamp: tuple[int, int, int] | None = (0, 0, 0)
        self.known: dict[str, Correction] = {}
        with self._changing() as (known, _):
            for sha256 in self.items.keys() - known.keys():
                self._remove_copies(sha256)  # of a withdrawal that was interrupted

    def decisions(self) -> Mapping[str, Correction]:
        with self.reading:
            stamp = file_stamp(self.into / JOURNAL)
            if stamp != self.stamp:
                self.known = read_journal(self.into / JOURNAL)
                self.stamp = stamp
            return self.known

    def decide(self, sha256: str, decision: str, class_name: str, version: str) -> None:
        """The copy is written before the journal, so that a decision in the journal has its copy."""
        photograph = self.photographs[sha256]
        if decision not in DECISIONS:
            raise NotStored(f"{decision!r} is not a decision about a new photograph; name its class, or drop it.")
        target = self._target(photograph, class_name) if decision == "relabel" else None
        content = _content(photograph) if target else b""
        with self._changing() as (known, journal):
            check_version(version, known.get(sha256))
            if target:
                write_bytes(target, content)
            self._remove_copies(sha256, known.get(sha256), target)
            file = target.relative_to(self.into).as_posix() if target else photograph.name
            label = class_name if target else ""
            _append(journal, Correction(sha256, file, decision, label, f"answer: {photograph.verdict}", self.by, today()))

    def withdraw(self, sha256: str, version: str) -> None:
        """The journal is written before the copy is removed; what is left of an interruption goes at the next start."""
        photograph = self.photographs[sha256]
        with self._changing() as (known, journal):
            check_version(version, known.get(sha256))
            _append(journal, Correction(sha256, photograph.name, WITHDRAWN, "", "", self.by, today()))
            self._remove_copies(sha256, known.get(sha256))

    def encoded(self, sha256: str) -> bytes:
        if photograph := self.photographs.get(sha256):
            return photograph.read()
        if self.images is None:
            raise KeyError(sha256)
        return self.images.encoded(sha256)

    def examples(self, class_name: str, item: Item) -> list[ManifestImage]:
        return self.images.examples(class_name, "", {item.sha256}) if self.images else []

    @contextmanager
    def _changing(self) -> Iterator[tuple[dict[str, Correction], IO[bytes]]]:
        """The decisions on disk and the journal to append to; no other process changes them meanwhile."""
        target = self.into / JOURNAL
        try:
            self.into.mkdir(parents=True, exist_ok=True)
            with target.open("ab+") as journal:
                fcntl.flock(journal, fcntl.LOCK_EX)
                _cut_torn_line(journal)
                yield read_journal(target), journal
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{target}: could not be written ({reason}); free disk space or fix the permissions") from error

    def _folders(self) -> list[str]:
        return [path.name for path in self.into.iterdir() if path.is_dir()] if self.into.is_dir() else []

    def _target(self, photograph: NewPhotograph, class_name: str) -> Path:
        """The path of the copy; raises `NotStored` for an unknown class and for one whose name no folder can have."""
        if class_name not in self.class_names:
            raise NotStored(f"There is no class {class_name!r}; choose one of the list.")
        if not is_class_folder(class_name):
            raise NotStored(f"The class {class_name!r} cannot be the name of a folder; rename it in your data.")
        key = class_key(class_name)
        folder = next((name for name in sorted(self._folders()) if class_key(name) == key), class_name)
        return self.into / folder / copy_name(photograph)

    def _remove_copies(self, sha256: str, former: Correction | None = None, but: Path | None = None) -> None:
        """Removes the copies of a photograph that are still as this page wrote them, except one; `former` may name another."""
        name = copy_name(self.photographs[sha256])
        paths = {self.into / folder / name for folder in self._folders()}
        if former and former.label and ".." not in (file := PurePosixPath(former.file)).parts and not file.is_absolute():
            paths.add(self.into / file)
        for path in paths - {but}:
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                path.unlink()


def _content(photograph: NewPhotograph) -> bytes:
    """The bytes that the model saw; raises `NotStored`."""
    try:
        content = photograph.read()
    except READ_ERRORS as error:
        raise NotStored(f"The photograph cannot be read any more ({error}); start fieldguide review again.") from error
    if hashlib.sha256(content).hexdigest() != photograph.sha256:
        raise NotStored("The file has changed since the model saw it; start fieldguide review again.")
    return content


def copy_name(photograph: NewPhotograph) -> str:
    """`IMG_1-0123456789ab.jpg`: the same for the same photograph, and for no other."""
    original = PurePosixPath(photograph.name.replace("\\", "/")).name
    printable = "".join(letter if is_writable(letter) else "_" for letter in original)
    path = PurePosixPath(FORBIDDEN.sub("_", printable).strip("._") or "photograph")
    suffix = path.suffix if len(path.suffix) <= 8 else ""
    return f"{path.name.removesuffix(suffix)[:STEM_LETTERS]}-{photograph.sha256[:12]}{suffix}"


def is_class_folder(name: str) -> bool:
    """Whether `download` reads a folder of this name as the class of this name."""
    return (
        name == class_name(name)
        and PurePosixPath(name).parts == (name,)
        and is_writable(name)
        and len(name.encode()) <= NAME_BYTES
        and not (is_system(name) or is_split(name) or is_unlabelled(name))
    )


def read_journal(source: Path) -> dict[str, Correction]:
    """The decisions by SHA-256, the last one last; none without a file. A line that was not finished counts as not written.

    Raises `UserError`, which names the line.
    """
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; restore the file or fix its permissions") from error
    known: dict[str, Correction] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            decision = Correction(**json.loads(line))
            if not SHA256.fullmatch(decision.sha256) or decision.decision not in (*DECISIONS, WITHDRAWN):
                raise ValueError(f"decision {decision.decision!r} about {decision.sha256!r}")
        except (TypeError, ValueError) as error:
            raise UserError(f"{source}, line {number}: not a decision ({error}); correct or remove the line") from error
        known.pop(decision.sha256, None)
        if decision.decision != WITHDRAWN:
            known[decision.sha256] = decision
    return known


def _append(journal: IO[bytes], decision: Correction) -> None:
    """Adds a line, which is on disk on return."""
    journal.write(json.dumps(decision._asdict(), ensure_ascii=False).encode() + b"\n")
    journal.flush()
    os.fsync(journal.fileno())


def _cut_torn_line(journal: IO[bytes]) -> None:
    """Removes a last line without an end, which an interruption left."""
    journal.seek(0)
    content = journal.read()
    if torn := content.rpartition(b"\n")[2]:
        journal.truncate(len(content) - len(torn))
