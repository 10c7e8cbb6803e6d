"""The same image more than once: between splits it inflates the test, under two names it teaches a contradiction."""

import pandas as pd

TRUST = {"train": 0, "valid": 1, "test": 2}  # a leak is taken out of the split with the lowest


def exact_groups(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose encoded bytes occur more than once, equal ones side by side (the manifest's index kept)."""
    repeated = frame[frame["sha256"].ne("") & frame.duplicated("sha256", keep=False)]
    return repeated.sort_values(["sha256", "split", "id"])


def leaks(groups: pd.DataFrame) -> pd.DataFrame:
    """Pairs of the same image in two splits: `row`, and `twin` in the more trusted split (both indices of the manifest)."""
    pairs = []
    for _, group in groups[groups["split"].isin(TRUST.keys())].groupby("sha256", sort=False):
        trust = group["split"].map(TRUST)
        pairs += [(row, trust.idxmax()) for row in group.index[trust < trust.max()]]
    return pd.DataFrame(pairs, columns=["row", "twin"], dtype="int64")


def label_conflicts(groups: pd.DataFrame) -> int:
    """How many images stand under more than one class name."""
    labelled = groups[groups["label"].notna()]
    return int((labelled.groupby("sha256")["label"].nunique() > 1).sum())
