"""Memory of a training on more images than it holds: the streaming loader, all processes together.

    python benchmarks/out_of_core.py [--images 500 100000] [--px 64] [--devices 1]

Draws that many JPEGs into shards under a temporary folder, trains the four-convolution network on them for an epoch, and
prints for each number the peak of all processes of the stage (launcher, trainers and decoding workers; memory that they
share counted once: PSS, or the resident set where the system does not tell it). The first number, best a small one, shows
what the model and the libraries take by themselves.
"""

import argparse
import contextlib
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.manifest import COLUMNS, as_given, write_manifest

ROOT = Path(__file__).resolve().parents[1]
N_CLASSES, N_VALID, SHARD_IMAGES = 20, 200, 10_000
SETTINGS = {"epochs": "1", "loader": "streaming", "decode_px": "32", "name": "cnn", "lr": "0.001", "batch_size": "64"}


def draw(folder: Path, n_images: int, image_px: int) -> None:
    """Shards of JPEGs and their manifest: n_images for training, and some for validation."""
    (folder / "data" / "raw").mkdir(parents=True)
    lines, shard, offset = [], None, 0
    for number in range(n_images + N_VALID):
        if number % SHARD_IMAGES == 0:
            name, offset = f"shard-{number // SHARD_IMAGES:03d}.bin", 0
            shard = shard or contextlib.ExitStack()
            shard.close()
            stream = shard.enter_context((folder / "data" / "raw" / name).open("wb"))
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(colours).resize((image_px, image_px)).save(encoded, "JPEG")
        content = encoded.getvalue()
        stream.write(content)
        split, label = "train" if number < n_images else "valid", number % N_CLASSES
        place = (f"{number:07d}.jpg", name, offset, len(content), image_px, image_px, hashlib.sha256(content).hexdigest())
        lines.append((split, label, f"class {label:02d}", *place, "", True, ""))
        offset += len(content)
    shard.close()
    frame = pd.DataFrame(lines, columns=list(COLUMNS)[: len(lines[0])]).assign(unit=range(len(lines)))
    write_manifest(as_given(frame), folder / "data" / "manifest.csv")


def write_params(folder: Path, devices: int) -> None:
    text = (ROOT / "params.yaml").read_text()
    start, end = text.index("\nmodel:"), text.index("\nevaluate:")
    section = text[start:end]
    for key, value in (SETTINGS | {"devices": str(devices), "image_px": "32"}).items():
        section, n_changed = re.subn(rf"(?m)^(  {key}: )\S+", rf"\g<1>{value}", section)
        assert n_changed == 1, key
    (folder / "params.yaml").write_text(text[:start] + section + text[end:])


def memory(process: psutil.Process) -> int:
    """Bytes of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            facts = one.memory_full_info()
            total += getattr(facts, "pss", facts.rss)
    return total


def measure(n_images: int, image_px: int, devices: int) -> tuple[int, float]:
    """Peak memory in bytes and seconds of the stage."""
    with tempfile.TemporaryDirectory(prefix="out-of-core-") as name:
        folder = Path(name)
        draw(folder, n_images, image_px)
        write_params(folder, devices)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": name}
        start, peak = time.perf_counter(), 0
        with (folder / "log").open("w") as log:
            stage = subprocess.Popen(
                [sys.executable, "-m", "stages.train"], cwd=folder, env=environment, stdout=log, stderr=log
            )
        while stage.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, memory(psutil.Process(stage.pid)))
            time.sleep(0.3)
        if stage.returncode:
            sys.exit((folder / "log").read_text())
        return peak, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 100_000])
    parser.add_argument("--px", type=int, default=64, help="side of the JPEGs, pixels")
    parser.add_argument("--devices", type=int, default=1)
    arguments = parser.parse_args()
    first = 0
    for n_images in arguments.images:
        peak, seconds = measure(n_images, arguments.px, arguments.devices)
        first = first or peak
        more = f", {(peak - first) / 2**20:+.0f} MiB to the first" if peak != first else ""
        print(f"{n_images:7d} images: peak {peak / 2**30:.2f} GiB{more}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
