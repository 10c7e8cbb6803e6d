"""Calibration of a network: the temperature of its probabilities, and the thresholds for "unsure" and "unknown".

`stages/evaluate.py` fits it (class means on train, all else on valid) and writes models/calibration.safetensors; the
export copies it into the ONNX file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import nn

from fieldguide.core.taxonomy import Rank
from fieldguide.network.checkpoint import save_sealed, sealed_content

Tensors = Mapping[str, torch.Tensor]
TEMPERATURES = (0.05, 20.0)  # search range
SHRINKAGE = 0.01  # of the within-class covariance; from 0.003 to 0.3 AUROC of butterflies against 733 flowers fell by 0.006
NEVER = 1.01  # above every probability
FITTED = 1 << 27  # logits on which a temperature is fitted: half a gigabyte
CHUNK = 1 << 20  # of them at a time in float64


@dataclass(frozen=True)
class Calibration:
    """How logits and embeddings become probabilities and a verdict.

    tta: none, or mirror: logits and embedding are means over the image and its mirror image.
    temperature: logits are divided by it before softmax (Guo et al. 2017, arXiv:1706.04599).
    unsure_below: a prediction with a lower top probability is unsure; above 1 if no prediction is sure.
    score: the key of `SCORES` that gives the known score.
    unknown_below: an image with a lower known score shows none of the classes.
    tensors: the tensors of the score, float32 by name; may be empty.
    taxa_below: by rank: an unsure prediction is told as a taxon of that rank from this probability on; see `core.taxonomy`.
    taxonomy: by class: what its line in data/taxonomy.csv has.
    """

    tta: str
    temperature: float
    unsure_below: float
    score: str
    unknown_below: float
    tensors: dict[str, torch.Tensor]
    taxa_below: dict[str, float] = field(default_factory=dict)
    taxonomy: dict[str, dict[str, str]] = field(default_factory=dict)


class Moments:
    """Running sums over the embeddings of labelled images, from which `score_tensors` are computed."""

    def __init__(self, n_classes: int, n_features: int) -> None:
        self.counts = torch.zeros(n_classes, dtype=torch.float64)
        self.sums = torch.zeros(n_classes, n_features, dtype=torch.float64)
        self.products = torch.zeros(n_features, n_features, dtype=torch.float64)

    def add(self, embeddings: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds embeddings `[B, F]` of images of the classes `targets`, int64 `[B]` on the CPU."""
        embeddings = embeddings.detach().cpu().double()
        self.counts.index_add_(0, targets, torch.ones(len(targets), dtype=torch.float64))
        self.sums.index_add_(0, targets, embeddings)
        self.products += embeddings.T @ embeddings

    def means(self) -> torch.Tensor:
        """Mean embedding of each class that has images: float64 `[K', F]`."""
        present = self.counts > 0
        return self.sums[present] / self.counts[present, None]

    def centre(self) -> torch.Tensor:
        """The mean of all embeddings: float64 `[F]`."""
        return self.sums.sum(dim=0) / self.counts.sum()

    def whitening(self) -> torch.Tensor:
        """W, float64 `[F, F]`: the within-class covariance of embeddings @ W is the identity, up to the shrinkage.

        The covariance is shrunk by `SHRINKAGE` towards a multiple of the identity; with few images it is singular otherwise.
        """
        present = self.counts > 0
        means = self.means()
        within = (self.products - (self.counts[present, None] * means).T @ means) / self.counts.sum()
        identity = torch.eye(len(within), dtype=torch.float64)
        spread = within.trace() / len(within)
        if spread <= 1e-12 * self.products.trace() / self.counts.sum():  # one image for each class: rounding is all there is
            return identity
        factor = torch.linalg.cholesky((1 - SHRINKAGE) * within + SHRINKAGE * spread * identity)
        return torch.linalg.solve_triangular(factor, identity, upper=False).T


def probability(logits: torch.Tensor, embedding: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """The largest probability at temperature 1 (Hendrycks and Gimpel 2017, arXiv:1610.02136)."""
    return logits.softmax(dim=1).amax(dim=1)


def energy(logits: torch.Tensor, embedding: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """The negative free energy of the logits (Liu et al. 2020, arXiv:2010.03759)."""
    return logits.logsumexp(dim=1)


def cosine(logits: torch.Tensor, embedding: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """The cosine between the embedding and the nearest class mean, both relative to the overall mean."""
    return (F.normalize(embedding - tensors["centre"], dim=1) @ tensors["directions"]).amax(dim=1)


def whitened_cosine(logits: torch.Tensor, embedding: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """The cosine score after whitening by the within-class covariance."""
    white = (embedding - tensors["centre"]) @ tensors["whitening"]
    return (F.normalize(white, dim=1) @ tensors["directions"]).amax(dim=1)


def mahalanobis(logits: torch.Tensor, embedding: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """The negative squared Mahalanobis distance to the nearest class mean (Lee et al. 2018, arXiv:1807.03888)."""
    white, means = (embedding - tensors["centre"]) @ tensors["whitening"], tensors["means"]
    squares = white.square().sum(dim=1, keepdim=True) - 2 * white @ means.T + means.square().sum(dim=1)
    return -squares.amin(dim=1)


SCORES: dict[str, Callable[[torch.Tensor, torch.Tensor, Tensors], torch.Tensor]] = {
    score.__name__: score for score in (probability, energy, cosine, whitened_cosine, mahalanobis)
}


def score_tensors(score: str, moments: Moments) -> dict[str, torch.Tensor]:
    """The tensors of a score, float32 by name, from the moments of the training images."""
    tensors: dict[str, torch.Tensor] = {}
    if score in ("cosine", "whitened_cosine", "mahalanobis"):
        tensors["centre"] = moments.centre()
        means = moments.means() - tensors["centre"]
        if score != "cosine":
            tensors["whitening"] = moments.whitening()
            means = means @ tensors["whitening"]
        tensors |= {"means": means} if score == "mahalanobis" else {"directions": F.normalize(means, dim=1).T}
    return {name: tensor.float() for name, tensor in tensors.items()}


class KnownScore(nn.Module):
    """Logits `[N, K]`, not divided by the temperature, and embeddings `[N, F]` to `[N]`: higher is more likely known."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.score = SCORES[calibration.score]
        self.names = tuple(calibration.tensors)
        for name, tensor in calibration.tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, logits: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return self.score(logits, embedding, {name: getattr(self, name) for name in self.names})


@np.errstate(invalid="ignore")  # of a training that diverged, which the next epoch refuses
def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature in `TEMPERATURES` that minimises the log loss of logits, float32 `[N, K]`.

    If all predictions are right, log loss decreases towards temperature 0. The truth then has the target probability
    (N + 1) / (N + 2), by the rule of succession, and the other classes share the rest. Memory beside the logits is bounded.
    """
    n, n_classes = logits.shape
    chunks = [logits[start : start + max(CHUNK // n_classes, 1)] for start in range(0, n, max(CHUNK // n_classes, 1))]
    of_truth = logits[np.arange(n), targets].astype(np.float64)
    all_right = (logits.argmax(axis=1) == targets).all()
    other = 1 / ((n + 2) * (n_classes - 1)) if all_right else 0.0  # target probability of each other class
    truth = (n + 1) / (n + 2) if all_right else 1.0
    sums = sum(chunk.sum(dtype=np.float64) for chunk in chunks)
    targeted = float((truth - other) * of_truth.sum() + other * sums)

    def log_loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return (sum(_sum_of_log_sums(chunk, temperature) for chunk in chunks) - targeted / temperature) / n

    bounds = [math.log(end) for end in TEMPERATURES]
    return math.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def _sum_of_log_sums(logits: np.ndarray, temperature: float) -> float:
    """The sum over rows of the log-sum-exp of logits / temperature."""
    return float(logsumexp(logits.astype(np.float64) / temperature, axis=1).sum())


def sample_of(n_images: int, n_classes: int) -> slice:
    """Evenly spaced rows with about `FITTED` logits at most, on which a temperature is fitted: in most data sets all."""
    return slice(None, None, -(-n_images * n_classes // FITTED) or 1)


def fit_unsure_below(confidence: np.ndarray, right: np.ndarray, accuracy: float, told: np.ndarray | None = None) -> float:
    """The lowest threshold above which predictions reach `accuracy`; `NEVER` if there is none.

    confidence: the largest probability of each image; right: whether the prediction is right. The threshold lies half way
    to the next lower confidence, or equals the lowest one if all predictions together reach `accuracy`. told: bool, some of the
    images, on which alone `accuracy` must be reached as well.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    last_of_equals = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)
    reached = np.ones(len(order), bool)
    for some in (np.ones(len(order), bool), *([] if told is None else [told])):
        n_right, n = np.cumsum((right & some)[order]), np.cumsum(some[order])
        reached &= (n > 0) & (n_right / np.maximum(n, 1) >= accuracy)
    (good,) = np.nonzero(reached & last_of_equals)
    if not len(good):
        return NEVER
    last, following = sorted_confidence[good[-1]], sorted_confidence[good[-1] : good[-1] + 2].min()
    middle = float((last + following) / 2)
    return middle if middle > following else float(last)  # of neighbouring floats the mean may be the lower one


def fit_taxa_below(
    of_ranks: Sequence[tuple[Rank, np.ndarray, np.ndarray, np.ndarray]], unsettled: np.ndarray, accuracy: float
) -> dict[str, float]:
    """By rank, the lowest probability of a taxon that is an answer: `accuracy` holds on all images and on those it is told for.

    of_ranks: from narrow to wide a rank, the most probable group of each image, its probability, and the group of the truth:
    `[N]`. unsettled: bool `[N]`, whether no class is told for an image that shows one; a wider rank is told only where no
    narrower one is. A rank for which no image speaks is never told.
    """
    thresholds: dict[str, float] = {}
    unsettled = unsettled.copy()
    for rank, group, probability, truth in of_ranks:
        can = rank.answerable[group]
        right = group == truth
        thresholds[rank.name] = fit_unsure_below(probability[can], right[can], accuracy, unsettled[can])
        unsettled &= ~(can & (probability >= thresholds[rank.name]))
    return thresholds


def fit_unknown_below(known: np.ndarray, accept: float) -> float:
    """The threshold that accepts the share `accept` of the scores `known` `[N]`.

    It lies half way between the last refused and the first accepted score, or equals the lowest if none is refused.
    """
    n_refused = min(math.floor((1 - accept) * len(known) + 1e-9), len(known) - 1)  # in floats (1 - 0.9) * 10 < 1
    return float(np.sort(known)[max(n_refused - 1, 0) : n_refused + 1].astype(np.float64).mean())


def verdicts(confidence: np.ndarray, known: np.ndarray, calibration: Calibration) -> np.ndarray:
    """`sure`, `unsure` or `unknown` for each image, from its largest calibrated probability and its known score."""
    is_known, is_sure = known >= calibration.unknown_below, confidence >= calibration.unsure_below  # nan is neither
    return np.select([~is_known, is_sure], ["unknown", "sure"], "unsure")


def save_calibration(target: Path, calibration: Calibration) -> None:
    facts = vars(calibration).copy()
    save_sealed(target, facts.pop("tensors"), facts)


def load_calibration(source: Path) -> Calibration:
    """The calibration that `save_calibration` wrote; raises `UserError` for any other file."""
    with sealed_content(source, "calibration", "evaluate") as (facts, tensors):
        return Calibration(**facts, tensors=tensors)
