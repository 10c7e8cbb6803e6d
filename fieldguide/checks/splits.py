"""Random splits and the hold-out, stratified by class; copies of a photograph stay in the same split."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.params import SplitCheck

SET_ASIDE = "set aside: split_check.hold_out"  # the reason of the rows of test that the hold-out replaces


def with_splits(frame: pd.DataFrame, policy: SplitCheck) -> pd.DataFrame:
    """Draws the splits that the user's photographs do not have from the others."""
    fractions = {"test": policy.test_fraction, "valid": policy.valid_fraction}
    absent = {split: fraction for split, fraction in fractions.items() if split not in set(frame["split"])}
    if not absent:
        return frame
    pool = frame[frame["split"].isin(["", "train"])]
    splits = assign_splits(pool, absent, policy.seed)
    counts = splits.value_counts()
    for split, fraction in absent.items():
        if not counts.get(split):
            largest = pool["class_name"].value_counts().max()
            raise UserError(
                f"the data have no {split} split, and split_check.{split}_fraction is {fraction}, which is less than one image"
                f" of the largest class ({largest} images); add images or increase it"
            )
        print(f"no {split} split in the data: {counts[split]} images drawn for it with seed {policy.seed}")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"]))


def with_hold_out(frame: pd.DataFrame, policy: SplitCheck) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draws a share of train as the test split, to tune on; also returns the rows of the test split that it replaces.

    Photographs that are also in valid or test are not drawn, because they are leaks.
    """
    aside = frame[frame["split"] == "test"]
    elsewhere = set(frame.loc[~frame["split"].isin(["train"]), "photograph"])
    pool = frame[(frame["split"] == "train") & ~frame["photograph"].isin(elsewhere) & frame["reason"].eq("")]
    splits = assign_splits(pool, {"test": policy.hold_out}, policy.seed)
    n_held_out = int((splits == "test").sum())
    if not n_held_out:
        raise UserError(
            f"split_check.hold_out is {policy.hold_out}, less than one image of every class; increase it or set it to 0"
        )
    print(f"held out as test with seed {policy.seed}: {n_held_out} train images; {len(aside)} test images are set aside")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"])).drop(index=aside.index), aside


def assign_splits(frame: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> pd.Series:
    """The split of every row: those in `fractions` get about that share of each class, `train` the rest.

    frame: `class_name`, `id`, and `photograph`, whose rows stay together. Each class keeps at least one photograph in train,
    and so do photographs with two class names. The result depends on ids and seed, not on the order of the rows.
    """
    splits = pd.Series("train", index=frame.index, dtype="string")
    groups = frame.groupby("photograph")["id"].transform("min")
    names = sorted(set(groups))
    places = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(names))
    rank = {names[place]: number for number, place in enumerate(places)}
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
