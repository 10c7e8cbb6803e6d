"""`data/manifest.csv`, the first waist: one row per image; later stages know the data only from it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.files import atomic_path
from fieldguide.core.names import SPLITS
from fieldguide.core.paths import MANIFEST

LEAK = "leak: "  # prefix of the reason of a leaked row
DROPPED = "correction: drop"  # in the reason of a row that a correction dropped
COLUMNS = {
    "split": "string",  # train | valid | test | unlabelled
    "label": "Int64",  # class number; empty where the split is unlabelled
    "class_name": "string",
    "id": "string",  # path inside the data set, or the record's id
    "file": "string",  # under data/raw
    "offset": "int64",  # of the encoded bytes in that file
    "length": "int64",
    "width": "Int64",  # pixels as displayed; empty for an unreadable image
    "height": "Int64",
    "sha256": "string",  # of the encoded bytes
    "phash": "string",  # perceptual hash, 64 bits in hexadecimal; empty for an unreadable image
    "use": "bool",  # whether later stages use the row
    "reason": "string",  # why the row is not used, or its fault
    "given_label": "Int64",  # as the data give it; label and class_name are corrected
    "given": "string",  # class name as the data give it
    "decision": "string",  # of data/corrections.csv: keep | relabel | drop; empty without one
    "unit": "int64",  # equal for images that stay in one split: copies of a photograph, and those of one group
}
NUMBERS = ("label", "given_label", "width", "height")  # columns that may be empty


def write_table(frame: pd.DataFrame, target: Path) -> None:
    """Writes a table as CSV, atomically; equal tables give equal bytes."""
    with atomic_path(target) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def write_manifest(frame: pd.DataFrame, target: Path) -> None:
    write_table(frame[list(COLUMNS)], target)


def named_tuples(frame: pd.DataFrame) -> Iterator[Any]:
    return frame.itertuples()


def read_manifest(source: Path) -> pd.DataFrame:
    """The table with typed columns; raises `UserError` if it is missing or has other columns."""
    try:
        frame = pd.read_csv(source, dtype=COLUMNS, keep_default_na=False, na_values={column: [""] for column in NUMBERS})
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; create it with: dvc repro split_check") from error
    except ValueError as error:
        raise UserError(f"{source}: not a manifest ({error}); recreate it with: dvc repro -f split_check") from error
    if list(frame.columns) != list(COLUMNS):
        raise UserError(f"{source}: unexpected columns {list(frame.columns)}; recreate it with: dvc repro -f split_check")
    return frame


@dataclass(frozen=True)
class Classes:
    """The classes of a network: output k is the class `names[k]`, which has the number `labels[k]` in the data set."""

    names: tuple[str, ...]
    labels: tuple[int, ...]

    def targets(self, rows: pd.DataFrame) -> np.ndarray:
        """Output numbers of labelled rows: int64 `[N]`; raises `UserError` for an unknown class."""
        labels = rows["label"].to_numpy(dtype=np.int64)
        own = set(zip(self.labels, self.names, strict=True))
        for label, name in rows[["label", "class_name"]].drop_duplicates().itertuples(index=False, name=None):
            if (label, name) not in own:
                raise UserError(
                    f"{MANIFEST}: class {label}, {name}, is not among the {len(own)} classes of the network;"
                    " train it on these data: dvc repro train"
                )
        return np.searchsorted(np.array(self.labels), labels)

    def given_targets(self, rows: pd.DataFrame) -> np.ndarray:
        """As `targets`, by the labels that the data give."""
        return self.targets(rows.assign(label=rows["given_label"], class_name=rows["given"]))


def as_given(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns of corrections, before any: what the data give is `label` and `class_name`."""
    return frame.assign(given_label=frame["label"], given=frame["class_name"], decision="")


def classes_of(frame: pd.DataFrame) -> Classes:
    """All classes that the data give, in ascending order of label, so that outputs are never renumbered.

    Includes classes whose rows are not in use, or were all corrected to another class.
    """
    labelled = frame[frame["given_label"].notna()].drop_duplicates("given_label").sort_values("given_label")
    return Classes(tuple(labelled["given"]), tuple(int(label) for label in labelled["given_label"]))


def as_labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """The table for an evaluation by given labels: rows of valid and test that only a correction dropped are in use."""
    dropped = frame["decision"].eq("drop") & frame["reason"].str.contains(DROPPED, regex=False)
    return frame.assign(use=frame["use"] | (dropped & frame["split"].isin(["valid", "test"])))


def rows_of(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split that are in use, in the manifest's order; raises `UserError` if there are none."""
    rows = frame[(frame["split"] == split) & frame["use"]].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{MANIFEST}: split {split} has no image in use; see the column reason, and metrics/findings.csv")
    return rows


def splits_in_use(frame: pd.DataFrame) -> list[str]:
    """The labelled splits that have images in use, in the order train, valid, test."""
    present = set(frame[frame["use"]]["split"])
    return [split for split in SPLITS if split in present]


def held_out_split(splits: Collection[str]) -> str:
    """The labelled split on which a finished network is evaluated: test, or valid if test has no labels."""
    return next(split for split in ("test", "valid", "train") if split in splits or split == "train")


def held_out(frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The split on which a finished network is evaluated, and its rows, those of `as_labelled`."""
    frame = as_labelled(frame)
    split = held_out_split(splits_in_use(frame))
    return split, rows_of(frame, split)


def unlabelled_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The unlabelled rows in use; may be empty."""
    return frame[(frame["split"] == "unlabelled") & frame["use"]].reset_index(drop=True)


def is_corrected(rows: pd.DataFrame) -> bool:
    """Whether a correction changed the label of a row or dropped one."""
    return bool(rows["decision"].isin(["relabel", "drop"]).any())


def leaked(rows: pd.DataFrame) -> np.ndarray:
    """Whether the image of each row is also in train or valid: bool `[N]`."""
    return rows["reason"].str.startswith(LEAK).to_numpy(dtype=bool)
