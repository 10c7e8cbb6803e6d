"""TFRecords as others write them, through download and split_check: splits in names, class names, what is drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from support.stages import MakeProject, failed_in_one_line, run_stage, succeeded
from support.tfrecords import example, ints, texts, write

TFDS = "flowers-{}.tfrecord-00000-of-00001"
SLIM = "flowers_{}_00000-of-00001.tfrecord"
Write = Callable[..., None]


@pytest.fixture
def shard(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Write:
    """`shard(name, first, n, label)`: a shard of n images; a label may be a function of the image's number."""

    def make(name: str, first: int, n: int = 6, label: Callable[[int], bytes] = lambda number: ints(number % 3)) -> None:
        images = [(make_jpeg(seed), label(seed)) for seed in range(first, first + n)]
        (tmp_path / "shards" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "shards", *(example(("image", texts(image)), ("label", value)) for image, value in images), name=name)

    return make


@pytest.fixture
def project(make_project: MakeProject) -> Path:
    features = {"data.features.label": "label", "data.features.id": ""}
    return make_project(**{"data.dataset": "tfrecords", "data.path": "../shards", **features})


def manifest(project: Path) -> pd.DataFrame:
    succeeded(run_stage(project, "download"))
    succeeded(run_stage(project, "split_check"))
    return pd.read_csv(project / "data/manifest.csv")


@pytest.mark.parametrize(
    ("names", "listed"),
    [(TFDS, "daisy\nrose\ntulip\n"), pytest.param(SLIM, "0:daisy\n1:rose\n2:tulip\n", marks=pytest.mark.slow)],
)
def test_splits_are_in_the_names_and_class_names_beside_the_shards(
    shard: Write, project: Path, tmp_path: Path, names: str, listed: str
) -> None:
    for first, split in enumerate(("train", "validation", "test")):
        shard(names.format(split), 100 * first)
    (tmp_path / "shards" / ("label.labels.txt" if names == TFDS else "labels.txt")).write_text(listed)
    (tmp_path / "shards" / "features.json").write_text("{}")
    frame = manifest(project)
    assert frame.groupby("split").size().to_dict() == {"train": 6, "valid": 6, "test": 6}
    assert frame.groupby("label")["class_name"].unique().map(list).to_dict() == {0: ["daisy"], 1: ["rose"], 2: ["tulip"]}
    receipt = json.loads((project / "data/raw/receipt.json").read_text())
    assert receipt["class_names"] == ["daisy", "rose", "tulip"] and receipt["ignored"] == {"text file": 1}


def test_class_names_and_shards_beside_a_folder_of_shards_are_used(shard: Write, project: Path, tmp_path: Path) -> None:
    shard(f"1.0.0/{TFDS.format('train')}", 0)
    shard(f"1.0.0/{TFDS.format('valid')}", 50)
    shard(TFDS.format("test"), 100)
    (tmp_path / "shards" / "labels.txt").write_text("daisy\nrose\ntulip\n")
    frame = manifest(project)
    assert frame["split"].eq("test").sum() == 6 and len(frame) == 18
    assert set(frame["class_name"]) == {"daisy", "rose", "tulip"}


@pytest.mark.parametrize("name", ["1.0.0/beans-train.tfrecord-00000-of-00001", f"1.1.0/{TFDS.format('train')}"])
def test_shards_of_two_data_sets_are_one_line(shard: Write, project: Path, name: str) -> None:
    shard(f"1.0.0/{TFDS.format('train')}", 0)
    shard(name, 100)
    said = r".*/shards: .*-train\.tfrecord and .*-train\.tfrecord are shards of two data sets; set data\.path to the folder.*"
    failed_in_one_line(run_stage(project, "download"), said)


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(lambda _: ints(-1), id="-1"),
        pytest.param(lambda _: ints(), id="empty", marks=pytest.mark.slow),
        pytest.param(lambda _: texts(b""), id="no name", marks=pytest.mark.slow),
    ],
)
def test_test_may_be_unlabelled_and_labels_may_be_names(shard: Write, project: Path, label: Callable[[int], bytes]) -> None:
    for first, split in enumerate(("train", "valid")):
        shard(TFDS.format(split), 100 * first, label=lambda number: texts(b"rose" if number % 2 else b"daisy"))
    shard(TFDS.format("test"), 200, label=label)
    frame = manifest(project)
    assert frame.groupby("split").size().to_dict() == {"train": 6, "valid": 6, "unlabelled": 6}
    assert frame.groupby("class_name")["label"].unique().map(list).to_dict() == {"daisy": [0], "rose": [1]}


def test_train_without_labels_is_one_line(shard: Write, project: Path) -> None:
    for first, split in enumerate(("train", "valid")):
        shard(TFDS.format(split), 100 * first, label=lambda _: ints(-1))
    succeeded(run_stage(project, "download"))
    failed_in_one_line(
        run_stage(project, "split_check"),
        r"data/raw/flowers-train\.tfrecord-00000-of-00001: record 0, image at byte \d+: no label in feature 'label' \(missing,"
        r" empty or -1\); set data\.features\.label, or move unlabelled images to test",
    )


def test_splits_are_drawn_where_there_is_only_train(shard: Write, project: Path) -> None:
    shard(TFDS.format("train").replace("00001", "00002"), 0, n=30)
    said = "1 of 2 shards of flowers-train.tfrecord are there; the images of the others are missing"
    assert said in succeeded(run_stage(project, "download"))
    assert "no valid split in the data: 6 images drawn for it" in succeeded(run_stage(project, "split_check"))
    frame = pd.read_csv(project / "data/manifest.csv")
    assert frame.groupby("split").size().to_dict() == {"train": 18, "valid": 6, "test": 6}


def test_no_test_is_drawn_where_there_is_valid(shard: Write, project: Path) -> None:
    for first, split in enumerate(("train", "valid")):
        shard(TFDS.format(split), 100 * first)
    assert manifest(project).groupby("split").size().to_dict() == {"train": 6, "valid": 6}


def test_class_names_may_be_given(shard: Write, make_project: MakeProject, tmp_path: Path) -> None:
    for first, split in enumerate(("train", "valid")):
        shard(TFDS.format(split), 100 * first)
    (tmp_path / "names.txt").write_text("a\nb\n")
    settings = {"data.path": "../shards", "data.class_names": "../names.txt", "data.features.label": "label"}
    project = make_project(**settings, **{"data.dataset": "tfrecords", "data.features.id": ""})
    succeeded(run_stage(project, "download"))
    failed_in_one_line(
        run_stage(project, "split_check"),
        r".*: class 2, but there are 2 class names, for 0 to 1; correct data\.class_names or data\.features\.label",
    )
    project = make_project("folder", **{"data.dataset": "folder", "data.path": "../shards", "data.class_names": "x"})
    said = "params.yaml: data.class_names is set, but folder has its own names; set it to ''"
    failed_in_one_line(run_stage(project, "download"), said)
