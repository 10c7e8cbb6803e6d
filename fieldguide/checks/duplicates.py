"""Copies of a photograph: across splits they are leaks, under different labels they are conflicts."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TRUST = {"train": 0, "valid": 1, "test": 2}  # a leak is removed from the split with the lowest trust


def exact_pairs(digests: Iterable[str]) -> list[tuple[int, int]]:
    """Each byte-identical copy with the first image of that digest, as positions; ignores empty digests."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(digest, place), place) for place, digest in enumerate(digests) if digest]
    return [pair for pair in pairs if pair[0] != pair[1]]


def photographs(n_rows: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """The connected component of each row in the graph of `pairs` (positions of rows): int64 `[n_rows]`."""
    edges = np.array(list(pairs), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(n_rows, n_rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def leaks(rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs of one photograph in two splits: `row`, and `twin` in the most trusted split (both indices of the manifest)."""
    rows = rows[rows["split"].isin(TRUST.keys())]
    trust, photograph = rows["split"].map(TRUST).astype("int64"), rows["photograph"]
    groups = trust.groupby(photograph, sort=False)
    leaked = photograph[trust < groups.transform("max")]
    leaked = leaked.iloc[np.argsort(groups.ngroup()[leaked.index], kind="stable")]
    return pd.DataFrame({"row": leaked.index, "twin": groups.idxmax()[leaked].to_numpy()}, dtype="int64")


def label_conflicts(rows: pd.DataFrame) -> pd.Series:
    """The class names of each photograph that has more than one, by its number."""
    names = rows[rows["label"].notna()].groupby("photograph")["class_name"].unique()
    return names[names.map(len) > 1].map(sorted)
