"""Splits that the data come without, and the hold-out: by seed, stratified by class, copies of one photograph on one side."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.params import SplitCheck

SET_ASIDE = "set aside: split_check.hold_out"  # the reason of a row whose place in the test split others have taken


def with_splits(frame: pd.DataFrame, policy: SplitCheck) -> pd.DataFrame:
    """Cuts the splits that own photographs came without out of the others; one photograph stays on one side."""
    fractions = {"test": policy.test_fraction, "valid": policy.valid_fraction}
    absent = {split: fraction for split, fraction in fractions.items() if split not in set(frame["split"])}
    if not absent:
        return frame
    pool = frame[frame["split"].isin(["", "train"])]
    first_id = pool.groupby("photograph")["id"].transform("min")
    splits = assign_splits(pool, absent, groups=first_id, seed=policy.seed)
    counts = splits.value_counts()
    for split, fraction in absent.items():
        if not counts.get(split):
            largest = pool["class_name"].value_counts().max()
            raise UserError(
                f"no {split} split is there, and none can be cut: {fraction} of the largest class ({largest} images) is none;"
                f" add images or raise split_check.{split}_fraction"
            )
        print(f"no {split} split was there: {counts[split]} images were cut out for it, by seed {policy.seed}")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"]))


def with_hold_out(frame: pd.DataFrame, policy: SplitCheck) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A share of train as the test split, to tune on; and the rows of the test split whose place it takes.

    Photographs that valid or test hold too are not chosen: they are leaks. One photograph stays on one side.
    """
    aside = frame[frame["split"] == "test"]
    elsewhere = set(frame.loc[~frame["split"].isin(["train"]), "photograph"])
    pool = frame[(frame["split"] == "train") & ~frame["photograph"].isin(elsewhere) & frame["reason"].eq("")]
    first_id = pool.groupby("photograph")["id"].transform("min")
    splits = assign_splits(pool, {"test": policy.hold_out}, groups=first_id, seed=policy.seed)
    n_chosen = int((splits == "test").sum())
    if not n_chosen:
        raise UserError(f"split_check.hold_out is {policy.hold_out}, of which no class has one image; raise it or set it to 0")
    print(f"held out as test, by seed {policy.seed}: {n_chosen} train images; {len(aside)} test images are set aside")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"])).drop(index=aside.index), aside


def assign_splits(frame: pd.DataFrame, fractions: Mapping[str, float], groups: pd.Series, seed: int) -> pd.Series:
    """The split of every row: those in `fractions` get about that share of each class, `train` the rest.

    frame: `class_name`, `id`; groups: equal values for rows that must stay together. A class keeps at least one group
    in train, where groups under two names stay too. The result depends on groups and seed, not on the order of the rows.
    """
    splits = pd.Series("train", index=frame.index, dtype="string")
    rank = {group: place for place, group in enumerate(_shuffled(sorted(set(groups)), seed))}
    n_names = groups.map(frame.groupby(groups)["class_name"].nunique())
    order = pd.DataFrame({"group": groups, "class_name": frame["class_name"]})[n_names == 1]
    for _, members in order.groupby("class_name"):
        sizes = members.groupby("group").size()
        waiting = sorted(sizes.index, key=rank.__getitem__)
        for split, fraction in fractions.items():
            wanted, taken = round(fraction * len(members)), 0
            while taken < wanted and len(waiting) > 1:
                group = waiting.pop(0)
                taken += sizes[group]
                splits[members.index[members["group"] == group]] = split
    return splits


def _shuffled(names: list[str], seed: int) -> list[str]:
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    return [names[place] for place in generator.permutation(len(names))]
