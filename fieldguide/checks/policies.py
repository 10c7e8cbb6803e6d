"""Faults in the data: each is listed, and handled by a policy (report, drop, fail)."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from fieldguide.checks.duplicates import label_conflicts, leaks
from fieldguide.core.errors import UserError
from fieldguide.core.manifest import DROPPED, LEAK, named_tuples
from fieldguide.core.names import SPLITS
from fieldguide.core.params import SplitCheck
from fieldguide.sources.index import united_classes

ACTIONS = {"report": "kept", "drop": "dropped", "fail": "stopped"}
N_NAMED = 10  # findings in an error message
SIMILAR_NAMES = 0.85  # difflib's ratio of two similar names; a guess
FAR_AREA, FAR_ASPECT = 16.0, 2.5  # factors between an odd and the median image; guesses


class Finding(NamedTuple):
    """A fault: a row of metrics/findings.csv."""

    kind: str
    split: str
    class_name: str
    id: str  # empty if the finding is about a class
    detail: str
    action: str

    @property
    def name(self) -> str:
        return self.id or self.class_name


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    return pd.DataFrame(findings, columns=Finding._fields)


def _of_images(kind: str, rows: pd.DataFrame, details: Iterable[str], action: str) -> list[Finding]:
    places = zip(rows["split"], rows["class_name"], rows["id"], details, strict=True)
    return [Finding(kind, *place, action) for place in places]


def left_out_findings(files: pd.DataFrame) -> list[Finding]:
    """The files that `download` left out: one finding for each that may be a photograph, one for each other kind.

    files: `file`, `kind` and `remedy`, which is empty for files that are no photographs.
    """
    named = files[files["remedy"].ne("")]
    findings = [Finding("not read", "", "", row.file, f"{row.kind}: {row.remedy}", "left out") for row in named_tuples(named)]
    for kind, n in files[files["remedy"].eq("")]["kind"].value_counts().sort_index().items():
        findings.append(Finding("not read", "", "", "", f"{n} of kind {kind}", "left out"))
    return findings


def number_classes(frame: pd.DataFrame, findings: list[Finding]) -> pd.DataFrame:
    """Numbers the classes of rows without a number in the order of their names; merges names that differ only in case.

    Unlabelled rows, which have no name, stay as they are.
    """
    rows = frame[frame["label"].isna() & frame["class_name"].ne("")]
    if rows.empty:
        return frame
    names = united_classes(rows)
    other = rows[rows["class_name"] != names].drop_duplicates(["split", "class_name"])
    for row in named_tuples(other):
        findings.append(Finding("class name", row.split, row.class_name, "", f"taken for {names[row.Index]!r}", "united"))
    numbers = {name: number for number, name in enumerate(sorted(names.unique()))}
    labels = frame["label"].astype("Int64").fillna(names.map(numbers).astype("Int64"))
    return frame.assign(class_name=names.reindex(frame.index).fillna(frame["class_name"]), label=labels)


def check(frame: pd.DataFrame, policy: SplitCheck, findings: list[Finding]) -> tuple[pd.DataFrame, int]:
    """The table with `use` and `reason`, and the number of photographs with two labels; adds to `findings`.

    frame: the manifest's columns without `use`; `reason` says why an image is unreadable; `photograph` is equal for rows that
    show the same photograph; `correction` says why a person dropped an image. Raises `UserError` for a fault whose policy is
    fail.
    """
    unreadable, dropped = frame["reason"].ne(""), frame["correction"].ne("")
    frame = frame.assign(use=~unreadable & ~dropped)
    left_out = frame[unreadable & ~dropped]
    faults = _of_images("unreadable", left_out, left_out["reason"], "left out")
    _add_or_stop(findings, faults, policy.unreadable, "unreadable")
    n_conflicts = _act_on_conflicts(frame, policy.label_conflicts, findings)
    evaluated = dropped & ~unreadable & frame["split"].isin(["valid", "test"])  # as labelled, so their copies are leaks
    frame["use"] |= evaluated
    _act_on_leaks(frame, policy.leaks, findings)
    only_dropped = (evaluated & frame["use"]) | (dropped & frame["reason"].eq(""))
    reasons = zip(frame.loc[only_dropped, "reason"], frame.loc[only_dropped, "correction"], strict=True)
    frame.loc[only_dropped, "reason"] = ["; ".join(filter(None, both)) for both in reasons]
    frame["use"] &= ~dropped
    _act_on_missing_classes(frame, policy.missing_classes, findings)
    findings += [*_torn_groups(frame), *_few_images(frame, policy.few_images), *_similar_names(frame), *_odd_sizes(frame)]
    return frame, n_conflicts


def _add_or_stop(findings: list[Finding], faults: Sequence[Finding], policy: str, name: str) -> None:
    """Adds the faults; raises `UserError` if there are any and the policy `split_check.<name>` is fail."""
    findings += faults
    if policy == "fail" and faults:
        first = faults[0]
        others = "".join(f"; {fault.name}" for fault in faults[1:N_NAMED])
        more = " ... (see metrics/findings.csv for all)" if len(faults) > N_NAMED else ""
        raise UserError(
            f"{len(faults)} finding(s) of kind {first.kind}: {first.name} in {first.split} ({first.detail}){others}{more};"
            f" fix the data or set split_check.{name}"
        )


def repeated(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in use whose photograph occurs in another row in use."""
    used = frame[frame["use"]]
    return used[used.duplicated("photograph", keep=False)]


def _act_on_leaks(frame: pd.DataFrame, policy: str, findings: list[Finding]) -> None:
    """Marks rows whose photograph is also in a more trusted split and, unless they are dropped, its rows there.

    Lists labelled copies of unlabelled photographs.
    """
    copies = repeated(frame)
    pairs = leaks(copies)
    rows, twins = pairs["row"], pairs["twin"]
    details = same_as(frame, rows, twins)
    _add_or_stop(findings, _of_images("leak", frame.loc[rows], details, ACTIONS[policy]), policy, "leaks")
    frame.loc[rows, "reason"] = [LEAK + detail for detail in details]
    if policy == "drop":
        frame.loc[rows, "use"] = False
    else:
        leaked = pd.Series(rows.to_numpy(), index=copies.loc[rows, "photograph"])
        of_photograph = leaked[~leaked.index.duplicated(keep="last")]
        kept = copies.drop(index=list(rows))["photograph"]
        kept = kept[kept.isin(of_photograph.index)]
        frame.loc[kept.index, "reason"] = [LEAK + detail for detail in same_as(frame, kept.index, of_photograph[kept])]
    unlabelled = copies[copies["split"] == "unlabelled"].drop_duplicates("photograph")
    ids = dict(zip(unlabelled["photograph"], unlabelled["id"], strict=True))
    labelled = copies[copies["photograph"].isin(ids) & copies["label"].notna()]
    others = [f"same photograph as unlabelled {ids[photograph]}" for photograph in labelled["photograph"]]
    findings += _of_images("also unlabelled", labelled, others, "kept")


def same_as(frame: pd.DataFrame, rows: Iterable[int], others: Iterable[int]) -> list[str]:
    """`same bytes as test MONARCH/3.jpg`, or `same photograph as …`, for each row and its other."""
    others = list(others)
    twins = frame[["split", "id", "sha256"]].loc[others]
    texts = zip(frame["sha256"].loc[list(rows)], twins["sha256"], twins["split"], twins["id"], strict=True)
    return [f"same {'bytes' if sha256 == other else 'photograph'} as {split} {name}" for sha256, other, split, name in texts]


def _act_on_conflicts(frame: pd.DataFrame, policy: str, findings: list[Finding]) -> int:
    """Marks the photographs with more than one label; drop removes all their rows from train. Returns their number.

    Not marked are the rows that a person has kept or relabelled, unless their bytes are under two classes.
    """
    copies = repeated(frame)
    conflicts = label_conflicts(copies)
    copies = copies[copies["label"].notna()]
    contents = copies[["sha256", "class_name"]].drop_duplicates()["sha256"]
    ambiguous = contents[contents.duplicated()]  # under two classes
    decided = copies["decision"].isin(["keep", "relabel"]) & ~copies["sha256"].isin(ambiguous)
    rows = copies[copies["photograph"].isin(conflicts.index) & ~decided].sort_values(["photograph", "id"])
    faults = []
    for row in named_tuples(rows):
        detail = "also under " + ", ".join(name for name in conflicts[row.photograph] if name != row.class_name)
        action = ACTIONS[policy] if row.split == "train" else "kept"
        faults.append(Finding("label conflict", row.split, row.class_name, row.id, detail, action))
    frame.loc[rows.index, "reason"] = [f"label conflict: {fault.detail}" for fault in faults]
    _add_or_stop(findings, faults, policy, "label_conflicts")
    if policy == "drop":
        frame.loc[rows.index[rows["split"] == "train"], "use"] = False
    return rows["photograph"].nunique()


def _act_on_missing_classes(frame: pd.DataFrame, policy: str, findings: list[Finding]) -> None:
    """Lists the classes without an image in use in a labelled split of the data; drop removes them from all splits."""
    labelled = frame[frame["label"].notna()]
    used = labelled[labelled["use"]].groupby("split")["class_name"].agg(set)
    faults = [
        Finding("missing class", split, name, "", "no image in use", ACTIONS[policy])
        for split in SPLITS
        if split in set(labelled["split"])
        for name in sorted(set(labelled["given"]) - used.get(split, set()))
    ]
    _add_or_stop(findings, faults, policy, "missing_classes")
    if policy == "drop":
        counted = frame["use"] | frame["reason"].str.contains(DROPPED, regex=False)
        dropped = counted & frame["class_name"].isin({fault.class_name for fault in faults}) & frame["label"].notna()
        frame.loc[dropped, "reason"] = "class is missing in a split"
        frame.loc[dropped, "use"] = False


def _torn_groups(frame: pd.DataFrame) -> Iterator[Finding]:
    """Groups with images in use in more than one labelled split: the data's own split tears them apart."""
    if "group" not in frame:
        return
    used = frame[frame["use"] & frame["group"].ne("") & frame["split"].isin(SPLITS)]
    counts = used.groupby(["group", "split"]).size().unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0)
    for group, row in counts[counts.gt(0).sum(axis="columns") > 1].iterrows():
        images = ", ".join(f"{row[split]} {split}" for split in SPLITS if row[split])
        yield Finding("group in two splits", "", "", str(group), f"{images} images; train and test are not independent", "kept")


def _few_images(frame: pd.DataFrame, few: int) -> Iterator[Finding]:
    """Classes with fewer than `few` images in valid or test."""
    for split in ("valid", "test"):
        counts = frame[(frame["split"] == split) & frame["use"]].groupby("class_name").size()
        for name, n_images in counts[counts < few].items():
            yield Finding("few images", split, str(name), "", f"{n_images} image(s) to evaluate on", "kept")


def _similar_names(frame: pd.DataFrame) -> Iterator[Finding]:
    """Names of one split that are similar to a name of another; they stay two classes."""
    names = frame[frame["label"].notna()].groupby("split")["class_name"].agg(set)
    for split, other in combinations([split for split in SPLITS if split in names], 2):
        elsewhere = sorted(names[other] - names[split])
        lengths, letters = np.array(list(map(len, elsewhere))), _letter_counts(elsewhere)
        for name in sorted(names[split] - names[other]) if len(elsewhere) else []:
            shared = np.minimum(letters, _letter_counts([name])).sum(axis=1)  # bounds difflib's ratio, which is slow
            possible = [elsewhere[k] for k in np.flatnonzero(2 * shared >= SIMILAR_NAMES * (len(name) + lengths))]
            for close in get_close_matches(name, possible, n=1, cutoff=SIMILAR_NAMES):
                yield Finding("similar names", split, name, "", f"is {close!r} in {other} the same?", "kept")


def _letter_counts(names: Sequence[str]) -> np.ndarray:
    """How often each letter, by its number modulo 256, is in each name: uint8 [N, 256]."""
    counts = np.zeros((len(names), 256), np.uint8)
    for row, name in enumerate(names):
        np.add.at(counts[row], np.array([ord(letter) % 256 for letter in name], np.intp), 1)
    return counts


def _odd_sizes(frame: pd.DataFrame) -> list[Finding]:
    """Outliers in area or aspect ratio."""
    sized = frame[frame["width"].notna()]
    width, height = sized["width"].astype("float64"), sized["height"].astype("float64")
    area, aspect = (width * height).apply(np.log), (width / height).apply(np.log)
    odd = ((area - area.median()).abs() > np.log(FAR_AREA)) | ((aspect - aspect.median()).abs() > np.log(FAR_ASPECT))
    rows = sized[odd]
    return _of_images("odd size", rows, [f"{row.width}x{row.height} pixels" for row in rows.itertuples()], "kept")
