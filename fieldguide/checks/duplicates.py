"""Copies of a photograph: across splits they are leaks, under different labels they are conflicts."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TRUST = {"train": 0, "valid": 1, "test": 2}  # a leak is removed from the split with the lowest trust


def exact_pairs(digests: pd.Series) -> np.ndarray:
    """Each byte-identical copy with the first image of that digest, as positions: int64 `[M, 2]`; ignores empty digests."""
    numbers = pd.factorize(digests)[0]
    _, first = np.unique(numbers, return_index=True)
    places = np.flatnonzero((first[numbers] != np.arange(len(numbers))) & digests.ne("").to_numpy(bool))
    return np.stack([first[numbers[places]], places], axis=1)


def photographs(n_rows: int, pairs: np.ndarray) -> np.ndarray:
    """The connected component of each row in the graph of `pairs` (positions of rows, `[M, 2]`): int64 `[n_rows]`."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n_rows, n_rows))
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
    names = rows[rows["label"].notna()].drop_duplicates(["photograph", "class_name"])
    names = names[names.duplicated("photograph", keep=False)]
    return names.groupby("photograph")["class_name"].unique().map(sorted)
