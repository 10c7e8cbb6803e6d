"""Images per second from encoded bytes to the training size: fieldguide's loader against Pillow in a plain thread pool.

    python benchmarks/decode.py [--px 128] [--rounds 5]

Needs data/manifest.csv and data/raw (`dvc repro split_check`). Both decode the same images to the same size, in turn, so
that a machine that slows down slows both; Pillow reads the same bytes and uses convert and resize (bicubic) alone.
"""

import argparse
import io
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.images import read_encoded
from fieldguide.core.manifest import read_manifest
from fieldguide.core.params import read_params
from fieldguide.core.paths import MANIFEST, RAW
from fieldguide.network.loader import decode_all


def plain_pillow(rows: pd.DataFrame, image_px: int, n_workers: int) -> np.ndarray:
    """What one would write by hand: uint8 `[N, image_px, image_px, 3]`."""
    pixels = np.empty((len(rows), image_px, image_px, 3), np.uint8)

    def fill(place: tuple[int, str, int, int]) -> None:
        index, file, offset, length = place
        with Image.open(io.BytesIO(read_encoded(RAW / file, offset, length))) as image:
            pixels[index] = np.asarray(image.convert("RGB").resize((image_px, image_px), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(n_workers) as pool:
        list(pool.map(fill, zip(range(len(rows)), rows["file"], rows["offset"], rows["length"], strict=True)))
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=128, help="side to decode to, pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each")
    arguments = parser.parse_args()
    rows = read_manifest(MANIFEST)
    n_workers = read_params().runtime.n_workers
    ways = {
        "fieldguide": lambda: decode_all(rows, RAW, arguments.px, n_workers),
        "pillow pool": lambda: plain_pillow(rows, arguments.px, n_workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(arguments.rounds + 1):  # the first fills the file cache
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    size = f"{rows['width'].median():.0f}x{rows['height'].median():.0f}"
    print(f"{len(rows)} images of {size} (median) to {arguments.px} px, {n_workers} threads, {arguments.rounds} rounds")
    for name, times in seconds.items():
        rates = [len(rows) / second for second in times]
        print(f"{name:12s} {statistics.median(rates):7.0f} images/s (median; {min(rates):.0f} to {max(rates):.0f})")
    ratios = [b / a for a, b in zip(seconds["fieldguide"], seconds["pillow pool"], strict=True)]
    print(f"fieldguide / pillow pool: {statistics.median(ratios):.2f} (median of pairs)")


if __name__ == "__main__":
    main()
