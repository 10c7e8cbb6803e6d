"""Comparison of the ONNX file, run in a process without torch, with the probabilities of torch.

`run_alone` starts the process: python -m fieldguide.onnx.proof MODEL RAW OUT [EXPECTED] < PLACES
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fieldguide.core.artifacts import Agreement
from fieldguide.core.errors import UserError, run_command
from fieldguide.core.images import Place, decode, encoded_reader
from fieldguide.core.paths import ONNX
from fieldguide.onnx.classifier import OnnxClassifier

BATCH_SIZES = (1, 2, 7, 64)  # several, because the batch must be dynamic
TIE = 1e-4  # a smaller difference of the two highest probabilities is within rounding
CHUNK = 448  # images decoded at a time; a multiple of each batch size
PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Alone:
    """What a process without torch found: the predictions, int64 `[N]`, by batch size, and the largest difference from torch's
    probabilities at any of them (0 if it was not given any)."""

    predicted: dict[int, np.ndarray]
    max_abs_difference: float


@dataclass(frozen=True)
class Expected:
    """The predictions of torch, int64 `[N]`, and by how much the highest probability exceeds the next, float32 `[N]`."""

    predicted: np.ndarray
    lead: np.ndarray


def write_expected(batches: Iterable[np.ndarray], shape: tuple[int, int], target: Path) -> Expected:
    """Writes probabilities, float32 `[N, K]` of this shape, given in batches of images, to a file for `run_alone`."""
    table = np.lib.format.open_memmap(target, "w+", np.float32, shape)
    predicted, lead, start = np.empty(shape[0], np.int64), np.empty(shape[0], np.float32), 0
    for probabilities in batches:
        here = slice(start, start := start + len(probabilities))
        table[here], predicted[here] = probabilities, probabilities.argmax(axis=1)
        lead[here] = np.diff(np.partition(probabilities, -2, axis=1)[:, -2:], axis=1)[:, 0]
    table.flush()
    return Expected(predicted, lead)


def run_alone(
    model: Path, raw: Path, places: Iterable[Place], expected: Path | None = None, batch_sizes: tuple[int, ...] = BATCH_SIZES
) -> Alone:
    """The predictions of a process without torch, compared with the file of `write_expected`; memory of one chunk of images.

    Raises `UserError` if the process fails.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.npz")
        command = [sys.executable, "-m", "fieldguide.onnx.proof", *map(str, (model, raw, out, expected or ""))]
        encoded = json.dumps({"places": list(places), "batch_sizes": batch_sizes})
        ended = subprocess.run(command, env=environment, input=encoded, stderr=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            raise UserError(
                f"{model}: could not be run without torch ({ended.stderr.strip()[-500:]}); try another export.opset"
            )
        with np.load(out) as found:
            predicted = dict(zip(batch_sizes, found["predicted"], strict=True))
            return Alone(predicted, float(found["max_abs_difference"]))


def prove(
    expected: Expected, alone: Alone, targets: np.ndarray, evaluated: np.ndarray, split: str, max_abs_difference: float
) -> Agreement:
    """The agreement of the file with torch; raises `UserError` if predictions differ, also from those of evaluate.

    targets, evaluated: the classes of the images and the predictions of evaluate, int64 `[N]`. Ignores the predictions where
    torch's two highest probabilities differ by less than `TIE`.
    """
    ties = expected.lead < TIE
    same = (np.stack(list(alone.predicted.values())) == expected.predicted) | ties
    agreement, difference = float(same.mean()), alone.max_abs_difference
    if agreement < 1 or not difference <= max_abs_difference:  # it may be nan
        raise UserError(
            f"{ONNX}: ONNX Runtime and torch agree on {agreement:.2%} of {len(targets)} {split} images and differ by up"
            f" to {difference:.1e} (allowed {max_abs_difference:.1e}); no file was written, try another export.opset"
        )
    predicted = alone.predicted[max(alone.predicted)]
    if n_other := int(((predicted != evaluated) & ~ties).sum()):
        raise UserError(
            f"{ONNX}: {n_other} of {len(targets)} {split} images are predicted as another class than evaluate"
            " predicted; no file was written, run: dvc repro -f evaluate"
        )
    return Agreement(
        top1_agreement=agreement,
        max_abs_difference=difference,
        ties=int(ties.sum()),
        accuracy=float((predicted == targets).mean()),
        n=len(targets),
    )


def main() -> None:
    model, raw, out, expected = sys.argv[1:]
    asked = json.load(sys.stdin)
    table = np.load(expected, mmap_mode="r") if expected else None
    predicted, difference = compare(OnnxClassifier(Path(model)), Path(raw), asked["places"], asked["batch_sizes"], table)
    np.savez(out, predicted=predicted, max_abs_difference=difference)
    if "torch" in sys.modules:
        raise UserError("torch was imported, which makes the comparison invalid; report this as a bug")


def compare(
    classifier: OnnxClassifier, raw: Path, places: list[Place], batch_sizes: list[int], expected: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Predictions, int64 `[batch sizes, N]`, and the largest difference from the probabilities `expected`, `[N, K]`, if any."""
    predicted, largest = np.empty((len(batch_sizes), len(places)), np.int64), 0.0
    hidden = not sys.stdout.isatty()  # the parent reads standard error
    with tqdm(total=predicted.size, unit="image", desc="ONNX Runtime", file=sys.stdout, disable=hidden) as progress:
        for start, pixels in _chunks(classifier, raw, places):
            for row, batch_size in zip(predicted, batch_sizes, strict=True):
                for first in range(0, len(pixels), batch_size):
                    probabilities = classifier.probabilities(pixels[first : first + batch_size])
                    here = slice(start + first, start + first + len(probabilities))
                    row[here] = probabilities.argmax(axis=1)
                    if expected is not None:
                        largest = np.maximum(largest, np.abs(probabilities - expected[here]).max())  # keeps nan
                    progress.update(len(probabilities))
    return predicted, float(largest)


def _chunks(classifier: OnnxClassifier, raw: Path, places: list[Place]) -> Iterator[tuple[int, np.ndarray]]:
    """The place of the first image of each chunk, and its images: uint8 `[at most CHUNK, H, W, 3]`."""
    with encoded_reader(raw, [file for file, _, _ in places]) as read:
        for start in range(0, len(places), CHUNK):
            part = places[start : start + CHUNK]
            yield start, np.stack([decode(read(*place), classifier.image_px) for place in part])


if __name__ == "__main__":
    run_command(main)
