"""Encoded images in one file, with the rows of a manifest that say where they lie."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

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
    digests = [hashlib.sha256(image).hexdigest() for image in images]
    rows = pd.DataFrame({"file": SHARD, "offset": offsets, "length": lengths, "id": ids, "sha256": digests})
    return rows.astype({"file": "string", "id": "string", "offset": "int64", "length": "int64", "sha256": "string"})


def noise_png(seed: int, px: int = 20) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (px, px, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()
