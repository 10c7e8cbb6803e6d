"""Seconds of CPU and peak memory of every stage as the number of classes grows.

    python benchmarks/classes.py [--classes 1000 10000] [--images 6] [--px 32] [--stages download split_check …]

Draws that many small photographs of each class under a temporary folder and runs the stages on them as DVC would, with a small
network (`cnn`) for one epoch: what it learns does not matter. The peak is that of the stage's process (resident set).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("download", "embed", "split_check", "label_check", "train", "evaluate", "export_onnx", "benchmark", "report")
SETTINGS = {
    "split_check": {"test_fraction": 0.17, "valid_fraction": 0.17, "near_duplicates": False},
    "label_check": {"image_px": 64},
    "benchmark": {"latency_runs": 20, "warmup_runs": 2, "batch_sizes": [1, 16], "compile": False},
}


def write_photographs(folder: Path, n_classes: int, n_images: int, image_px: int) -> None:
    """Noise around a colour of the class: JPEG, in a folder for each class; a genus has ten species."""
    random = np.random.default_rng(0)
    for number in range(n_classes):
        target = folder / f"Genus{number // 10:04d} species{number % 10}"
        target.mkdir(parents=True)
        colour = random.integers(40, 216, 3)
        for image in range(n_images):
            pixels = (colour + 30 * random.standard_normal((image_px, image_px, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(target / f"{image}.jpg", quality=85)


def write_params(folder: Path, photos: Path, image_px: int, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """The recipe `scratch` with `cnn`, one epoch and these settings, for the photographs."""
    params, recipe = (yaml.safe_load((ROOT / file).read_text()) for file in ("params.yaml", "recipes/scratch.yaml"))
    for section, values in [*recipe.items(), *settings.items()]:
        params[section] |= values
    params["data"] |= {"dataset": "folder", "path": str(photos)}
    params["model"] |= {"name": "cnn", "image_px": image_px}
    params["train"] |= {"epochs": 1, "size_start": 1.0, "size_end": 1.0, "decode_px": image_px}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def run_stage(stage: str, folder: Path) -> tuple[float, float, float]:
    """Wall seconds, seconds of CPU and peak MiB of a stage in `folder`; ends the script if it fails."""
    start, environ = time.perf_counter(), os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environ, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        said = re.split(r"[\r\n]+", (folder / "log.txt").read_text(errors="replace").strip())
        sys.exit(f"stage {stage} failed: {said[-1]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--images", type=int, default=6, help="of each class")
    parser.add_argument("--px", type=int, default=32, help="side of the pictures and of the network's input, pixels")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--keep", type=Path, help="folder that is kept, for a look at the report")
    arguments = parser.parse_args()
    print(f"{'classes':>8s} {'images':>8s} {'stage':12s} {'wall s':>8s} {'CPU s':>8s} {'MiB':>7s}")
    for n_classes in arguments.classes:
        folder = arguments.keep or Path(tempfile.mkdtemp(prefix="classes-"))
        try:
            write_photographs(folder / "photos", n_classes, arguments.images, arguments.px)
            write_params(folder, folder / "photos", arguments.px, SETTINGS)
            for package in ("stages", "fieldguide"):
                shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
            for stage in (stage for stage in STAGES if stage in arguments.stages):
                wall, cpu, peak = run_stage(stage, folder)
                print(
                    f"{n_classes:8d} {n_classes * arguments.images:8d} {stage:12s} {wall:8.1f} {cpu:8.1f} {peak:7.0f}",
                    flush=True,
                )
        finally:
            if not arguments.keep:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
