"""The predict command against the network alone: start-up to the first answer, and photographs a second.

    python benchmarks/predict.py --model models/model.onnx --photos data/raw/images.zip --rounds 5

The command's rate leaves out its start-up. Medians of interleaved rounds, lowest and highest beside them.
"""

import argparse
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.formats import claims_photograph
from fieldguide.core.images import decode
from fieldguide.onnx.classifier import OnnxClassifier

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="a zip")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with zipfile.ZipFile(args.photos) as archive:
        names = [name for name in archive.namelist() if claims_photograph(name)]
        encoded = [archive.read(name) for name in names[:BATCH]]
    one = Path(os.environ.get("TMPDIR", "/tmp"), f"photo-{os.getpid()}.jpg")
    one.write_bytes(encoded[0])

    classifier = OnnxClassifier(args.model)
    pixels = np.stack([decode(content, classifier.image_px) for content in encoded])
    classifier.probabilities(pixels)

    def alone() -> float:
        start = time.perf_counter()
        for _ in range(max(1, len(names) // BATCH // 4)):
            classifier.probabilities(pixels)
        return max(1, len(names) // BATCH // 4) * len(pixels) / (time.perf_counter() - start)

    def command(*sources: Path) -> float:
        """Seconds."""
        start = time.perf_counter()
        arguments = [sys.executable, "-m", "fieldguide", "predict", *map(str, sources), "--model", str(args.model)]
        arguments += ["--format", "csv"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - start

    rounds = []
    for _ in range(args.rounds):
        first = command(one)
        rounds.append((first, alone(), len(names) / (command(args.photos) - first)))
    one.unlink()
    first, network, whole = np.array(rounds).T
    for label, values, unit in (
        ("start-up to the first answer", first, "s"),
        (f"network alone, batch {BATCH}", network, "images/s"),
        (f"predict, {len(names)} photographs", whole, "images/s"),
        ("predict over network alone", whole / network, ""),
    ):
        print(f"{label:32s} {np.median(values):8.2f} {unit:8s} ({values.min():.2f} to {values.max():.2f})")


if __name__ == "__main__":
    main()
