"""`fieldguide predict`: photographs to a table of predictions.

Each thread reads, decodes and classifies its own batches with a single-threaded session, so that decoding and inference share
the cores. Each holds one batch in memory.
"""

import csv
import io
import json
import os
import sys
import time
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fieldguide.core.errors import UserError, write_utf8
from fieldguide.core.files import write_bytes
from fieldguide.core.images import TooManyPixels, UnreadableImage, add_caption, decode, encode_jpeg, inspect
from fieldguide.core.machine import n_cores
from fieldguide.onnx.classifier import OnnxClassifier, Prediction
from fieldguide.onnx.heatmap import overlay
from fieldguide.sources.archive import ZIP_ERRORS
from fieldguide.sources.layout import class_key, is_hidden, is_image

BATCH = 16  # images; small enough to keep several threads busy, large enough for full speed
MAX_BYTES = 500_000_000  # of one encoded photograph
ANNOTATED_PX = 800  # larger side of an annotated photograph
PROGRESS_S = 0.2
SOME_FAILED = 3  # exit status; 1 is an error, 2 an invalid command line


@dataclass(frozen=True)
class Photo:
    """A photograph: its name, the class that its folder is named after (or an empty string), and its encoded bytes."""

    name: str
    truth: str
    read: Callable[[], bytes]


Outcome = Prediction | str  # a prediction, or why there is none
Outcomes = Iterator[tuple[Photo, Outcome]]


def predict(args: Namespace) -> int:
    """Runs the command; returns its exit status."""
    if args.heatmap and not args.annotate:
        args.parser.error("--heatmap needs --annotate DIR")
    if args.format != "table":
        write_utf8()
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
        photos = [replace(photo, truth=known.get(class_key(photo.truth), "")) for photo in photos]
        counts: Counter[str] = Counter()
        outcomes = _counted(photos, _outcomes(classifier, photos, n_threads if many else 1, args), counts)
        if args.format == "table":
            _write_table(outcomes, min(max(len(photo.name) for photo in photos), 60))
        elif args.format == "csv":
            _write_csv(outcomes, min(args.top, len(known)))
        else:
            _write_json(outcomes, *(("[\n", ",\n", "\n]\n") if args.format == "json" else ("", "\n", "\n")))
        sys.stdout.flush()
    if n_known := counts["known"]:
        print(f"{counts['right']} of {n_known} match their folder's name ({counts['right'] / n_known:.1%})", file=sys.stderr)
    if counts["failed"]:
        print(f"{counts['failed']} of {len(photos)} photographs could not be read", file=sys.stderr)
    return SOME_FAILED if counts["failed"] else 0


def _outcomes(classifier: OnnxClassifier, photos: list[Photo], n_workers: int, args: Namespace) -> Iterator[Outcome]:
    """The outcomes of all photographs, in their order."""

    def load(photo: Photo) -> tuple[bytes, np.ndarray] | str:
        try:
            content = photo.read()
            return content if args.annotate else b"", decode(content, classifier.image_px, args.max_megapixels * 1_000_000)
        except TooManyPixels as error:
            return f"{error}; raise --max-megapixels"
        except (UnreadableImage, *ZIP_ERRORS, RuntimeError) as error:  # RuntimeError: an encrypted member
            return " ".join(str(getattr(error, "strerror", None) or error).split())

    def finish(photo: Photo, content: bytes, prediction: Prediction) -> Outcome:
        if args.annotate:
            write_bytes(_annotated_file(args.annotate, photo), _annotate(content, photo, prediction))
        return prediction

    def work(batch: list[Photo]) -> list[Outcome]:
        loaded = [load(photo) for photo in batch]
        pixels = [each[1] for each in loaded if not isinstance(each, str)]
        predictions = iter(classifier.predict_pixels(np.stack(pixels), args.top, args.heatmap) if pixels else [])
        return [
            each if isinstance(each, str) else finish(photo, each[0], next(predictions))
            for photo, each in zip(batch, loaded, strict=True)
        ]

    batches = [photos[start : start + BATCH] for start in range(0, len(photos), BATCH)]
    with ThreadPoolExecutor(n_workers) as pool:
        try:
            for outcomes in pool.map(work, batches):
                yield from outcomes
        finally:
            pool.shutdown(cancel_futures=True)  # the reader of the output may have left


def _counted(photos: list[Photo], outcomes: Iterator[Outcome], counts: Counter[str]) -> Outcomes:
    """Photographs and outcomes; counts failed, known and right ones, and prints errors and progress to standard error."""
    began = last = time.monotonic()
    shows_progress, n_photos = sys.stderr.isatty() and not sys.stdout.isatty(), len(photos)
    for number, (photo, outcome) in enumerate(zip(photos, outcomes, strict=True), 1):
        if isinstance(outcome, str):
            counts["failed"] += 1
            print(f"{photo.name}: {outcome}", file=sys.stderr)
        elif photo.truth:
            counts["known"] += 1
            counts["right"] += outcome.answers[0].name == photo.truth
        yield photo, outcome
        now = time.monotonic()
        if shows_progress and (now - last > PROGRESS_S or (number == n_photos and last > began)):
            last = now
            end = "\n" if number == n_photos else ""
            print(f"\r{number}/{n_photos} photographs, {number / (now - began):.0f}/s ", end=end, file=sys.stderr, flush=True)


def _photos(source: str, stack: ExitStack) -> Iterator[Photo]:
    """The photographs of one argument; `stack` closes archives."""
    path = Path(source)
    if source == "-":
        content = sys.stdin.buffer.read()
        if content.startswith(b"PK"):
            yield from _zipped("-", io.BytesIO(content), stack)
        else:
            yield Photo("-", "", lambda: content)
    elif path.is_dir():
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
    for info in archive.infolist():
        if not info.is_dir() and is_image(info.filename):
            if archive.getinfo(info.filename) is not info:
                raise UserError(f"{source}: member {info.filename} occurs twice; create the archive again")
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


def _annotate(encoded: bytes, photo: Photo, prediction: Prediction) -> bytes:
    """The photograph as a JPEG with a caption and, if requested, its activation map."""
    _, rgb = inspect(encoded, ANNOTATED_PX)
    if prediction.activation is not None:
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


def _write_table(outcomes: Outcomes, width: int) -> None:
    """A readable table, with a line per answer."""
    for photo, outcome in outcomes:
        if not isinstance(outcome, str):
            left = f"{photo.name:{width}}  {outcome.verdict:7}"
            for answer in outcome.answers:
                print(f"{left}  {answer.probability:6.1%}  {answer.name}")
                left = " " * len(left)


def _write_csv(outcomes: Outcomes, k: int) -> None:
    """A header, then a row per photograph, also for those that could not be read."""
    columns = [f"{what}_{place}" for place in range(1, k + 1) for what in ("answer", "probability")]
    header = ["image", "truth", "verdict", "known_score", *columns, "error"]
    rows = csv.DictWriter(sys.stdout, header, lineterminator="\n")
    rows.writeheader()
    for record in starmap(_record, outcomes):
        cells = [cell for answer in record.pop("answers") for cell in answer.values()]
        rows.writerow(record | dict(zip(columns, cells, strict=False)))


def _write_json(outcomes: Outcomes, before: str, between: str, after: str) -> None:
    """A JSON object per line."""
    for record in starmap(_record, outcomes):
        sys.stdout.write(before + json.dumps(record, ensure_ascii=False))
        before = between
    sys.stdout.write(after)


def _record(photo: Photo, outcome: Outcome) -> dict[str, Any]:
    prediction, error = (None, outcome) if isinstance(outcome, str) else (outcome, None)
    answers = prediction.answers if prediction else ()
    return {
        "image": photo.name,
        "truth": photo.truth or None,
        "verdict": prediction and prediction.verdict,
        "known_score": prediction and round(prediction.known_score, 6),
        "answers": [{"name": answer.name, "probability": round(answer.probability, 6)} for answer in answers],
        "error": error,
    }
