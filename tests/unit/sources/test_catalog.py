"""The data sets known by name."""

import pytest

from fieldguide.sources.catalog import CATALOG, matching_release


def test_the_flowers_have_104_clean_names_in_the_competitions_order() -> None:
    names = CATALOG["flowers"].class_names
    assert len(names) == len(set(names)) == 104
    assert all(name == name.strip() and name for name in names)
    known = {0: "pink primrose", 10: "snapdragon", 49: "common dandelion", 53: "sunflower", 73: "rose", 103: "wild rose"}
    assert {number: names[number] for number in known} == known
    assert (names[87], names[90]) == ("cyclamen", "hippeastrum")  # a space follows them in the source


@pytest.mark.parametrize(
    ("dataset", "counts", "release"),
    [
        ("butterflies", (4955, 250, 250), "50 species"),
        ("butterflies", (9285, 375, 375), "75 species"),
        ("butterflies", (12594, 500, 500), "100 species"),
        ("flowers", (12753, 3712, 7382), "competition"),
        ("folder", (1, 2, 3), ""),
    ],
)
def test_counts_name_the_release(dataset: str, counts: tuple[int, int, int], release: str) -> None:
    assert matching_release(CATALOG[dataset], *counts) == release


def test_other_counts_are_told_beside_the_known_ones() -> None:
    release = matching_release(CATALOG["flowers"], 2877, 733, 733)
    assert release == "none: 2877/733/733 train/valid/test images, known are competition 12753/3712/7382"
