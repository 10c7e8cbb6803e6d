"""The same photograph more than once: between splits it inflates the test, under two names it teaches a contradiction."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TRUST = {"train": 0, "valid": 1, "test": 2}  # a leak is taken out of the split with the lowest


def exact_pairs(digests: Iterable[str]) -> list[tuple[int, int]]:
    """Each byte-identical copy with the first of its kind, as positions; "" stands for what has no copies."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(digest, place), place) for place, digest in enumerate(digests) if digest]
    return [pair for pair in pairs if pair[0] != pair[1]]


def photographs(n_rows: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """A number for each row, equal where a chain of pairs (positions of rows) joins them: int64 `[n_rows]`."""
    joined = np.array(list(pairs), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(n_rows, n_rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def leaks(groups: pd.DataFrame, by: str) -> pd.DataFrame:
    """Pairs of the same image in two splits: `row`, and `twin` in the most trusted split (both indices of the manifest).

    Rows are the same image where the column `by` has equal values.
    """
    pairs = []
    for _, group in groups[groups["split"].isin(TRUST.keys())].groupby(by, sort=False):
        trust = group["split"].map(TRUST)
        pairs += [(row, trust.idxmax()) for row in group.index[trust < trust.max()]]
    return pd.DataFrame(pairs, columns=["row", "twin"], dtype="int64")


def label_conflicts(groups: pd.DataFrame, by: str) -> pd.Series:
    """For each image that stands under more than one class name: these names, by its value of the column `by`."""
    labelled = groups[groups["label"].notna()]
    names = labelled.groupby(by)["class_name"].unique()
    return names[names.map(len) > 1].map(sorted)
