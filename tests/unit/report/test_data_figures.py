"""The pictures that the report stage draws of the data, from what other stages wrote."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fieldguide.core.manifest import COLUMNS, as_given, write_manifest, write_table
from fieldguide.core.names import MAX_NAMED_CLASSES, SPLITS
from fieldguide.core.paths import CLASSES_CSV, CLASSES_PNG, MANIFEST, MEAN_IMAGES, RAW, SAMPLES_PNG, SIZES_PNG
from fieldguide.report import plots
from fieldguide.report.data_figures import N_SAMPLES, N_SIZES, SAMPLE_PX, choose_samples, class_sizes, data_figures

CLASSES = ("A", "NA", "painted lady")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_jpeg) -> Path:
    """A folder with what the split check writes: 2 train, 1 valid and 1 test photograph of each class; one is out of use."""
    monkeypatch.chdir(tmp_path)
    RAW.mkdir(parents=True)
    content, rows = b"", []
    for split, label, n in [(split, label, n) for split, n in (("train", 2), ("valid", 1), ("test", 1)) for label in range(3)]:
        for k in range(n):
            photo = make_jpeg(len(rows), 40 + label, 30)
            place = (f"{split}/{label}/{k}.jpg", "images.zip", len(content), len(photo), 40 + label, 30)
            known = (hashlib.sha256(photo).hexdigest(), "0", len(rows) > 0, "" if rows else "leak: same bytes as test")
            rows.append((split, label, CLASSES[label], *place, *known))
            content += photo
    (RAW / "images.zip").write_bytes(content)
    frame = as_given(pd.DataFrame(rows, columns=list(COLUMNS)[: len(rows[0])])).assign(unit=range(len(rows)))
    write_manifest(frame, MANIFEST)
    used = frame[frame["use"]]
    counts = {split: [int(((used["split"] == split) & (used["label"] == k)).sum()) for k in range(3)] for split in SPLITS}
    write_table(pd.DataFrame({"label": range(3), "class_name": CLASSES} | counts), CLASSES_CSV)
    with MEAN_IMAGES.open("wb") as stream:
        np.savez(stream, **{split: np.full((4, 4, 3), 60 * k, np.uint8) for k, split in enumerate(SPLITS)})
    return tmp_path


def test_the_pictures_of_the_data_show_what_the_split_check_wrote(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for name in ("class_distribution", "sizes_and_mean", "image_grid"):
        real = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda *given, name=name, real=real: drawn.update({name: given}) or real(*given))
    assert list(data_figures()) == [CLASSES_PNG, SAMPLES_PNG, SIZES_PNG]
    by_split, names = drawn["class_distribution"]
    assert ({split: counts.tolist() for split, counts in by_split.items()}, names) == (
        {"train": [1, 2, 2], "valid": [1, 1, 1], "test": [1, 1, 1]},
        list(CLASSES),
    )
    widths, heights, means = drawn["sizes_and_mean"]
    assert (len(widths), widths.max(), heights.min()) == (12, 42, 30)  # of photographs out of use too
    assert {split: int(mean.max()) for split, mean in means.items()} == {"train": 0, "valid": 60, "test": 120}
    pictures, splits, _, captions = drawn["image_grid"]
    assert splits == list(SPLITS)
    assert {picture.shape for row in pictures for picture in row} == {(SAMPLE_PX, SAMPLE_PX, 3)}
    assert captions[0] == ["A"] * 3 + ["Na"] * 4 + ["Painted Lady"] * 3


def test_the_sizes_that_dvc_plots_are_all_of_few_classes_and_some_of_many() -> None:
    random = np.random.default_rng(0)
    many = pd.DataFrame({"class_name": [f"class {k}" for k in range(10_000)], "train": random.permutation(10_000)})
    assert class_sizes(many[:MAX_NAMED_CLASSES]).equals(many[:MAX_NAMED_CLASSES])
    table = class_sizes(many)
    assert len(table) == N_SIZES
    assert table["train"].is_monotonic_decreasing
    assert (table["train"].iloc[0], table["train"].iloc[-1]) == (9999, 0)
    largest = many["class_name"].iloc[many["train"].argmax()]
    assert table["class_name"].iloc[0] == f"00001 of 10000: {largest}"
    assert table["class_name"].is_monotonic_increasing  # the order of DVC's chart


def drawn_bytes() -> list[bytes]:
    for path, figure in data_figures().items():
        plots.save_png(figure, path)
    return [path.read_bytes() for path in (CLASSES_PNG, SAMPLES_PNG, SIZES_PNG)]


@pytest.mark.slow
def test_the_same_files_give_the_same_pictures(project: Path) -> None:
    assert drawn_bytes() == drawn_bytes()


def test_the_samples_are_of_classes_spread_over_the_list(project: Path) -> None:
    rows = pd.DataFrame({"label": pd.array(range(30), "Int64"), "id": [f"{k}.jpg" for k in range(30)]})
    assert choose_samples(rows)["label"].tolist() == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    unlabelled = rows.assign(label=pd.array([None] * 30, "Int64"))
    assert len(choose_samples(unlabelled)) == N_SAMPLES
    assert len(choose_samples(rows[:2])) == N_SAMPLES  # a small split repeats
