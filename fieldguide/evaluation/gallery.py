"""The gallery of an evaluation: wrong and right predictions, and the pairs most often confused."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fieldguide.core.artifacts import N_MISTAKEN, N_TYPICAL, Gallery, GalleryPair, GalleryPhotograph
from fieldguide.core.images import encode_jpeg
from fieldguide.core.names import common_name
from fieldguide.evaluation.answers import TrainedNetwork
from fieldguide.evaluation.summary import Evaluation, LabelledSplit
from fieldguide.evaluation.tables import confused_pairs
from fieldguide.network.loader import decode_pixels
from fieldguide.onnx.export import ExportableNetwork
from fieldguide.onnx.heatmap import overlay, supporting

THUMBNAIL_PX = 144  # side of the photographs
N_WRONG, N_RIGHT = 32, 24
N_PAIRS = 8

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
        return decode_pixels(table, network.raw, image_px, network.runtime.n_workers)

    @torch.inference_mode()
    def activations(split: str, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(photographs(split, rows, facts.image_px)).to(device)
        return exported.activation(pixels, torch.from_numpy(classes)[:, None].to(device))[:, 0].cpu().numpy()

    return select_gallery(evaluation, photographs, activations if exported.map_name is not None else None)


def select_gallery(evaluation: Evaluation, photographs: Photographs, activations: Activations | None) -> Gallery:
    """Wrong predictions in descending confidence, right ones from the highest to the lowest confidence, and confused pairs."""
    held_out, shown = evaluation.splits[evaluation.held_out], _Shown(photographs, activations)
    wrong, right = (surest(held_out, held_out.right == value) for value in (False, True))
    spread = np.unique(np.linspace(0, len(right) - 1, N_RIGHT).round().astype(int)) if len(right) else np.array([], int)
    return Gallery(
        split=evaluation.held_out,
        wrong=shown.photographs(held_out, wrong[:N_WRONG], activation=True),
        right=shown.photographs(held_out, right[spread], activation=True),
        pairs=_pairs(evaluation, shown),
    )


def surest(split: LabelledSplit, among: np.ndarray) -> np.ndarray:
    """The rows, int `[n]`, that are true in `among`, bool `[N]`, in descending order of confidence."""
    order = np.argsort(-split.confidence, kind="stable")
    return order[among[order]]


@dataclass(frozen=True)
class _Shown:
    """Access to the photographs of an evaluation."""

    decode: Photographs
    activations: Activations | None

    def photographs(self, split: LabelledSplit, rows: np.ndarray, activation: bool = False) -> list[GalleryPhotograph]:
        """The photographs of `rows`, int `[n]`, in their order."""
        if not len(rows):
            return []
        pixels, predicted = self.decode(split.name, rows, THUMBNAIL_PX), split.answers.predicted
        overlays: list[str | None] = [None] * len(rows)
        if activation and self.activations:
            maps = self.activations(split.name, rows, predicted[rows])
            overlays = [_jpeg(overlay(picture, supporting(one))) for picture, one in zip(pixels, maps, strict=True)]
        return [
            GalleryPhotograph(
                truth=common_name(split.class_names[split.targets[row]]),
                predicted=common_name(split.class_names[predicted[row]]),
                probability=float(split.confidence[row]),
                right=bool(split.right[row]),
                photograph=_jpeg(picture),
                activation=where,
            )
            for picture, where, row in zip(pixels, overlays, rows, strict=True)
        ]

    def examples(self, split: LabelledSplit, truth: int, predicted: int, n: int) -> list[GalleryPhotograph]:
        """The `n` most confident photographs of class `truth` that were predicted as `predicted`."""
        chosen = surest(split, (split.targets == truth) & (split.answers.predicted == predicted))
        return self.photographs(split, chosen[:n])


def _pairs(evaluation: Evaluation, shown: _Shown) -> list[GalleryPair]:
    """The most frequent confusions of valid and test together, with the most confident examples."""
    names, unseen, first = evaluation.facts.class_names, evaluation.unseen, next(iter(evaluation.splits.values()))
    table = pd.concat(confused_pairs(split) for split in unseen)
    sums = table.groupby(["truth", "predicted"])["n"].sum()
    most: dict[Any, int] = sums.sort_values(ascending=False, kind="stable").head(N_PAIRS).to_dict()
    pairs = []
    for (truth, predicted), n in most.items():
        mistaken = [one for split in unseen for one in shown.examples(split, truth, predicted, N_MISTAKEN)]
        pairs.append(
            GalleryPair(
                truth=common_name(names[truth]),
                predicted=common_name(names[predicted]),
                n=n,
                n_truth=sum(int((split.targets == truth).sum()) for split in unseen),
                mistaken=mistaken[:N_MISTAKEN],
                of_truth=shown.examples(first, truth, truth, N_TYPICAL),
                of_predicted=shown.examples(first, predicted, predicted, N_TYPICAL),
            )
        )
    return pairs


def _jpeg(pixels: np.ndarray) -> str:
    return base64.b64encode(encode_jpeg(pixels, THUMBNAIL_PX)).decode()
