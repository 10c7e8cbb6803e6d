"""Faults in the data: each is listed, and handled by a policy (report, drop, fail)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.checks.duplicates import label_conflicts, leaks
from fieldguide.core.errors import UserError
from fieldguide.core.manifest import LEAK, named_tuples
from fieldguide.core.names import SPLITS
from fieldguide.core.params import SplitCheck
from fieldguide.sources.index import united_classes

FINDING_COLUMNS = ["kind", "split", "class_name", "id", "detail", "action"]
ACTIONS = {"report": "kept", "drop": "dropped", "fail": "stopped"}
N_NAMED = 10  # findings in an error message
SIMILAR_NAMES = 0.85  # difflib's ratio of two similar names; a guess
FAR_AREA, FAR_ASPECT = 16.0, 2.5  # factors between an odd and the median image; guesses


@dataclass
class Findings:
    """The faults, each a row of metrics/findings.csv."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, kind: str, rows: pd.DataFrame, details: list[str], action: str) -> list[dict[str, str]]:
        """Adds one finding per row of the manifest."""
        places = zip(rows["split"], rows["class_name"], rows["id"], details, strict=True)
        findings = [dict(zip(FINDING_COLUMNS, (kind, *place, action), strict=True)) for place in places]
        self.rows += findings
        return findings

    def add_class(self, kind: str, split: str, class_name: str, detail: str, action: str) -> dict[str, str]:
        """Adds a finding about a class."""
        finding = dict(zip(FINDING_COLUMNS, (kind, split, class_name, "", detail, action), strict=True))
        self.rows.append(finding)
        return finding

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=FINDING_COLUMNS)


def number_classes(frame: pd.DataFrame, findings: Findings) -> pd.DataFrame:
    """Merges class folders that differ only in case, and numbers the classes in the order of their names."""
    names = united_classes(frame)
    other = frame[frame["class_name"] != names].drop_duplicates(["split", "class_name"])
    for row in named_tuples(other):
        findings.add_class("class name", row.split, row.class_name, f"taken for {names[row.Index]!r}", "united")
    numbers = {name: number for number, name in enumerate(sorted(names.unique()))}
    return frame.assign(class_name=names, label=names.map(numbers).astype("Int64"))


def check(frame: pd.DataFrame, policy: SplitCheck, findings: Findings) -> tuple[pd.DataFrame, int]:
    """The table with `use` and `reason`, and the number of photographs with two labels; adds to `findings`.

    frame: the manifest's columns without `use`; `reason` says why an image is unreadable; `photograph` is equal for rows that
    show the same photograph. Raises `UserError` for a fault whose policy is fail.
    """
    unreadable = frame["reason"].ne("")
    frame = frame.assign(use=~unreadable)
    faults = findings.add("unreadable", frame[unreadable], frame.loc[unreadable, "reason"].tolist(), "left out")
    stop_if("fail", policy.unreadable, "unreadable", faults)
    n_conflicts = _act_on_conflicts(frame, policy.label_conflicts, findings)
    _act_on_leaks(frame, policy.leaks, findings)
    _act_on_missing_classes(frame, policy.missing_classes, findings)
    _list_few_images(frame, policy.few_images, findings)
    _list_similar_names(frame, findings)
    _list_odd_sizes(frame, findings)
    return frame, n_conflicts


def stop_if(trigger: str, policy: str, name: str, faults: list[dict[str, str]]) -> None:
    """Raises `UserError` if the policy `split_check.<name>` is `trigger` and there are faults."""
    if policy == trigger and faults:
        first = faults[0]
        others = "".join(f"; {fault['id'] or fault['class_name']}" for fault in faults[1:N_NAMED])
        more = " ... (see metrics/findings.csv for all)" if len(faults) > N_NAMED else ""
        raise UserError(
            f"{len(faults)} finding(s) of kind {first['kind']}: {first['id'] or first['class_name']} in {first['split']}"
            f" ({first['detail']}){others}{more}; fix the data or set split_check.{name}"
        )


def repeated(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in use whose photograph occurs in another row in use."""
    used = frame[frame["use"]]
    return used[used.duplicated("photograph", keep=False)]


def _act_on_leaks(frame: pd.DataFrame, policy: str, findings: Findings) -> None:
    """Marks the rows of `frame` whose photograph is also in a more trusted split; lists copies of unlabelled photographs."""
    copies = repeated(frame)
    pairs = leaks(copies, by="photograph")
    rows, twins = pairs["row"], pairs["twin"]
    details = same_as(frame, rows, twins)
    faults = findings.add("leak", frame.loc[rows], details, ACTIONS[policy])
    stop_if("fail", policy, "leaks", faults)
    frame.loc[rows, "reason"] = [LEAK + detail for detail in details]
    if policy == "drop":
        frame.loc[rows, "use"] = False
    else:
        for row, twin in zip(rows, twins, strict=True):
            same = copies.index[copies["photograph"] == copies.at[twin, "photograph"]].difference(list(rows))
            frame.loc[same, "reason"] = [LEAK + detail for detail in same_as(frame, same, [row] * len(same))]
    unlabelled = copies[copies["split"] == "unlabelled"].drop_duplicates("photograph").set_index("photograph")
    ids = unlabelled["id"].to_dict()
    labelled = copies[copies["photograph"].isin(unlabelled.index) & copies["label"].notna()]
    others = [f"same photograph as unlabelled {ids[row.photograph]}" for row in named_tuples(labelled)]
    findings.add("also unlabelled", labelled, others, "kept")


def same_as(frame: pd.DataFrame, rows: Iterable[int], others: Iterable[int]) -> list[str]:
    """`same bytes as test MONARCH/3.jpg`, or `same photograph as …`, for each row and its other."""
    at: Any = frame.at
    return [
        f"same {'bytes' if at[row, 'sha256'] == at[other, 'sha256'] else 'photograph'}"
        f" as {at[other, 'split']} {at[other, 'id']}"
        for row, other in zip(rows, others, strict=True)
    ]


def _act_on_conflicts(frame: pd.DataFrame, policy: str, findings: Findings) -> int:
    """Marks the photographs with more than one label; drop removes all their rows from train. Returns their number."""
    copies = repeated(frame)
    conflicts = label_conflicts(copies, by="photograph")
    rows = copies[copies["photograph"].isin(conflicts.index) & copies["label"].notna()].sort_values(["photograph", "id"])
    faults = []
    for row, (_, place) in zip(named_tuples(rows), rows.iterrows(), strict=True):
        detail = "also under " + ", ".join(name for name in conflicts[row.photograph] if name != row.class_name)
        action = ACTIONS[policy] if row.split == "train" else "kept"
        faults += findings.add("label conflict", place.to_frame().T, [detail], action)
        frame.loc[row.Index, "reason"] = f"label conflict: {detail}"
    stop_if("fail", policy, "label_conflicts", faults)
    if policy == "drop":
        frame.loc[rows.index[rows["split"] == "train"], "use"] = False
    return len(conflicts)


def _act_on_missing_classes(frame: pd.DataFrame, policy: str, findings: Findings) -> None:
    """Lists the classes without an image in use in a split; drop removes them from all splits."""
    faults = [
        findings.add_class("missing class", split, name, "no image in use", ACTIONS[policy])
        for split, names in missing_classes(frame).items()
        for name in names
    ]
    stop_if("fail", policy, "missing_classes", faults)
    if policy == "drop":
        dropped = frame["use"] & frame["class_name"].isin({fault["class_name"] for fault in faults}) & frame["label"].notna()
        frame.loc[dropped, "reason"] = "class is missing in a split"
        frame.loc[dropped, "use"] = False


def missing_classes(frame: pd.DataFrame) -> dict[str, list[str]]:
    """The classes without an image in use, for each labelled split of the data."""
    labelled = frame[frame["label"].notna()]
    names = set(labelled["class_name"])
    used = labelled[labelled["use"]]
    present = [split for split in SPLITS if split in set(labelled["split"])]
    return {split: sorted(names - set(used[used["split"] == split]["class_name"])) for split in present}


def _list_few_images(frame: pd.DataFrame, few: int, findings: Findings) -> None:
    """Lists classes with fewer than `few` images in valid or test."""
    for split in ("valid", "test"):
        counts = frame[(frame["split"] == split) & frame["use"]].groupby("class_name").size()
        for name, n_images in counts[counts < few].items():
            findings.add_class("few images", split, str(name), f"{n_images} image(s) to evaluate on", "kept")


def _list_similar_names(frame: pd.DataFrame, findings: Findings) -> None:
    """Lists names of one split that are similar to a name of another; they stay two classes."""
    labelled = frame[frame["label"].notna()]
    names = {str(split): set(rows["class_name"]) for split, rows in labelled.groupby("split")}
    for split, other in _ordered_pairs(names):
        elsewhere = sorted(names[other] - names[split])
        for name in sorted(names[split] - names[other]):
            for close in get_close_matches(name, elsewhere, n=1, cutoff=SIMILAR_NAMES):
                findings.add_class("similar names", str(split), name, f"is {close!r} in {other} the same?", "kept")


def _ordered_pairs(names: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    present = [split for split in SPLITS if split in names]
    return ((one, other) for place, one in enumerate(present) for other in present[place + 1 :])


def _list_odd_sizes(frame: pd.DataFrame, findings: Findings) -> None:
    """Lists outliers in area or aspect ratio."""
    sized = frame[frame["width"].notna()]
    width, height = (sized[side].to_numpy(dtype=np.float64) for side in ("width", "height"))
    area, aspect = np.log(width * height), np.log(width / height)
    odd = np.zeros(len(sized), bool)
    if len(sized):
        odd = (np.abs(area - np.median(area)) > np.log(FAR_AREA)) | (np.abs(aspect - np.median(aspect)) > np.log(FAR_ASPECT))
    rows = sized[odd]
    findings.add("odd size", rows, [f"{row.width}x{row.height} pixels" for row in rows.itertuples()], "kept")
