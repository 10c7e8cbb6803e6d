"""How probable each label is, by images that do not share its fold.

Two judges that fail differently are pooled: linear discriminants (one covariance for all classes), and the similarity to the
nearest images of a class, which knows that a class has undersides and upper sides. Their temperatures are fitted together with
a rate of wrong labels, as if a wrong label were any other class with equal probability, so that wrong labels neither blunt the
judges nor count as their mistakes. The rate turns probabilities of classes into the probability that a label is wrong.

Memory is that of the embeddings, and of some numbers per image and per class; never images times classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import log_expit, logit, logsumexp
from tqdm import tqdm

from fieldguide.checks.splits import assign_folds

N_FOLDS, SEED = 5, 1
SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity; 0.03 to 0.3 find the same planted errors
LEAST_VARIANCE = 0.01  # of vectors of length 1, within classes; less is rounding, of images that are all alike
N_CANDIDATES = 10  # most probable classes beside the given one that are judged further
N_NEAREST = 3
N_REFERENCES = 2000  # images of a class that others are compared with
N_FITTED = 20_000  # images; enough for two numbers
LEAST_RATE = 0.02  # of wrong labels: natural ones are between similar classes, which the fitted rate counts as mistakes
CLOSE = 0.9  # cosine similarity of possible copies; of 335 copies in the butterflies 90 % are closer
MAX_CLOSE = 50_000  # pairs
CHUNK = 4096  # images that are judged at once; fewer where they have many classes
MAX_SCORES = 2**24  # of images times classes at once, 128 MiB


@dataclass(frozen=True)
class Judgement:
    """One entry per image, but for `close`.

    given_probability, suggested_probability: of the given class and of the most probable other one, `suggested` (int64);
    wrong: the probability that the label is wrong and `suggested` right; similarity: cosine, to its nearest images;
    judged: False for an image whose class no other fold has; close: pairs of rows, int64 `[M, 2]`, that may be copies, the
    closest first.
    """

    given_probability: np.ndarray
    suggested: np.ndarray
    suggested_probability: np.ndarray
    wrong: np.ndarray
    similarity: np.ndarray
    judged: np.ndarray
    close: np.ndarray
    error_rate: float  # fitted

    @property
    def agrees(self) -> np.ndarray:
        """Whether the given class is the most probable one: bool `[N]`."""
        return self.given_probability >= self.suggested_probability


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities of the classes of each image, by images that do not share its fold.

    classes: int64 `[N, 1 + C]`, the given one, then the most probable others; probability: float64 `[N, 1 + C]`, 0 if not
    judged; the other fields are those of `Judgement`.
    """

    classes: np.ndarray
    probability: np.ndarray
    similarity: np.ndarray
    judged: np.ndarray
    close: np.ndarray
    error_rate: float


def judge(vectors: np.ndarray, rows: pd.DataFrame) -> Judgement:
    """Judges the labels of `rows` of the manifest by their embeddings, `[N, F]`; with fewer than two classes none is judged.

    Images of one `unit` are in one fold. Independent of the order of the rows but for rounding, and for which images are
    compared where a class has more than `N_REFERENCES`.
    """
    n_classes = rows["class_name"].nunique()
    if n_classes < 2:
        nothing = np.zeros(len(rows))
        labels = np.zeros(len(rows), np.int64)
        return Judgement(nothing, labels, nothing, nothing, nothing, nothing > 0, np.empty((0, 2), np.int64), 0.0)
    found = out_of_fold(vectors, rows)
    images, best = np.arange(len(rows)), 1 + found.probability[:, 1:].argmax(axis=1)
    return Judgement(
        given_probability=found.probability[:, 0],
        suggested=found.classes[images, best],
        suggested_probability=found.probability[images, best],
        wrong=wrong_probability(found.probability, found.error_rate, n_classes),
        similarity=found.similarity,
        judged=found.judged,
        close=found.close,
        error_rate=found.error_rate,
    )


def out_of_fold(vectors: np.ndarray, rows: pd.DataFrame) -> OutOfFold:
    """As `judge`, of at least two classes."""
    names, targets = np.unique(rows["class_name"].to_numpy(str), return_inverse=True)
    folds = assign_folds(rows.assign(photograph=rows["unit"]).drop(columns="group", errors="ignore"), N_FOLDS, SEED).to_numpy()
    classes, linear = _discriminant_scores(vectors, targets, folds, len(names))
    nearest, close = _similarities(vectors, targets, rows["unit"].to_numpy(), classes)
    judged = np.isfinite(linear[:, 0]) & (nearest[:, 0] > -1)
    step = 1 + judged.sum() // N_FITTED
    pooled = np.zeros((judged.sum(), linear.shape[1]))
    for scores in (linear[judged], nearest[judged]):
        pooled += _log_probability(scores, _fit(scores[::step], len(names))[0], len(names))
    temperature, rate = _fit(pooled[::step], len(names))
    probability = np.zeros(linear.shape)
    probability[judged] = np.exp(_log_probability(pooled, temperature, len(names)))
    return OutOfFold(classes, probability, nearest.max(axis=1), judged, close, rate)


def wrong_probability(probability: np.ndarray, error_rate: float, n_classes: int) -> np.ndarray:
    """The probability that a label is wrong and the most probable other class right, float64 `[N]`; see `OutOfFold`."""
    given, suggested, rate = probability[:, 0], probability[:, 1:].max(axis=1), max(error_rate, LEAST_RATE)
    share = rate / (n_classes - 1)  # of the wrong labels that name a certain class
    return suggested * share / (given * (1 - rate) + (1 - given) * share)


def unit_vectors(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some embeddings, divided by their length: float32 `[M, F]`."""
    some = vectors[rows].astype(np.float32)
    return some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)


def _chunks(rows: np.ndarray, n_columns: int = 1) -> Iterator[np.ndarray]:
    size = max(min(CHUNK, MAX_SCORES // n_columns), 1)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _discriminant_scores(
    vectors: np.ndarray, targets: np.ndarray, folds: np.ndarray, n_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Classes int64 `[N, 1 + C]` (the given one, then the most probable others) and their scores, float64, up to a constant.

    Of linear discriminants that were fitted on the other folds; a class that these lack has -inf.
    """
    size = vectors.shape[1]
    products = np.zeros((N_FOLDS, size, size))
    sums = np.zeros((N_FOLDS, n_classes, size), np.float32)
    counts = np.zeros((N_FOLDS, n_classes))
    for fold in range(N_FOLDS):
        for chunk in _chunks(np.flatnonzero(folds == fold)):
            some = unit_vectors(vectors, chunk)
            products[fold] += some.T @ some
            ones, columns = np.ones(len(chunk), np.float32), np.arange(len(chunk))
            sums[fold] += csr_array((ones, (targets[chunk], columns)), (n_classes, len(chunk))) @ some
            counts[fold] += np.bincount(targets[chunk], minlength=n_classes)
    n_others = min(N_CANDIDATES, n_classes - 1)
    classes = np.empty((len(targets), 1 + n_others), np.int64)
    scores = np.empty(classes.shape)
    for fold in tqdm(range(N_FOLDS), unit="fold", desc="judge", disable=None):
        weights, bias = _discriminants(products.sum(0) - products[fold], sums.sum(0) - sums[fold], counts.sum(0) - counts[fold])
        for chunk in _chunks(np.flatnonzero(folds == fold), n_classes):
            values = unit_vectors(vectors, chunk) @ weights.T + bias
            here = np.arange(len(chunk))
            classes[chunk, 0], scores[chunk, 0] = targets[chunk], values[here, targets[chunk]]
            values[here, targets[chunk]] = -np.inf
            others = np.argpartition(-values, n_others - 1, axis=1)[:, :n_others]
            classes[chunk, 1:], scores[chunk, 1:] = others, np.take_along_axis(values, others, axis=1)
    return classes, scores


def _discriminants(products: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[K, F]` and bias `[K]` of the log posterior of normal classes with one covariance."""
    n, size = counts.sum(), len(products)
    means = sums / np.maximum(counts, 1)[:, None]
    covariance = (products - (means * counts[:, None]).T @ means) / max(n, 1)
    scale = max(np.trace(covariance), LEAST_VARIANCE) / size
    covariance *= 1 - SHRINKAGE
    covariance[np.diag_indices(size)] += SHRINKAGE * scale
    weights = cho_solve(cho_factor(covariance), means.T.astype(np.float64)).T
    prior = np.where(counts > 0, np.log(np.maximum(counts, 1) / max(n, 1)), -np.inf)
    return weights.astype(np.float32), prior - (means * weights).sum(axis=1) / 2


def _similarities(
    vectors: np.ndarray, targets: np.ndarray, units: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine similarity to the nearest images of other units in each class, `[N, 1 + C]`, or -1, and close pairs."""
    nearest = np.full(classes.shape, -1.0)
    pairs, similarity = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    order, by_class = (np.argsort(values, axis=None, kind="stable") for values in (classes, targets))
    numbers = np.arange(targets.max() + 2)
    starts = np.searchsorted(classes.ravel()[order], numbers)
    first_members = np.searchsorted(targets[by_class], numbers)
    random = np.random.Generator(np.random.Philox(key=[SEED, 2]))
    for number in tqdm(range(len(starts) - 1), unit="class", desc="compare", disable=None):
        members = by_class[first_members[number] : first_members[number + 1]]
        if len(members) > N_REFERENCES:
            members = np.sort(random.choice(members, N_REFERENCES, replace=False))
        references = unit_vectors(vectors, members)
        for places in _chunks(order[starts[number] : starts[number + 1]]):
            asking = places // classes.shape[1]
            cosine = unit_vectors(vectors, asking) @ references.T
            cosine[units[asking][:, None] == units[members]] = -2
            nearby = np.argpartition(-cosine, min(N_NEAREST, len(members)) - 1, axis=1)[:, :N_NEAREST]
            best = np.take_along_axis(cosine, nearby, axis=1)
            found = best > -1.5
            means = np.where(found, best, 0).sum(axis=1) / np.maximum(found.sum(axis=1), 1)
            nearest.ravel()[places] = np.where(found.any(axis=1), means, -1.0)
            one, place = np.nonzero(best > CLOSE)
            pairs.append(np.sort(np.stack([asking[one], members[nearby[one, place]]], axis=1), axis=1))
            similarity.append(best[one, place])
    found_pairs, first = np.unique(np.concatenate(pairs), axis=0, return_index=True)
    return nearest, found_pairs[np.argsort(-np.concatenate(similarity)[first], kind="stable")[:MAX_CLOSE]]


def _log_probability(scores: np.ndarray, temperature: float, n_classes: int) -> np.ndarray:
    """Of the classes that have a score, `[N, 1 + C]`.

    Each of the others counts as the least of them: left out, a high temperature would cost nothing with thousands of classes.
    """
    scaled = scores / temperature
    n_others = n_classes - scores.shape[1]
    rest = scaled.min(axis=1) + np.log(n_others) if n_others else np.full(len(scaled), -np.inf)
    return scaled - np.logaddexp(logsumexp(scaled, axis=1), rest)[:, None]


def _fit(scores: np.ndarray, n_classes: int) -> tuple[float, float]:
    """Temperature of scores `[N, 1 + C]`, and the rate of wrong labels, by maximum likelihood of the given class (column 0)."""
    finite = scores[np.isfinite(scores)]
    if len(scores) == 0 or not np.ptp(finite):
        return 1.0, 0.0

    def loss(values: np.ndarray) -> float:
        given = _log_probability(scores, np.exp(values[0]), n_classes)[:, 0]
        others = np.log1p(-np.minimum(np.exp(given), 1 - 1e-12)) - np.log(n_classes - 1)
        return -float(np.logaddexp(log_expit(-values[1]) + given, log_expit(values[1]) + others).mean())

    start = [np.log(finite.std() / 3), logit(LEAST_RATE)]
    bounds = [(start[0] - 7, start[0] + 7), (logit(1e-6), logit(0.5))]
    found = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-3, "fatol": 1e-7})
    return float(np.exp(found.x[0])), float(1 / (1 + np.exp(-found.x[1])))
