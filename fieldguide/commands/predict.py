"""`fieldguide predict`: photographs to a table of predictions.

Each thread reads, decodes and classifies its own batches with a single-threaded session, so that decoding and inference share
the cores. Only a few batches are in memory at a time.
"""

import csv
import io
import json
import os
import sys
import time
import zipfile
from abc import ABC, abstractmethod
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np

from fieldguide.core.errors import UserError
from fieldguide.core.files import write_bytes
from fieldguide.core.images import UnreadableImage, add_caption, decode, encode_jpeg, inspect
from fieldguide.core.machine import n_cores
from fieldguide.onnx.classifier import OnnxClassifier, Prediction
from fieldguide.onnx.heatmap import overlay
from fieldguide.sources.archive import ZIP_ERRORS
from fieldguide.sources.layout import class_key, is_hidden, is_image

BATCH = 16  # images; small enough to keep several threads busy, large enough for full speed
AHEAD = 2  # queued batches per thread
MAX_BYTES = 500_000_000  # of one encoded photograph
ANNOTATED_PX = 800  # larger side of an annotated photograph
PROGRESS_S = 0.2


@dataclass(frozen=True)
class Photo:
    """A photograph: its name, the class that its folder is named after (or an empty string), and its encoded bytes."""

    name: str
    truth: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Outcome:
    """The prediction or the error of a photograph."""

    photo: Photo
    prediction: Prediction | None
    error: str = ""


def predict(args: Namespace) -> int:
    """Runs the command; returns the number of photographs that could not be read."""
    n_threads = args.threads or n_cores()
    with ExitStack() as stack:
        photos = [photo for source in args.sources for photo in _photos(source, stack)]
        if not photos:
            raise UserError(f"{' '.join(args.sources)}: contains no image (jpg, png, webp, bmp, gif, tiff)")
        many = len(photos) > BATCH
        classifier = OnnxClassifier(args.model, 1 if many else n_threads)
        if args.heatmap and not classifier.has_activation:
            raise UserError(f"{args.model}: {classifier.metadata['model']} has no activation maps; remove --heatmap")
        if args.annotate:
            _check_annotated(photos, args.annotate)
        known = {class_key(name): name for name in classifier.class_names}
        photos = [Photo(photo.name, known.get(class_key(photo.truth), ""), photo.read) for photo in photos]
        writer = WRITERS[args.format](sys.stdout, photos, min(args.top, len(known)))
        return _summary(_outcomes(classifier, photos, n_threads if many else 1, args), writer, len(photos))


def _outcomes(classifier: OnnxClassifier, photos: list[Photo], n_workers: int, args: Namespace) -> Iterator[Outcome]:
    """The outcomes of all photographs, in their order."""

    def work(batch: list[Photo]) -> list[Outcome]:
        outcomes: list[Any] = [None] * len(batch)
        encoded: dict[int, bytes] = {}
        pixels: list[np.ndarray] = []
        for place, photo in enumerate(batch):
            try:
                content = photo.read()
                pixels.append(decode(content, classifier.image_px))
            except (UnreadableImage, *ZIP_ERRORS, RuntimeError) as error:  # RuntimeError: an encrypted member
                outcomes[place] = Outcome(photo, None, " ".join(str(getattr(error, "strerror", None) or error).split()))
                continue
            encoded[place] = content if args.annotate else b""
        predictions = classifier.predict_pixels(np.stack(pixels), args.top, args.heatmap) if pixels else []
        for (place, content), prediction in zip(encoded.items(), predictions, strict=True):
            photo = batch[place]
            outcomes[place] = Outcome(photo, prediction)
            if args.annotate:
                try:
                    annotated = _annotate(content, photo, prediction, args.heatmap)
                except UnreadableImage as error:  # truncated: `decode` accepts it, `inspect` does not
                    outcomes[place] = Outcome(photo, None, str(error))
                    continue
                write_bytes(_annotated_file(args.annotate, photo), annotated)
        return outcomes

    with ThreadPoolExecutor(n_workers) as pool:
        waiting: deque[Future[list[Outcome]]] = deque()
        for start in range(0, len(photos), BATCH):
            waiting.append(pool.submit(work, photos[start : start + BATCH]))
            if len(waiting) > AHEAD * n_workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _summary(outcomes: Iterator[Outcome], writer: "Writer", n_photos: int) -> int:
    """Writes all outcomes, prints errors and progress to standard error; returns the number of errors."""
    n_failed = n_right = n_known = 0
    began = last = time.monotonic()
    shows_progress = sys.stderr.isatty() and not sys.stdout.isatty()
    for number, outcome in enumerate(outcomes, 1):
        if outcome.error:
            n_failed += 1
            print(f"{outcome.photo.name}: {outcome.error}", file=sys.stderr)
        elif outcome.photo.truth and outcome.prediction:
            n_known += 1
            n_right += outcome.prediction.answers[0].name == outcome.photo.truth
        writer.write(outcome)
        if shows_progress and time.monotonic() - last > PROGRESS_S:
            last = time.monotonic()
            print(f"\r{number}/{n_photos} photographs, {number / (last - began):.0f}/s ", end="", file=sys.stderr, flush=True)
    if shows_progress and last > began:
        print(f"\r{n_photos}/{n_photos} photographs, {n_photos / (time.monotonic() - began):.0f}/s ", file=sys.stderr)
    writer.end()
    if n_known:
        print(f"{n_right} of {n_known} match their folder's name ({n_right / n_known:.1%})", file=sys.stderr)
    if n_failed:
        print(f"{n_failed} of {n_photos} photographs could not be read", file=sys.stderr)
    return n_failed


def _photos(source: str, stack: ExitStack) -> Iterator[Photo]:
    """The photographs of one argument; `stack` closes archives."""
    if source == "-":
        content = sys.stdin.buffer.read()
        if content.startswith(b"PK"):
            yield from _zipped("-", io.BytesIO(content), stack)
        else:
            yield Photo("-", "", lambda: content)
        return
    path = Path(source)
    if path.is_dir():
        for parent, folders, files in os.walk(path, onerror=_refuse):
            folders[:] = sorted(each for each in folders if not is_hidden(PurePosixPath(each)))
            for folder in (Path(parent, each) for each in folders):
                if folder.is_symlink():
                    raise UserError(f"{folder}: is a link to a folder, which is not followed; use the folder itself")
            for file in sorted(files):
                inner = Path(parent, file)
                if is_image(inner.relative_to(path).as_posix()):
                    yield Photo(inner.as_posix(), inner.absolute().parent.name, partial(_bytes, inner))
    elif path.suffix.lower() == ".zip":
        yield from _zipped(source, path, stack)
    else:
        yield Photo(path.as_posix(), path.absolute().parent.name, lambda: _bytes(path))


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}); fix the permissions or remove it") from error


def _zipped(source: str, file: Path | io.BytesIO, stack: ExitStack) -> Iterator[Photo]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
    except ZIP_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{source}: not a valid zip ({reason}); download it again") from error
    names: set[str] = set()
    for info in archive.infolist():
        if not info.is_dir() and is_image(info.filename):
            if info.filename in names:
                raise UserError(f"{source}: member {info.filename} occurs twice; create the archive again")
            names.add(info.filename)
            yield Photo(
                f"{source}/{info.filename}",
                PurePosixPath(info.filename).parent.name,
                partial(_read, info.file_size, partial(archive.read, info)),
            )


def _bytes(file: Path) -> bytes:
    return _read(file.stat().st_size, file.read_bytes)


def _read(n_bytes: int, read: Callable[[], bytes]) -> bytes:
    if n_bytes > MAX_BYTES:
        raise UnreadableImage(f"{n_bytes:,} bytes, more than {MAX_BYTES:,}")
    return read()


def _annotate(encoded: bytes, photo: Photo, prediction: Prediction, heatmap: bool) -> bytes:
    """The photograph as a JPEG with a caption and, if requested, its activation map."""
    _, rgb = inspect(encoded, ANNOTATED_PX)
    if heatmap and prediction.activation is not None:
        rgb = overlay(rgb, prediction.activation)
    best = prediction.answers[0]
    lines = [f"{best.name}  {best.probability:.1%}" + ("" if prediction.verdict == "sure" else f"  ({prediction.verdict})")]
    if photo.truth:
        lines.append(f"{'right' if photo.truth == best.name else 'wrong'}: its folder is {photo.truth}")
    return encode_jpeg(add_caption(rgb, lines, ANNOTATED_PX), 2 * ANNOTATED_PX)


def _annotated_file(folder: Path, photo: Photo) -> Path:
    """The path of an annotated photograph, always below `folder`."""
    parts = [part for part in PurePosixPath(photo.name.replace("\\", "/")).parts if part not in ("/", "..")]
    path = folder.joinpath(*(part.replace(":", "_") for part in parts))
    return path if path.suffix.lower() in (".jpg", ".jpeg") else path.with_name(f"{path.name}.jpg")


def _check_annotated(photos: list[Photo], folder: Path) -> None:
    """Raises `UserError` if an annotated photograph would overwrite a photograph or another annotated one."""
    sources = {os.path.realpath(photo.name) for photo in photos}
    targets: dict[str, str] = {}
    for photo in photos:
        target = os.path.realpath(_annotated_file(folder, photo))
        if target in sources:
            raise UserError(f"--annotate {folder}: {photo.name} would be overwritten; use another folder")
        if targets.setdefault(target.casefold(), photo.name) != photo.name:  # some file systems ignore case
            other = targets[target.casefold()]
            raise UserError(f"--annotate {folder}: {other} and {photo.name} would both be {target}; annotate them separately")


class Writer(ABC):
    """Writes outcomes with up to `k` answers as text."""

    def __init__(self, stream: TextIO, photos: Sequence[Photo], k: int) -> None:
        self.stream, self.k = stream, k

    @abstractmethod
    def write(self, outcome: Outcome) -> None: ...

    def end(self) -> None:
        self.stream.flush()


class TableWriter(Writer):
    """A readable table, with a line per answer."""

    def __init__(self, stream: TextIO, photos: Sequence[Photo], k: int) -> None:
        super().__init__(stream, photos, k)
        self.width = min(max(len(photo.name) for photo in photos), 60)

    def write(self, outcome: Outcome) -> None:
        if outcome.prediction is None:
            return
        left = f"{outcome.photo.name:{self.width}}  {outcome.prediction.verdict:7}"
        for answer in outcome.prediction.answers:
            self.stream.write(f"{left}  {answer.probability:6.1%}  {answer.name}\n")
            left = " " * len(left)


class CsvWriter(Writer):
    """A header, then a row per photograph, also for those that could not be read."""

    def __init__(self, stream: TextIO, photos: Sequence[Photo], k: int) -> None:
        super().__init__(stream, photos, k)
        self.rows = csv.writer(stream, lineterminator="\n")
        answers = [f"{what}_{place}" for place in range(1, k + 1) for what in ("answer", "probability")]
        self.rows.writerow(["image", "truth", "verdict", "known_score", *answers, "error"])

    def write(self, outcome: Outcome) -> None:
        record = _record(outcome)
        cells = [cell for answer in record["answers"] for cell in (answer["name"], answer["probability"])]
        cells += [""] * (2 * self.k - len(cells))
        self.rows.writerow(
            [record["image"], record["truth"], record["verdict"], record["known_score"], *cells, record["error"]]
        )


class JsonLinesWriter(Writer):
    """One JSON object per line."""

    def write(self, outcome: Outcome) -> None:
        self.stream.write(json.dumps(_record(outcome), ensure_ascii=False) + "\n")


class JsonWriter(Writer):
    """One JSON array."""

    def __init__(self, stream: TextIO, photos: Sequence[Photo], k: int) -> None:
        super().__init__(stream, photos, k)
        self.separator = "[\n"

    def write(self, outcome: Outcome) -> None:
        self.stream.write(self.separator + json.dumps(_record(outcome), ensure_ascii=False))
        self.separator = ",\n"

    def end(self) -> None:
        self.stream.write("\n]\n")
        super().end()


def _record(outcome: Outcome) -> dict[str, Any]:
    prediction = outcome.prediction
    answers = prediction.answers if prediction else ()
    return {
        "image": outcome.photo.name,
        "truth": outcome.photo.truth or None,
        "verdict": prediction.verdict if prediction else None,
        "known_score": round(prediction.known_score, 6) if prediction else None,
        "answers": [{"name": answer.name, "probability": round(answer.probability, 6)} for answer in answers],
        "error": outcome.error or None,
    }


WRITERS: dict[str, type[Writer]] = {"table": TableWriter, "csv": CsvWriter, "json": JsonWriter, "jsonl": JsonLinesWriter}
