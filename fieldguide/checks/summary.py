"""Tables and metrics of the split check."""

from collections import Counter

import numpy as np
import pandas as pd

from fieldguide.checks.corrections import WITHOUT_IMAGE
from fieldguide.checks.near_duplicates import NearDuplicate
from fieldguide.checks.policies import Finding
from fieldguide.checks.splits import SET_ASIDE
from fieldguide.core.artifacts import ClassSizes, CorrectionCounts, NearDuplicateCounts, SplitCheckMetrics
from fieldguide.core.corrections import DECISIONS
from fieldguide.core.manifest import classes_of
from fieldguide.core.names import SPLITS

INTERNAL = ["i", "j", "same", "across", "conflict"]  # columns of the table of pairs that are not written


def split_check_metrics(
    frame: pd.DataFrame,
    copies: np.ndarray,
    pairs: list[NearDuplicate] | None,
    findings: list[Finding],
    n_conflicts: int,
) -> SplitCheckMetrics:
    """The content of metrics/split_check.json; `pairs` is None if the search for near duplicates is off.

    Images that a hold-out sets aside do not count, neither in their split nor as dropped, unreadable or copies.
    """
    taking_part = frame["reason"].ne(SET_ASIDE)
    across = within = None
    if pairs is not None:
        same = [pair for pair in pairs if pair.is_same and taking_part[pair.i] and taking_part[pair.j]]
        splits = frame["split"].to_dict()
        across = sum(splits[pair.i] != splits[pair.j] for pair in same)
        within = len(same) - across
    missing = Counter(finding.split for finding in findings if finding.kind == "missing class")
    per_class = frame[frame["use"] & (frame["split"] == "train")].groupby("class_name").size()
    decided = Counter(frame["decision"])
    in_splits = frame[frame["split"].isin(SPLITS) & taking_part].drop_duplicates(["photograph", "split"])
    return SplitCheckMetrics(
        classes=len(classes_of(frame).names),
        images={split: int(((frame["split"] == split) & taking_part).sum()) for split in SPLITS},
        unlabelled=int(frame["label"].isna().sum()),
        unreadable=int((frame["width"].isna() & taking_part).sum()),
        exact_duplicates=sum(taking_part[i] and taking_part[j] for i, j in copies),
        leaks=in_splits.loc[in_splits["photograph"].duplicated(), "photograph"].nunique(),
        near_duplicates=NearDuplicateCounts(across_splits=across, within_split=within),
        label_conflicts=n_conflicts,
        missing_classes={split: missing[split] for split in SPLITS},
        train_images_per_class=ClassSizes(smallest=int(per_class.min()), largest=int(per_class.max()))
        if len(per_class)
        else None,
        dropped=int((~frame["use"] & taking_part).sum()),
        corrections=CorrectionCounts(
            **{decision: decided[decision] for decision in DECISIONS},
            unmatched=sum(finding.kind == WITHOUT_IMAGE for finding in findings),
        ),
    )


def pair_table(frame: pd.DataFrame, pairs: list[NearDuplicate], copies: np.ndarray) -> pd.DataFrame:
    """Every candidate pair with its verdict, and byte-identical pairs; label conflicts and leaks first."""
    places = ["split", "class_name", "id"]
    listed = [(*pair[:4], pair.verdict) for pair in pairs] + [(i, j, 0, 1.0, "identical") for i, j in copies.tolist()]
    table = pd.DataFrame(listed, columns=["i", "j", "distance", "similarity", "verdict"])
    for side, name in (("i", "one"), ("j", "other")):
        part = frame.iloc[table[side]][places].reset_index(drop=True)
        table[[f"{name}_{column}" for column in places]] = part
    table["same"] = table["verdict"].ne("different")
    table["across"] = table["one_split"].ne(table["other_split"])
    table["conflict"] = table["one_class_name"].ne(table["other_class_name"])
    order = ["same", "conflict", "across", "similarity", "i", "j"]
    return table.sort_values(order, ascending=[False, False, False, False, True, True]).reset_index(drop=True)


def class_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Number of images in use: a row per class, a column per split."""
    labelled, classes = frame[frame["label"].notna()], classes_of(frame)
    in_use = {split: (labelled["split"] == split) & labelled["use"] for split in SPLITS}
    sums = labelled.assign(**in_use).groupby("label")[list(SPLITS)].sum().reindex(list(classes.labels), fill_value=0)
    return pd.DataFrame({"label": classes.labels, "class_name": classes.names}).join(sums, on="label")
