"""The tables of an evaluation agree with scikit-learn and name classes as the data have them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report, confusion_matrix

from fieldguide.core.names import MAX_NAMED_CLASSES
from fieldguide.core.paths import CONFUSED_PAIRS_CSV, PER_CLASS_CSV, RELIABILITY_CSV, confusion_csv
from fieldguide.core.taxonomy import Taxon
from fieldguide.evaluation.summary import taxon_metrics
from fieldguide.evaluation.tables import (
    confused_pairs,
    confused_taxa,
    confusions,
    per_class,
    predictions,
    reliability,
    save_tables,
)
from support.evaluations import NAMES, TEST, TRAIN, VALID, evaluation

ALL = {"train": TRAIN, "valid": VALID, "test": TEST}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_table_has_the_same_bytes_twice(folder: Path) -> None:
    contents = []
    for _ in range(2):
        save_tables(evaluation(**ALL), 10)
        contents.append({path: path.read_bytes() for path in folder.rglob("*.csv")})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9


def test_confused_pairs_are_the_off_diagonal_of_scikit_learns_matrix() -> None:
    tables = {name: confused_pairs(split) for name, split in evaluation(**ALL).splits.items()}
    for split, (targets, predicted, _) in ALL.items():
        expected = confusion_matrix(targets, predicted, labels=range(3))
        n_truth = expected.sum(axis=1)
        np.fill_diagonal(expected, 0)
        found = np.zeros((3, 3), int)
        for row in tables[split].itertuples():
            found[row.truth, row.predicted] = row.n
            assert row.n_truth == n_truth[row.truth]
            assert row.share == row.n / row.n_truth
        assert np.array_equal(found, expected)
    save_tables(evaluation(**ALL), 10)
    table = pd.read_csv(CONFUSED_PAIRS_CSV)
    assert list(table.columns) == ["split", "truth", "predicted", "n", "n_truth", "share"]
    assert table["split"].tolist() == ["test", "test", "valid"]
    assert table["n"].tolist() == [2, 1, 1]


def test_without_mistakes_there_are_no_pairs() -> None:
    save_tables(evaluation(train=TRAIN, valid=TRAIN), 10)
    assert CONFUSED_PAIRS_CSV.read_text() == "split,truth,predicted,n,n_truth,share\n"


def test_the_table_per_class_is_scikit_learns() -> None:
    names = ("a", "b", "c", "d")  # d never occurs, but is predicted
    targets, predicted = [0, 0, 1, 2, 2, 1], [0, 3, 1, 2, 1, 1]
    split = evaluation(names, test=(targets, predicted, [0.9] * 6)).splits["test"]
    table = per_class(split, np.array([7, 8, 9, 0])).set_index("class_name")
    report = classification_report(targets, predicted, labels=range(4), target_names=names, output_dict=True, zero_division=0)
    for name, train_images in zip(names[:3], (7, 8, 9), strict=True):
        line = report[name]
        expected = [line["precision"], line["recall"], line["f1-score"], line["support"], train_images]
        assert table.loc[name].tolist() == ["test", *map(pytest.approx, expected)]


def test_a_class_without_images_in_a_split_is_not_measured_there() -> None:
    names = ("a", "b", "c", "d")
    save_tables(evaluation(names, train=([0, 1, 2], [0, 1, 2], [0.9] * 3), valid=([0, 0], [0, 3], [0.9] * 2)), 10)
    lines = PER_CLASS_CSV.read_text().splitlines()
    assert lines[0] == "split,class_name,precision,recall,f1,support,train_images"
    assert lines[1].startswith("valid,a,1.0,0.5,0.66")
    assert lines[2:] == ["valid,b,,,,0,1", "valid,c,,,,0,1", "valid,d,,,,0,0"]


def test_classes_are_named_as_in_the_data_and_confusions_are_in_the_form_of_dvcs_template() -> None:
    save_tables(evaluation(**ALL), 10)
    assert pd.read_csv(CONFUSED_PAIRS_CSV)["truth"].tolist() == ["<b>COMMA</b>", "PEACOCK", "<b>COMMA</b>"]
    table = pd.read_csv(confusion_csv("test"))
    assert list(table.columns) == ["truth", "predicted"]
    assert table["truth"].tolist() == [NAMES[k] for k in TEST[0]]
    assert table["predicted"].tolist() == [NAMES[k] for k in TEST[1]]


@pytest.mark.parametrize("n_classes", [MAX_NAMED_CLASSES, MAX_NAMED_CLASSES + 1])
def test_of_many_classes_a_confusion_counts_the_pairs_of_blocks(n_classes: int) -> None:
    names = np.array([f"Genus{k % 7} {k}" for k in range(n_classes)], dtype=object)
    truth = np.arange(3000) % n_classes
    predicted = np.where(truth % 5, truth, (truth + 1) % n_classes)
    table = confusions(
        SimpleNamespace(class_names=names, targets=truth, answers=SimpleNamespace(predicted=predicted, ranks=()))
    )
    if n_classes <= MAX_NAMED_CLASSES:
        assert table.to_dict("list") == {"truth": names[truth].tolist(), "predicted": names[predicted].tolist()}
        return
    expected = confusion_matrix(*[[name.split()[0] for name in names[each]] for each in (truth, predicted)])
    assert list(table.columns) == ["truth", "predicted", "n"]
    assert np.array_equal(table.pivot(index="truth", columns="predicted", values="n").fillna(0), expected)


def test_a_split_without_labels_has_a_confusion_without_rows() -> None:
    save_tables(evaluation(train=TRAIN, valid=VALID), 10)
    assert confusion_csv("test").read_text() == "truth,predicted\n"


def test_reliability_bins_are_closed_above_and_say_when_they_are_empty() -> None:
    answered = evaluation(train=TRAIN, test=([0, 0, 1, 0], [0, 0, 0, 0], [0.61, 0.95, 0.89, 0.999]))
    table = reliability(answered.splits["test"], 10)
    assert table["n"].tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 1, 2]
    assert table["accuracy"].tolist()[6::2] == [1, 0]
    assert table["accuracy"].iloc[9] == 1
    assert table["confidence"].iloc[9] == pytest.approx(0.9745)
    empty = table[table["n"] == 0]
    assert empty[["confidence", "accuracy", "accuracy_low", "accuracy_high"]].isna().all(axis=None)
    full = table[table["n"] > 0]
    assert ((full["accuracy_low"] <= full["accuracy"]) & (full["accuracy"] <= full["accuracy_high"])).all()


def test_reliability_counts_every_image_of_every_split() -> None:
    save_tables(evaluation(**ALL), 10)
    assert pd.read_csv(RELIABILITY_CSV).groupby("split")["n"].sum().to_dict() == {"train": 6, "valid": 4, "test": 7}


TREE = {NAMES[0]: Taxon(genus="Vanessa"), NAMES[1]: Taxon(genus="Vanessa")}


def test_taxa_of_truth_and_prediction_and_what_is_told() -> None:
    """Of three images between two classes of one genus: one sure, one told as the genus, one not told."""
    test = ([0, 0, 2, 2], [0, 1, 1, 2], [0.9, 0.48, 0.45, 0.4])
    done = evaluation(NAMES, TREE, {"genus": 0.74}, train=TRAIN, valid=VALID, test=test)
    split = done.splits["test"]
    assert split.verdict.tolist() == ["sure", "unsure", "unsure", "unsure"]
    assert split.told.tolist() == [-1, 0, -1, -1]  # 0.48 and half of the rest; 0.45 and half of the rest is too little
    table = predictions(split)
    assert table["taxon"].tolist() == ["", "Vanessa", "", ""]
    assert table["taxon_probability"].iloc[1] == pytest.approx(0.48 + 0.26)
    figures = taxon_metrics(split)
    genus = figures["by_rank"]["genus"]
    assert (genus.accuracy, genus.groups, genus.told, genus.accuracy_when_told) == (0.5, 2, 0.25, 1.0)
    assert figures["useful"] == 0.5  # the sure one and the genus
    table = confused_taxa([split])
    assert table.to_dict("records") == [
        {"split": "test", "rank": "genus", "truth": NAMES[2], "predicted": "Vanessa", "n": 2, "n_truth": 2}
    ]


def test_without_a_taxonomy_no_taxon_is_told() -> None:
    split = evaluation(**ALL).splits["test"]
    assert taxon_metrics(split) == {}
    assert "taxon" not in predictions(split)
    assert len(confused_taxa([split])) == 0
