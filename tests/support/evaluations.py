"""Evaluations made by hand: chosen truths, answers and confidences, without a network."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from fieldguide.core.artifacts import EvaluateMetrics, SplitMetrics, Thresholds, TtaMetrics
from fieldguide.core.taxonomy import Taxon, ranks_of
from fieldguide.evaluation.gallery import THUMBNAIL_PX
from fieldguide.evaluation.metrics import Answers
from fieldguide.evaluation.summary import Evaluation
from fieldguide.network.calibration import Calibration
from fieldguide.network.checkpoint import Checkpoint

NAMES = ("RED ADMIRAL", "PEACOCK", "<b>COMMA</b>")
Answered = tuple[list[int], list[int], list[float]]  # truth, prediction, confidence of each image
TRAIN: Answered = ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0.9, 0.8, 0.9, 0.7, 0.9, 0.6])
VALID: Answered = ([0, 1, 2, 2], [0, 1, 1, 2], [0.9, 0.8, 0.7, 0.6])
TEST: Answered = ([0, 1, 1, 2, 2, 2, 0], [0, 2, 1, 1, 1, 2, 0], [0.95, 0.55, 0.9, 0.75, 0.85, 0.6, 0.5])


def evaluation(
    names: tuple[str, ...] = NAMES,
    taxonomy: Mapping[str, Taxon] = MappingProxyType({}),
    taxa_below: Mapping[str, float] = MappingProxyType({}),
    **splits: Answered,
) -> Evaluation:
    """Answers in which the prediction has the given probability and the other classes share the rest."""
    rows, answers, ranks = {}, {}, ranks_of(taxonomy, names)
    for split, (targets, predicted, confidence) in splits.items():
        probabilities = np.repeat((1 - np.array(confidence))[:, None] / (len(names) - 1), len(names), axis=1)
        probabilities[np.arange(len(targets)), predicted] = confidence
        rows[split] = pd.DataFrame(
            {
                "label": pd.array(targets, dtype="Int64"),
                "class_name": [names[k] for k in targets],
                "id": [f"{split}/{n}" for n in range(len(targets))],
                "sha256": "00",
                "reason": "",
                "given_label": pd.array(targets, dtype="Int64"),
                "given": [names[k] for k in targets],
                "decision": "",
            }
        )
        answers[split] = Answers.unfilled(len(targets), ranks)
        answers[split].put(np.arange(len(targets)), np.log(probabilities).astype(np.float32), np.array(targets), 1.0)
        answers[split].first_view[:] = predicted
        answers[split].known[:] = 1
    facts = Checkpoint("cnn", 32, names, tuple(range(len(names))), 1, "00")
    return Evaluation(facts, rows, answers, Calibration("none", 1.0, 0.5, "probability", 0.5, {}, dict(taxa_below)))


def evaluate_metrics(**accuracies: tuple[float, int]) -> EvaluateMetrics:
    """metrics/evaluate.json in which splits have the given accuracy and number of images."""
    optional = {"known", "sure", "accuracy_when_sure", "as_corrected", "by_class_size", "by_rank", "useful"}
    keys = set(SplitMetrics.model_fields) - {"accuracy", "n", "classes"} - optional
    splits = {
        split: SplitMetrics(accuracy=accuracy, n=n, classes=3, **dict.fromkeys(keys, 0.5))
        for split, (accuracy, n) in ({"train": (0.5, 4), "valid": (0.5, 4)} | accuracies).items()
    }
    thresholds = Thresholds(temperature=1.0, unsure_below=0.5, unknown_below=0.5)
    return EvaluateMetrics(classes=3, **splits, tta=TtaMetrics(forward_passes=1), calibration=thresholds, strangers={})


def photographs(split: str, rows: np.ndarray, image_px: int = THUMBNAIL_PX) -> np.ndarray:
    """A photograph's red says which row it is, its green which split."""
    pixels = np.zeros((len(rows), image_px, image_px, 3), np.uint8)
    pixels[..., 0] = (20 * (rows + 1))[:, None, None]
    pixels[..., 1] = 60 * (1 + ["train", "valid", "test"].index(split))
    return pixels


def activations(split: str, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Strong in the upper left corner."""
    maps = np.zeros((len(rows), 4, 4), np.float32)
    maps[:, 0, 0] = 5
    return maps
