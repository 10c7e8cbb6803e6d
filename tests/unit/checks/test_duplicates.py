"""Planted copies are found: in every pair of splits, inside one split, under two names; nothing else is."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from fieldguide.checks.duplicates import TRUST, exact_pairs, label_conflicts, leaks, photographs
from fieldguide.checks.policies import SIMILAR_NAMES, _similar_names

Planted = tuple[str, int | None, str]  # split, label, content


def table(*rows: Planted) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["split", "label", "photograph"]).astype({"label": "Int64"})
    frame["class_name"] = [f"class {label}" for _, label, _ in rows]
    frame["id"] = [f"{place:03d}" for place in range(len(rows))]
    return frame


def found(frame: pd.DataFrame) -> set[tuple[int, int]]:
    return set(leaks(frame).itertuples(index=False, name=None))


def test_different_images_are_no_duplicates() -> None:
    frame = table(("train", 0, "a"), ("valid", 0, "b"), ("test", 0, "c"))
    assert found(frame) == set()
    assert label_conflicts(frame).empty


def test_an_empty_table_has_no_duplicates() -> None:
    assert found(table()) == set()
    assert label_conflicts(table()).empty


@pytest.mark.parametrize(("less", "more"), list(combinations(["train", "valid", "test"], 2)))
@pytest.mark.parametrize("turned", [False, True])
def test_a_copy_in_two_splits_is_a_leak_of_the_less_trusted(less: str, more: str, turned: bool) -> None:
    rows = [(less, 0, "a"), (more, 0, "a")]
    frame = table(*(rows[::-1] if turned else rows))
    assert found(frame) == {(1, 0) if turned else (0, 1)}


def test_trust_rises_from_train_to_test() -> None:
    assert sorted(TRUST, key=TRUST.__getitem__) == ["train", "valid", "test"]


def test_a_copy_in_all_three_splits_leaks_from_both_lower_ones() -> None:
    assert found(table(("valid", 0, "a"), ("train", 0, "a"), ("test", 0, "a"))) == {(0, 2), (1, 2)}


def test_every_copy_in_the_lower_split_is_a_leak() -> None:
    assert found(table(("train", 0, "a"), ("train", 0, "a"), ("test", 0, "a"))) == {(0, 2), (1, 2)}


def test_several_copies_in_the_upper_split_make_one_leak() -> None:
    assert len(found(table(("train", 0, "a"), ("test", 0, "a"), ("test", 0, "a")))) == 1


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_copies_within_a_split_are_duplicates_and_no_leak(split: str) -> None:
    frame = table((split, 0, "a"), (split, 0, "a"), ("train", 0, "b"))
    assert found(frame) == set()


def test_a_leak_under_two_labels_is_still_a_leak() -> None:
    assert found(table(("train", 0, "a"), ("test", 1, "a"))) == {(0, 1)}


def test_images_without_labels_are_no_split_into_which_to_leak() -> None:
    assert found(table(("train", 0, "a"), ("unlabelled", None, "a"))) == set()
    assert found(table(("train", 0, "a"), ("unlabelled", None, "a"), ("valid", 0, "a"))) == {(0, 2)}


def test_conflicts_are_images_that_stand_under_more_than_one_class() -> None:
    frame = table(
        ("train", 1, "a"),
        ("train", 0, "a"),
        ("test", 2, "a"),
        ("train", 0, "b"),
        ("train", 0, "b"),
        ("train", 3, "c"),
        ("valid", 4, "c"),
        ("train", 5, "d"),
        ("unlabelled", None, "d"),
    )
    expected = {"a": ["class 0", "class 1", "class 2"], "c": ["class 3", "class 4"]}
    assert label_conflicts(frame).to_dict() == expected


def copies(digests: Iterable[str]) -> list[list[int]]:
    return exact_pairs(pd.Series(list(digests), dtype="string")).tolist()


def test_each_copy_is_paired_with_the_first_of_its_kind() -> None:
    assert copies("abacab") == [[0, 2], [0, 4], [1, 5]]
    assert copies("ab") == copies("") == []


def test_images_without_a_hash_are_not_copies_of_each_other() -> None:
    assert copies(["", "", "a", "", "a"]) == [[2, 4]]


@pytest.mark.parametrize(
    ("n_rows", "pairs", "same"),
    [
        (5, [], []),
        (0, [], []),
        (6, [(0, 1), (2, 3), (1, 3)], [{0, 1, 2, 3}]),
        (6, [(5, 0), (2, 4), (0, 5)], [{0, 5}, {2, 4}]),
        (4, [(0, 1), (1, 2), (2, 3)], [{0, 1, 2, 3}]),
    ],
)
def test_a_chain_of_pairs_is_one_photograph(n_rows: int, pairs: list[tuple[int, int]], same: list[set[int]]) -> None:
    numbers = photographs(n_rows, np.array(pairs, np.int64).reshape(-1, 2))
    assert numbers.shape == (n_rows,)
    groups = [{row for row in range(n_rows) if numbers[row] == number} for number in dict.fromkeys(numbers.tolist())]
    assert [group for group in groups if len(group) > 1] == same
    assert sorted(row for group in groups for row in group) == list(range(n_rows))


def test_leaks_of_a_photograph_are_found_by_its_number() -> None:
    frame = table(("train", 0, "a"), ("test", 0, "b"), ("valid", 0, "c")).assign(photograph=[7, 7, 8])
    assert set(leaks(frame).itertuples(index=False, name=None)) == {(0, 1)}


def test_similar_names_are_those_of_difflib_over_all_names() -> None:
    random = np.random.default_rng(0)
    stems = ["".join(random.choice(list("aeiourstlnü "), 12)) for _ in range(60)]
    changed = ["".join(letter if random.random() > 0.1 else "x" for letter in stem) for stem in stems]
    rows = [("train", name) for name in stems] + [("test", name) for name in [*changed, *stems[:9]]]
    frame = pd.DataFrame(rows, columns=["split", "class_name"]).assign(label=1)
    named = [(one.class_name, one.detail) for one in _similar_names(frame)]
    elsewhere = sorted(set(changed) - set(stems))
    close = {
        name: get_close_matches(name, elsewhere, 1, SIMILAR_NAMES) for name in sorted(set(stems) - set(changed + stems[:9]))
    }
    assert named == [(name, f"is {found[0]!r} in test the same?") for name, found in close.items() if found]
    assert len(named) > 10
