"""Predictions of a trained network for every image, and the calibration fitted on them.

Logits are reduced to what the metrics need batch by batch, so that memory does not grow with images times classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fieldguide.core.manifest import Classes
from fieldguide.core.params import Evaluate, Runtime
from fieldguide.core.taxonomy import Taxon, ranks_of
from fieldguide.evaluation.metrics import Answers
from fieldguide.evaluation.ood import ood_images
from fieldguide.network.calibration import (
    Calibration,
    KnownScore,
    Moments,
    fit_taxa_below,
    fit_temperature,
    fit_unknown_below,
    fit_unsure_below,
    sample_of,
    score_tensors,
    verdicts,
)
from fieldguide.network.checkpoint import Checkpoint
from fieldguide.network.features import known_features
from fieldguide.network.inference import batches_of, views
from fieldguide.network.loader import Prefetching, Resident, Source
from fieldguide.network.models import Classifier

N_NOISE = 100  # images of each kind of noise

Known = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits `[B, K]` and embeddings `[B, F]` to known scores `[B]`."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network on its device, with its settings."""

    model: Classifier
    facts: Checkpoint
    evaluate: Evaluate
    runtime: Runtime
    raw: Path
    taxonomy: dict[str, Taxon] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    def images(self, rows: pd.DataFrame) -> Source:
        return Prefetching(rows, self.raw, self.facts.image_px, self.runtime.n_workers, self.device)


class Pass(NamedTuple):
    """What the network makes of a batch of a split's images; `logits` and `embedding` are means over the views."""

    rows: torch.Tensor  # int64 [B], on the CPU
    logits: torch.Tensor  # float32 [B, K]
    embedding: torch.Tensor  # float32 [B, F]
    first_view: torch.Tensor  # int64 [B], the answers without test-time augmentation


def answer_all(
    network: TrainedNetwork, rows: dict[str, pd.DataFrame]
) -> tuple[dict[str, Answers], dict[str, np.ndarray], Calibration]:
    """Predictions for each table of rows, known scores of out-of-distribution images by kind, and the calibration.

    The calibration is fitted on train (class means) and valid (temperature, thresholds), both as corrected. Train has no known
    scores. Valid comes first, for the temperature, but its known scores need the class means: its embeddings are kept.
    """
    evaluate, classes, batch_size = network.evaluate, network.facts.classes, network.evaluate.batch_size
    targets = {split: targets_of(classes, split, table) for split, table in rows.items() if split != "unlabelled"}
    kept = np.flatnonzero(rows["valid"]["decision"].ne("drop"))
    as_corrected = classes.targets(rows["valid"].iloc[kept])
    valid = kept_embeddings(passes(network, network.images(rows["valid"]), "valid"), len(rows["valid"]))
    sample, ranks = sample_of(len(kept), len(classes.names)), ranks_of(network.taxonomy, classes.names)
    some_logits = logits_of(replay(network.model, valid, batch_size), kept[sample])
    temperature = fit_temperature(some_logits, as_corrected[sample])

    moments = Moments(len(classes.names), network.model.head.in_features)
    batches = iter(torch.from_numpy(targets["train"]).split(batch_size))

    def learn(logits: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        moments.add(embedding, next(batches))
        return torch.full((len(logits),), torch.nan)

    def answered(split: str, known: Known) -> Answers:
        source = network.images(rows[split])
        unfilled = Answers.unfilled(len(source), ranks)
        return answer(unfilled, passes(network, source, split), targets.get(split), temperature, known)

    answers = {"train": answered("train", learn)}
    tensors = score_tensors(evaluate.known_score, moments)
    unfitted = Calibration(evaluate.tta, temperature, 0.0, evaluate.known_score, 0.0, tensors)
    known = KnownScore(unfitted).to(network.device)
    unfilled = Answers.unfilled(len(valid[0]), ranks)
    answers["valid"] = answer(unfilled, replay(network.model, valid, batch_size), targets["valid"], temperature, known)
    answers |= {split: answered(split, known) for split in rows if split not in answers}
    ood = {}
    for kind, images in ood_images(network.facts.image_px, N_NOISE).items():
        batches_of_kind = passes(network, Resident(images.to(network.device)), kind)
        ood[kind] = answer(Answers.unfilled(len(images)), batches_of_kind, None, temperature, known).known
    fitted = replace(unfitted, taxonomy={name: _named(taxon) for name, taxon in network.taxonomy.items()})
    return answers, ood, with_thresholds(fitted, answers["valid"], kept, as_corrected, evaluate)


def with_thresholds(
    calibration: Calibration, valid: Answers, kept: np.ndarray, targets: np.ndarray, evaluate: Evaluate
) -> Calibration:
    """The calibration with the thresholds fitted on the images `kept` of valid, int `[M]`, whose truth is `targets` `[M]`."""
    confidence, known, right = valid.confidence[kept], valid.known[kept], valid.predicted[kept] == targets
    fitted = replace(
        calibration,
        unsure_below=fit_unsure_below(confidence, right, evaluate.sure_accuracy),
        unknown_below=fit_unknown_below(known, evaluate.accept),
    )
    unsettled = verdicts(confidence, known, fitted) == "unsure"
    of_ranks = [
        (rank, valid.groups[kept, place], valid.group_probability[kept, place], rank.of_class[targets])
        for place, rank in enumerate(valid.ranks)
    ]
    return replace(fitted, taxa_below=fit_taxa_below(of_ranks, unsettled, evaluate.sure_accuracy))


def _named(taxon: Taxon) -> dict[str, str]:
    return {column: value for column, value in taxon._asdict().items() if value}


def targets_of(classes: Classes, split: str, rows: pd.DataFrame) -> np.ndarray:
    """Output numbers of a labelled split, int64 `[N]`: as corrected in train, elsewhere of the labels that the data give."""
    return classes.targets(rows) if split == "train" else classes.given_targets(rows)


def passes(network: TrainedNetwork, source: Source, name: str) -> Iterator[Pass]:
    """The network's passes over all images in their order; `name` stands beside the progress."""
    batch_size, image_px = network.evaluate.batch_size, network.facts.image_px
    batches = batches_of(len(source), batch_size)
    features = known_features(network.model, source, image_px, batch_size, torch.float32, begin=False)
    all_views = views(network.model, source, batches, network.device, network.evaluate.tta, batch_size, features)
    bar = tqdm(batches, desc=name, unit="image", unit_scale=batch_size, disable=None)
    for rows, (logits, embeddings) in zip(bar, all_views, strict=True):
        yield Pass(rows, logits.mean(dim=0), embeddings.mean(dim=0), logits[0].argmax(dim=1))
    features.save()


def kept_embeddings(batches: Iterable[Pass], n_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings, float32 `[N, F]`, and answers of the first view, int64 `[N]`, of all images, on the CPU."""
    embeddings, first_view = torch.empty(0), torch.empty(n_images, dtype=torch.int64)
    for batch in batches:
        if not len(embeddings):
            embeddings = torch.empty(n_images, batch.embedding.shape[1])
        embeddings[batch.rows], first_view[batch.rows] = batch.embedding.cpu(), batch.first_view.cpu()
    return embeddings, first_view


def replay(model: Classifier, kept: tuple[torch.Tensor, torch.Tensor], batch_size: int) -> Iterator[Pass]:
    """The passes again, from what `kept_embeddings` kept of them."""
    embeddings, first_view = kept
    for rows in batches_of(len(embeddings), batch_size):
        embedding = embeddings[rows].to(model.head.weight.device)
        with torch.inference_mode():
            logits = model.head(embedding)
        yield Pass(rows, logits, embedding, first_view[rows])


def logits_of(batches: Iterable[Pass], chosen: np.ndarray) -> np.ndarray:
    """The logits of the images `chosen`, int64 `[M]` in ascending order: float32 `[M, K]`."""
    parts = []
    for batch in batches:
        within = np.isin(batch.rows.numpy(), chosen, assume_unique=True)
        parts.append(batch.logits.cpu().numpy()[within])
    return np.concatenate(parts)


def answer(answers: Answers, batches: Iterable[Pass], targets: np.ndarray | None, temperature: float, known: Known) -> Answers:
    """Fills in the predictions for all images; targets: the truth, int64 `[N]`, if it is known."""
    for batch in batches:
        rows = batch.rows.numpy()
        answers.put(rows, batch.logits.cpu().numpy(), None if targets is None else targets[rows], temperature)
        answers.first_view[rows] = batch.first_view.cpu()
        answers.known[rows] = known(batch.logits, batch.embedding).cpu()
    return answers
