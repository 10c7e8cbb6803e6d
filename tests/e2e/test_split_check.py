"""The split check: planted faults are found, counted and acted on by the stated policy; each stop is one line."""

import hashlib
import io
import json
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fieldguide.checks.corrections import apply_corrections
from fieldguide.checks.duplicates import exact_pairs, photographs
from fieldguide.checks.inspection import inspect_images
from fieldguide.checks.policies import Finding, check, number_classes
from fieldguide.checks.splits import with_hold_out, with_splits
from fieldguide.checks.summary import class_counts, split_check_metrics
from fieldguide.core.errors import UserError
from fieldguide.core.manifest import as_given
from fieldguide.core.names import SPLITS
from fieldguide.core.params import SplitCheck
from fieldguide.sources.archive import pack
from fieldguide.sources.index import LABEL_COLUMNS
from fieldguide.sources.layout import SPLIT_NAMES
from support.disk import on_a_tiny_disk
from support.settings import PARAMS
from support.stages import TINY_SAMPLE, MakeProject, failed_in_one_line, run_stage, succeeded

Planted = tuple[str, str, str]  # split, class name, content; "" as content is unreadable
WHOLE = [(split, name, f"{split} {name}") for split in SPLITS for name in ("A", "B")]


def policy(**values: object) -> SplitCheck:
    """Report everything; 20 % to each split that is cut."""
    usual = {
        "unreadable": "report",
        "leaks": "report",
        "label_conflicts": "report",
        "missing_classes": "report",
        "few_images": 0,
    }
    cut = {"valid_fraction": 0.2, "test_fraction": 0.2, "seed": 1}
    return PARAMS.split_check.model_copy(update=usual | cut | values)


def checked(frame: pd.DataFrame, policy: SplitCheck) -> tuple[pd.DataFrame, list[Finding], dict[str, Any]]:
    """The table, findings and metrics of data without near duplicates."""
    findings: list[Finding] = []
    frame = apply_corrections(as_given(with_photographs(frame)), {}, findings)
    frame, n_conflicts = check(frame, policy, findings)
    return frame, findings, split_check_metrics(frame, copies_in(frame), [], findings, n_conflicts).as_dict()


def copies_in(frame: pd.DataFrame) -> list[tuple[int, int]]:
    return exact_pairs(frame["sha256"].where(frame["width"].notna(), ""))


def with_photographs(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(photograph=photographs(len(frame), copies_in(frame)))


def table(*rows: Planted) -> pd.DataFrame:
    """What `inspect_images` gives for these rows: ids are `<split>/<class>/<row>.jpg`; labels by the order of the names."""
    names = sorted({name for _, name, _ in rows if name})
    return pd.DataFrame(
        {
            "split": [split for split, _, _ in rows],
            "label": pd.array([names.index(name) if name else None for _, name, _ in rows], dtype="Int64"),
            "class_name": [name for _, name, _ in rows],
            "id": [f"{split}/{name}/{place}.jpg" for place, (split, name, _) in enumerate(rows)],
            "file": "images.zip",
            "offset": range(len(rows)),
            "length": 1,
            "width": pd.array([1 if content else None for _, _, content in rows], dtype="Int64"),
            "height": pd.array([1 if content else None for _, _, content in rows], dtype="Int64"),
            "sha256": [hashlib.sha256(content.encode()).hexdigest() for _, _, content in rows],
            "reason": ["" if content else "unreadable: not an image but a text file" for _, _, content in rows],
        }
    )


def use_and_reason(frame: pd.DataFrame) -> list[tuple[bool, str]]:
    return list(zip(frame["use"].tolist(), frame["reason"].tolist(), strict=True))


def test_sound_data_are_all_used_and_nothing_is_found() -> None:
    strict = policy(unreadable="fail", leaks="fail", label_conflicts="fail", missing_classes="fail")
    frame, findings, metrics = checked(table(*WHOLE), strict)
    assert use_and_reason(frame) == [(True, "")] * 6
    assert findings == []
    expected = {
        "classes": 2,
        "images": {"train": 2, "valid": 2, "test": 2},
        "unlabelled": 0,
        "unreadable": 0,
        "exact_duplicates": 0,
        "leaks": 0,
        "near_duplicates": {"across_splits": 0, "within_split": 0},
        "label_conflicts": 0,
        "missing_classes": {"train": 0, "valid": 0, "test": 0},
        "dropped": 0,
        "corrections": {"keep": 0, "relabel": 0, "drop": 0, "unmatched": 0},
    }
    assert metrics | expected == metrics  # the keys of the contract at least
    json.dumps(metrics, allow_nan=False)  # plain numbers, no NumPy scalars


def test_near_duplicates_that_were_not_looked_for_are_not_counted_as_none() -> None:
    frame, _, _ = checked(table(*WHOLE), policy())
    assert split_check_metrics(frame, [], None, [], 0).as_dict()["near_duplicates"] == {
        "across_splits": None,
        "within_split": None,
    }


@pytest.mark.parametrize(("less", "more"), list(combinations(SPLITS, 2)))
def test_drop_takes_a_leak_out_of_the_less_trusted_split(less: str, more: str) -> None:
    frame, findings, metrics = checked(table(*WHOLE, (less, "A", "x"), (more, "A", "x")), policy(leaks="drop"))
    reason = f"leak: same bytes as {more} {more}/A/7.jpg"
    assert use_and_reason(frame) == [(True, "")] * 6 + [(False, reason), (True, "")]
    assert findings == [Finding("leak", less, "A", f"{less}/A/6.jpg", f"same bytes as {more} {more}/A/7.jpg", "dropped")]
    assert (metrics["exact_duplicates"], metrics["dropped"]) == (1, 1)
    assert metrics["images"] == {split: 2 + (split in (less, more)) for split in SPLITS}


@pytest.mark.parametrize(("less", "more"), list(combinations(SPLITS, 2)))
def test_report_keeps_a_leak_and_marks_both_sides(less: str, more: str) -> None:
    frame, findings, metrics = checked(table(*WHOLE, (less, "A", "x"), (more, "A", "x")), policy(leaks="report"))
    assert use_and_reason(frame)[6:] == [
        (True, f"leak: same bytes as {more} {more}/A/7.jpg"),
        (True, f"leak: same bytes as {less} {less}/A/6.jpg"),
    ]
    assert [one.action for one in findings] == ["kept"]
    assert (metrics["exact_duplicates"], metrics["dropped"]) == (1, 0)


def test_fail_stops_at_a_leak_and_names_both_places() -> None:
    with pytest.raises(UserError) as caught:
        checked(table(*WHOLE, ("train", "A", "x"), ("test", "B", "x")), policy(leaks="fail"))
    assert str(caught.value) == (
        "1 finding(s) of kind leak: train/A/6.jpg in train (same bytes as test test/B/7.jpg);"
        " fix the data or set split_check.leaks"
    )


def test_a_copy_in_all_splits_stays_in_test_only() -> None:
    frame, findings, metrics = checked(table(*WHOLE, *[(split, "A", "x") for split in SPLITS]), policy(leaks="drop"))
    reason = "leak: same bytes as test test/A/8.jpg"
    assert use_and_reason(frame)[6:] == [(False, reason), (False, reason), (True, "")]
    assert len(findings) == 2
    assert (metrics["exact_duplicates"], metrics["leaks"], metrics["dropped"]) == (2, 1, 2)


def test_every_copy_in_the_lower_split_is_dropped() -> None:
    frame, _, _ = checked(table(*WHOLE, ("train", "A", "x"), ("train", "A", "x"), ("test", "A", "x")), policy(leaks="drop"))
    assert frame["use"].tolist() == [True] * 6 + [False, False, True]


def test_report_marks_every_copy_of_a_leak() -> None:
    planted = [("train", "A", "x"), ("valid", "A", "x"), ("test", "A", "x"), ("test", "A", "x")]
    frame, _, _ = checked(table(*WHOLE, *planted), policy(leaks="report"))
    assert frame["reason"].str.startswith("leak: ").tolist() == [False] * 6 + [True] * 4


def test_copies_within_a_split_are_counted_and_kept() -> None:
    planted = [("train", "A", "x")] * 3 + [("test", "B", "y")] * 2
    frame, findings, metrics = checked(table(*WHOLE, *planted), policy(leaks="fail"))
    assert frame["use"].all()
    assert findings == []
    assert (metrics["exact_duplicates"], metrics["leaks"]) == (3, 0)


TWO_NAMES = [("train", "A", "x"), ("train", "B", "x"), ("valid", "A", "y"), ("valid", "A", "y")]


@pytest.mark.parametrize(("chosen", "action"), [("report", "kept"), ("drop", "dropped")])
def test_one_image_under_two_names_is_a_conflict(chosen: str, action: str) -> None:
    frame, findings, metrics = checked(table(*WHOLE, *TWO_NAMES), policy(label_conflicts=chosen))
    assert metrics["label_conflicts"] == 1
    assert findings == [
        Finding("label conflict", "train", "A", "train/A/6.jpg", "also under B", action),
        Finding("label conflict", "train", "B", "train/B/7.jpg", "also under A", action),
    ]
    used = chosen == "report"
    assert use_and_reason(frame)[6:] == [
        (used, "label conflict: also under B"),
        (used, "label conflict: also under A"),
        (True, ""),
        (True, ""),
    ]


def test_fail_stops_at_a_conflict() -> None:
    with pytest.raises(UserError) as caught:
        checked(table(*WHOLE, *TWO_NAMES), policy(label_conflicts="fail"))
    assert str(caught.value) == (
        "2 finding(s) of kind label conflict: train/A/6.jpg in train (also under B); train/B/7.jpg;"
        " fix the data or set split_check.label_conflicts"
    )


def test_a_conflict_outside_of_train_is_kept() -> None:
    planted = [("test", "A", "x"), ("test", "B", "x")]
    frame, findings, metrics = checked(table(*WHOLE, *planted), policy(label_conflicts="drop"))
    assert frame["use"].all()
    assert [one.action for one in findings] == ["kept", "kept"]
    assert metrics["label_conflicts"] == 1


@pytest.mark.parametrize("chosen", ["report", "drop"])
def test_an_unreadable_image_is_left_out_and_listed(chosen: str) -> None:
    frame, findings, metrics = checked(table(*WHOLE, ("test", "A", "")), policy(unreadable=chosen))
    assert use_and_reason(frame)[6] == (False, "unreadable: not an image but a text file")
    assert findings == [
        Finding("unreadable", "test", "A", "test/A/6.jpg", "unreadable: not an image but a text file", "left out")
    ]
    assert (metrics["unreadable"], metrics["dropped"]) == (1, 1)


def test_fail_stops_at_unreadable_images_and_names_the_first_ten() -> None:
    with pytest.raises(UserError) as caught:
        checked(table(*WHOLE, *[("test", "A", "")] * 12), policy(unreadable="fail"))
    others = "".join(f"; test/A/{place}.jpg" for place in range(7, 16))
    assert str(caught.value) == (
        "12 finding(s) of kind unreadable: test/A/6.jpg in test (unreadable: not an image but a text file)"
        f"{others} ... (see metrics/findings.csv for all); fix the data or set split_check.unreadable"
    )


@pytest.mark.parametrize("chosen", ["report", "drop", "fail"])
def test_an_unreadable_image_is_no_leak(chosen: str) -> None:
    frame, findings, metrics = checked(table(*WHOLE, ("train", "A", ""), ("test", "B", "")), policy(leaks=chosen))
    assert use_and_reason(frame)[6:] == [(False, "unreadable: not an image but a text file")] * 2
    assert [one.kind for one in findings] == ["unreadable"] * 2
    assert metrics["unreadable"] == 2
    assert metrics["label_conflicts"] == 0


def test_missing_classes_are_counted_for_each_split_and_listed() -> None:
    rows = [("train", "A", "1"), ("train", "B", "2"), ("train", "C", "3"), ("valid", "A", "4"), ("test", "B", "5")]
    _, findings, metrics = checked(table(*rows), policy())
    assert metrics["classes"] == 3
    assert metrics["missing_classes"] == {"train": 0, "valid": 2, "test": 2}
    assert findings == [
        Finding("missing class", split, name, "", "no image in use", "kept")
        for split, name in (("valid", "B"), ("valid", "C"), ("test", "A"), ("test", "C"))
    ]


def test_fail_stops_at_a_missing_class() -> None:
    with pytest.raises(UserError) as caught:
        checked(table(*WHOLE, ("train", "C", "3"), ("test", "C", "4")), policy(missing_classes="fail"))
    assert str(caught.value) == (
        "1 finding(s) of kind missing class: C in valid (no image in use); fix the data or set split_check.missing_classes"
    )


def test_drop_leaves_a_missing_class_out_of_every_split() -> None:
    rows = [*WHOLE, ("train", "C", "3"), ("test", "C", "4")]
    frame, findings, metrics = checked(table(*rows), policy(missing_classes="drop"))
    assert use_and_reason(frame) == [(True, "")] * 6 + [(False, "class is missing in a split")] * 2
    assert findings == [Finding("missing class", "valid", "C", "", "no image in use", "dropped")]
    assert metrics["dropped"] == 2


def test_classes_with_few_images_to_evaluate_on_are_listed() -> None:
    rows = [*WHOLE, ("valid", "A", "1"), ("test", "B", "")]
    _, findings, _ = checked(table(*rows), policy(few_images=2))
    assert [one for one in findings if one.kind == "few images"] == [
        Finding("few images", split, name, "", "1 image(s) to evaluate on", "kept")
        for split, name in (("valid", "B"), ("test", "A"), ("test", "B"))
    ]


def test_names_that_are_almost_the_same_in_two_splits_are_listed() -> None:
    rows = [("train", "PAINTED LADY", "1"), ("test", "PAINTED LADDY", "2"), ("train", "MONARCH", "3"), ("test", "MONARCH", "4")]
    _, findings, _ = checked(table(*rows), policy())
    assert Finding("similar names", "train", "PAINTED LADY", "", "is 'PAINTED LADDY' in test the same?", "kept") in findings
    assert len([one for one in findings if one.kind == "similar names"]) == 1


@pytest.mark.parametrize(("width", "height", "odd"), [(100, 100, False), (1000, 1000, True), (20, 20, True), (200, 50, True)])
def test_images_far_from_the_others_in_size_or_shape_are_listed(width: int, height: int, odd: bool) -> None:
    frame = table(*WHOLE, *[("train", "A", f"{n}") for n in range(9)]).assign(width=100, height=100)
    frame.loc[8, ["width", "height"]] = (width, height)
    _, findings, _ = checked(frame, policy())
    expected = Finding("odd size", "train", "A", "train/A/8.jpg", f"{width}x{height} pixels", "kept")
    assert findings == ([expected] if odd else [])


def test_a_class_whose_images_are_all_left_out_is_missing() -> None:
    _, _, metrics = checked(table(*WHOLE[:-1], ("test", "B", "")), policy())
    assert metrics["missing_classes"] == {"train": 0, "valid": 0, "test": 1}
    _, _, metrics = checked(table(*WHOLE, ("train", "C", "x"), ("test", "C", "x")), policy(leaks="drop"))
    assert metrics["missing_classes"] == {"train": 1, "valid": 1, "test": 0}


def test_images_without_labels_are_counted_apart_and_make_no_class() -> None:
    rows = [row for row in WHOLE if row[0] != "test"] + [("unlabelled", "", "1"), ("unlabelled", "", "2")]
    _, findings, metrics = checked(table(*rows), policy(missing_classes="fail"))
    assert findings == []
    assert metrics["classes"] == 2
    assert metrics["unlabelled"] == 2
    assert metrics["images"] == {"train": 2, "valid": 2, "test": 0}


def test_class_counts_are_images_in_use_by_class_and_split() -> None:
    rows = [("train", "A", "1"), ("train", "A", "2"), ("test", "A", "3"), ("train", "B", "4"), ("valid", "B", "")]
    counts = class_counts(checked(table(*rows), policy())[0])
    assert list(counts.columns) == ["label", "class_name", "train", "valid", "test"]
    assert counts.to_numpy().tolist() == [[0, "A", 2, 0, 1], [1, "B", 1, 0, 0]]


def test_class_counts_keep_a_class_without_any_image_in_use() -> None:
    counts = class_counts(checked(table(*WHOLE, ("train", "C", "")), policy())[0])
    assert counts["class_name"].tolist() == ["A", "B", "C"]
    assert counts.iloc[2].tolist() == [2, "C", 0, 0, 0]


def test_class_counts_of_nothing_in_use_are_zeros() -> None:
    counts = class_counts(checked(table(("train", "A", ""), ("test", "B", "")), policy())[0])
    assert counts.to_numpy().tolist() == [[0, "A", 0, 0, 0], [1, "B", 0, 0, 0]]


def test_class_folders_that_differ_only_in_case_are_one_class() -> None:
    rows = [("train", "Monarch", "1"), ("train", "Monarch", "2"), ("test", "MONARCH", "3"), ("train", "Adonis", "4")]
    findings: list[Finding] = []
    frame = number_classes(table(*rows).drop(columns="label").assign(label=None), findings)
    assert frame["class_name"].tolist() == ["Monarch", "Monarch", "Monarch", "Adonis"]
    assert frame["label"].tolist() == [1, 1, 1, 0]
    assert findings == [Finding("class name", "test", "MONARCH", "", "taken for 'Monarch'", "united")]


def test_splits_that_are_there_are_left_as_they_are() -> None:
    frame = with_photographs(table(*WHOLE))
    assert with_splits(frame, policy())["split"].tolist() == [split for split, _, _ in WHOLE]


@pytest.mark.parametrize("given", ["", "train"])
def test_missing_splits_are_cut_from_each_class_with_copies_on_one_side(given: str) -> None:
    rows = [(given, name, f"{name} {n // 2}") for name in "AB" for n in range(20)]  # each image twice
    frame = with_splits(with_photographs(table(*rows)), policy())
    counts = pd.crosstab(frame["class_name"], frame["split"])
    assert counts.loc["A"].to_dict() == counts.loc["B"].to_dict() == {"train": 12, "valid": 4, "test": 4}
    assert frame.groupby("sha256")["split"].nunique().eq(1).all()
    assert with_splits(with_photographs(table(*rows)), policy())["split"].tolist() == frame["split"].tolist()


def test_a_given_test_split_is_kept_when_valid_is_cut() -> None:
    rows = [("train", "A", f"{n}") for n in range(10)] + [("test", "A", "t")]
    splits = with_splits(with_photographs(table(*rows)), policy())["split"]
    assert splits.iloc[10] == "test"
    assert sorted(splits) == ["test"] + ["train"] * 8 + ["valid"] * 2


def jpeg(colour: tuple[int, int, int], width: int = 20, height: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "JPEG")
    return stream.getvalue()


PHOTOS = {
    f"{split}/{name}/1.jpg": jpeg((40 * number, 90, 200))
    for number, (split, name) in enumerate((split, name) for split in SPLITS for name in ("A", "B, c"))
}


def with_raw(project: Path, members: dict[str, bytes], layout: str = "folders") -> Path:
    """What the download stage leaves behind."""
    pack(members.items(), project / "data" / "raw" / "images.zip")
    places = [(name, *name.split("/")[:2]) for name in members]
    labels = [
        (name, "unlabelled", "") if split == "unlabelled" else (name, SPLIT_NAMES[split], own) for name, split, own in places
    ]
    pd.DataFrame(labels, columns=LABEL_COLUMNS).to_csv(project / "data" / "raw" / "labels.csv", index=False)
    words = ("title", "home", "licence", "source", "version", "release")
    features = {"image": "image", "label": "class", "id": ""}
    receipt = dict.fromkeys(words, "") | {"dataset": "folder", "layout": layout, "features": features}
    receipt |= {"images": {}, "ignored": {}, "files": {"images.zip": {"bytes": 1, "sha256": ""}}}
    (project / "data" / "raw" / "receipt.json").write_text(json.dumps(receipt))
    return project


def outputs(project: Path) -> set[str]:
    found = (file.relative_to(project) for folder in ("data", "metrics") for file in (project / folder).rglob("*"))
    return {str(file) for file in found if file.suffix and "data/raw" not in str(file)}


def test_inspection_reads_size_and_hash_of_every_image(make_project: MakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"train/A/1.jpg": jpeg((1, 2, 3)), "train/A/2.jpg": b"no image", "train/A/3.jpg": jpeg((9, 9, 9), 7, 30)}
    members["train/A/4.jpg"] = jpeg((0, 0, 0), 2000, 501)
    project = with_raw(make_project(), members)
    monkeypatch.chdir(project)
    content = (project / "data/raw/images.zip").read_bytes()
    places = {"split": "train", "file": "images.zip", "offset": [content.index(one) for one in members.values()]}
    table = pd.DataFrame(places | {"length": [len(one) for one in members.values()]})
    frame, fingerprints, means = inspect_images(table, Path("data/raw"), max_megapixels=1, n_workers=2)
    assert frame["width"].tolist() == [20, pd.NA, 7, pd.NA]
    assert frame["height"].tolist() == [16, pd.NA, 30, pd.NA]
    assert frame["sha256"].tolist() == [hashlib.sha256(one).hexdigest() for one in members.values()]
    large = "unreadable: 2000x501 pixels, more than 1 million; raise split_check.max_megapixels"
    assert frame["reason"].tolist() == ["", "unreadable: not an image but a text file", "", large]
    assert [bool(hashes.any()) for hashes in fingerprints.hashes] == [True, False, True, False]
    mean = means["train"]
    assert mean.n_images == 2
    np.testing.assert_allclose(mean.pixels, np.broadcast_to([5, 5.5, 6], mean.pixels.shape), atol=2)


def test_what_download_left_out_is_in_the_findings_and_unlabelled_images_in_the_manifest(make_project: MakeProject) -> None:
    unlabelled = {f"unlabelled/{n}.jpg": jpeg((n, 0, 0)) for n in range(3)}
    project = with_raw(make_project(**{"split_check.few_images": 0}), PHOTOS | unlabelled)
    left_out = [
        ("train/A/9.CR2", "RAW (.CR2)", "export as JPEG"),
        ("test/loose.jpg", "photograph", "outside class folders; move it into a class folder"),
        ("notes.txt", "text file", ""),
        ("more, and more.txt", "text file", ""),
        ("film.mp4", "video", ""),
    ]
    table = pd.DataFrame(left_out, columns=["file", "kind", "remedy"])
    table.to_csv(project / "data" / "raw" / "left_out.csv", index=False)
    output = succeeded(run_stage(project, "split_check"))
    assert "2 classes; 2 train, 2 valid, 2 test, 3 unlabelled; 0 dropped" in output
    assert "4 x not read: see metrics/findings.csv" in output
    findings = pd.read_csv(project / "metrics/findings.csv", keep_default_na=False)
    assert findings[["kind", "id", "detail", "action"]].to_numpy().tolist() == [
        ["not read", "train/A/9.CR2", "RAW (.CR2): export as JPEG", "left out"],
        ["not read", "test/loose.jpg", "photograph: outside class folders; move it into a class folder", "left out"],
        ["not read", "", "2 of kind text file", "left out"],
        ["not read", "", "1 of kind video", "left out"],
    ]
    manifest = pd.read_csv(project / "data/manifest.csv", keep_default_na=False)
    rows = manifest[manifest["split"] == "unlabelled"]
    assert rows["id"].tolist() == list(unlabelled)
    assert rows[["label", "class_name"]].to_numpy().tolist() == [["", ""]] * 3
    assert rows["use"].all()


def test_the_command_writes_the_manifest_metrics_and_tables(make_project: MakeProject) -> None:
    leak = PHOTOS["test/A/1.jpg"]
    project = with_raw(
        make_project(**{"split_check.few_images": 0}), PHOTOS | {"train/A/2.jpg": leak, "val/C/1.jpg": jpeg((0, 0, 0))}
    )
    output = succeeded(run_stage(project, "split_check"))
    assert "3 classes; 3 train, 3 valid, 2 test, 0 unlabelled; 1 dropped" in output
    assert "1 x leak: see metrics/findings.csv" in output
    manifest = pd.read_csv(project / "data/manifest.csv", keep_default_na=False)
    assert manifest["class_name"].tolist() == ["A", "B, c"] * 3 + ["A", "C"]
    assert manifest["split"].tolist() == ["train"] * 2 + ["valid"] * 2 + ["test"] * 2 + ["train", "valid"]
    assert manifest["use"].tolist() == [True] * 6 + [False, True]
    content = (project / "data/raw/images.zip").read_bytes()
    for row in manifest.itertuples():
        image = content[row.offset : row.offset + row.length]
        assert hashlib.sha256(image).hexdigest() == row.sha256
        assert Image.open(io.BytesIO(image)).size == (row.width, row.height)
    metrics = json.loads((project / "metrics/split_check.json").read_text())
    assert metrics["images"] == {"train": 3, "valid": 3, "test": 2}
    assert (metrics["exact_duplicates"], metrics["dropped"], metrics["classes"]) == (1, 1, 3)
    assert metrics["missing_classes"] == {"train": 1, "valid": 0, "test": 1}
    findings = pd.read_csv(project / "metrics/findings.csv", keep_default_na=False)
    assert findings["kind"].tolist() == ["leak", "missing class", "missing class"]
    assert list(findings.columns) == ["kind", "split", "class_name", "id", "detail", "action"]
    assert (project / "metrics/classes.csv").read_text() == (
        'label,class_name,train,valid,test\n0,A,1,1,1\n1,"B, c",1,1,1\n2,C,0,1,0\n'
    )


def test_the_command_applies_corrections_and_names_those_without_an_image(make_project: MakeProject) -> None:
    project = with_raw(make_project(**{"split_check.few_images": 0}), PHOTOS)
    succeeded(run_stage(project, "split_check"))
    before = pd.read_csv(project / "data/manifest.csv", keep_default_na=False)
    corrections = project / "data/corrections.csv"
    header = "sha256,file,decision,label,reason,by,date\n"
    digests = [hashlib.sha256(PHOTOS[name]).hexdigest() for name in ("train/A/1.jpg", "test/A/1.jpg")]
    corrections.write_text(f"{header}{digests[0]},train/A/1.jpg,relabel,no such class,,ada,2026-11-29\n", encoding="utf-8")
    said = r"data/corrections\.csv, line 2: train/A/1\.jpg is to be 'no such class', which is not a class of the data; .*"
    failed_in_one_line(run_stage(project, "split_check"), said)
    corrections.write_text(
        f'{header}{digests[0]},train/A/1.jpg,relabel,"B, c",,ada,2026-11-29\n'
        f"{digests[1]},test/A/1.jpg,drop,,blurred,ada,2026-11-29\n{'0' * 64},valid/A/1.jpg,keep,,,ada,2026-11-29\n",
        encoding="utf-8",
    )
    output = succeeded(run_stage(project, "split_check"))
    assert "corrections: 0 keep, 1 relabel, 1 drop, 1 unmatched: data/corrections.csv" in output
    after = pd.read_csv(project / "data/manifest.csv", keep_default_na=False)
    same = [column for column in after if column not in ("label", "class_name", "use", "reason", "decision")]
    pd.testing.assert_frame_equal(after[same], before[same])
    assert after["decision"].tolist() == ["relabel", "", "", "", "drop", ""]
    assert after["class_name"].tolist() == ["B, c"] * 2 + ["A", "B, c"] * 2
    assert after.loc[4, ["use", "reason"]].tolist() == [False, "correction: drop (blurred)"]
    assert (project / "metrics/classes.csv").read_text() == 'label,class_name,train,valid,test\n0,A,0,1,0\n1,"B, c",2,1,1\n'
    assert json.loads((project / "metrics/split_check.json").read_text())["corrections"] == {
        "keep": 0,
        "relabel": 1,
        "drop": 1,
        "unmatched": 1,
    }


@pytest.mark.parametrize(
    ("settings", "extra", "said"),
    [
        (
            {},
            {"train/A/2.jpg": b"no image"},
            r"1 finding\(s\) of kind unreadable: train/A/2\.jpg in train \(unreadable: not an image but a text file\);"
            r" fix the data or set split_check\.unreadable",
        ),
        ({"train.lr": -1}, {}, r"params\.yaml: train\.lr must be in \(0, 10\], got -1"),
    ],
    ids=["unreadable", "range"],
)
def test_a_stop_is_one_line_and_writes_nothing(
    make_project: MakeProject, settings: dict[str, Any], extra: dict[str, bytes], said: str
) -> None:
    project = with_raw(make_project(**settings), PHOTOS | extra)
    failed_in_one_line(run_stage(project, "split_check"), said)
    assert outputs(project) == ({"metrics/findings.csv"} if extra else set())  # the list of what stopped it


def test_missing_raw_data_are_one_line(make_project: MakeProject) -> None:
    project = with_raw(make_project(), PHOTOS)
    (project / "data/raw/images.zip").unlink()
    failed_in_one_line(run_stage(project, "split_check"), r"data/raw/images\.zip: .*dvc repro.*")


def test_data_without_one_readable_image_are_one_line(make_project: MakeProject) -> None:
    project = with_raw(make_project(**{"split_check.unreadable": "report"}), dict.fromkeys(PHOTOS, b"no image"))
    failed_in_one_line(run_stage(project, "split_check"), r".*no image.*")


def test_a_full_disk_is_one_line_and_leaves_no_half_file(make_project: MakeProject) -> None:
    project = with_raw(make_project(), PHOTOS)
    (project / "metrics").mkdir()
    stage = 'cd "$1" && head -c 8192 /dev/zero > metrics/full; "$2" -m stages.split_check; code=$?; ls -A metrics; exit $code'
    done = on_a_tiny_disk(project / "metrics", ["sh", "-c", stage, "sh", str(project), sys.executable], kilobytes=8)
    failed_in_one_line(
        done, r"metrics/classes\.csv: could not be written \(No space left on device\); free disk space or fix the permissions"
    )
    assert done.stdout == "full\n"


@pytest.mark.slow
def test_unreadable_files_with_the_same_bytes_are_no_copies(make_project: MakeProject) -> None:
    project = with_raw(
        make_project(**{"split_check.unreadable": "drop"}), PHOTOS | {"train/A/8.jpg": b"", "train/A/9.jpg": b""}
    )
    succeeded(run_stage(project, "split_check"))
    metrics = json.loads((project / "metrics/split_check.json").read_text())
    assert (metrics["unreadable"], metrics["exact_duplicates"]) == (2, 0)


def test_a_split_that_would_be_empty_is_told_not_made() -> None:
    frame = with_photographs(table(*[("", name, f"{name}{n}") for name in "AB" for n in range(2)]))
    with pytest.raises(UserError, match=r"the data have no test split, .* is 0\.2, .* of the largest class \(2 images\)"):
        with_splits(frame, policy())


def test_a_conflict_that_leaves_train_leaves_no_leak_behind() -> None:
    rows = [*WHOLE, ("train", "A", "twice"), ("test", "B", "twice")]
    frame, findings, metrics = checked(table(*rows), policy(label_conflicts="drop", leaks="report"))
    assert use_and_reason(frame)[-2:] == [(False, "label conflict: also under B"), (True, "label conflict: also under A")]
    assert [found.kind for found in findings] == ["label conflict"] * 2
    assert metrics["label_conflicts"] == 1


def test_a_photograph_that_also_awaits_a_label_is_listed_and_kept() -> None:
    rows = [*WHOLE, ("train", "A", "again"), ("unlabelled", "", "again")]
    frame, findings, _ = checked(table(*rows), policy(leaks="drop"))
    assert use_and_reason(frame)[-2:] == [(True, ""), (True, "")]
    detail = "same photograph as unlabelled unlabelled//7.jpg"
    assert findings == [Finding("also unlabelled", "train", "A", "train/A/6.jpg", detail, "kept")]


def test_missing_classes_are_counted_as_they_were_before_they_are_dropped() -> None:
    rows = [*WHOLE, ("train", "C", "only here")]
    dropped = checked(table(*rows), policy(missing_classes="drop"))[2]
    assert dropped["missing_classes"] == {"train": 0, "valid": 1, "test": 1}
    assert dropped["dropped"] == 1


def test_class_folders_that_differ_in_surrounding_space_are_one_class_and_it_is_said() -> None:
    frame = pd.DataFrame({"split": ["train", "train", "valid"], "class_name": ["MONARCH", "MONARCH", "MONARCH "]})
    findings: list[Finding] = []
    assert number_classes(frame.assign(label=None), findings)["class_name"].tolist() == ["MONARCH"] * 3
    assert findings == [Finding("class name", "valid", "MONARCH ", "", "taken for 'MONARCH'", "united")]


def many(n_train: int = 20) -> pd.DataFrame:
    """Two classes with `n_train` train images each, of which two are copies of one another, and one in valid and in test."""
    train = [("train", name, f"{name} {max(k, 1)}") for name in ("A", "B") for k in range(n_train)]
    rest = [(split, name, f"{split} {name}") for split in ("valid", "test") for name in ("A", "B")]
    return with_photographs(table(*train, *rest))


def test_hold_out_takes_a_share_of_each_class_of_train_and_sets_the_test_split_aside() -> None:
    frame, aside = with_hold_out(many(), policy(hold_out=0.2))
    assert aside["split"].tolist() == ["test"] * 2
    chosen = frame[frame["split"] == "test"]
    assert chosen["id"].str.startswith("train/").all()
    assert set(chosen.groupby("class_name").size()) <= {4, 5}  # copies go together
    assert (frame["split"] == "valid").sum() == 2
    assert not set(chosen["photograph"]) & set(frame.loc[frame["split"] == "train", "photograph"])
    again, _ = with_hold_out(many(), policy(hold_out=0.2))
    assert again["split"].tolist() == frame["split"].tolist()
    other, _ = with_hold_out(many(), policy(hold_out=0.2, seed=2))
    assert other["split"].tolist() != frame["split"].tolist()


def test_hold_out_leaves_photographs_that_other_splits_hold_in_train() -> None:
    frame = many()
    leaked = frame.index[frame["split"] == "train"][2:12]
    frame.loc[leaked, "photograph"] = frame.loc[frame["split"] == "valid", "photograph"].iloc[0]
    found, _ = with_hold_out(frame, policy(hold_out=0.4))
    assert set(found.loc[leaked, "split"]) == {"train"}


def test_a_hold_out_of_no_image_is_an_error() -> None:
    frame = many()
    pairs = frame[frame["split"] == "train"].groupby("class_name").head(2)  # of which train keeps more than half
    with pytest.raises(UserError, match=r"split_check.hold_out is 0.01, less than one image of every class"):
        with_hold_out(pd.concat([pairs, frame[frame["split"] != "train"]]), policy(hold_out=0.01))


@pytest.mark.slow
def test_hold_out_through_the_stage(make_project: MakeProject) -> None:
    project = make_project(
        **{"split_check.hold_out": 0.25, "split_check.near_duplicates": False, **TINY_SAMPLE, "data.sample.train_images": 8}
    )
    succeeded(run_stage(project, "download"))
    said = succeeded(run_stage(project, "split_check"))
    manifest = pd.read_csv(project / "data/manifest.csv", keep_default_na=False)
    aside = manifest[manifest["reason"] == "set aside: split_check.hold_out"]
    assert len(aside) and not aside["use"].any() and set(aside["split"]) == {"test"}
    assert aside["id"].str.startswith("test/").all()
    test = manifest[(manifest["split"] == "test") & manifest["use"]]
    assert len(test) and test["id"].str.startswith("train/").all()
    metrics = json.loads((project / "metrics/split_check.json").read_text())
    taking_part = manifest.drop(index=aside.index)
    assert metrics["images"] == taking_part.groupby("split").size().to_dict()
    assert metrics["dropped"] == (~taking_part["use"]).sum()
    assert f"; {len(aside)} test images are set aside" in said


def test_a_copy_that_a_hold_out_sets_aside_is_not_counted(make_project: MakeProject) -> None:
    places = product(("train", "valid", "test"), "AB", range(8))
    photos = {
        f"{split}/{name}/{k}.jpg": jpeg((30 * k, 90 * "AB".index(name), 80 * SPLITS.index(split))) for split, name, k in places
    }
    photos["test/A/0.jpg"] = photos["train/A/0.jpg"]
    for hold_out, expected in ((0.25, 0), (0.0, 1)):
        settings = {"split_check.hold_out": hold_out, "split_check.near_duplicates": False}
        project = with_raw(make_project(f"{hold_out}", **settings), photos)
        succeeded(run_stage(project, "split_check"))
        metrics = json.loads((project / "metrics/split_check.json").read_text())
        assert {metrics[key] for key in ("exact_duplicates", "leaks", "dropped")} == {expected}


@pytest.mark.slow
def test_folds_and_groups_through_the_stage(make_project: MakeProject) -> None:
    places = product(("train", "test"), "AB", range(5), (0, 1))
    names = [f"{split}/{name}/IMG_{number}_burst{frame}.jpg" for split, name, number, frame in places]
    photos = {name: jpeg((6 * number, 120, number)) for number, name in enumerate(names)}
    settings = {"split_check.near_duplicates": False, "split_check.group": r"(\w/IMG_\d+)_burst", "split_check.folds": 3}
    n_test: dict[str, int] = {}
    for fold in range(3):
        project = with_raw(make_project(f"fold {fold}", **settings, **{"split_check.fold": fold}), photos)
        assert f"fold {fold} of 3 drawn with seed 1" in succeeded(run_stage(project, "split_check"))
        manifest = pd.read_csv(project / "data/manifest.csv", keep_default_na=False)
        bursts = manifest["id"].str.extract(r"(\w/IMG_\d+)")[0]
        assert manifest.groupby(bursts)["split"].nunique().eq(1).all()
        assert manifest["use"].all() and set(manifest["split"]) == set(SPLITS)
        for name in manifest["id"][manifest["split"] == "test"]:
            n_test[name] = n_test.get(name, 0) + 1
    assert n_test == dict.fromkeys(photos, 1)


@pytest.mark.slow
def test_groups_by_name_that_the_data_split_apart_are_found(make_project: MakeProject) -> None:
    project = with_raw(make_project(**{"split_check.group": r"/(\d)\.jpg", "split_check.few_images": 0}), PHOTOS)
    succeeded(run_stage(project, "split_check"))
    findings = pd.read_csv(project / "metrics/findings.csv", keep_default_na=False, dtype=str)
    assert findings[["kind", "id", "detail"]].to_numpy().tolist() == [
        ["group in two splits", "1", "2 train, 2 valid, 2 test images; train and test are not independent"]
    ]


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, SPLITS, {"train": 0, "valid": 100, "test": 200}),
        ({"split_check.hold_out": 0.25}, SPLITS, {"all": 100}),
        ({"split_check.folds": 3}, SPLITS, {"all": 100}),
        ({}, ("train", "test"), {"all": 100}),
    ],
)
def test_mean_images_are_those_of_the_splits_that_the_data_have_or_of_all(
    make_project: MakeProject, settings: dict[str, object], given: tuple[str, ...], expected: dict[str, int]
) -> None:
    shades = {"train": 0, "valid": 100, "test": 200}
    members = {
        f"{split}/{name}/{n}.jpg": jpeg((shades[split],) * 3, 20 + n, 16 + height)
        for split, (height, name), n in product(given, enumerate("AB"), range(8))
    }
    usual = {"split_check.near_duplicates": False, "split_check.few_images": 0, "split_check.leaks": "report"}
    project = with_raw(make_project(**(usual | settings)), members)
    succeeded(run_stage(project, "split_check"))
    with np.load(project / "metrics" / "mean_images.npz") as means:
        assert {split: round(float(means[split].mean())) for split in means.files} == pytest.approx(expected, abs=2)
