"""Evaluation's images per second against what the network alone permits, and its peak memory as the images grow.

    python benchmarks/evaluation.py [--batches 20] [--rounds 5] [--images 2500 25000]

Needs data/manifest.csv, data/raw and models/model.safetensors (`dvc repro train`). Two ways take turns, so that a machine
that slows down slows both:

    network     the forward pass alone, again and again on one batch in memory: the inference ceiling
    evaluate    bytes to logits as in the stage: threads decode ahead of the network

Then the whole stage runs once for each of --images, on that many rows (the manifest's training rows, repeated) as train,
and its peak memory (resident set of the process) and seconds are printed. --images without numbers leaves that out.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scale import run_stage

from fieldguide.core.manifest import read_manifest, rows_of, write_manifest
from fieldguide.core.params import read_params
from fieldguide.core.paths import CHECKPOINT, MANIFEST, RAW
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.device import device_name, pick_device
from fieldguide.network.inference import N_VIEWS, batches_of, views
from fieldguide.network.loader import Prefetching, Resident, decode_all


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Wall seconds of one call; waits for the accelerator."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_speed(n_batches: int, n_rounds: int) -> None:
    """Prints images/s of both ways, and the quotients of the same round."""
    params = read_params()
    device = pick_device(params.runtime.device)
    model, facts = load_checkpoint(CHECKPOINT)
    model.to(device)
    batch_size, tta, n_workers = params.evaluate.batch_size, params.evaluate.tta, params.runtime.n_workers
    n_images = n_batches * batch_size
    rows = rows_of(read_manifest(MANIFEST), "train").sample(n_images, replace=True, random_state=0).reset_index(drop=True)
    one_batch = Resident(decode_all(rows[:batch_size], RAW, facts.image_px, n_workers).to(device))

    def network() -> None:
        for _ in views(model, one_batch, [torch.arange(batch_size)] * n_batches, device, tta):
            pass

    def evaluate() -> None:
        source = Prefetching(rows, RAW, facts.image_px, n_workers, device)
        for logits, embeddings in views(model, source, batches_of(n_images, batch_size), device, tta):
            logits.cpu(), embeddings.cpu()

    network()
    evaluate()
    rounds = [(seconds(network, device), seconds(evaluate, device)) for _ in range(n_rounds)]
    quotients = [alone / whole for alone, whole in rounds]
    print(f"{facts.model} at {facts.image_px} px, batch {batch_size}, {N_VIEWS[tta]} view(s), {n_workers} decoding thread(s)")
    print(f"{device_name(device)}, torch {torch.__version__}, {n_rounds} rounds of {n_images} images")
    for name, times in zip(("network", "evaluate"), zip(*rounds, strict=True), strict=True):
        low, high = n_images / max(times), n_images / min(times)
        print(f"{name:9s} {n_images / statistics.median(times):8.1f} images/s ({low:.1f} to {high:.1f})")
    print(f"evaluate is at {statistics.median(quotients):.3f} of the ceiling ({min(quotients):.3f} to {max(quotients):.3f})")


def measure_memory(sizes: list[int]) -> None:
    """Prints seconds and peak MiB of the stage for each number of training rows."""
    root = Path.cwd()
    manifest = read_manifest(MANIFEST)
    rows = rows_of(manifest, "train")
    print(f"{'images':>8s} {'seconds':>9s} {'peak MiB':>9s}")
    for n_images in sizes:
        with tempfile.TemporaryDirectory(prefix="evaluation-") as name:
            folder = Path(name)
            (folder / "data").mkdir()
            (folder / RAW).symlink_to(root / RAW)
            (folder / "models").mkdir()
            (folder / CHECKPOINT).symlink_to(root / CHECKPOINT)
            (folder / "params.yaml").symlink_to(root / "params.yaml")
            (folder / "stages").symlink_to(Path(__file__).resolve().parents[1] / "stages")
            repeated = rows.sample(n_images, replace=True, random_state=0)
            write_manifest(pd.concat([repeated, manifest[manifest["split"] != "train"]]), folder / MANIFEST)
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
            elapsed, peak = run_stage("evaluate", folder)
            print(f"{n_images:8d} {elapsed:9.1f} {peak:9.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, nargs="*", default=[2500, 25_000])
    arguments = parser.parse_args()
    measure_speed(arguments.batches, arguments.rounds)
    measure_memory(arguments.images)


if __name__ == "__main__":
    main()
