"""Manifest rows become pixels: in order, whole, and an image that cannot be read is named."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fieldguide.errors import UserError
from fieldguide.images import decode
from fieldguide.loader import decode_all

SHARD = "shard.bin"  # images one after the other in one file, with bytes between them that are no image


def write_shard(raw: Path, images: list[bytes], gap: bytes = b"between") -> pd.DataFrame:
    content, offsets = b"", []
    for image in images:
        content += gap
        offsets.append(len(content))
        content += image
    (raw / SHARD).write_bytes(content + gap)
    lengths = [len(image) for image in images]
    ids = [f"train/A/{k}.jpg" for k in range(len(images))]
    rows = pd.DataFrame({"file": SHARD, "offset": offsets, "length": lengths, "id": ids})
    return rows.astype({"file": "string", "id": "string", "offset": "int64", "length": "int64"})


@pytest.mark.parametrize("n_workers", [1, 4])
def test_images_come_in_the_order_of_the_rows(tmp_path: Path, make_jpeg: Callable[..., bytes], n_workers: int) -> None:
    images = [make_jpeg(seed, width=200 - 8 * seed) for seed in range(20)]  # the first take longest to decode
    rows = write_shard(tmp_path, images).iloc[::-1].reset_index(drop=True)
    pixels = decode_all(rows, tmp_path, 24, n_workers)
    expected = [torch.from_numpy(decode(image, 24).copy()).permute(2, 0, 1) for image in reversed(images)]
    assert torch.equal(pixels, torch.stack(expected))


def test_pixels_are_bytes_with_channels_last_in_memory(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    pixels = decode_all(write_shard(tmp_path, [make_jpeg(1), make_jpeg(2)]), tmp_path, 17, 2)
    assert pixels.shape == (2, 3, 17, 17)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    colour = np.broadcast_to(np.array([250, 128, 3], np.uint8), (16, 16, 3))
    stream = io.BytesIO()
    Image.fromarray(colour.copy()).save(stream, "PNG")
    pixels = decode_all(write_shard(tmp_path, [stream.getvalue()]), tmp_path, 16, 1)
    assert torch.equal(pixels.permute(0, 2, 3, 1), torch.from_numpy(colour.copy())[None])


def test_an_image_of_the_size_asked_for_keeps_its_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    pixels = decode_all(write_shard(tmp_path, [stream.getvalue()]), tmp_path, 16, 1)
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy()[0], noise)


def test_no_rows_give_no_images(tmp_path: Path) -> None:
    assert decode_all(write_shard(tmp_path, []), tmp_path, 16, 2).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("n_workers", [1, 4])
def test_the_first_unreadable_image_is_named(tmp_path: Path, make_jpeg: Callable[..., bytes], n_workers: int) -> None:
    good = make_jpeg(0)
    rows = write_shard(tmp_path, [good, good[: len(good) // 2], good, b"no image at all"])
    where = f"{tmp_path / SHARD} at byte {rows['offset'][1]} (train/A/1.jpg): "
    expected = f"^{re.escape(where)}.+; check the data again with: dvc repro -f split_check$"
    with pytest.raises(UserError, match=expected):
        decode_all(rows, tmp_path, 16, n_workers)


def test_a_row_beyond_the_end_of_its_file_is_named(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    rows = write_shard(tmp_path, [make_jpeg(0)]).assign(offset=10_000_000)
    with pytest.raises(UserError, match=r"shard\.bin at byte 10000000 \(train/A/0\.jpg\): "):
        decode_all(rows, tmp_path, 16, 1)


def test_a_missing_file_is_named(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    rows = write_shard(tmp_path, [make_jpeg(0)]).assign(file="gone.zip")
    with pytest.raises(UserError, match=r"gone\.zip: No such file or directory; bring the data back with: dvc repro download"):
        decode_all(rows, tmp_path, 16, 1)
