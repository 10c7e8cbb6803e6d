"""Images per second from encoded bytes to the training size: fieldguide's loader against Pillow in a plain thread pool.

    python benchmarks/decode.py [--px 128] [--rounds 5]
    python benchmarks/decode.py --against REVISION      # `decode` of that revision of the library in git, one thread each

Needs data/manifest.csv and data/raw (`dvc repro split_check`). Both decode the same images to the same size, in turn, so
that a machine that slows down slows both; Pillow reads the same bytes and uses convert and resize (bicubic) alone.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
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


ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
import pandas as pd
from fieldguide.core.images import decode, read_encoded
from pathlib import Path
rows = pd.read_csv(sys.argv[2]).itertuples()
images = [read_encoded(Path(sys.argv[3]) / row.file, row.offset, row.length) for row in rows]
for line in sys.stdin:
    start = time.process_time()
    for image in images:
        decode(image, int(line))
    print(time.process_time() - start, flush=True)
"""


def compare(revision: str, rows: pd.DataFrame, image_px: int, n_rounds: int) -> None:
    """Processor time of `decode` in this checkout and in another revision, in turn."""
    with tempfile.TemporaryDirectory() as name:
        other, table = Path(name) / "other", Path(name) / "rows.csv"
        other.mkdir()
        archive = subprocess.run(["git", "archive", revision, "fieldguide"], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(other, filter="data")
        rows.to_csv(table, index=False)
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, folder, table, RAW.resolve()],
                cwd=name,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for folder in (ROOT, other)
        ]
        ratios = []
        for number in range(n_rounds + 1):  # the first is for warming up
            seconds = {}
            for child in children[:: 1 if number % 2 else -1]:
                assert child.stdin and child.stdout
                print(image_px, file=child.stdin, flush=True)
                seconds[child.pid] = float(child.stdout.readline())
            here, there = (seconds[child.pid] for child in children)
            ratios += [here / there] if number else []
        for child in children:
            child.communicate()
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{len(rows)} images to {image_px} px, one thread, {n_rounds} rounds")
    print(f"processor time here / at {revision}: {middle:.3f} (median; quartiles {low:.3f} and {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=128, help="side to decode to, pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each")
    parser.add_argument("--against", metavar="REVISION", help="compare with another revision instead of Pillow")
    parser.add_argument("--images", type=int, default=0, help="only so many, drawn at random; 0 = all")
    arguments = parser.parse_args()
    rows = read_manifest(MANIFEST)
    if arguments.images:
        rows = rows.sample(min(arguments.images, len(rows)), random_state=1).reset_index(drop=True)
    if arguments.against:
        return compare(arguments.against, rows, arguments.px, arguments.rounds)
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
