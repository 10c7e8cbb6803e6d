"""Splits cut from photographs that come without."""

import numpy as np
import pandas as pd
import pytest

from fieldguide.checks.splits import assign_splits

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
