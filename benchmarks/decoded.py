"""Seconds of an epoch of reading large photographs: decoded anew each time, or once into a file.

    python benchmarks/decoded.py [--images 300] [--px 176] [--batch 32]

Makes JPEGs of 12 to 24 megapixels in turn, and reads all of them in batches as a training does, without training on them: by
worker processes that decode (`train.loader: streaming`), and from the file of decoded images (`runtime.decoded_gigabytes`),
twice each. The first epoch of the latter decodes; the second finds the file in the system's cache of the disk.
"""

import argparse
import hashlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.machine import n_cores
from fieldguide.core.manifest import COLUMNS, as_given
from fieldguide.network.decoded import Decoded
from fieldguide.network.loader import Streaming

SIDES = ((4000, 3000), (4608, 3456), (5184, 3888), (6000, 4000))  # 12 to 24 megapixels
N_PICTURES = 8  # different ones; copies of them have another comment, and so another content


def encoded_pictures() -> list[bytes]:
    """Noise of all scales, the amplitude falling with the frequency as in photographs, at quality 90."""
    pictures = []
    for number in range(N_PICTURES):
        random, (width, height) = np.random.default_rng(number), SIDES[number % len(SIDES)]
        picture = np.full((height, width, 3), 128, np.float32)
        for cell in (1024, 256, 64, 16, 4):
            noise = random.normal(0, 12, (height // cell + 1, width // cell + 1, 3)).clip(-60, 60) + 128
            coarse = Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
            picture += np.asarray(coarse, np.float32) - 128
        stream = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        pictures.append(stream.getvalue())
    return pictures


def write_images(target: Path, n_images: int) -> pd.DataFrame:
    """The photographs in one file, and their rows of a manifest."""
    pictures, lines, offset = encoded_pictures(), [], 0
    with target.open("wb") as stream:
        for number in range(n_images):
            picture, (width, height) = pictures[number % N_PICTURES], SIDES[number % N_PICTURES % len(SIDES)]
            comment = f"{number:08d}".encode()
            content = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]
            stream.write(content)
            digest = hashlib.sha256(content).hexdigest()
            place = (f"{number}.jpg", target.name, offset, len(content), width, height, digest)
            lines.append(("train", 0, "class", *place, "", True, ""))
            offset += len(content)
    return as_given(pd.DataFrame(lines, columns=list(COLUMNS)[: len(lines[0])]).assign(unit=range(n_images)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--px", type=int, default=176, help="train.decode_px")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="decoded-") as name:
        os.environ["DVC_ROOT"] = name  # where the file of decoded images lies
        rows, device = write_images(Path(name, "images.bin"), arguments.images), torch.device("cpu")
        size = Path(name, "images.bin").stat().st_size
        print(f"{len(rows)} photographs, {size / 1e9:.1f} GB, to {arguments.px} px; {n_cores()} cores", flush=True)
        for kind in (Streaming, Decoded):
            source = None
            for epoch in (1, 2):
                start = time.perf_counter()
                source = source or kind(rows, Path(name), arguments.px, n_cores(), device)
                order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
                n_read = sum(len(pixels) for pixels in source.batches(order.split(arguments.batch)))
                seconds = time.perf_counter() - start
                print(f"{kind.__name__.lower():10s} epoch {epoch}: {n_read} images in {seconds:.2f} s", flush=True)
            source.close()


if __name__ == "__main__":
    main()
