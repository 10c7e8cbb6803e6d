"""Comparison of the ONNX file, run in a process without torch, with the probabilities of torch.

`probabilities_alone` starts the process: python -m fieldguide.onnx.proof MODEL RAW OUT < PLACES
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fieldguide.core.artifacts import Agreement, SplitAccuracy
from fieldguide.core.errors import UserError, run_command
from fieldguide.core.images import decode, encoded_reader
from fieldguide.core.paths import ONNX
from fieldguide.onnx.classifier import OnnxClassifier

BATCH_SIZES = (1, 2, 7, 64)  # several, because the batch must be dynamic
TIE = 1e-4  # a smaller difference of the two highest probabilities is within rounding
CHUNK = 448  # images decoded at a time; a multiple of each batch size
PROJECT = Path(__file__).resolve().parents[2]

Place = tuple[str, int, int]  # file under data/raw, offset and length of the encoded bytes


def probabilities_alone(model: Path, raw: Path, places: Iterable[Place]) -> np.ndarray:
    """Probabilities by a process without torch, at each batch size: float32 `[len(BATCH_SIZES), N, K]`.

    Raises `UserError` if the process fails.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))}
    with tempfile.TemporaryDirectory() as folder:
        out, encoded = Path(folder, "out.npy"), json.dumps(list(places))
        command = [sys.executable, "-m", "fieldguide.onnx.proof", str(model), str(raw), str(out)]
        ended = subprocess.run(command, env=environment, input=encoded, stderr=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            raise UserError(
                f"{model}: could not be run without torch ({ended.stderr.strip()[-500:]}); try another export.opset"
            )
        return np.load(out)


def prove(
    expected: np.ndarray, alone: np.ndarray, targets: np.ndarray, reported: SplitAccuracy, max_abs_difference: float
) -> Agreement:
    """The agreement of the file with torch; raises `UserError` if its predictions or the `reported` accuracy differ.

    expected: torch's probabilities, float32 `[N, K]`; alone: those of the file at each batch size, `[batch sizes, N, K]`.
    Ignores the top 1 where torch's two highest probabilities differ by less than `TIE`.
    """
    lead = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0]
    ties = lead < TIE
    same = (alone.argmax(axis=2) == expected.argmax(axis=1)) | ties
    agreement, difference = float(same.mean()), float(np.abs(alone - expected).max())
    if agreement < 1 or difference > max_abs_difference:
        raise UserError(
            f"{ONNX}: ONNX Runtime and torch agree on {agreement:.2%} of the {reported.split} images and differ by up to"
            f" {difference:.1e} (allowed {max_abs_difference:.1e}); no file was written, try another export.opset"
        )
    n_right = int((alone[-1].argmax(axis=1) == targets).sum())
    if reported.n != len(targets) or abs(n_right - reported.n_right) > ties.sum():
        raise UserError(
            f"{ONNX}: {n_right} of {len(targets)} {reported.split} images are right, but evaluate reported "
            f"{reported.n_right} of {reported.n}; no file was written, run: dvc repro -f evaluate"
        )
    return Agreement(
        top1_agreement=agreement,
        max_abs_difference=difference,
        ties=int(ties.sum()),
        accuracy=n_right / len(targets),
        n=len(targets),
    )


def main() -> None:
    model, raw, out = map(Path, sys.argv[1:])
    np.save(out, probabilities(OnnxClassifier(model), raw, json.load(sys.stdin)))
    if "torch" in sys.modules:
        raise UserError("torch was imported, which makes the comparison invalid; report this as a bug")


def probabilities(classifier: OnnxClassifier, raw: Path, places: list[Place]) -> np.ndarray:
    """Probabilities of every image at each batch size: float32 `[len(BATCH_SIZES), N, K]`."""
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
