"""Images decoded once into a file below `.fieldguide/decoded`, for data sets that do not fit into memory.

The file is named by the content of the images and by what decodes them. It is read through the system's page cache, so that
memory is used as far as it is available. If a process is killed while it writes, the next one resumes from what is written.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fieldguide.core import images
from fieldguide.core.caches import cache_key, remove_oldest
from fieldguide.core.errors import UserError
from fieldguide.core.files import check_free_space, read_json, write_json
from fieldguide.core.paths import decoded_cache
from fieldguide.core.threads import map_ahead
from fieldguide.network.decoder import CHANNELS, Decoder, faults_named

CHUNK_BYTES = 1 << 28  # after which a part is safe on the disk
AHEAD = 4  # batches in memory
LIBRARIES = ("numpy", "pillow", "pillow-heif")


class Decoded:
    """Images in a file of pixels; a `Source`."""

    def __init__(self, rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, device: torch.device) -> None:
        self.device, self.image_px, self.digests = device, image_px, rows["sha256"].to_numpy(dtype="S64")
        path = decoded_file(rows, raw, image_px, n_workers)
        shape = len(rows), image_px, image_px, CHANNELS
        self._pixels = torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))  # copied on write, which nobody does

    def __len__(self) -> int:
        return len(self._pixels)

    def close(self) -> None:
        """Nothing to close."""

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(1) as pool:
            for pixels in map_ahead(pool, lambda rows: self._pixels.index_select(0, rows), batches, AHEAD):
                yield pixels.to(self.device).permute(0, 3, 1, 2)

    @property
    def n_bytes(self) -> int:
        return self._pixels.nbytes


def decoded_file(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int) -> Path:
    """The file of the images' pixels, uint8 `[N, image_px, image_px, 3]`; it is written if it is not there."""
    folder, digests = decoded_cache(), "".join(rows["sha256"]).encode()
    path = folder / f"{cache_key([image_px, digests], Path(images.__file__), LIBRARIES)}.pixels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                _write(path, rows, raw, image_px, n_workers)
            os.utime(path)
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror or error}; free disk space, fix the permissions, or set runtime.decoded_gigabytes=0"
        ) from error
    return path


def bound_decoded(max_bytes: float) -> None:
    """Removes the least recently used files, complete or partial, until the rest take at most `max_bytes`."""
    remove_oldest(decoded_cache(), "*.p*", max_bytes)


def _write(path: Path, rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int) -> None:
    part, note = path.with_suffix(".part"), path.with_suffix(".json")
    shape = len(rows), image_px, image_px, CHANNELS
    n_bytes, chunk = int(np.prod(shape)), max(CHUNK_BYTES // (image_px * image_px * CHANNELS), 1)
    n_done = _n_done(part, note, n_bytes)
    check_free_space(part.parent, n_bytes - n_done * image_px * image_px * CHANNELS, " for decoded images")
    decoder = Decoder(rows, raw, image_px)
    with part.open("r+b" if n_done else "w+b") as stream:
        stream.truncate(n_bytes)
        pixels = np.memmap(stream, np.uint8, "r+", shape=shape)
    print(f"decoding {len(rows)} images at {image_px} px once: {n_bytes / 1e9:.1f} GB in {part.parent}", flush=True)
    with (
        faults_named(rows["id"]),
        decoder.reader(decoder.files) as read,
        ThreadPoolExecutor(n_workers) as pool,
        tqdm(total=len(rows), initial=n_done, unit="image", desc="decode", disable=None) as bar,
    ):
        for start in range(n_done, len(rows), chunk):
            slots = pixels[start : start + chunk]
            for _ in pool.map(decoder.fill, slots, range(start, start + len(slots)), repeat(read)):
                bar.update()
            pixels.flush()
            write_json(note, start + len(slots))
    part.replace(path)
    note.unlink(missing_ok=True)


def _n_done(part: Path, note: Path, n_bytes: int) -> int:
    """Number of images that a killed process has written; 0 if none."""
    with suppress(UserError, OSError):
        n_done = read_json(note)
        if isinstance(n_done, int) and part.stat().st_size == n_bytes:
            return n_done
    return 0


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for other processes that are in such a block, such as those of a training on several devices."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
