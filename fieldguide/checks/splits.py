"""Splits for photographs that come without: by seed, stratified by class, copies of one photograph on one side."""

from collections.abc import Mapping

import numpy as np
import pandas as pd


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
