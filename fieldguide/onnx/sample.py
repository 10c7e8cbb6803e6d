"""A sample of a split for checks whose time and memory must not grow with the data: its images, decoded a chunk at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from fieldguide.core.images import Place
from fieldguide.network.loader import decode_pixels
from fieldguide.onnx.proof import CHUNK

BATCH = 16  # images; on a CPU as fast as more, whose activations take gigabytes that are fetched anew for each layer
SAMPLE_IMAGES = 2_000  # of a split: an accuracy of 95 % has an interval of 94 to 96 %

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 [B, H, W, 3] to probabilities [B, K]


@dataclass(frozen=True)
class ImageSample:
    """Images of a split.

    rows: of the manifest. targets: their classes, int64 `[N]`. positions: their places in the split, int64 `[N]`. image_px: the
    side to which they are decoded, by `n_workers` threads.
    """

    rows: pd.DataFrame
    targets: np.ndarray
    positions: np.ndarray
    raw: Path
    image_px: int
    n_workers: int

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self) -> Iterator[np.ndarray]:
        """The images in their order: uint8 `[at most CHUNK, image_px, image_px, 3]`, RGB."""
        for start in range(0, len(self), CHUNK):
            rows = self.rows.iloc[start : start + CHUNK].reset_index(drop=True)
            yield decode_pixels(rows, self.raw, self.image_px, self.n_workers, progress=False)

    def batches(self, what: str) -> Iterator[np.ndarray]:
        """The images in batches of `BATCH`: uint8 `[B, image_px, image_px, 3]`, RGB.

        `what` is done with them, in a word for the progress.
        """
        with tqdm(total=len(self), unit="image", desc=what, disable=None) as progress:
            for pixels in self.chunks():
                for first in range(0, len(pixels), BATCH):
                    batch = pixels[first : first + BATCH]
                    yield batch
                    progress.update(len(batch))

    @property
    def places(self) -> list[Place]:
        """Where the encoded bytes of each image lie."""
        return list(self.rows[["file", "offset", "length"]].itertuples(index=False, name=None))


class Score(NamedTuple):
    """The number of right predictions, and the mean log-likelihood, which breaks ties."""

    n_right: int
    log_likelihood: float


def draw(rows: pd.DataFrame, targets: np.ndarray, raw: Path, image_px: int, n_workers: int) -> ImageSample:
    """A class-balanced sample of a split; `rows` and `targets`, int64 `[N]`, are those of the whole split."""
    positions = class_balanced(rows)
    return ImageSample(rows.iloc[positions].reset_index(drop=True), targets[positions], positions, raw, image_px, n_workers)


def class_balanced(rows: pd.DataFrame, n: int = SAMPLE_IMAGES) -> np.ndarray:
    """The positions of at most `n` labelled rows, balanced over the classes: int64, ascending.

    They depend on nothing but the images: in each class they are those with the lowest hashes.
    """
    ordered = rows.reset_index(drop=True).sort_values("sha256", kind="stable")
    turn = ordered.groupby("given_label").cumcount().sort_values(kind="stable")  # the first of each class, the second ...
    return np.sort(turn.index[:n].to_numpy(dtype=np.int64))


def scores(predictors: Mapping[str, Predict], sample: ImageSample) -> dict[str, Score]:
    """The score of each on the sample, which is decoded once for all."""
    n_right, log_likelihood, start = dict.fromkeys(predictors, 0), dict.fromkeys(predictors, 0.0), 0
    for pixels in sample.batches(f"accuracy of {', '.join(predictors)}"):
        targets = sample.targets[start : start + len(pixels)]
        start += len(pixels)
        for name, predict in predictors.items():
            probabilities = predict(pixels)
            n_right[name] += int((probabilities.argmax(axis=1) == targets).sum())
            of_truth = probabilities[np.arange(len(pixels)), targets]
            log_likelihood[name] += float(np.log(np.maximum(of_truth, 1e-12), dtype=np.float64).sum())
    return {name: Score(n_right[name], log_likelihood[name] / len(sample)) for name in predictors}
