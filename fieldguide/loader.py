"""Manifest rows to pixels in memory: every image is decoded once, by a pool of threads (Pillow releases the GIL)."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fieldguide.errors import UserError
from fieldguide.images import UnreadableImage, decode, encoded_reader


def decode_all(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int) -> torch.Tensor:
    """The images of `rows` in their order: uint8 `[N, 3, image_px, image_px]`, RGB, channels last in memory.

    Raises `UserError` naming the first image that cannot be decoded.
    """
    pixels = np.empty((len(rows), image_px, image_px, 3), np.uint8)

    def fill(place: tuple[int, str, int, int]) -> None:
        index, file, offset, length = place
        try:
            pixels[index] = decode(read(file, offset, length), image_px)
        except (UnreadableImage, OSError) as error:
            name = f"{raw / file} at byte {offset} ({rows['id'].iloc[index]})"
            raise UserError(f"{name}: {error}; check the data again with: dvc repro -f split_check") from error

    places = zip(range(len(rows)), rows["file"], rows["offset"], rows["length"], strict=True)
    try:
        with encoded_reader(raw, rows["file"]) as read, ThreadPoolExecutor(n_workers) as pool:
            for _ in tqdm(pool.map(fill, places), total=len(rows), unit="image", desc="decode", disable=None):
                pass
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; bring the data back with: dvc repro download") from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
