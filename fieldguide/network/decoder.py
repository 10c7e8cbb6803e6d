"""Manifest rows to pixels, one image at a time, in threads and in worker processes."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from fieldguide.core.errors import UserError
from fieldguide.core.images import UnreadableImage, decode, encoded_reader

CHANNELS = 3
REMEDY = "run the container with --shm-size=1g, or lower train.batch_size, train.decode_px or runtime.workers"
READ = Callable[[str, int, int], bytes]
"""File, offset and length to the bytes there."""


class ImageFault(Exception):
    """The fault of an image, and what to do. row: of the manifest; where: the file and byte offset of the image."""

    def __init__(self, row: int, where: str, text: str) -> None:
        super().__init__(row, where, text)
        self.row, self.where, self.text = row, where, text


@contextmanager
def faults_named(ids: pd.Series) -> Iterator[None]:
    """Turns an `ImageFault` into a `UserError` with the image's id. Workers do without ids, which would fill their memory."""
    try:
        yield
    except ImageFault as fault:
        raise UserError(f"{fault.where} ({ids.iloc[fault.row]}): {fault.text}") from fault


class Decoder(Dataset[torch.Tensor | Exception]):
    """Images of rows of a manifest; `decoder[row numbers]`, in a worker: uint8 `[B, px, px, 3]`, or the exception."""

    def __init__(self, rows: pd.DataFrame, raw: Path, image_px: int) -> None:
        self.files = sorted(set(rows["file"]))
        numbers = {file: number for number, file in enumerate(self.files)}
        columns = rows["file"].map(numbers), rows["offset"], rows["length"]
        self.places = np.stack([column.to_numpy(dtype=np.int64) for column in columns], axis=1)
        self.digests = np.frombuffer(bytes.fromhex("".join(rows["sha256"])), np.uint8).reshape(-1, 32)
        self.raw, self.image_px = raw, image_px

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: list[int]) -> torch.Tensor | Exception:
        pixels = self.empty(len(rows))
        try:
            with self.reader(self.files[number] for number in set(self.places[rows, 0])) as read:
                for slot, row in zip(pixels, rows, strict=True):
                    self.fill(slot, row, read)
            return torch.from_numpy(pixels).share_memory_()  # here, as torch would do it where an error is lost
        except (UserError, ImageFault) as error:
            return error
        except (RuntimeError, OSError) as error:
            reason = str(error).partition("\n")[0]
            return UserError(f"a batch of {len(rows)} images does not get from its worker to the training ({reason}); {REMEDY}")

    def empty(self, n: int) -> np.ndarray:
        return np.empty((n, self.image_px, self.image_px, CHANNELS), np.uint8)

    @contextmanager
    def reader(self, files: Iterable[str]) -> Iterator[READ]:
        """`encoded_reader` of the raw data; raises `UserError` for a missing file."""
        try:
            with encoded_reader(self.raw, files) as read:
                yield read
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; restore the data with: dvc repro download") from error

    def fill(self, slot: np.ndarray, row: int, read: READ) -> None:
        """Decodes one image into uint8 `[px, px, 3]`; raises `ImageFault`."""
        number, offset, length = self.places[row].tolist()
        where = f"{self.raw / self.files[number]} at byte {offset}"
        try:
            encoded = read(self.files[number], offset, length)
            if hashlib.sha256(encoded).digest() != self.digests[row].tobytes():
                raise ImageFault(row, where, "changed since the split check; restore it with: dvc checkout data/raw")
            slot[:] = decode(encoded, self.image_px)
        except (UnreadableImage, OSError) as error:
            raise ImageFault(row, where, f"{error}; check the data with: dvc repro -f split_check") from error
