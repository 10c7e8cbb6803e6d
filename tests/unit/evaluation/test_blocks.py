"""Confusions of many classes in blocks: every image counted once, a bounded table, the most confused pairs in it."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from fieldguide.core.names import MAX_BLOCKS, name_groups
from fieldguide.evaluation.blocks import confused_blocks, most_confused

GENERA = [f"{a}{b}us" for a in "BCDFGHLM" for b in "aeiourst"]  # 64


def species(n_classes: int, genera: list[str]) -> list[str]:
    return [f"{genera[k % len(genera)]} {k}th" for k in range(n_classes)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Pieris napi", "Pieris rapae", "PIERIS BRASSICAE", "Vanessa atalanta"], ["Pieris", "Pieris", "Pieris", "Vanessa"]),
        (["pieris_napi", "pieris_rapae", "vanessa_cardui", "vanessa_io"], ["Pieris", "Pieris", "Vanessa", "Vanessa"]),
        (
            ["0001_Animalia_Io", "0002_Animalia_Ia", "0003_Plantae_Rosa", "0004_Plantae_Poa"],
            ["Animalia"] * 2 + ["Plantae"] * 2,
        ),
        (["class 1", "class 2", "class 3"], None),  # all share it
        (["oak", "ash", "elm"], None),
        (["1", "2", "3"], None),
        (["", " ", "A b", "A c", "A d"], ["", " ", "A", "A", "A"]),
        (["Red admiral", "Blue morpho", "Small copper", "Small white", "Peacock"], None),  # two of five
        ([], None),
    ],
)
def test_classes_are_grouped_by_the_first_word_that_several_share(names: list[str], expected: list[str] | None) -> None:
    assert name_groups(names) == expected


def test_groups_take_as_many_words_as_give_names_that_fit() -> None:
    names = [f"Kingdom Phylum{k % 3} Class{k % 30} Order{k % 90} {k}" for k in range(200)]
    assert len(set(name_groups(names))) == 30


def test_the_blocks_of_few_groups_are_scikit_learns_matrix_of_the_groups() -> None:
    names = species(200, GENERA[:8])
    random = np.random.default_rng(0)
    targets, predicted = random.integers(0, 200, 3000), random.integers(0, 200, 3000)
    table = confused_blocks(name_groups(names), targets, predicted)
    groups = np.array(name_groups(names))
    found = table.pivot(index="truth", columns="predicted", values="n").fillna(0).to_numpy(int)
    assert np.array_equal(found, confusion_matrix(groups[targets], groups[predicted]))


@pytest.mark.parametrize("genera", [GENERA, [f"Word{k}" for k in range(5000)]], ids=["groups", "classes"])
def test_of_many_blocks_the_most_confused_are_shown_and_every_image_is_counted(genera: list[str]) -> None:
    names = species(5000, genera)
    random = np.random.default_rng(0)
    targets = random.integers(0, 5000, 20_000)
    predicted = np.where(random.random(20_000) < 0.9, targets, random.integers(0, 5000, 20_000))
    often = np.repeat([4321, 17], 300)  # mistaken for each other
    targets, predicted = np.concatenate([targets, often]), np.concatenate([predicted, often[::-1]])
    table = confused_blocks(name_groups(names) or names, targets, predicted)
    assert table["n"].sum() == len(targets)
    assert len(table) <= MAX_BLOCKS**2
    blocks = set(table["truth"]) | set(table["predicted"])
    assert len(blocks) == MAX_BLOCKS
    n_all = len(set(name_groups(names) or names))
    assert max(blocks) == f"… {n_all - MAX_BLOCKS + 1:,} others"
    first, second = ((names if genera is not GENERA else name_groups(names))[k] for k in (4321, 17))
    both = table.set_index(["truth", "predicted"])["n"]
    assert min(both[first, second], both[second, first]) >= 300


def test_without_mistakes_the_first_blocks_are_shown() -> None:
    names = [f"Word{k:03d}" for k in range(200)]
    table = confused_blocks(names, np.arange(200), np.arange(200))
    assert table["truth"].tolist() == table["predicted"].tolist() == [*names[: MAX_BLOCKS - 1], "… 161 others"]
    assert table["n"].tolist() == [1] * (MAX_BLOCKS - 1) + [161]


def test_no_images_are_no_rows() -> None:
    none = np.array([], np.int64)
    assert confused_blocks([f"Word{k}" for k in range(200)], none, none).to_dict("list") == {
        "truth": [],
        "predicted": [],
        "n": [],
    }


def test_a_pair_counts_in_both_directions() -> None:
    truth, predicted = np.array([0, 0, 3, 1, 3, 4]), np.array([1, 1, 4, 0, 4, 3])
    assert most_confused(truth, predicted, 6).tolist() == [0, 1, 3, 4, 2, 5]
    assert isinstance(confused_blocks(["a", "b"], truth[:1], truth[:1]), pd.DataFrame)
