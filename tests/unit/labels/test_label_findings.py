"""What label_check lists: each planted kind of finding once, in its order, and what a person has decided counted as such."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fieldguide.core.images import encode_png
from fieldguide.core.intervals import accuracy_interval
from fieldguide.labels import findings
from fieldguide.labels.findings import COLUMNS, inseparable, label_check_metrics, label_errors, missed_copies
from fieldguide.labels.gallery import MAX_SHOWN, label_errors_page
from fieldguide.labels.judging import judge
from fieldguide.labels.map import COLUMNS as MAP_COLUMNS
from fieldguide.labels.map import label_map
from support.labelled import clusters, manifest_rows, plant
from support.planted import jpeg, mirrored, relit, resized, textured

SPLITS = ("train", "train", "valid", "test")


def planted_rows(share: float = 0.05) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    vectors, truth = clusters([25] * 8)
    labels, wrong = plant(truth, share)
    return vectors, manifest_rows(labels, SPLITS), wrong


def test_wrong_labels_are_listed_with_what_they_should_be_the_most_certain_first() -> None:
    vectors, rows, wrong = planted_rows()
    judgement = judge(vectors, rows)
    table = label_errors(rows, judgement, [])
    assert list(table.columns) == COLUMNS
    assert set(table["file"]) == set(rows["id"].iloc[wrong])
    assert table["score"].is_monotonic_decreasing
    assert table["score"].between(0, 1).all()
    first = rows.set_index("id").loc[table["file"]]
    for column, own in (("split", "split"), ("given", "class_name"), ("sha256", "sha256")):
        assert table[column].tolist() == first[own].tolist()
    truth = dict(zip(rows["id"], [f"class {k // 25:04d}" for k in range(200)], strict=True))
    assert table["suggested"].tolist() == [truth[name] for name in table["file"]]
    assert set(table["kind"]) == {"label"}
    metrics = label_check_metrics(rows, judgement, table, enabled=True)
    assert metrics.suspected == {split: int((table["split"] == split).sum()) for split in ("train", "valid", "test")}
    assert (metrics.images, metrics.not_judged, metrics.doubtful, metrics.decided) == (200, 0, 0, 0)
    assert metrics.accuracy == pytest.approx(1 - len(wrong) / 200)
    assert (metrics.accuracy_low, metrics.accuracy_high) == accuracy_interval(200 - len(wrong), 200)


def test_what_a_person_has_decided_is_listed_with_its_verdict_and_not_counted_again() -> None:
    vectors, rows, wrong = planted_rows()
    rows.loc[wrong[:3], "decision"] = "keep"
    judgement = judge(vectors, rows)
    table = label_errors(rows, judgement, [])
    assert set(table[table["verdict"] == "keep"]["file"]) == set(rows["id"].iloc[wrong[:3]])
    metrics = label_check_metrics(rows, judgement, table, enabled=True)
    assert sum(metrics.suspected.values()) == len(wrong) - 3
    assert metrics.decided == 3


def test_images_of_no_class_are_atypical_and_not_suspected() -> None:
    vectors, truth = clusters([25] * 8)
    odd = [3, 77, 140]
    vectors[odd] = 3 * np.random.default_rng(5).standard_normal((3, vectors.shape[1]))
    rows = manifest_rows(truth)
    judgement = judge(vectors, rows)
    table = label_errors(rows, judgement, [])
    atypical = table[table["kind"] == "atypical"]
    assert set(atypical["file"]) <= set(rows["id"].iloc[odd]) == set(table["file"])
    assert len(atypical) >= 2
    assert set(atypical["suggested"]) == {""}
    np.testing.assert_allclose(atypical["score"], np.sort(judgement.similarity)[: len(atypical)], atol=1e-3)
    assert label_check_metrics(rows, judgement, table, enabled=True).atypical == len(atypical)


def test_classes_that_no_embedding_separates_are_named_and_not_suspected() -> None:
    vectors, truth = clusters([30] * 6)
    labels = np.where((truth == 2) & (np.arange(len(truth)) % 2 == 0), 5, truth)  # of one kind, half of them called 5
    vectors, labels = vectors[truth != 5], labels[truth != 5]
    rows = manifest_rows(labels)
    judgement = judge(vectors, rows)
    (pair,) = inseparable(rows, judgement)
    assert (pair.one, pair.other, pair.images) == ("class 0002", "class 0005", 30)
    assert 6 <= pair.confused <= 30
    assert label_check_metrics(rows, judgement, label_errors(rows, judgement, []), True).suspected["train"] <= 3


def test_the_list_of_pairs_is_bounded_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = clusters([30] * 3)
    rows = manifest_rows(2 * truth + np.arange(len(truth)) % 2)  # three pairs of classes of one kind
    judgement = judge(vectors, rows)
    everything = inseparable(rows, judgement)
    assert len(everything) >= 2
    monkeypatch.setattr(findings, "MAX_INSEPARABLE", 1)
    metrics = label_check_metrics(rows, judgement, label_errors(rows, judgement, []), enabled=True)
    assert (metrics.inseparable, metrics.inseparable_pairs) == (everything[:1], len(everything))


def test_a_class_without_judged_images_may_be_the_one_that_others_are_taken_for() -> None:
    vectors, truth = clusters([30] * 3)
    labels = np.where(truth == 1, 0, truth)
    vectors, labels = np.concatenate([vectors, vectors[30:31]]), np.append(labels, 9)  # its only image is like thirty others
    rows = manifest_rows(labels)
    judgement = judge(vectors, rows)
    assert not judgement.judged[-1]
    assert all(pair.images > 0 for pair in inseparable(rows, judgement))


def write_images(images: list[np.ndarray], raw: Path) -> dict[str, list[int]]:
    contents = [encode_png(rgb) for rgb in images]
    (raw / "images.bin").write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    return {"offset": [sum(lengths[:k]) for k in range(len(lengths))], "length": lengths}


def test_copies_that_no_hash_found_are_verified_on_pixels(tmp_path: Path) -> None:
    """Of pairs with equal embeddings only those are listed that show the same photograph, before train the other split."""
    images = textured(8, 128)
    random = np.random.default_rng(0)
    images += [relit(0.7)(jpeg(60)(images[0], random), random), mirrored(resized(0.8)(images[1], random), random)]
    truth = np.array([0, 1] * 5)
    split = ["test", "train", *["train"] * 6, "train", "valid"]
    rows = manifest_rows(truth, split=split, **write_images(images, tmp_path))
    close = np.array([[0, 8], [2, 4], [1, 9], [3, 5]])
    copies = missed_copies(rows, close, tmp_path, 2)
    assert {(pair.i, pair.j) for pair in copies} == {(0, 8), (1, 9)}
    judgement = judge(clusters([5, 5])[0], rows)
    table = label_errors(rows, judgement, copies)
    twice = table[table["kind"] == "duplicate"]
    ids = rows["id"].tolist()
    assert set(zip(twice["file"], twice["other"], strict=True)) == {(ids[8], ids[0]), (ids[1], ids[9])}  # of train, the first
    assert twice["score"].between(0.79, 1).all()
    metrics = label_check_metrics(rows, judgement, table, enabled=True)
    assert (metrics.missed_copies, metrics.missed_leaks) == (2, 2)


def test_no_close_pairs_read_no_image(tmp_path: Path) -> None:
    assert missed_copies(manifest_rows(np.array([0, 1])), np.empty((0, 2), np.int64), tmp_path / "absent", 1) == []


@pytest.mark.parametrize("sizes", [[], [1], [5], [1, 1]])
def test_without_anything_to_judge_the_tables_are_empty_and_the_metrics_zero(sizes: list[int], tmp_path: Path) -> None:
    vectors, truth = clusters(sizes)
    rows = manifest_rows(truth)
    judgement = judge(vectors, rows)
    table = label_errors(rows, judgement, [])
    assert (list(table.columns), len(table)) == (COLUMNS, 0)
    metrics = label_check_metrics(rows, judgement, table, enabled=False).as_dict()
    assert metrics.pop("not_judged") == len(truth)
    assert not any(value for name, value in metrics.items() if name != "suspected")
    assert set(metrics["suspected"].values()) == {0}
    places = label_map(vectors, rows, table)
    assert (list(places.columns), len(places)) == (MAP_COLUMNS, len(truth))
    assert "0 findings, all in metrics/label_errors.csv" in label_errors_page(rows, judgement, table, tmp_path)


def test_the_page_shows_suspects_beside_examples_of_both_classes(tmp_path: Path) -> None:
    vectors, rows, wrong = planted_rows()
    rows = rows.assign(**write_images([np.full((8, 8, 3), k % 256, np.uint8) for k in range(len(rows))], tmp_path))
    rows.loc[wrong[0], "decision"] = "keep"
    judgement = judge(vectors, rows)
    table = label_errors(rows, judgement, [])
    page = label_errors_page(rows, judgement, table, tmp_path)
    undecided = table[table["verdict"] == ""]
    assert f"{len(undecided)} findings, all in" in page
    assert rows["id"].iloc[wrong[0]] not in page
    for row in undecided.itertuples():
        assert f"{row.given}, or {row.suggested}?" in page
        assert row.file in page
    assert page.count("<img") == 5 * len(undecided)
    examples = re.findall(r"<figcaption>class \d+: ([^<]+)", page)
    assert len(examples) == 4 * len(undecided)
    assert set(examples).isdisjoint(rows["id"].iloc[wrong])


def test_of_many_findings_the_page_shows_some_and_says_so(tmp_path: Path) -> None:
    vectors, rows, _ = planted_rows(0.5)
    judgement = judge(vectors, rows)
    rows = rows.assign(**write_images([np.zeros((8, 8, 3), np.uint8)] * len(rows), tmp_path))
    table = label_errors(rows, judgement, []).assign(kind="label")
    assert len(table) > MAX_SHOWN
    assert f"{len(table)} findings, of which {MAX_SHOWN} are shown" in label_errors_page(rows, judgement, table, tmp_path)


def test_the_map_has_all_findings_and_equal_bytes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldguide.labels.map.MAX_POINTS", 40)
    vectors, rows, _ = planted_rows()
    table = label_errors(rows, judge(vectors, rows), [])
    places = label_map(vectors, rows, table)
    assert len(places) == 40
    assert set(places[places["kind"] == "label"]["file"]) == set(table["file"])
    assert places.to_csv() == label_map(vectors, rows, table).to_csv()
    assert np.isfinite(places[["x", "y"]].to_numpy()).all()


def test_images_of_one_class_lie_together_on_the_map() -> None:
    vectors, truth = clusters([25] * 4, noise=0.3)
    rows = manifest_rows(truth)
    places = label_map(vectors, rows, label_errors(rows, judge(vectors, rows), []))[["x", "y"]].to_numpy()
    distance = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(len(places), np.inf))
    assert (truth[distance.argmin(axis=1)] == truth).mean() >= 0.95


@pytest.mark.parametrize("n_images", [2, 3, 9])
def test_equal_embeddings_have_a_map(n_images: int) -> None:
    rows = manifest_rows(np.arange(n_images) % 2)
    vectors = np.ones((n_images, 4), np.float16)
    places = label_map(vectors, rows, label_errors(rows, judge(vectors, rows), []))
    assert np.isfinite(places[["x", "y"]].to_numpy()).all()
