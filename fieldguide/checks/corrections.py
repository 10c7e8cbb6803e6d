"""Applies the decisions of data/corrections.csv to the table of images."""

from collections.abc import Mapping
from difflib import get_close_matches

import pandas as pd

from fieldguide.checks.policies import Finding
from fieldguide.core.corrections import Correction
from fieldguide.core.errors import UserError
from fieldguide.core.manifest import DROPPED, named_tuples
from fieldguide.core.paths import CORRECTIONS
from fieldguide.sources.layout import class_key

WITHOUT_IMAGE = "correction without image"  # the kind of a finding


def apply_corrections(frame: pd.DataFrame, corrections: Mapping[int, Correction], findings: list[Finding]) -> pd.DataFrame:
    """The table with corrected labels, `decision`, and `correction`: why a row was dropped, else empty; adds to `findings`.

    frame: the columns of `as_given`, `id` and `sha256`; splits are drawn already, from the given labels. corrections: by line.
    A decision holds for all labelled copies. Raises `UserError` for a class that the data do not have.
    """
    labelled = frame["label"].notna()
    classes = frame.loc[labelled, ["label", "class_name"]].drop_duplicates()
    by_name = {class_key(name): (label, name) for label, name in classes.itertuples(index=False, name=None)}
    labelled_content = set(frame.loc[labelled, "sha256"])
    applied = {one.sha256: one for one in corrections.values() if one.sha256 in labelled_content}
    for line, one in corrections.items():
        if one.sha256 in applied and one.decision == "relabel" and class_key(one.label) not in by_name:
            close = get_close_matches(one.label, classes["class_name"], n=1)
            raise UserError(
                f"{CORRECTIONS}, line {line}: {one.file} is to be {one.label!r}, which is not a class of the data"
                + (f" (did you mean {close[0]!r}?)" if close else "")
                + "; correct the label, or drop the image"
            )
    findings += _not_applied(frame, corrections)
    if not applied:
        return frame.assign(correction="")
    decided = [applied.get(sha256) for sha256 in frame["sha256"].where(labelled, "")]
    used = zip(decided, frame["label"], frame["class_name"], strict=True)
    corrected = [
        by_name[class_key(one.label)] if one and one.decision == "relabel" else (label, name) for one, label, name in used
    ]
    return frame.assign(
        decision=[one.decision if one else "" for one in decided],
        label=pd.array([label for label, _ in corrected], dtype="Int64"),
        class_name=[name for _, name in corrected],
        correction=[_dropped_because(one) if one and one.decision == "drop" else "" for one in decided],
    )


def _dropped_because(correction: Correction) -> str:
    reason = " ".join(correction.reason.split())
    return f"{DROPPED} ({reason})" if reason else DROPPED


def _not_applied(frame: pd.DataFrame, corrections: Mapping[int, Correction]) -> list[Finding]:
    """A finding for each decision without an image, and for each unlabelled image with a decision."""
    content = set(frame["sha256"])
    lacking = [one for one in corrections.values() if one.sha256 not in content]
    others = frame[frame["id"].isin([one.file for one in lacking])]
    places = {row.id: (row.split, row.class_name) for row in named_tuples(others)}
    findings = []
    for one in lacking:
        detail = "the data have no image with this content"
        if one.file in places:
            detail = "the image has been re-encoded or replaced and must be decided again"
        text = f"{one.decision} {one.label}".strip()
        place = places.get(one.file, ("", ""))
        findings.append(Finding(WITHOUT_IMAGE, *place, one.file, f"{text}: {detail}", "not applied"))
    decided = frame[frame["label"].isna() & frame["sha256"].isin([one.sha256 for one in corrections.values()])]
    return findings + [
        Finding("correction of unlabelled", row.split, "", row.id, "only labelled images are corrected", "not applied")
        for row in named_tuples(decided)
    ]
