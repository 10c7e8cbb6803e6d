"""Decisions applied to the table: by content, to every copy, before conflicts and leaks are looked for."""

import hashlib

import pandas as pd
import pytest

from fieldguide.checks.corrections import apply_corrections
from fieldguide.checks.duplicates import exact_pairs, photographs
from fieldguide.checks.policies import Finding, check
from fieldguide.checks.summary import class_counts, split_check_metrics
from fieldguide.core.artifacts import CorrectionCounts
from fieldguide.core.corrections import Correction
from fieldguide.core.errors import UserError
from fieldguide.core.manifest import as_given, as_labelled, classes_of
from fieldguide.core.names import SPLITS
from fieldguide.core.params import SplitCheck
from support.settings import PARAMS

WHOLE = [(split, name, f"{split} {name}") for split in SPLITS for name in ("A", "B")]
LOCAL = {"few_images": 0, "missing_classes": "report", "leaks": "drop", "label_conflicts": "drop"}


def policy(**values: object) -> SplitCheck:
    return PARAMS.split_check.model_copy(update=LOCAL | values)


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    """Split, class ("" is unlabelled) and content ("" is unreadable) of each row; A is 0, B is 1, …"""
    frame = pd.DataFrame(rows, columns=["split", "class_name", "content"])
    readable = frame["content"].ne("")
    frame = frame.assign(
        label=pd.array([ord(name) - ord("A") if name else None for name in frame["class_name"]], dtype="Int64"),
        id=[f"{split}/{name}/{place}.jpg" for place, (split, name, _) in enumerate(rows)],
        sha256=frame["content"].map(digest),
        width=readable.astype("Int64").where(readable),
        height=1,
        reason=["" if content else "unreadable: x" for content in frame["content"]],
    )
    return as_given(frame.assign(photograph=photographs(len(rows), exact_pairs(frame["sha256"].where(readable, "")))))


def decision(content: str, what: str, label: str = "", file: str = "x.jpg", reason: str = "blurred") -> Correction:
    return Correction(digest(content), file, what, label, reason, "ada", "2026-11-29")


def corrected(*rows: tuple[str, str, str], by: list[Correction]) -> tuple[pd.DataFrame, list[Finding]]:
    findings: list[Finding] = []
    return apply_corrections(table(*rows), dict(enumerate(by, 2)), findings), findings


def checked(*rows: tuple[str, str, str], by: list[Correction], **policies: str) -> tuple[pd.DataFrame, list[Finding], int]:
    frame, findings = corrected(*rows, by=by)
    frame, n_conflicts = check(frame, policy(**policies), findings)
    return frame, findings, n_conflicts


def test_a_decision_holds_for_every_copy_and_leaves_what_the_data_give() -> None:
    rows = [*WHOLE, ("train", "A", "x"), ("test", "A", "x"), ("train", "A", "y")]
    frame, findings = corrected(*rows, by=[decision("x", "relabel", "B"), decision("y", "keep"), decision("train B", "drop")])
    assert frame["class_name"].tolist() == ["A", "B"] * 3 + ["B", "B", "A"]
    assert frame["label"].tolist() == [0, 1] * 3 + [1, 1, 0]
    assert frame["given"].tolist() == ["A", "B"] * 3 + ["A"] * 3
    assert frame["given_label"].tolist() == [0, 1] * 3 + [0] * 3
    assert frame["decision"].tolist() == ["", "drop"] + [""] * 4 + ["relabel", "relabel", "keep"]
    assert frame["correction"].tolist() == ["", "correction: drop (blurred)"] + [""] * 7
    assert findings == []


def test_without_decisions_nothing_changes() -> None:
    frame, findings = corrected(*WHOLE, by=[])
    pd.testing.assert_frame_equal(frame.drop(columns="correction"), table(*WHOLE))
    assert findings == []


def test_a_class_is_found_in_another_case_as_class_folders_are() -> None:
    assert corrected(*WHOLE, by=[decision("train A", "relabel", " b ")])[0].loc[0, "class_name"] == "B"


def test_a_class_that_the_data_do_not_have_is_one_line() -> None:
    findings: list[Finding] = []
    frame = table(*WHOLE).assign(class_name=["Peacock", "Comma"] * 3)
    said = (
        r"^data/corrections\.csv, line 3: b\.jpg is to be 'Peacok', which is not a class of the data"
        r" \(did you mean 'Peacock'\?\); correct the label, or drop the image$"
    )
    by = {2: decision("train A", "drop"), 3: decision("train B", "relabel", "Peacok", "b.jpg")}
    with pytest.raises(UserError, match=said):
        apply_corrections(frame, by, findings)
    assert findings == []


def test_a_decision_without_its_image_is_a_finding_whatever_its_class() -> None:
    by = [decision("gone", "relabel", "no class", "gone.jpg"), decision("old bytes", "drop", file="train/A/0.jpg")]
    frame, findings = corrected(*WHOLE, by=by)
    assert findings == [
        Finding(
            "correction without image",
            "",
            "",
            "gone.jpg",
            "relabel no class: the data have no image with this content",
            "not applied",
        ),
        Finding(
            "correction without image",
            "train",
            "A",
            "train/A/0.jpg",
            "drop: the image has been re-encoded or replaced and must be decided again",
            "not applied",
        ),
    ]
    frame, n_conflicts = check(frame, policy(), findings)
    counts = split_check_metrics(frame, [], [], findings, n_conflicts).corrections
    assert counts == CorrectionCounts(keep=0, relabel=0, drop=0, unmatched=2)


def test_an_unlabelled_image_is_not_corrected_but_its_labelled_copy_is() -> None:
    frame, findings = corrected(*WHOLE, ("unlabelled", "", "train A"), by=[decision("train A", "relabel", "B")])
    assert frame["class_name"].tolist() == ["B", "B", "A", "B", "A", "B", ""]
    assert frame["decision"].tolist() == ["relabel"] + [""] * 6
    assert pd.isna(frame["label"].iloc[-1])
    place = ("unlabelled", "", "unlabelled//6.jpg")
    assert findings == [Finding("correction of unlabelled", *place, "only labelled images are corrected", "not applied")]


def near_copies() -> pd.DataFrame:
    """Two near copies in train, the first under A and the second under B, beside `WHOLE`."""
    frame = table(*WHOLE, ("train", "A", "x"), ("train", "B", "near x"))
    frame.loc[7, "photograph"] = frame.loc[6, "photograph"]
    return frame


def test_a_relabelled_image_ends_a_conflict() -> None:
    frame = near_copies()
    findings: list[Finding] = []
    assert check(apply_corrections(frame, {}, findings), policy(), findings)[1] == 1
    by = {2: decision("near x", "relabel", "A")}
    result, n_conflicts = check(apply_corrections(frame, by, findings := []), policy(), findings)
    assert (n_conflicts, findings, result["use"].all()) == (0, [], True)


@pytest.mark.parametrize(
    ("kept", "used", "listed"),
    [(["x", "near x"], [True, True], []), (["x"], [True, False], ["train/B/7.jpg"]), ([], [False, False], 2 * ["train"])],
)
def test_near_copies_that_a_person_kept_are_no_conflict(kept: list[str], used: list[bool], listed: list[str]) -> None:
    by = {line: decision(content, "keep") for line, content in enumerate(kept, 2)}
    findings: list[Finding] = []
    result, n_conflicts = check(apply_corrections(near_copies(), by, findings), policy(), findings)
    assert (n_conflicts, result["use"].tolist()[6:]) == (int(bool(listed)), used)
    assert all(found.id.startswith(name) for found, name in zip(findings, listed, strict=True))


def test_equal_bytes_under_two_classes_stay_a_conflict_though_kept() -> None:
    frame, _, n_conflicts = checked(*WHOLE, ("train", "A", "x"), ("train", "B", "x"), by=[decision("x", "keep")])
    assert (n_conflicts, frame["use"].tolist()[6:]) == (1, [False, False])


def test_an_unreadable_image_that_was_dropped_does_not_stop_the_run() -> None:
    frame, findings, _ = checked(*WHOLE, ("train", "A", ""), by=[decision("", "drop")], unreadable="fail")
    assert findings == []
    assert frame.loc[6, ["use", "reason"]].tolist() == [False, "unreadable: x"]


def test_a_dropped_image_of_test_still_takes_its_copy_out_of_train() -> None:
    frame = table(*WHOLE, ("train", "A", "x"), ("test", "A", "near x"))
    frame.loc[7, "photograph"] = frame.loc[6, "photograph"]
    findings: list[Finding] = []
    result, _ = check(apply_corrections(frame, {2: decision("near x", "drop")}, findings), policy(), findings)
    assert result.loc[6, ["use", "reason"]].tolist() == [False, "leak: same photograph as test test/A/7.jpg"]
    assert result.loc[7, ["use", "reason"]].tolist() == [False, "correction: drop (blurred)"]
    assert as_labelled(result)["use"].tolist() == [True] * 6 + [False, True]


@pytest.mark.parametrize("leaks", ["drop", "report"])
def test_a_dropped_copy_in_valid_is_evaluated_as_it_would_be_without_the_decision(leaks: str) -> None:
    rows = [*WHOLE, ("valid", "A", "x"), ("test", "A", "x")]
    frame, _, _ = checked(*rows, by=[decision("x", "drop")], leaks=leaks)
    without, _, _ = checked(*rows, by=[], leaks=leaks)
    assert not frame.loc[[6, 7], "use"].any()
    assert as_labelled(frame)["use"].tolist() == without["use"].tolist()
    assert frame["reason"].str.startswith("leak: ").tolist() == without["reason"].str.startswith("leak: ").tolist()


def test_a_class_whose_images_were_all_relabelled_is_kept_and_listed_as_missing() -> None:
    by = [decision(f"{split} A", "relabel", "B") for split in SPLITS]
    frame, findings, n_conflicts = checked(*WHOLE, by=by)
    assert [(finding.kind, finding.split, finding.class_name) for finding in findings] == [
        ("missing class", split, "A") for split in SPLITS
    ]
    assert classes_of(frame).names == ("A", "B")
    assert class_counts(frame).to_numpy().tolist() == [[0, "A", 0, 0, 0], [1, "B", 2, 2, 2]]
    metrics = split_check_metrics(frame, [], [], findings, n_conflicts)
    assert (metrics.classes, metrics.corrections) == (2, CorrectionCounts(keep=0, relabel=3, drop=0, unmatched=0))
    dropped, _, _ = checked(*WHOLE, by=by[:1], missing_classes="drop")  # A has no train image any more
    assert dropped["use"].tolist() == [True, True, False, True, False, True]
    assert as_labelled(dropped)["use"].tolist() == dropped["use"].tolist()
