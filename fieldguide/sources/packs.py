"""Photographs in data/raw as uncompressed zips: one images.zip, or, of a large data set, packs of about a gigabyte.

A pack is named by its content and ends after a photograph whose id says so, whatever stands before it. So an added photograph
changes one pack, and only that is written, hashed, cached and pushed again. What went into a pack is remembered
(`.fieldguide/packs.json`), so that the photographs of the others are not even read.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from fieldguide.core import images
from fieldguide.core.artifacts import RawFile
from fieldguide.core.caches import cache_key
from fieldguide.core.errors import UserError
from fieldguide.core.files import check_free_space, file_hash, read_json, write_json
from fieldguide.core.paths import IMAGES_ZIP, RAW, packs_state
from fieldguide.core.threads import map_ahead
from fieldguide.sources.archive import pack

PACK_BYTES = 1 << 30  # mean size of a pack, bytes of the source
ONE_FILE_BYTES = 2 * PACK_BYTES  # up to which a data set stays one file
DECODERS = ("numpy", "pillow", "pillow-heif")
AHEAD = 4  # photographs in memory for each thread


Contents = Callable[[Sequence["Photograph"]], Iterator[tuple[str, bytes]]]
"""Id and stored content of each photograph."""


class Photograph(NamedTuple):
    """A photograph of the source; `stamp` changes whenever its content does, "" if nothing is known that does."""

    id: str
    n_bytes: int
    stamp: str
    read: Callable[[], bytes]


def write_photographs(photographs: Sequence[Photograph], max_side_px: int, n_workers: int) -> dict[Path, RawFile]:
    """Writes images.zip or, of a large data set, the packs that are not there yet, each atomically; returns all in order.

    max_side_px: photographs with a larger side are stored as JPEG with this one; 0 = none.
    """
    with tqdm(total=len(photographs), unit="image", disable=None) as bar, ThreadPoolExecutor(n_workers) as pool:

        def contents(of: Sequence[Photograph]) -> Iterator[tuple[str, bytes]]:
            for photograph, content in zip(of, _read_ahead(of, max_side_px, pool, n_workers), strict=True):
                yield photograph.id, content
                bar.update()

        if sum(photograph.n_bytes for photograph in photographs) > ONE_FILE_BYTES:
            return _write_packs(photographs, max_side_px, contents, bar)
        _check_space([photographs], max_side_px)
        pack(contents(photographs), IMAGES_ZIP)
        return {IMAGES_ZIP: raw_file(IMAGES_ZIP)}


def _write_packs(
    photographs: Sequence[Photograph], max_side_px: int, contents: Contents, bar: "tqdm[Any]"
) -> dict[Path, RawFile]:
    before, packs = _read_state(), list(cut(photographs))
    keys = [_key(each, max_side_px) for each in packs]
    still_there = [_still_there(before.get(key)) for key in keys]
    _check_space([each for each, there in zip(packs, still_there, strict=True) if not there], max_side_px)
    files: dict[Path, RawFile] = {}
    state: dict[str, Any] = {}
    for each, key, there in zip(packs, keys, still_there, strict=True):
        if there:
            bar.update(len(each))
        path, file = there or _write_pack(contents(each))
        files[path] = file
        if key:
            state[key] = {"name": path.name, "mtime_ns": path.stat().st_mtime_ns} | file.as_dict()
            write_json(packs_state(), before | state)  # from which the next attempt goes on
    write_json(packs_state(), state)
    return files


def _check_space(packs: Iterable[Sequence[Photograph]], max_side_px: int) -> None:
    """Raises `UserError` if the photographs do not fit as they are; how much reduced ones need is not known before."""
    if not max_side_px:
        check_free_space(RAW, sum(photograph.n_bytes for each in packs for photograph in each))


def cut(photographs: Sequence[Photograph]) -> Iterator[list[Photograph]]:
    """The photographs in their order, in packs of `PACK_BYTES` on average."""
    one: list[Photograph] = []
    for photograph in photographs:
        one.append(photograph)
        number = int.from_bytes(hashlib.sha256(photograph.id.encode()).digest()[:8])
        if number < photograph.n_bytes / PACK_BYTES * 2**64:
            yield one
            one = []
    if one:
        yield one


def raw_file(path: Path) -> RawFile:
    return RawFile(bytes=path.stat().st_size, sha256=file_hash(path))


def _write_pack(members: Iterator[tuple[str, bytes]]) -> tuple[Path, RawFile]:
    unnamed = RAW / "images-unnamed.zip"
    pack(members, unnamed)
    file = raw_file(unnamed)
    path = RAW / f"images-{file.sha256[:16]}.zip"
    return unnamed.replace(path), file


def _read_ahead(
    photographs: Sequence[Photograph], max_side_px: int, pool: ThreadPoolExecutor, n_workers: int
) -> Iterator[bytes]:
    """What is stored of each photograph, in their order."""
    if not max_side_px:
        for photograph in photographs:
            yield photograph.read()
        return
    yield from map_ahead(pool, lambda one: images.bounded(one.read(), max_side_px), photographs, AHEAD * n_workers)


def _key(photographs: Sequence[Photograph], max_side_px: int) -> str:
    """A hash of all on which a pack depends; "" if the content of a photograph is not known without reading it."""
    if not all(photograph.stamp for photograph in photographs):
        return ""
    facts = [max_side_px, *((one.id, one.n_bytes, one.stamp) for one in photographs)]
    if max_side_px:
        return cache_key(facts, Path(images.__file__), DECODERS)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read_state() -> dict[str, Any]:
    """The packs that were written before by their key; none if the file is damaged."""
    with suppress(UserError):
        state = read_json(packs_state())
        if isinstance(state, dict):
            return state
    return {}


def _still_there(entry: Any) -> tuple[Path, RawFile] | None:
    """The pack of an entry of the state, unless the file is missing or was changed."""
    with suppress(OSError, LookupError, TypeError, ValueError):
        path, file = RAW / entry["name"], RawFile(bytes=entry["bytes"], sha256=entry["sha256"])
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (file.bytes, entry["mtime_ns"]):
            return path, file
    return None
