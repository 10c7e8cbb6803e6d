"""What a person should look at: labels that the images contradict, images of no class, and copies that no hash found."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from fieldguide.checks.duplicates import TRUST
from fieldguide.checks.inspection import read_rgb
from fieldguide.checks.near_duplicates import Fingerprints, NearDuplicate, compare_pairs, fingerprint
from fieldguide.core.artifacts import ClassPair, LabelCheckMetrics
from fieldguide.core.intervals import accuracy_interval
from fieldguide.core.manifest import named_tuples
from fieldguide.core.names import SPLITS
from fieldguide.labels.judging import Judgement

COLUMNS = ["file", "split", "given", "suggested", "kind", "score", "verdict", "other", "sha256"]
LISTED, SUSPECTED = 0.02, 0.3  # probability that a label is wrong
ATYPICAL = -3.0  # robust z score of the similarity to the nearest images
INSEPARABLE, FEWEST = 0.2, 4  # share of the images of two classes that are taken for the other one; images
MAX_INSEPARABLE = 500  # pairs of classes in the metrics, the worst; all are counted


def label_errors(rows: pd.DataFrame, judgement: Judgement, copies: list[NearDuplicate]) -> pd.DataFrame:
    """The table metrics/label_errors.csv: wrong labels, the most certain first, then atypical images, then copies, those
    across splits first.

    score: the probability that the label is wrong (kind label), the mean cosine similarity to the nearest images (atypical), or
    the similarity on pixels (duplicate).
    """
    names = np.unique(rows["class_name"].to_numpy(str))
    columns = {"id": "file", "split": "split", "class_name": "given", "decision": "verdict", "sha256": "sha256"}
    table = rows[list(columns)].rename(columns=columns)
    labels = table.assign(suggested=names[judgement.suggested], kind="label", score=judgement.wrong, other="")
    labels = labels[judgement.wrong >= LISTED].sort_values(["score", "file"], ascending=[False, True], kind="stable")
    odd = table.assign(suggested="", kind="atypical", score=judgement.similarity, other="")
    odd = odd[_is_atypical(judgement)].sort_values(["score", "file"], kind="stable")
    splits, ids = rows["split"].to_list(), rows["id"].to_list()
    ranked = sorted(copies, key=lambda pair: (splits[pair.i] == splits[pair.j], -pair.similarity, pair.i, pair.j))
    pairs = [sorted((pair.i, pair.j), key=lambda row: (TRUST[splits[row]], -row)) for pair in ranked]
    others, similarities = [ids[other] for _, other in pairs], [pair.similarity for pair in ranked]
    twice = table.iloc[[one for one, _ in pairs]].assign(suggested="", kind="duplicate", score=similarities, other=others)
    found = pd.concat([labels, odd, twice], ignore_index=True)[COLUMNS]
    return found.assign(score=found["score"].astype(float).round(4))


def _is_atypical(judgement: Judgement) -> np.ndarray:
    """Images unlike all others that are not sure to be of their class either: bool `[N]`."""
    similarity = judgement.similarity
    if not len(similarity):
        return np.zeros(0, bool)
    centre = np.median(similarity)
    spread = 1.4826 * np.median(np.abs(similarity - centre))
    unlike = similarity < centre + ATYPICAL * spread
    return unlike & (judgement.given_probability < 0.5) & (judgement.wrong < SUSPECTED) & judgement.judged


def missed_copies(rows: pd.DataFrame, close: np.ndarray, raw: Path, n_workers: int) -> list[NearDuplicate]:
    """The pairs of rows with close embeddings that show the same photograph, verified on pixels as the split check does."""
    involved = np.unique(close)
    places = [(row.file, row.offset, row.length) for row in named_tuples(rows.iloc[involved])]
    with ThreadPoolExecutor(n_workers) as pool:
        prints = Fingerprints.of(list(pool.map(lambda place: fingerprint(read_rgb(raw, place)), places)))
    pairs = compare_pairs(prints, np.searchsorted(involved, close), lambda k: read_rgb(raw, places[k]), n_workers)
    return [pair._replace(i=int(involved[pair.i]), j=int(involved[pair.j])) for pair in pairs if pair.is_same]


def inseparable(rows: pd.DataFrame, judgement: Judgement) -> list[ClassPair]:
    """Pairs of classes that the embeddings cannot tell apart, the worst first."""
    names, given = np.unique(rows["class_name"].to_numpy(str), return_inverse=True)
    sizes = np.bincount(given[judgement.judged], minlength=len(names))
    taken = np.flatnonzero(judgement.judged & ~judgement.agrees)
    both = np.sort(np.stack([given, judgement.suggested], axis=1)[taken], axis=1)
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    found = [
        ClassPair(one=str(names[a]), other=str(names[b]), confused=int(n), images=int(sizes[a] + sizes[b]))
        for (a, b), n in zip(pairs, counts, strict=True)
        if n >= FEWEST and n / (sizes[a] + sizes[b]) >= INSEPARABLE
    ]
    return sorted(found, key=lambda pair: (-pair.confused / pair.images, pair.one, pair.other))


def label_check_metrics(rows: pd.DataFrame, judgement: Judgement, table: pd.DataFrame, enabled: bool) -> LabelCheckMetrics:
    """The content of metrics/label_check.json. Decided findings are counted as such and as nothing else."""
    judged = judgement.judged
    n_right = int((judgement.agrees & judged).sum())
    low, high = accuracy_interval(n_right, int(judged.sum())) if judged.any() else (0.0, 0.0)
    undecided = table[table["verdict"].eq("")]
    labels = undecided[undecided["kind"].eq("label")]
    suspected = labels[labels["score"] >= SUSPECTED]
    copies = undecided[undecided["kind"].eq("duplicate")]
    splits = rows.set_index("id")["split"]
    alike = inseparable(rows, judgement)
    return LabelCheckMetrics(
        enabled=enabled,
        images=int(judged.sum()),
        not_judged=int((~judged).sum()),
        accuracy=n_right / max(int(judged.sum()), 1),
        accuracy_low=low,
        accuracy_high=high,
        suspected={split: int((suspected["split"] == split).sum()) for split in SPLITS},
        doubtful=len(labels) - len(suspected),
        atypical=int(undecided["kind"].eq("atypical").sum()),
        missed_copies=len(copies),
        missed_leaks=int((copies["split"] != copies["other"].map(splits)).sum()),
        decided=len(table) - len(undecided),
        inseparable=alike[:MAX_INSEPARABLE],
        inseparable_pairs=len(alike),
    )
