"""Seconds and peak memory of download, split_check and an epoch of training as the number of images grows.

    python benchmarks/scale.py [--images 1000 10000 100000] [--px 48] [--pictures textured] [--without-near-duplicates]
                               [--classes 50] [--added 100] [--epoch] [--tables 100000 1000000]

Draws that many small JPEGs in class folders under a temporary folder, runs the two stages on them as DVC would
(`data.dataset: folder`), and prints a line for each. The peak is that of the stage's process (resident set); workers that
decode have their own. --epoch adds an epoch of `cnn` that reads the images from the packs (`train.loader: streaming`).
`textured` pictures have the spectrum of photographs (amplitude ~ 1 / frequency); `smooth` ones have 36 values each, are
much alike, and show the part of the search for near duplicates that grows with the square of the images. With --added,
both stages run again after that many photographs came to the others. --tables draws splits, folds and a hold-out and applies
the policies to tables of that many rows without photographs: classes of a long tail, one copy in a hundred, and groups of ten.
"""

import argparse
import io
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.classes import run_stage, write_params
from fieldguide.checks.duplicates import exact_pairs, photographs
from fieldguide.checks.policies import check, number_classes
from fieldguide.checks.splits import with_folds, with_groups, with_hold_out, with_splits
from fieldguide.core.manifest import as_given
from fieldguide.core.params import SplitCheck, read_params


def smooth(random: np.random.Generator, image_px: int) -> np.ndarray:
    """Six by six random colours, interpolated: uint8 [px, px, 3]."""
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((image_px, image_px), Image.Resampling.BICUBIC))


def textured(random: np.random.Generator, image_px: int) -> np.ndarray:
    """Noise with the spectrum of photographs, mostly grey: uint8 [px, px, 3]."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(image_px), np.fft.fftfreq(image_px))) + 1 / image_px
    noise = np.fft.ifft2(np.fft.fft2(random.standard_normal((3, image_px, image_px))) / frequency**1.2).real
    noise /= noise.std(axis=(1, 2), keepdims=True)
    return (120 + 45 * noise[:1] + 15 * noise).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


ROOT = Path(__file__).resolve().parents[1]
Result = TypeVar("Result")
PICTURES = {"textured": textured, "smooth": smooth}


def write_photographs(folder: Path, numbers: range, image_px: int, pictures: str, n_classes: int) -> None:
    """Different pictures, JPEG, spread over the folders of the classes."""
    random = np.random.default_rng(numbers.start)
    for number in numbers:
        target = folder / f"species {number % n_classes:05d}" / f"{number:07d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(PICTURES[pictures](random, image_px)).save(stream, "JPEG", quality=85)
        target.write_bytes(stream.getvalue())


def table(n_rows: int) -> pd.DataFrame:
    """Rows of photographs that do not exist: a hundredth as many classes as rows, of which few are large."""
    random = np.random.default_rng(0)
    names = [f"species {number % (n_rows // 100):05d}" for number in random.zipf(1.3, n_rows).tolist()]
    ids = [f"{name}/{number:07d}.jpg" for number, name in enumerate(names)]
    frame = as_given(number_classes(pd.DataFrame({"split": "", "label": None, "class_name": names, "id": ids}), []))
    sha256 = np.arange(n_rows)
    copies = random.integers(n_rows, size=n_rows // 100)
    sha256[copies] = sha256[copies - 1]
    frame = frame.assign(width=48, height=48, sha256=[f"{number:064x}" for number in sha256.tolist()], reason="", correction="")
    return frame.assign(photograph=photographs(n_rows, exact_pairs(frame["sha256"])))


def report_tables(n_rows: int, policy: SplitCheck) -> None:
    """A line with the seconds of CPU of each step."""
    frame, seconds = table(n_rows), {}
    policy = policy.model_copy(update={"hold_out": 0.1, "folds": 5, "leaks": "report", "label_conflicts": "report"})

    def measure(name: str, step: Callable[[], Result]) -> Result:
        start = time.process_time()
        result = step()
        seconds[name] = time.process_time() - start
        return result

    with redirect_stdout(io.StringIO()):
        drawn = measure("splits", lambda: with_splits(frame, policy))
        grouped = measure("groups", lambda: with_groups(frame, r"(\d+)\d.jpg$", []))
        measure("splits of groups", lambda: with_splits(grouped, policy))
        measure("folds", lambda: with_folds(frame, policy, []))
        measure("hold-out", lambda: with_hold_out(drawn, policy))
        shuffled = np.random.default_rng(1).permutation(drawn["split"].to_numpy())
        measure("policies", lambda: check(drawn.assign(split=shuffled), policy, []))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n_rows:8d} rows: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()) + f"; {peak:.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--px", type=int, default=48, help="side of the pictures, pixels")
    parser.add_argument("--pictures", choices=PICTURES, default="textured")
    parser.add_argument("--without-near-duplicates", action="store_true", help="without their search")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--added", type=int, default=0, help="photographs with which the stages run a second time")
    parser.add_argument("--epoch", action="store_true", help="also train for an epoch")
    parser.add_argument("--tables", type=int, nargs="+", default=[], help="rows; then no photographs are made")
    arguments = parser.parse_args()
    for n_rows in arguments.tables:
        report_tables(n_rows, read_params().split_check)
    if arguments.tables:
        return
    stages = ("download", "split_check", "train")[: 2 + arguments.epoch]
    settings = {
        "split_check": {"near_duplicates": not arguments.without_near_duplicates},
        "train": {"loader": "streaming", "batch_size": 256},
    }
    print(f"{'images':>8s} {'stage':12s} {'wall s':>8s} {'CPU s':>8s} {'MiB':>7s}")
    for n_images in arguments.images:
        folder = Path(tempfile.mkdtemp(prefix="scale-"))
        try:
            drawn = arguments.px, arguments.pictures, arguments.classes
            write_photographs(folder / "photos", range(n_images), *drawn)
            write_params(folder, folder / "photos", arguments.px, settings)
            (folder / "stages").symlink_to(ROOT / "stages")
            for n_added in (0, arguments.added) if arguments.added else (0,):
                write_photographs(folder / "photos", range(n_images, n_images + n_added), *drawn)
                for stage in stages:
                    wall, cpu, peak = run_stage(stage, folder)
                    print(f"{n_images + n_added:8d} {stage:12s} {wall:8.1f} {cpu:8.1f} {peak:7.0f}", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
