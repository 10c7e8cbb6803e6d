"""Recall and precision of the near-duplicate check on planted copies, and the time of its search.

    python benchmarks/near_duplicates.py [--images 60] [--hashes 100000 1000000] [--zip PHOTOGRAPHS.zip ...]

Copies of drawn photographs, of scenes with the spectrum of real ones and, with --zip, of a user's own photographs are
made by the changes of tests/support/planted.py: each kind, each strength. Pairs that are in an archive already are
left out of its originals.
"""

import argparse
import resource
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fieldguide.checks.hash_search import FEW_PAIRS, nearest_versions
from fieldguide.checks.near_duplicates import MIRRORED, PROBES
from support.planted import CHANGES, drawn, found, reported, rgb_of, textured


def photographs_of(archive: Path, n_images: int) -> list[np.ndarray]:
    """A random choice of the photographs in a zip, without those that have a near duplicate among them."""
    with zipfile.ZipFile(archive) as source:
        names = sorted(name for name in source.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        sample = np.random.default_rng(0).choice(names, min(2 * n_images, len(names)), replace=False)
        images = [rgb_of(source.read(name)) for name in sample]
    repeated = {k for pair in reported(images) for k in pair}
    return [rgb for k, rgb in enumerate(images) if k not in repeated][:n_images]


def report_planted(sources: dict[str, list[np.ndarray]]) -> None:
    """A line for each kind and strength: recall by source, precision over all of them."""
    print(f"{'kind':15s} {'strength':32s} " + " ".join(f"{name:>12s}" for name in sources) + "    recall precision")
    totals = np.zeros(3, int)
    for kind, strengths in CHANGES.items():
        for strength, change in strengths.items():
            counts = np.array([found(images, change) for images in sources.values()])
            n_each = np.array([len(images) for images in sources.values()])
            n_found, n_wrong = counts.sum(axis=0)
            recalls = " ".join(f"{share:12.3f}" for share in counts[:, 0] / n_each)
            precision = n_found / max(n_found + n_wrong, 1)
            print(f"{kind:15s} {strength:32s} {recalls} {n_found / n_each.sum():9.3f} {precision:9.3f}", flush=True)
            totals += n_found, n_wrong, n_each.sum()
    n_found, n_wrong, n_planted = totals
    print(f"all: {n_found} of {n_planted} copies found, {n_wrong} pairs wrong")


def report_search(n_images: int, n_versions: int, n_workers: int) -> None:
    """A line for a search among random hashes, all versions of an image independent: no bucket is fuller than chance has it."""
    hashes = np.random.default_rng(0).integers(0, 2**64, (n_images, n_versions), dtype=np.uint64)
    few, rows = np.arange(int(FEW_PAIRS**0.5) + 1), np.arange(n_images)
    nearest_versions(hashes[: len(few)], MIRRORED[:n_versions], few, few, 1)  # compiles the loops
    start, cpu = time.perf_counter(), time.process_time()
    n_pairs = len(nearest_versions(hashes, MIRRORED[:n_versions], rows, rows, n_workers))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{n_images:,} x {n_versions}: {n_pairs} pairs, {seconds:.1f} s, {cpu:.1f} s of CPU, {peak_gib:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60, help="originals of each source")
    parser.add_argument("--hashes", type=int, nargs="*", default=[100_000], help="random images to search among")
    parser.add_argument(
        "--versions", type=int, nargs="*", default=[1, len(PROBES)], help="hashes of an image that are looked up"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--zip", type=Path, nargs="*", default=[], help="archives of photographs")
    args = parser.parse_args()
    for n_images in args.hashes:
        for n_versions in args.versions:
            report_search(n_images, n_versions, args.workers)
    if args.images:
        sources = {"drawn": drawn(args.images), "textured": textured(args.images)}
        sources |= {archive.stem[:12]: photographs_of(archive, args.images) for archive in args.zip}
        report_planted(sources)


if __name__ == "__main__":
    main()
