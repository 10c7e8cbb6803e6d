"""Predictions that survive an interruption: what is done is kept beside the output file until that is complete."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from fieldguide.commands.predict_output import Outcomes, Photo
from fieldguide.core.errors import UserError
from fieldguide.core.files import atomic_path
from fieldguide.onnx.classifier import Answer, Prediction, TaxonAnswer


class Done:
    """The predictions of earlier runs by the photographs' places, and a file to which each new one is added.

    A photograph counts as done if it has its name, size and time of then, and could be read.
    """

    def __init__(self, stream: IO[bytes], photos: Sequence[Photo]) -> None:
        self.stream, self.photos = stream, photos
        self.offsets: dict[int, int] = {}
        stream.seek(0)
        end = 0
        for line in stream:
            try:
                place, identity, _ = json.loads(line)
            except ValueError:  # broken off
                break
            if place < len(photos) and identity == _identity(photos[place]):
                self.offsets[place] = end
            end += len(line)
        stream.truncate(end)
        self.left = [photo for place, photo in enumerate(photos) if place not in self.offsets]

    def joined(self, outcomes: Outcomes) -> Outcomes:
        """All photographs in their order with their outcomes: `outcomes` are those of `left`, in their order."""
        for place, photo in enumerate(self.photos):
            if place in self.offsets:
                yield photo, self._read(place)
            else:
                photo, outcome = next(outcomes)
                if isinstance(outcome, Prediction):
                    self._add(place, photo, outcome)
                yield photo, outcome

    def _read(self, place: int) -> Prediction:
        end = self.stream.seek(0, os.SEEK_END)
        self.stream.seek(self.offsets[place])
        found: dict[str, Any] = json.loads(self.stream.readline())[2]
        self.stream.seek(end)
        taxon = TaxonAnswer(**found["taxon"]) if found["taxon"] else None
        return Prediction(tuple(Answer(**one) for one in found["answers"]), found["verdict"], found["known_score"], None, taxon)

    def _add(self, place: int, photo: Photo, prediction: Prediction) -> None:
        content = {
            "answers": [asdict(one) for one in prediction.answers],
            "verdict": prediction.verdict,
            "known_score": prediction.known_score,
            "taxon": prediction.taxon and asdict(prediction.taxon),
        }
        self.stream.write(json.dumps([place, _identity(photo), content]).encode() + b"\n")
        self.stream.flush()


def _identity(photo: Photo) -> list[object]:
    try:
        status = photo.file.stat() if photo.file else None
    except OSError:
        status = None
    return [photo.name, *((status.st_size, status.st_mtime_ns) if status else ())]


@contextmanager
def output_file(target: Path, key: Iterable[object], photos: Sequence[Photo], resume: bool) -> Iterator[tuple[IO[str], Done]]:
    """A stream that becomes `target` when the block ends without an error, and what is done of the photographs.

    key: all that predictions depend on but the photographs. What is done lies beside `target` under a name with its hash, until
    `target` is complete; without `resume` it is begun anew. Raises `UserError` if another run is writing there.
    """
    target = Path(os.path.realpath(target))  # what a link names, not the link
    digest = hashlib.sha256(repr(tuple(key)).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    state = target.with_name(f".{target.name[:100]}.{digest}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = state.open("a+b")
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; use another path for --output") from error
    with stream:
        if not _locked(stream):
            raise UserError(f"{target}: another run is writing it; wait for its end or use another path for --output")
        if not resume:
            stream.truncate(0)
        done = Done(stream, photos)
        with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as written:
            yield written, done
        state.unlink()
    _remove_unfinished(target)


def _locked(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unfinished(target: Path) -> None:
    """Removes what interrupted runs with other options or another model left for the same file; not that of a running one."""
    name = re.compile(re.escape(f".{target.name[:100]}.") + r"[0-9a-f]{12}\.partial")
    for file in target.parent.iterdir():
        if name.fullmatch(file.name):
            with file.open("rb") as stream:
                if _locked(stream):
                    file.unlink()
