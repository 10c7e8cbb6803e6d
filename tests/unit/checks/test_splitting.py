"""Splits cut from photographs that come without."""

import numpy as np
import pandas as pd
import pytest

from fieldguide.checks.policies import Finding
from fieldguide.checks.splits import assign_folds, assign_splits, with_folds, with_groups
from fieldguide.core.errors import UserError
from fieldguide.core.params import SplitCheck
from support.settings import PARAMS

FRACTIONS = {"test": 0.2, "valid": 0.1}


def photographs(sizes: dict[str, int]) -> pd.DataFrame:
    rows = [(name, f"{name}/{number}.jpg") for name, size in sizes.items() for number in range(size)]
    return pd.DataFrame(rows, columns=["class_name", "id"]).assign(photograph=range(len(rows)))


def counts(frame: pd.DataFrame, splits: pd.Series) -> pd.DataFrame:
    return pd.crosstab(frame["class_name"], splits)


def test_each_class_gives_its_share_to_each_split() -> None:
    frame = photographs({"a": 100, "b": 40, "c": 10})
    table = counts(frame, assign_splits(frame, FRACTIONS, seed=1))
    assert table.loc["a"].to_dict() == {"test": 20, "train": 70, "valid": 10}
    assert table.loc["b"].to_dict() == {"test": 8, "train": 28, "valid": 4}
    assert table.loc["c"].to_dict() == {"test": 2, "train": 7, "valid": 1}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_small_class_keeps_an_image_in_train(size: int) -> None:
    frame = photographs({"rare": size, "common": 50})
    table = counts(frame, assign_splits(frame, {"test": 0.49, "valid": 0.49}, seed=1))
    assert table.loc["rare", "train"] >= 1


def test_a_small_class_gives_to_each_split_while_train_keeps_more_than_half() -> None:
    frame = photographs({f"{size:02d}": size for size in range(1, 13)})
    table = counts(frame, assign_splits(frame, {"test": 0.1, "valid": 0.1}, seed=1))
    assert table["test"].tolist() == [0, 0, *[1] * 10]
    assert table["valid"].tolist() == [0, 0, 0, 0, *[1] * 8]
    shares = counts(frame, assign_splits(frame, {"test": 0.4, "valid": 0.4}, seed=1))
    assert shares["test"].tolist()[5:] == [round(0.4 * size) for size in range(6, 13)]  # larger classes: their share


def test_the_rule_for_small_classes_counts_photographs_and_groups_not_rows() -> None:
    frame = photographs({"copies": 8, "groups": 8, "common": 60})
    frame["photograph"] = [row // 4 if row < 8 else row for row in range(len(frame))]  # two photographs, four copies each
    frame["group"] = [f"group {row // 3}" if 8 <= row < 16 else "" for row in range(len(frame))]  # groups of 1, 3, 3 and 1
    table = counts(frame, assign_splits(frame, {"test": 0.05, "valid": 0.05}, seed=1))
    assert table.loc["copies"].to_dict() == {"test": 0, "train": 8, "valid": 0}
    assert table.loc["groups"].to_dict() == {"test": 1, "train": 7, "valid": 0}


def test_copies_stay_on_one_side() -> None:
    frame = photographs({"a": 200, "b": 200})
    groups = pd.Series([row // 4 for row in range(400)])
    splits = assign_splits(frame.assign(photograph=groups), FRACTIONS, seed=3)
    assert (splits.groupby(groups).nunique() == 1).all()
    assert abs((splits == "test").mean() - 0.2) < 0.02


def test_a_photograph_under_two_names_stays_on_one_side() -> None:
    frame = photographs({"a": 30, "b": 30})
    same = frame["id"].isin(["a/0.jpg", "b/0.jpg"])
    frame["photograph"] = frame["photograph"].where(~same, 0)
    for seed in range(20):  # in train, where the policy about label conflicts reaches it
        assert assign_splits(frame, FRACTIONS, seed)[same].eq("train").all()


def test_the_result_depends_on_ids_and_seed_not_on_the_order_of_rows() -> None:
    frame = photographs({"a": 50, "b": 31})
    splits = assign_splits(frame, FRACTIONS, seed=1)
    shuffled = frame.sample(frac=1, random_state=5)
    again = assign_splits(shuffled, FRACTIONS, seed=1)
    pd.testing.assert_series_equal(again.sort_index(), splits, check_names=False)
    other = assign_splits(frame, FRACTIONS, seed=2)
    assert not np.array_equal(other.to_numpy(), splits.to_numpy())


def test_groups_stay_on_one_side_though_they_contain_several_classes() -> None:
    frame = photographs({"a": 300, "b": 200, "c": 100})
    frame["group"] = [f"site {row % 20}" for row in range(600)]
    splits = assign_splits(frame, FRACTIONS, seed=3)
    assert (splits.groupby(frame["group"]).nunique() == 1).all()
    table = counts(frame, splits)
    assert table["test"].between(table.sum(axis=1) * 0.15, table.sum(axis=1) * 0.3).all()
    assert 110 <= table["test"].sum() < 150
    assert table["valid"].gt(0).all()


def test_photographs_join_groups_and_an_empty_group_joins_nothing() -> None:
    frame = photographs({"a": 40, "b": 40})
    frame["group"] = [f"{row // 10}" if row < 40 else "" for row in range(80)]
    frame.loc[[9, 10], "photograph"] = 9  # in groups 0 and 1
    splits = assign_splits(frame, {"test": 0.3}, seed=2)
    assert splits[:20].nunique() == splits[20:30].nunique() == splits[30:40].nunique() == 1
    assert (splits[40:] == "test").sum() == 12


def test_without_groups_the_splits_are_those_of_photographs() -> None:
    frame = photographs({"a": 50, "b": 31})
    pd.testing.assert_series_equal(
        assign_splits(frame.assign(group=""), FRACTIONS, seed=1), assign_splits(frame, FRACTIONS, seed=1), check_names=False
    )


def test_the_only_group_of_a_class_stays_in_train() -> None:
    frame = photographs({"a": 30, "b": 30}).assign(group=["one"] * 30 + [f"{n}" for n in range(30)])
    for seed in range(10):
        assert assign_splits(frame, FRACTIONS, seed)[:30].eq("train").all()


def test_groups_larger_than_a_share_still_give_one_the_smallest_first() -> None:
    frame = photographs({"a": 60, "b": 60})
    frame["group"] = [["big", "big", "big", "mid", "mid", "low"][row % 6] for row in range(120)]
    splits = assign_splits(frame, {"test": 0.1, "valid": 0.1}, seed=1)
    assert dict(zip(frame["group"], splits, strict=True)) == {"low": "test", "mid": "valid", "big": "train"}


def labelled(sizes: dict[str, int]) -> pd.DataFrame:
    """Photographs as the split check has them before it draws folds: all in train."""
    frame = photographs(sizes)
    return frame.assign(label=pd.Series(pd.factorize(frame["class_name"])[0], dtype="Int64"), split="train", reason="")


def policy(**values: object) -> SplitCheck:
    return PARAMS.split_check.model_copy(update={"folds": 5, "valid_fraction": 0.2} | values)


def test_groups_by_name_are_the_first_group_of_the_expression_or_the_match() -> None:
    frame = pd.DataFrame({"id": ["a/IMG_1_burst1.jpg", "a/IMG_1_burst2.jpg", "b/IMG_12_burst1.jpg", "b/other.jpg"]})
    assert with_groups(frame, r"(IMG_\d+)_burst", [])["group"].tolist() == ["IMG_1", "IMG_1", "IMG_12", ""]
    assert with_groups(frame, r"IMG_\d+", [])["group"].tolist() == ["IMG_1", "IMG_1", "IMG_12", ""]
    assert with_groups(frame, r"^(\w)/|nothing", [])["group"].tolist() == ["a", "a", "b", "b"]
    assert "group" not in with_groups(frame, "", [])


def test_an_expression_that_matches_nothing_is_a_finding() -> None:
    findings: list[Finding] = []
    frame = with_groups(photographs({"a": 2}), r"burst(\d)", findings)
    assert frame["group"].tolist() == ["", ""]
    detail = "split_check.group matches no id, for example not 'a/0.jpg'"
    assert findings == [Finding("group pattern", "", "", r"burst(\d)", detail, "no group")]


def test_groups_by_name_join_those_of_the_data() -> None:
    rows = [("b1_0", "site 1"), ("b1_1", "site 2"), ("b2_0", ""), ("b2_1", ""), ("x", "site 2"), ("y", ""), ("z", "b2")]
    frame = with_groups(pd.DataFrame(rows, columns=["id", "group"]), r"^(b\d)_", [])
    assert frame["group"].tolist()[:2] == ["site 1", "site 1"]
    assert frame["group"].tolist()[4:6] == ["site 1", ""]
    one, other, apart = (frame.loc[place, "group"] for place in (2, 3, 6))
    assert one == other != apart  # a location may be called as a burst
    assert "" not in (one, apart)


def test_every_image_is_in_one_fold_and_classes_are_spread_evenly() -> None:
    frame = photographs({"a": 103, "b": 41, "c": 10, "d": 7})
    folds = assign_folds(frame, 5, seed=1)
    table = pd.crosstab(frame["class_name"], folds)
    assert table.columns.tolist() == [0, 1, 2, 3, 4]
    assert ((table.max(axis=1) - table.min(axis=1)) <= 1).all()
    assert table.sum().max() - table.sum().min() <= 1


def test_copies_and_groups_stay_in_one_fold() -> None:
    frame = photographs({"a": 300, "b": 200, "c": 100})
    frame["group"] = [f"site {row % 60}" if row % 3 else "" for row in range(600)]
    frame["photograph"] = [row // 2 for row in range(600)]
    folds = assign_folds(frame, 4, seed=3)
    sites = frame["group"].ne("")
    assert (folds[sites].groupby(frame["group"][sites]).nunique() == 1).all()
    assert (folds.groupby(frame["photograph"]).nunique() == 1).all()
    assert folds.value_counts().between(120, 180).all()


def test_folds_depend_on_ids_and_seed_not_on_the_order_of_rows() -> None:
    frame = photographs({"a": 50, "b": 31})
    folds = assign_folds(frame, 3, seed=1)
    again = assign_folds(frame.sample(frac=1, random_state=5), 3, seed=1)
    pd.testing.assert_series_equal(again.sort_index(), folds, check_names=False)
    assert not np.array_equal(assign_folds(frame, 3, seed=2), folds)


def test_a_class_smaller_than_the_number_of_folds_is_in_as_many_as_it_has_images() -> None:
    frame = labelled({"rare": 3, "single": 1, "common": 50})
    folds = assign_folds(frame, 5, seed=1)
    assert folds[frame["class_name"] == "rare"].nunique() == 3
    findings: list[Finding] = []
    with_folds(frame, policy(), findings)
    assert [(one.kind, one.class_name, one.detail.split(";")[0]) for one in findings] == [
        ("fewer than folds", "rare", "3 photographs or groups for 5 folds"),
        ("fewer than folds", "single", "1 photographs or groups for 5 folds"),
    ]


def test_each_image_is_test_of_exactly_one_fold_whatever_its_split_was() -> None:
    frame = labelled({"a": 60, "b": 45})
    frame.loc[::4, "split"] = "test"
    frame.loc[1::4, "split"] = "valid"
    frame.loc[2, ["split", "reason"]] = ["test", "unreadable: x"]
    frame.loc[3, ["split", "label"]] = ["unlabelled", pd.NA]
    splits = [with_folds(frame, policy(fold=fold), [])["split"] for fold in range(5)]
    n_test = sum(split.eq("test").astype(int) for split in splits)
    assert n_test.drop([2, 3]).eq(1).all()
    for split in splits:
        assert (split[2], split[3]) == ("train", "unlabelled")
        assert split.eq("valid").sum() in range(13, 20)


def test_a_fold_without_images_for_test_or_valid_is_one_line() -> None:
    frame = labelled({"a": 30}).assign(group="one")
    with pytest.raises(UserError, match=r"^fold 4 of 5 has 0 test and 0 valid images, but needs both; add images, or change"):
        with_folds(frame, policy(fold=4), [])
