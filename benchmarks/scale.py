"""Seconds and peak memory of download and split_check as the number of images grows.

    python benchmarks/scale.py [--images 1000 10000 100000] [--px 48] [--pictures textured] [--without-near-duplicates]
    python benchmarks/scale.py report [--classes 1000 5000 10000] [--without-genus] [--keep FOLDER]

Draws that many small JPEGs in class folders under a temporary folder, runs the two stages on them as DVC would
(`data.dataset: folder`), and prints a line for each size. The peak is that of the stage's process (resident set).
`textured` pictures have the spectrum of photographs (amplitude ~ 1 / frequency); `smooth` ones have 36 values each, are
much alike, and show the part of the search for near duplicates that grows with the square of the images.
`report` measures the charts, the page and `dvc plots show` of many classes instead (benchmarks/scale_report.py).
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
N_CLASSES = 50


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


PICTURES = {"textured": textured, "smooth": smooth}


def write_photographs(folder: Path, n_images: int, image_px: int, pictures: str) -> None:
    """Different pictures, JPEG, spread over `N_CLASSES` folders."""
    random = np.random.default_rng(0)
    for number in range(n_images):
        target = folder / f"species {number % N_CLASSES:02d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(PICTURES[pictures](random, image_px)).save(stream, "JPEG", quality=85)
        target.write_bytes(stream.getvalue())


def run_stage(stage: str, folder: Path) -> tuple[float, float]:
    """Wall seconds and peak MiB of one stage in `folder`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"stage {stage} failed on {folder}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["stages", "report"], default="stages")
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 5000, 10_000], help="of report")
    parser.add_argument("--without-genus", action="store_true", help="of report: class names share no first word")
    parser.add_argument("--keep", type=Path, help="of report: a folder for what was drawn")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--px", type=int, default=48, help="side of the pictures, pixels")
    parser.add_argument("--pictures", choices=PICTURES, default="textured")
    parser.add_argument("--without-near-duplicates", action="store_true", help="without their search")
    arguments = parser.parse_args()
    if arguments.what == "report":
        from scale_report import report_sizes

        return report_sizes(arguments.classes, not arguments.without_genus, arguments.keep and arguments.keep.resolve())
    print(f"{'images':>8s} {'download s':>11s} {'MiB':>6s} {'split_check s':>14s} {'MiB':>6s}")
    for n_images in arguments.images:
        folder = Path(tempfile.mkdtemp(prefix="scale-"))
        try:
            write_photographs(folder / "photos", n_images, arguments.px, arguments.pictures)
            params = (ROOT / "params.yaml").read_text()
            params = re.sub(r"\n  dataset: \w+", "\n  dataset: folder", params, count=1)
            searched = f"near_duplicates: {str(not arguments.without_near_duplicates).lower()}"
            params = params.replace("near_duplicates: true", searched)
            params = params.replace('\n  path: ""', f'\n  path: "{folder / "photos"}"', 1)
            (folder / "params.yaml").write_text(params)
            (folder / "stages").symlink_to(ROOT / "stages")
            figures = [run_stage(stage, folder) for stage in ("download", "split_check")]
            print(
                f"{n_images:8d} " + " ".join(f"{s:{w}.1f} {m:6.0f}" for (s, m), w in zip(figures, (11, 14), strict=True)),
                flush=True,
            )
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
