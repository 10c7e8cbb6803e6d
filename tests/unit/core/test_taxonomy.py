"""The taxonomy: read with every fault in one line, grouped into ranks, and told only where it says something."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.core.errors import UserError
from fieldguide.core.params import read_params
from fieldguide.core.paths import TAXONOMY
from fieldguide.core.taxonomy import COLUMNS, RANKS, Groups, Taxon, class_groups, narrowest, ranks_of, read_taxonomy, unlisted
from fieldguide.sources.catalog import FLOWER_NAMES
from fieldguide.sources.sample import photographs
from support import ROOT

HEADER = ",".join(COLUMNS)
CLASSES = ("EASTERN COMA", "QUESTION MARK", "PEACOCK", "MONARCH", "ULYSES")
TABLE = f"""{HEADER}
EASTERN COMA,Eastern comma,Polygonia comma,,Nymphalidae,Lepidoptera
question_mark,,Polygonia interrogationis,,Nymphalidae,Lepidoptera
PEACOCK,,,Aglais,Nymphalidae,Lepidoptera
MONARCH,Monarch,Danaus plexippus,,Nymphalidae,Lepidoptera
ULYSES,Ulysses,Papilio ulysses,,Papilionidae,Lepidoptera
APOLLO,,Parnassius apollo,,Papilionidae,Lepidoptera
"""


def written(folder: Path, text: str | bytes) -> Path:
    source = folder / "taxonomy.csv"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    return source


def test_classes_are_found_by_name_and_a_genus_by_the_scientific_name(tmp_path: Path) -> None:
    found = read_taxonomy(written(tmp_path, TABLE), CLASSES)
    assert set(found) == set(CLASSES)  # and not APOLLO
    assert found["QUESTION MARK"] == Taxon("", "Polygonia interrogationis", "Polygonia", "Nymphalidae", "Lepidoptera")
    assert found["PEACOCK"].genus == "Aglais"


def test_a_spreadsheets_file_reads_as_well_and_columns_may_be_left_out(tmp_path: Path) -> None:
    text = "\ufeffFamily,Class Name,,\r\nNymphalidae, PEACOCK ,,\r\n\r\n,MONARCH\r\n"
    assert read_taxonomy(written(tmp_path, text), CLASSES) == {"PEACOCK": Taxon(family="Nymphalidae"), "MONARCH": Taxon()}


def test_one_line_is_that_of_all_classes_of_the_name_and_a_hybrid_has_its_genus(tmp_path: Path) -> None:
    source = written(tmp_path, "class_name,scientific_name\na b,× Cattlianthus foo\n")
    assert {name: taxon.genus for name, taxon in read_taxonomy(source, ("A B", "a_b")).items()} == {
        "A B": "Cattlianthus",
        "a_b": "Cattlianthus",
    }


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_taxonomy(tmp_path / "none.csv", CLASSES) == {}
    assert unlisted({}, tmp_path / "none.csv", CLASSES) == ""
    assert ranks_of({}, CLASSES) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("species,genus\nA,B\n", "line 1: unknown column species; the columns are class_name and any of"),
        ("class_name,genus,genus\nA,B,C\n", "line 1: genus stands twice"),
        ("genus,family\nA,B\n", "line 1: class_name is missing"),
        ("class_name;genus\nA;B\n", "line 1: separated by semicolons; save it as CSV with commas"),
        ("class_name,genus\nPEACOCK,Aglais,Inachis\n", "line 2: 3 values for 2 columns"),
        ("class_name,genus\nPEACOCK,Aglais\npeacock,Inachis\n", "line 3: peacock stands in line 2 too"),
        ("class_name,genus\n,Aglais\n", "line 2: class_name is empty"),
        (
            "class_name,genus,family\nPEACOCK,Aglais,Nymphalidae\nMONARCH,Aglais,Pieridae\n",
            "line 3: genus Aglais is in family Pieridae, in line 2 in Nymphalidae",
        ),
        (
            "class_name,family,order\nPEACOCK,Nymphalidae,Lepidoptera\nMONARCH,Nymphalidae,Odonata\n",
            "line 3: family Nymphalidae is in order Odonata, in line 2 in Lepidoptera",
        ),
        ("class_name\nPEACOCK\nM\xfcNARCH\n".encode("latin-1"), "line 3: not UTF-8"),
        ('class_name\n"PEACOCK\n', "not CSV"),
    ],
)
def test_each_fault_is_one_line_that_names_the_place(tmp_path: Path, text: str | bytes, said: str) -> None:
    source = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_taxonomy(source, CLASSES)
    message = str(caught.value)
    assert message.startswith(f"{source}, line ")
    assert said in message
    assert "\n" not in message


def test_classes_without_a_line_are_named_with_what_may_be_meant(tmp_path: Path) -> None:
    source = written(tmp_path, TABLE)
    names = ("EASTERN COMA", "ULYSSES", "MOON MOTH")
    said = unlisted(read_taxonomy(source, names), source, names)
    assert said.endswith("has no line for 2 of 3 classes: ULYSSES (is it ULYSES?), MOON MOTH")
    assert "none of its 0 classes" in unlisted({}, written(tmp_path, HEADER), CLASSES)
    source = written(tmp_path, TABLE)
    assert "none of its 6 classes is among the 2 of the network" in unlisted({}, source, ("ROSE", "LILY"))
    assert unlisted(read_taxonomy(source, CLASSES), source, CLASSES) == ""


def test_taxa_that_say_nothing_are_no_answers(tmp_path: Path) -> None:
    """One class; all classes; the classes of one narrower taxon; and a class without taxon is a group of its own."""
    genus, family = ranks_of(read_taxonomy(written(tmp_path, TABLE), CLASSES), CLASSES)
    assert (genus.name, family.name) == ("genus", "family")  # all are of one order
    assert [name for name, can in zip(genus.names, genus.answerable, strict=True) if can] == ["Polygonia"]
    assert [name for name, can in zip(family.names, family.answerable, strict=True) if can] == ["Nymphalidae"]
    table = {"a": Taxon(genus="G", family="F"), "b": Taxon(genus="G", family="F"), "c": Taxon()}
    (only,) = ranks_of(table, ("a", "b", "c"))  # F has no other classes than G
    assert (only.name, only.names, only.of_class.tolist()) == ("genus", ("G", "c"), [0, 0, 1])


def test_probabilities_are_summed_and_the_narrowest_certain_rank_is_told(tmp_path: Path) -> None:
    ranks = ranks_of(read_taxonomy(written(tmp_path, TABLE), CLASSES), CLASSES)
    probabilities = np.array([[0.5, 0.45, 0.05, 0, 0], [0.4, 0.2, 0.3, 0.1, 0], [0.21, 0.2, 0.1, 0.1, 0.39]])
    found = [rank.best(probabilities) for rank in ranks]
    groups, sums = (np.stack(parts, axis=1) for parts in zip(*found, strict=True))
    np.testing.assert_allclose(sums, [[0.95, 1], [0.6, 1], [0.41, 0.61]])
    assert [ranks[0].names[group] for group in groups[:, 0]] == ["Polygonia", "Polygonia", "Polygonia"]
    assert narrowest(ranks, groups, sums, {"genus": 0.9, "family": 0.9}).tolist() == [0, 1, -1]
    assert narrowest(ranks, groups, sums, {}).tolist() == [-1, -1, -1]


@given(st.lists(st.tuples(*[st.sampled_from(["", "a", "b", "c"])] * 3), min_size=2, max_size=12), st.integers(0, 99))
def test_groups_of_any_tree_share_out_all_classes(taxa: list[tuple[str, str, str]], seed: int) -> None:
    names = [f"class {k}" for k in range(len(taxa))]
    table = {name: Taxon("", "", *each) for name, each in zip(names, taxa, strict=True)}
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(len(names)), 5)
    for rank in ranks_of(table, names):
        assert rank.name in RANKS
        assert set(rank.of_class) == set(range(len(rank.names)))
        sums = np.stack([probabilities[:, rank.of_class == group].sum(axis=1) for group in range(len(rank.names))], axis=1)
        best, probability = rank.best(probabilities)
        np.testing.assert_allclose(probability, sums.max(axis=1), atol=1e-12)
        np.testing.assert_allclose(sums[np.arange(5), best], sums.max(axis=1), atol=1e-12)


def test_the_projects_table_has_the_flowers_and_is_without_faults() -> None:
    with (ROOT / TAXONOMY).open(encoding="utf-8") as stream:
        listed = [row["class_name"] for row in csv.DictReader(stream)]
    found = read_taxonomy(ROOT / TAXONOMY, listed)
    assert list(found) == listed
    assert set(FLOWER_NAMES) <= set(listed)
    assert all(taxon.order for taxon in found.values())
    assert [rank.name for rank in ranks_of(found, FLOWER_NAMES)] == ["genus", "family", "order"]


def test_the_projects_table_has_the_species_of_the_default_sample() -> None:
    of_sample = read_params(ROOT / "params.yaml").data.sample
    settings = of_sample.model_dump() | {
        "train_images": 1,
        "valid_images": 0,
        "test_images": 0,
        "image_px": 16,
        "faults": False,
    }
    settings["n_species"] = settings.pop("species")
    names = sorted({member.split("/")[1] for member, _ in photographs(**settings)})
    found = read_taxonomy(ROOT / TAXONOMY, names)
    assert set(found) == set(names)
    assert [rank.name for rank in ranks_of(found, names)] == ["genus", "family"]


def taxa_of(n_classes: int, n_genera: int, n_families: int, share: float = 1.0) -> dict[str, Taxon]:
    """Taxa of that share of the classes `c0`, `c1`, …"""
    some = range(int(n_classes * share))
    return {f"c{k}": Taxon(genus=f"Genus{k % n_genera}", family=f"Family{k % n_genera % n_families}") for k in some}


@pytest.mark.parametrize(
    ("taxonomy", "what", "n_groups"),
    [
        (taxa_of(200, 20, 5), "genera", 20),
        (taxa_of(200, 80, 5), "families", 5),  # of at most 40 groups
        (taxa_of(200, 100, 90), "families", 90),  # the fewest
        (taxa_of(200, 20, 1), "genera", 20),
        (taxa_of(200, 80, 1), "genera", 80),  # not one family of all
        (taxa_of(200, 20, 5, share=0.9), "genera, and classes without one", 40),
        (taxa_of(200, 20, 5, share=0.6), "families, and classes without one", 85),
        (taxa_of(200, 20, 5, share=0.4), None, 0),
        ({}, None, 0),
    ],
)
def test_many_classes_are_told_by_taxa_where_half_of_them_have_one(
    taxonomy: dict[str, Taxon], what: str | None, n_groups: int
) -> None:
    names = [f"c{k}" for k in range(200)]
    groups = class_groups(names, ranks_of(taxonomy, names))
    if what is None:
        assert groups is None
        return
    assert groups is not None and groups.what == what
    assert len(set(groups.of_class)) == n_groups
    rank = RANKS[what.startswith("families")]
    assert groups.of_class == [getattr(taxonomy[name], rank) if name in taxonomy else name for name in names]


def test_the_words_of_names_group_better_than_a_taxonomy_of_half_of_the_classes() -> None:
    names = [f"Genus{k % 20} {k}" for k in range(200)]
    taxonomy = {name: Taxon(genus=name.split()[0]) for name in names[:120]}
    groups = class_groups(names, ranks_of(taxonomy, names))
    assert groups == Groups("groups by the first words of the name", [name.split()[0] for name in names])


def test_without_a_taxonomy_classes_are_told_by_the_first_words_of_their_names() -> None:
    names = ["Pieris napi", "Pieris rapae", "Vanessa cardui", "Vanessa atalanta"]
    expected = Groups("groups by the first words of the name", ["Pieris", "Pieris", "Vanessa", "Vanessa"])
    assert class_groups(names, ()) == expected
