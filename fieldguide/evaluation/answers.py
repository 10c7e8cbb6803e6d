"""Predictions of a trained network for every image, and the calibration fitted on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from tqdm import tqdm

from fieldguide.core.params import Evaluate, Runtime
from fieldguide.evaluation.ood import ood_images
from fieldguide.network.calibration import (
    Calibration,
    KnownScore,
    Moments,
    fit_temperature,
    fit_unknown_below,
    fit_unsure_below,
    score_tensors,
)
from fieldguide.network.checkpoint import Checkpoint
from fieldguide.network.features import known_features
from fieldguide.network.inference import batches_of, views
from fieldguide.network.loader import Prefetching, Resident, Source
from fieldguide.network.models import Classifier

N_NOISE = 100  # images of each kind of noise


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network on its device, with its settings."""

    model: Classifier
    facts: Checkpoint
    evaluate: Evaluate
    runtime: Runtime
    raw: Path

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    def images(self, rows: pd.DataFrame) -> Source:
        return Prefetching(rows, self.raw, self.facts.image_px, self.runtime.n_workers, self.device)


@dataclass(frozen=True)
class Answers:
    """Predictions for the images of one split.

    logits: float32 `[N, K]`, the mean over the views; first_view: int64 `[N]`, the classes without test-time augmentation;
    known: float32 `[N]`, known scores.
    """

    logits: np.ndarray
    first_view: np.ndarray
    known: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 `[N]`."""
        return self.logits.argmax(axis=1)

    def probabilities(self, temperature: float) -> np.ndarray:
        """float64 `[N, K]`."""
        return softmax(self.logits.astype(np.float64) / temperature, axis=1)


def answer_all(
    network: TrainedNetwork, rows: dict[str, pd.DataFrame]
) -> tuple[dict[str, Answers], dict[str, np.ndarray], Calibration]:
    """Predictions for each table of rows, known scores of out-of-distribution images by kind, and the calibration.

    The calibration is fitted on train (class means) and valid (temperature, thresholds), both as corrected. Train has no known
    scores.
    """
    evaluate, kept = network.evaluate, rows["valid"]["decision"].ne("drop").to_numpy(dtype=bool)
    fitted_on = {"train": rows["train"], "valid": rows["valid"][kept]}
    targets = {split: network.facts.classes.targets(table) for split, table in fitted_on.items()}
    moments = Moments(len(network.facts.class_names), network.model.head.in_features)
    batches = iter(torch.from_numpy(targets["train"]).split(evaluate.batch_size))

    def learn(logits: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        moments.add(embedding, next(batches))
        return torch.full((len(logits),), torch.nan)

    answers = {"train": answer(network, network.images(rows["train"]), "train", learn)}
    tensors = score_tensors(evaluate.known_score, moments)
    unfitted = Calibration(evaluate.tta, 1.0, 0.0, evaluate.known_score, 0.0, tensors)
    known_score = KnownScore(unfitted).to(network.device)
    answers |= {
        name: answer(network, network.images(table), name, known_score) for name, table in rows.items() if name != "train"
    }
    ood = {
        kind: answer(network, Resident(images.to(network.device)), kind, known_score).known
        for kind, images in ood_images(network.facts.image_px, N_NOISE).items()
    }
    valid = Answers(*(each[kept] for each in (answers["valid"].logits, answers["valid"].first_view, answers["valid"].known)))
    temperature = fit_temperature(valid.logits, targets["valid"])
    right = valid.predicted == targets["valid"]
    confidence = valid.probabilities(temperature).max(axis=1)
    fitted = replace(
        unfitted,
        temperature=temperature,
        unsure_below=fit_unsure_below(confidence, right, evaluate.sure_accuracy),
        unknown_below=fit_unknown_below(valid.known, evaluate.accept),
    )
    return answers, ood, fitted


def answer(
    network: TrainedNetwork, source: Source, name: str, known: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Answers:
    """Predictions for all images; `known` maps logits `[B, K]` and embeddings `[B, F]` of a batch to scores `[B]`."""
    n_images, n_classes, evaluate = len(source), len(network.facts.class_names), network.evaluate
    answers = Answers(  # allocated at once: parts kept from each batch fragment memory, 20 kB per image
        np.empty((n_images, n_classes), np.float32), np.empty(n_images, np.int64), np.empty(n_images, np.float32)
    )
    batches = batches_of(n_images, evaluate.batch_size)
    image_px, batch_size = network.facts.image_px, evaluate.batch_size
    features = known_features(network.model, source, image_px, batch_size, torch.float32, begin=False)
    all_views = views(network.model, source, batches, network.device, evaluate.tta, batch_size, features)
    bar = tqdm(batches, desc=name, unit="image", unit_scale=evaluate.batch_size, disable=None)
    for rows, (seen, embeddings) in zip(bar, all_views, strict=True):
        logits, batch = seen.mean(dim=0), rows.numpy()
        answers.logits[batch] = logits.cpu()
        answers.first_view[batch] = seen[0].argmax(dim=1).cpu()
        answers.known[batch] = known(logits, embeddings.mean(dim=0)).cpu()
    features.save()
    return answers
