"""The gallery of an evaluation: wrong and right predictions, and the pairs most often confused."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fieldguide.core.artifacts import Gallery, GalleryPair, GalleryPhotograph
from fieldguide.core.images import encode_jpeg
from fieldguide.core.names import common_name
from fieldguide.evaluation.answers import TrainedNetwork
from fieldguide.evaluation.summary import Evaluation
from fieldguide.evaluation.tables import confused_pairs
from fieldguide.network.loader import decode_all
from fieldguide.onnx.export import ExportableNetwork
from fieldguide.onnx.heatmap import overlay, supporting

THUMBNAIL_PX = 144  # side of the photographs
N_WRONG, N_RIGHT = 32, 24
N_PAIRS = 8
N_MISTAKEN, N_TYPICAL = 4, 2  # photographs of a pair: mistaken ones, and right ones of either class

Photographs = Callable[[str, np.ndarray, int], np.ndarray]
"""(split, rows (int `[n]`), side) to photographs: uint8 `[n, side, side, 3]`."""
Activations = Callable[[str, np.ndarray, np.ndarray], np.ndarray]
"""(split, rows, a class for each), int `[n]`, to class activation maps: float `[n, h, w]`, of any scale."""


def build_gallery(network: TrainedNetwork, evaluation: Evaluation) -> Gallery:
    """The gallery of an evaluation, with activation maps if the network has them."""
    facts, device = network.facts, network.device
    exported = ExportableNetwork(network.model, evaluation.calibration, facts.image_px).eval().to(device)

    def photographs(split: str, rows: np.ndarray, image_px: int) -> np.ndarray:
        table = evaluation.rows[split].iloc[rows].reset_index(drop=True)
        return decode_all(table, network.raw, image_px, network.runtime.n_workers).permute(0, 2, 3, 1).numpy()

    @torch.inference_mode()
    def activations(split: str, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        maps = exported(torch.from_numpy(photographs(split, rows, facts.image_px)).to(device))[-1]
        return maps[torch.arange(len(classes)), torch.from_numpy(classes)].cpu().numpy()

    return select_gallery(evaluation, photographs, activations if exported.map_name is not None else None)


def select_gallery(evaluation: Evaluation, photographs: Photographs, activations: Activations | None) -> Gallery:
    """Wrong predictions in descending confidence, right ones from the highest to the lowest confidence, and confused pairs."""
    names = tuple(map(common_name, evaluation.facts.class_names))
    shown = {
        split: _Shown(split, names, evaluation.targets(split), evaluation.probabilities(split), photographs, activations)
        for split in evaluation.rows
    }
    held_out = shown[evaluation.held_out]
    wrong, right = (held_out.surest(np.flatnonzero(held_out.right == value)) for value in (False, True))
    spread = np.unique(np.linspace(0, len(right) - 1, N_RIGHT).round().astype(int)) if len(right) else np.array([], int)
    return Gallery(
        split=evaluation.held_out,
        wrong=held_out.photographs(wrong[:N_WRONG], activation=True),
        right=held_out.photographs(right[spread], activation=True),
        pairs=_pairs(evaluation, shown),
    )


@dataclass(frozen=True)
class _Shown:
    """The predictions of one split, and access to its photographs."""

    split: str
    names: Sequence[str]
    targets: np.ndarray
    probabilities: np.ndarray
    decode: Photographs
    activations: Activations | None

    @cached_property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        return self.probabilities.max(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        return self.predicted == self.targets

    def surest(self, rows: np.ndarray) -> np.ndarray:
        """`rows` in descending order of confidence."""
        return rows[np.argsort(-self.confidence[rows], kind="stable")]

    def mistaken(self, truth: int, predicted: int) -> np.ndarray:
        """Rows of class `truth` that were predicted as `predicted`, in descending order of confidence."""
        return self.surest(np.flatnonzero((self.targets == truth) & (self.predicted == predicted)))

    def photographs(self, rows: np.ndarray, activation: bool = False) -> list[GalleryPhotograph]:
        """The photographs of `rows`, int `[n]`, in their order."""
        if not len(rows):
            return []
        pixels = self.decode(self.split, rows, THUMBNAIL_PX)
        overlays: Sequence[str | None] = [None] * len(rows)
        if activation and self.activations:
            maps = self.activations(self.split, rows, self.predicted[rows])
            overlays = [_jpeg(overlay(picture, supporting(one))) for picture, one in zip(pixels, maps, strict=True)]
        return [
            GalleryPhotograph(
                truth=self.names[self.targets[row]],
                predicted=self.names[self.predicted[row]],
                probability=float(self.confidence[row]),
                right=bool(self.right[row]),
                photograph=_jpeg(picture),
                activation=where,
            )
            for picture, where, row in zip(pixels, overlays, rows, strict=True)
        ]


def _pairs(evaluation: Evaluation, shown: dict[str, _Shown]) -> list[GalleryPair]:
    """The most frequent confusions of valid and test together, with the most confident examples."""
    table = confused_pairs(evaluation)
    splits = [split for split in shown if split != "train"]
    sums = table[table["split"].isin(splits)].groupby(["truth", "predicted"])["n"].sum()
    most: dict[Any, int] = sums.sort_values(ascending=False, kind="stable").head(N_PAIRS).to_dict()
    pairs = []
    for (truth, predicted), n in most.items():
        mistaken = [
            one for split in splits for one in shown[split].photographs(shown[split].mistaken(truth, predicted)[:N_MISTAKEN])
        ]
        first = next(iter(shown.values()))
        of_truth, of_predicted = (first.photographs(first.mistaken(k, k)[:N_TYPICAL]) for k in (truth, predicted))
        pairs.append(
            GalleryPair(
                truth=first.names[truth],
                predicted=first.names[predicted],
                n=int(n),
                n_truth=sum(int((shown[split].targets == truth).sum()) for split in splits),
                mistaken=mistaken[:N_MISTAKEN],
                of_truth=of_truth,
                of_predicted=of_predicted,
            )
        )
    return pairs


def _jpeg(pixels: np.ndarray) -> str:
    return base64.b64encode(encode_jpeg(pixels, THUMBNAIL_PX)).decode()
