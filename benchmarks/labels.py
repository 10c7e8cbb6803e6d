"""Wrong labels that are planted in a project's training images: how many label_check suspects, beside other rules.

    dvc repro split_check embed
    python benchmarks/labels.py [--share 0.02] [--repeats 3] [--seed 0]

Each repeat gives a random share of the training images a random other class and judges all images again. All rules rank the
same out-of-fold probabilities: `mixture` (that of label_check), `margin` (of the best other class over the given one),
`self-confidence` (of the given class). `confident learning` selects images that exceed another class's threshold, its mean
self-confidence (Northcutt, Jiang and Chuang 2021). Wrong labels of the data themselves count against every rule.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.manifest import read_manifest
from fieldguide.core.paths import EMBEDDINGS, MANIFEST
from fieldguide.labels.findings import SUSPECTED
from fieldguide.labels.judging import OutOfFold, out_of_fold, wrong_probability
from fieldguide.network.embeddings import load_embeddings

FOUND = (0.85, 0.9, 0.95)  # shares of the planted


def plant(rows: pd.DataFrame, share: float, random: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows with wrong class names for that share of train, and which they are: bool `[N]`."""
    names, targets = np.unique(rows["class_name"].to_numpy(str), return_inverse=True)
    train = np.flatnonzero(rows["split"].eq("train"))
    chosen = random.choice(train, max(round(share * len(train)), 1), replace=False)
    targets[chosen] = (targets[chosen] + random.integers(1, len(names), len(chosen))) % len(names)
    return rows.assign(class_name=names[targets]), np.isin(np.arange(len(rows)), chosen)


def rankings(found: OutOfFold, n_classes: int) -> dict[str, np.ndarray]:
    """Scores by which images are shown, the highest first; float64 `[N]`."""
    given, other = found.probability[:, 0], found.probability[:, 1:].max(axis=1)
    return {
        "mixture": wrong_probability(found.probability, found.error_rate, n_classes),
        "margin": other - given,
        "self-confidence": -given,
    }


def confident_learning(found: OutOfFold, n_classes: int) -> np.ndarray:
    """The images whose most probable class, of those above their thresholds, is not the given one: bool `[N]`."""
    given = found.classes[:, 0]
    sums = np.bincount(given[found.judged], found.probability[found.judged, 0], n_classes)
    counts = np.bincount(given[found.judged], minlength=n_classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(found.probability >= thresholds[found.classes], found.probability, 0)
    return found.judged & (confident.argmax(axis=1) > 0)


def n_looks(scores: np.ndarray, planted: np.ndarray, share: float) -> int:
    """Images to look at, the highest score first, until that share of the planted is found."""
    found = np.cumsum(planted[np.argsort(-scores, kind="stable")])
    return int(np.searchsorted(found, np.ceil(share * planted.sum()))) + 1


def compare(vectors: np.ndarray, rows: pd.DataFrame, share: float, repeats: int, seed: int) -> None:
    """Prints a line for each rule and repeat."""
    n_classes = rows["class_name"].nunique()
    print(f"{len(rows)} images, {n_classes} classes, {share:.1%} of train planted, {repeats} repeats, seed {seed}")
    looks = "  ".join(f"{found:.0%}" for found in FOUND)
    print(f"{'repeat':>6} {'planted':>7}  {'rule':20} {'selected':>8} {'recall':>7} {'planted of them':>15}  looks to {looks}")
    for repeat in range(repeats):
        changed, planted = plant(rows, share, np.random.default_rng([seed, repeat]))
        found = out_of_fold(vectors, changed)
        ranked = rankings(found, n_classes)
        selected = {"mixture": ranked["mixture"] >= SUSPECTED, "margin": ranked["margin"] > 0}
        selected["confident learning"] = confident_learning(found, n_classes)
        for rule in dict.fromkeys([*ranked, *selected]):
            line = f"{repeat:6} {planted.sum():7}  {rule:20}"
            if rule in selected:
                n_hit, n_selected = (selected[rule] & planted).sum(), selected[rule].sum()
                line += f" {n_selected:8} {n_hit / planted.sum():7.3f} {n_hit / max(n_selected, 1):15.3f} "
            if rule in ranked:
                line = f"{line:62}  " + " ".join(f"{n_looks(ranked[rule], planted, share):5}" for share in FOUND)
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.02, help="of the training images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    manifest = read_manifest(MANIFEST)
    rows = manifest[manifest["use"] & manifest["label"].notna()].reset_index(drop=True)
    embeddings = load_embeddings(EMBEDDINGS)
    vectors = embeddings.vectors[embeddings.rows_of(rows)]
    compare(vectors, rows, arguments.share, arguments.repeats, arguments.seed)


if __name__ == "__main__":
    main()
