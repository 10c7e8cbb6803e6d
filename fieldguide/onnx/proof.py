"""The model file alone: its probabilities for images of the manifest, in a process that never loads torch.

`probabilities_alone` starts that process: python -m fieldguide.onnx.proof MODEL RAW ROWS OUT
"""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fieldguide.core.errors import UserError, run_command
from fieldguide.core.images import decode, encoded_reader
from fieldguide.onnx.classifier import OnnxClassifier

BATCH_SIZES = (1, 2, 7, 64)  # the batch must be dynamic
CHUNK = 448  # images decoded at a time; a multiple of each batch size
PROJECT = Path(__file__).resolve().parents[2]

Place = tuple[str, int, int]  # file under data/raw, offset and length of the encoded bytes


def probabilities_alone(model: Path, raw: Path, places: Iterable[Place]) -> np.ndarray:
    """What another process, with the model file and the encoded bytes only, answers: float32 `[len(BATCH_SIZES), N, K]`.

    Raises `UserError` when it fails.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))}
    with tempfile.TemporaryDirectory() as folder:
        rows, out = Path(folder, "rows.csv"), Path(folder, "out.npy")
        with rows.open("w", newline="") as stream:
            csv.writer(stream).writerows(places)
        command = [sys.executable, "-m", "fieldguide.onnx.proof", str(model), str(raw), str(rows), str(out)]
        ended = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            raise UserError(f"{model}: could not be used alone ({ended.stderr.strip()[-500:]}); try another export.opset")
        return np.load(out)


def main() -> None:
    model, raw, rows, out = map(Path, sys.argv[1:])
    with rows.open(newline="") as stream:
        places = [(file, int(offset), int(length)) for file, offset, length in csv.reader(stream)]
    np.save(out, probabilities(OnnxClassifier(model), raw, places))
    if "torch" in sys.modules:
        raise UserError("torch was loaded, so that this says nothing about the file alone; report it")


def probabilities(classifier: OnnxClassifier, raw: Path, places: list[Place]) -> np.ndarray:
    """Those of every image, from its encoded bytes, at each of `BATCH_SIZES`: float32 `[len(BATCH_SIZES), N, K]`."""
    answers = np.empty((len(BATCH_SIZES), len(places), len(classifier.class_names)), np.float32)
    with encoded_reader(raw, [file for file, _, _ in places]) as read:
        for start in range(0, len(places), CHUNK):
            pixels = np.stack([decode(read(*place), classifier.image_px) for place in places[start : start + CHUNK]])
            for row, batch_size in zip(answers, BATCH_SIZES, strict=True):
                for first in range(0, len(pixels), batch_size):
                    batch = pixels[first : first + batch_size]
                    row[start + first : start + first + len(batch)] = classifier.probabilities(batch)
    return answers


if __name__ == "__main__":
    run_command(main)
