"""What is wrong with the data: each fault is found, listed, and acted on by a stated policy (report, drop, fail)."""

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
N_NAMED = 10  # findings that a stop names
SIMILAR_NAMES = 0.85  # share of letters, in order, that two names have in common (difflib's ratio); a guess
FAR_AREA, FAR_ASPECT = 16.0, 2.5  # times larger or smaller, times wider or taller than the median image; guesses


@dataclass
class Findings:
    """The faults found so far, each a row of metrics/findings.csv."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, kind: str, rows: pd.DataFrame, details: list[str], action: str) -> list[dict[str, str]]:
        """One finding for each row of the manifest."""
        places = zip(rows["split"], rows["class_name"], rows["id"], details, strict=True)
        found = [dict(zip(FINDING_COLUMNS, (kind, *place, action), strict=True)) for place in places]
        self.rows += found
        return found

    def add_class(self, kind: str, split: str, class_name: str, detail: str, action: str) -> dict[str, str]:
        """A finding about a class."""
        found = dict(zip(FINDING_COLUMNS, (kind, split, class_name, "", detail, action), strict=True))
        self.rows.append(found)
        return found

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=FINDING_COLUMNS)


def number_classes(frame: pd.DataFrame, findings: Findings) -> pd.DataFrame:
    """Class folders that differ only in case as one class, and labels by the order of the names."""
    names = united_classes(frame)
    other = frame[frame["class_name"] != names].drop_duplicates(["split", "class_name"])
    for row in named_tuples(other):
        findings.add_class("class name", row.split, row.class_name, f"taken for {names[row.Index]!r}", "united")
    numbers = {name: number for number, name in enumerate(sorted(names.unique()))}
    return frame.assign(class_name=names, label=names.map(numbers).astype("Int64"))


def check(frame: pd.DataFrame, policy: SplitCheck, findings: Findings) -> tuple[pd.DataFrame, int]:
    """The table with `use` and `reason`, and the number of photographs under two names; adds to `findings`.

    frame: the manifest's columns without `use`, `reason` telling why an image is unreadable, and `photograph`, equal for
    rows that show the same one. Raises `UserError` where a policy says fail.
    """
    unreadable = frame["reason"].ne("")
    frame = frame.assign(use=~unreadable)
    found = findings.add("unreadable", frame[unreadable], frame.loc[unreadable, "reason"].tolist(), "left out")
    stop_if("fail", policy.unreadable, "unreadable", found)
    n_conflicts = _act_on_conflicts(frame, policy.label_conflicts, findings)
    _act_on_leaks(frame, policy.leaks, findings)
    _act_on_missing_classes(frame, policy.missing_classes, findings)
    _list_few_images(frame, policy.few_images, findings)
    _list_similar_names(frame, findings)
    _list_odd_sizes(frame, findings)
    return frame, n_conflicts


def stop_if(trigger: str, policy: str, name: str, found: list[dict[str, str]]) -> None:
    """Raises when the policy `split_check.<name>` is `trigger` and there is something."""
    if policy == trigger and found:
        first = found[0]
        others = "".join(f"; {finding['id'] or finding['class_name']}" for finding in found[1:N_NAMED])
        more = " ... (all are in metrics/findings.csv)" if len(found) > N_NAMED else ""
        raise UserError(
            f"{len(found)} finding(s) of kind {first['kind']}: {first['id'] or first['class_name']} in {first['split']}"
            f" ({first['detail']}){others}{more}; fix the data or set split_check.{name}"
        )


def repeated(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in use whose photograph another row in use shows too."""
    used = frame[frame["use"]]
    return used[used.duplicated("photograph", keep=False)]


def _act_on_leaks(frame: pd.DataFrame, policy: str, findings: Findings) -> None:
    """Marks the rows of `frame` whose photograph a more trusted split also holds; lists those that await a label too."""
    copies = repeated(frame)
    pairs = leaks(copies, by="photograph")
    rows, twins = pairs["row"], pairs["twin"]
    details = same_as(frame, rows, twins)
    found = findings.add("leak", frame.loc[rows], details, ACTIONS[policy])
    stop_if("fail", policy, "leaks", found)
    frame.loc[rows, "reason"] = [LEAK + detail for detail in details]
    if policy == "drop":
        frame.loc[rows, "use"] = False
    else:
        for row, twin in zip(rows, twins, strict=True):
            same = copies.index[copies["photograph"] == copies.at[twin, "photograph"]].difference(list(rows))
            frame.loc[same, "reason"] = [LEAK + detail for detail in same_as(frame, same, [row] * len(same))]
    awaiting = copies[copies["split"] == "unlabelled"].drop_duplicates("photograph").set_index("photograph")
    ids = awaiting["id"].to_dict()
    labelled = copies[copies["photograph"].isin(awaiting.index) & copies["label"].notna()]
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
    """Marks the photographs that stand under more than one name; drop takes all their rows out of train. Their number."""
    copies = repeated(frame)
    conflicts = label_conflicts(copies, by="photograph")
    rows = copies[copies["photograph"].isin(conflicts.index) & copies["label"].notna()].sort_values(["photograph", "id"])
    found = []
    for row, (_, place) in zip(named_tuples(rows), rows.iterrows(), strict=True):
        detail = "also under " + ", ".join(name for name in conflicts[row.photograph] if name != row.class_name)
        action = ACTIONS[policy] if row.split == "train" else "kept"
        found += findings.add("label conflict", place.to_frame().T, [detail], action)
        frame.loc[row.Index, "reason"] = f"label conflict: {detail}"
    stop_if("fail", policy, "label_conflicts", found)
    if policy == "drop":
        frame.loc[rows.index[rows["split"] == "train"], "use"] = False
    return len(conflicts)


def _act_on_missing_classes(frame: pd.DataFrame, policy: str, findings: Findings) -> None:
    """Lists the classes without an image in use in a split; drop leaves them out of all splits."""
    found = [
        findings.add_class("missing class", split, name, "no image in use", ACTIONS[policy])
        for split, names in missing_classes(frame).items()
        for name in names
    ]
    stop_if("fail", policy, "missing_classes", found)
    if policy == "drop":
        gone = frame["use"] & frame["class_name"].isin({finding["class_name"] for finding in found}) & frame["label"].notna()
        frame.loc[gone, "reason"] = "class is missing in a split"
        frame.loc[gone, "use"] = False


def missing_classes(frame: pd.DataFrame) -> dict[str, list[str]]:
    """For each labelled split of the data the classes that have no image in use there."""
    labelled = frame[frame["label"].notna()]
    names = set(labelled["class_name"])
    used = labelled[labelled["use"]]
    present = [split for split in SPLITS if split in set(labelled["split"])]
    return {split: sorted(names - set(used[used["split"] == split]["class_name"])) for split in present}


def _list_few_images(frame: pd.DataFrame, few: int, findings: Findings) -> None:
    """Lists classes whose valid or test figures rest on fewer than `few` images."""
    for split in ("valid", "test"):
        counts = frame[(frame["split"] == split) & frame["use"]].groupby("class_name").size()
        for name, n_images in counts[counts < few].items():
            findings.add_class("few images", split, str(name), f"{n_images} image(s) to evaluate on", "kept")


def _list_similar_names(frame: pd.DataFrame, findings: Findings) -> None:
    """Lists names of one split that another spells almost so: two classes, unless a person says otherwise."""
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
    """Lists images far from the rest in area or in shape."""
    sized = frame[frame["width"].notna()]
    width, height = (sized[side].to_numpy(dtype=np.float64) for side in ("width", "height"))
    area, aspect = np.log(width * height), np.log(width / height)
    odd = np.zeros(len(sized), bool)
    if len(sized):
        odd = (np.abs(area - np.median(area)) > np.log(FAR_AREA)) | (np.abs(aspect - np.median(aspect)) > np.log(FAR_ASPECT))
    rows = sized[odd]
    findings.add("odd size", rows, [f"{row.width}x{row.height} pixels" for row in rows.itertuples()], "kept")
