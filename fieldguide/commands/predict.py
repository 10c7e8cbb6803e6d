"""`fieldguide predict`: photographs to a table of predictions.

Each thread reads, decodes and classifies its own batches with a single-threaded session, so that decoding and inference share
the cores. Each holds one batch in memory.
"""

import os
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from fieldguide.commands.predict_output import Outcome, Outcomes, Photo, in_words, write_outcomes
from fieldguide.commands.predict_resume import output_file
from fieldguide.commands.predict_sidecars import summary as sidecars_summary
from fieldguide.commands.predict_sidecars import with_sidecars
from fieldguide.core.errors import UserError, write_utf8
from fieldguide.core.files import file_hash, write_bytes
from fieldguide.core.formats import HEAD_BYTES, counted, kind_of, readable
from fieldguide.core.images import TooManyPixels, UnreadableImage, add_caption, decode, encode_jpeg, inspect
from fieldguide.core.machine import n_cores
from fieldguide.onnx.classifier import OnnxClassifier, Prediction
from fieldguide.onnx.heatmap import overlay
from fieldguide.sources.layout import class_key
from fieldguide.sources.members import (
    READ_ERRORS,
    UNPACK,
    UNREADABLE,
    Bound,
    LeftOut,
    Member,
    is_archive,
    open_members,
    printable,
)

BATCH = 16  # images; small enough to keep several threads busy, large enough for full speed
MAX_BYTES = 500_000_000  # of one encoded photograph
MAX_UNPACKED = 50_000_000_000  # bytes of archives that are unpacked to temporary files
ANNOTATED_PX = 800  # larger side of an annotated photograph
PROGRESS_S = 0.2
SOME_FAILED = 3  # exit status; 1 is an error, 2 an invalid command line


def predict(args: Namespace) -> int:
    """Runs the command; returns its exit status."""
    _check_options(args)
    if args.format != "table":
        write_utf8()
    n_threads = args.threads or n_cores()
    with ExitStack() as stack:
        left_out: list[LeftOut] = []
        photos = [photo for source in args.sources for photo in photos_in(source, stack, left_out)]
        if not photos:
            kinds = counted(file.kind for file in left_out)
            found = f"contains {kinds}, but no" if kinds else "contains no"
            raise UserError(f"{' '.join(args.sources)}: {found} photograph that is read ({readable()})")
        _check_files(args, photos)
        classifier = OnnxClassifier(args.model, 1 if len(photos) > BATCH else n_threads)
        if args.heatmap and not classifier.has_activation:
            raise UserError(f"{args.model}: {classifier.metadata['model']} has no activation maps; remove --heatmap")
        known = {class_key(name): name for name in classifier.class_names}
        photos = [replace(photo, truth=_truth(photo.folders, known)) for photo in photos]
        counts, top = Counter[str](), min(args.top, len(known))
        width = min(max(len(printable(photo.name)) for photo in photos), 60)
        stream: IO[str] = sys.stdout
        left, done = photos, None
        if args.output:
            stream, done = stack.enter_context(output_file(args.output, _key(args), photos, args.resume))
            left = done.left
            if len(left) < len(photos):
                print(f"resuming after {len(photos) - len(left)} of {len(photos)} photographs", file=sys.stderr)
        n_workers = n_threads if len(left) > BATCH else 1
        outcomes: Outcomes = zip(left, outcomes_of(classifier, left, n_workers, args), strict=True)
        outcomes = counted_outcomes(photos, done.joined(outcomes) if done else outcomes, counts)
        if args.xmp:
            outcomes = with_sidecars(outcomes, classifier.taxonomy, counts)
        write_outcomes(outcomes, args.format, stream, classifier, top, width)
    if n_known := counts["known"]:
        print(f"{counts['right']} of {n_known} match their folder's name ({counts['right'] / n_known:.1%})", file=sys.stderr)
    if args.xmp:
        print(f"XMP sidecars: {sidecars_summary(counts)}", file=sys.stderr)
    if args.output:
        print(f"-> {args.output}", file=sys.stderr)
    if counts["failed"]:
        print(f"{counts['failed']} of {len(photos)} photographs could not be read", file=sys.stderr)
    if left_out:
        print(f"left out: {counted(file.kind for file in left_out)}", file=sys.stderr)
    missed = any(file.kind.is_photograph or file.kind == UNREADABLE for file in left_out)  # the latter may be one
    return SOME_FAILED if counts["failed"] or counts["not written"] or missed else 0


def _check_options(args: Namespace) -> None:
    """Ends the command with its usage if options do not go together."""
    if args.heatmap and not args.annotate:
        args.parser.error("--heatmap needs --annotate DIR")
    if args.resume and not args.output:
        args.parser.error("--resume needs --output FILE")
    if args.resume and "-" in args.sources:
        args.parser.error("--resume needs files or folders: standard input cannot be told from another one")


def _check_files(args: Namespace, photos: list[Photo]) -> None:
    """Raises `UserError` if something that is written would take the place of a photograph, a source or the model."""
    if args.annotate:
        _check_annotated(photos, args.annotate)
    if args.xmp and (packed := next((photo.name for photo in photos if photo.file is None), None)):
        raise UserError(f"--xmp: {packed} is not a file by itself; save it in a folder")
    if args.output:
        target = Path(os.path.realpath(args.output))
        if target.exists() and not target.is_file():
            raise UserError(f"--output {args.output}: a {'folder' if target.is_dir() else 'device or pipe'}; name a file")
        inputs = (args.model, *args.sources, *(photo.file for photo in photos if photo.file))
        if target in {Path(os.path.realpath(path)) for path in inputs}:
            raise UserError(f"--output {args.output}: would be overwritten, and is read; use another path")
    if args.format == "timelapse" and any(os.path.isabs(photo.name) for photo in photos):
        text = "in the folder that you open in Timelapse: fieldguide predict . --format timelapse --output predictions.json"
        print(f"note: Timelapse wants names relative to its folder, but these are absolute; run it {text}", file=sys.stderr)


def _key(args: Namespace) -> tuple[object, ...]:
    """All that predictions and annotated photographs depend on but the photographs that are files of their own."""
    sources = [(os.path.realpath(source), _stamp(source)) for source in args.sources]
    annotated = args.annotate and os.path.realpath(args.annotate)
    return file_hash(args.model), args.top, args.max_megapixels, annotated, args.heatmap, sources


def _stamp(source: str) -> tuple[int, int] | None:
    """Size and time of an archive or photograph; None of a folder, whose files are looked at one by one."""
    if not os.path.isfile(source):
        return None
    status = os.stat(source)
    return status.st_size, status.st_mtime_ns


def _truth(folders: tuple[str, ...], known: dict[str, str]) -> str:
    """The class that the folders of a photograph name, the innermost first, alone or joined (`genus species`), or ""."""
    for last in range(len(folders), 0, -1):
        for first in range(last - 1, -1, -1):
            if name := known.get(class_key(" ".join(folders[first:last]))):
                return name
    return ""


def outcomes_of(classifier: OnnxClassifier, photos: list[Photo], n_workers: int, args: Namespace) -> Iterator[Outcome]:
    """The outcomes of all photographs, in their order."""

    def load(photo: Photo) -> tuple[bytes, np.ndarray] | str:
        try:
            content = photo.read()
            return content if args.annotate else b"", decode(content, classifier.image_px, args.max_megapixels * 1_000_000)
        except TooManyPixels as error:
            return f"{error}; raise --max-megapixels"
        except (UnreadableImage, *READ_ERRORS) as error:
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


def counted_outcomes(photos: list[Photo], outcomes: Outcomes, counts: Counter[str]) -> Outcomes:
    """The outcomes of `photos`; counts failed, known and right ones, and prints errors and progress to standard error."""
    began = last = time.monotonic()
    shows_progress, n_photos = sys.stderr.isatty() and not sys.stdout.isatty(), len(photos)
    for number, (photo, outcome) in enumerate(outcomes, 1):
        if isinstance(outcome, str):
            counts["failed"] += 1
            print(f"{printable(photo.name)}: {outcome}", file=sys.stderr)
        elif photo.truth:
            counts["known"] += 1
            counts["right"] += outcome.answers[0].name == photo.truth
        yield photo, outcome
        now = time.monotonic()
        if shows_progress and (now - last > PROGRESS_S or (number == n_photos and last > began)):
            last = now
            end = "\n" if number == n_photos else ""
            print(f"\r{number}/{n_photos} photographs, {number / (now - began):.0f}/s ", end=end, file=sys.stderr, flush=True)


def photos_in(source: str, stack: ExitStack, left_out: list[LeftOut]) -> Iterator[Photo]:
    """The photographs of one argument; adds what is not read to `left_out`. `stack` closes archives."""
    path = Path(source)
    if source == "-":
        file = Bound(MAX_UNPACKED, UNPACK).unpack(sys.stdin.buffer, "standard input", stack)  # may be larger than the memory
        n_bytes, head = file.tell(), os.pread(file.fileno(), HEAD_BYTES, 0)
        if is_archive(head):
            yield from _inside(file, "-", (), stack, left_out)
        else:
            yield Photo("-", (), lambda: _read(n_bytes, lambda: os.pread(file.fileno(), n_bytes, 0)))
    elif os.path.isdir(source):
        yield from _inside(path, path.as_posix(), path.absolute().parts[-1:], stack, left_out)
    elif os.path.exists(source) and not os.path.isfile(source):  # a pipe can be read only once, a device without end
        raise UserError(f"{source} is not an ordinary file; use a file, a folder, or - for standard input")
    elif is_archive(head := _head(path)) or (path.suffix.lower() == ".zip" and not kind_of(head).is_photograph):
        yield from _inside(path, source, (), stack, left_out)
    else:
        yield Photo(path.as_posix(), path.absolute().parts[-2:-1], lambda: _bytes(path), file=path)


def _inside(
    source: Path | IO[bytes], name: str, above: tuple[str, ...], stack: ExitStack, left_out: list[LeftOut]
) -> Iterator[Photo]:
    """The photographs of a folder, which lies in the folders `above`, or of an archive."""
    bound = Bound(MAX_UNPACKED, f"more than {MAX_UNPACKED / 1e9:g} GB; {UNPACK}")
    members = open_members(source, name, bound, stack)
    left_out += members.left_out
    for member in members.selected:
        folders = (*above, *PurePosixPath(member.name).parts[:-1])
        file = source / member.name if isinstance(source, Path) and source.is_dir() else None
        file = file if file and file.is_file() else None  # or a member of an archive in the folder
        full_name = member.name if name == "." else f"{name}/{member.name}"
        yield Photo(full_name, folders, partial(_read_member, member), file=file)


def _head(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, which is reported when it is decoded."""
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""


def _read_member(member: Member) -> bytes:
    return _read(member.n_bytes, member.read)


def _bytes(file: Path) -> bytes:
    content = _read(file.stat().st_size, file.read_bytes)
    kind = kind_of(content[:HEAD_BYTES], file.name)
    if kind.is_left_out:  # as in a folder, also a RAW that has the structure of a TIFF
        raise UnreadableImage(f"{kind.phrase}; {kind.remedy}")
    return content


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
    if prediction.taxon:
        lines.insert(0, in_words(prediction.taxon) + f"  {prediction.taxon.probability:.1%}")
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
