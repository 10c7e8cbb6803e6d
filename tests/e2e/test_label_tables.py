"""Photographs with a table of labels: download and split check, as competitions, museums and camera traps ship them."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from support.archives import write_folder, write_zip
from support.stages import MakeProject, failed_in_one_line, run_stage, succeeded

SMALL = {"split_check.near_duplicates": False, "split_check.valid_fraction": 0.2, "split_check.test_fraction": 0.2}


def photograph(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def photographs(*names: str) -> dict[str, bytes]:
    return {name: photograph(seed) for seed, name in enumerate(names)}


def table(*lines: str) -> bytes:
    return "\n".join((*lines, "")).encode()


def own_photos(path: Path, **settings: object) -> dict[str, object]:
    return SMALL | {"data.dataset": "folder", "data.path": str(path)} | settings


def labels(project: Path) -> list[list[str]]:
    with (project / "data" / "raw" / "labels.csv").open(newline="") as stream:
        return list(csv.reader(stream))


def manifest(project: Path) -> pd.DataFrame:
    return pd.read_csv(project / "data" / "manifest.csv", keep_default_na=False)


def findings(project: Path) -> list[list[str]]:
    frame = pd.read_csv(project / "metrics" / "findings.csv", dtype=str, keep_default_na=False)
    return frame[["kind", "class_name", "id", "detail"]].to_numpy().tolist()


KAGGLE = {
    **photographs(*(f"train/{n:03x}.jpg" for n in range(20)), *(f"test/{n:03x}.jpg" for n in range(3))),
    "labels.csv": table("id,breed", *(f"{n:03x},{['NA', 'boxer'][n % 2]}" for n in range(19)), "fff,collie"),
    "sample_submission.csv": table("id,breed", *(f"{n:03x},boxer" for n in range(3))),
}


def test_a_competition_whose_ids_are_unique(make_project: MakeProject, tmp_path: Path) -> None:
    files = photographs(*(f"train/{n:03x}.jpg" for n in range(20)), *(f"test/{n:03x}.jpg" for n in range(20, 23)))
    files |= {name: content for name, content in KAGGLE.items() if name.endswith(".csv")}
    project = make_project(**own_photos(write_zip(tmp_path / "dogs.zip", files)))
    output = succeeded(run_stage(project, "download"))
    assert "labels.csv: 2 classes; 19 photographs with a label, 3 unlabelled" in output
    assert sorted(row[1] for row in labels(project)[1:]) == ["train"] * 19 + ["unlabelled"] * 3


@pytest.mark.parametrize("kind", ["folder", pytest.param("wrapped zip", marks=pytest.mark.slow)])
def test_a_competition_has_a_table_beside_train_and_test(make_project: MakeProject, tmp_path: Path, kind: str) -> None:
    files = KAGGLE | {"train.csv": KAGGLE["labels.csv"]}
    del files["labels.csv"]  # the ids are also in test: the name of the table says which are meant
    if kind == "folder":
        source = write_folder(tmp_path / "dogs", files)
    else:
        source = write_zip(tmp_path / "dogs.zip", {f"dogs/{name}": content for name, content in files.items()})
    project = make_project(**own_photos(source))
    output = succeeded(run_stage(project, "download"))
    assert "train.csv: columns: file 'id', label 'breed'" in output
    assert "1 no row in the table" in output and "1 row without a file" in output
    assert labels(project)[:3] == [
        ["id", "split", "class_name"],
        ["test/000.jpg", "unlabelled", ""],
        ["test/001.jpg", "unlabelled", ""],
    ]
    receipt = json.loads((project / "data" / "raw" / "receipt.json").read_text())
    assert receipt["images"] == {"train": 19, "unlabelled": 3}
    assert receipt["ignored"] == {"no row in the table": 1, "row without a file": 1, "text file": 1}
    succeeded(run_stage(project, "split_check"))
    rows = manifest(project)
    assert rows["class_name"].value_counts().to_dict() == {"NA": 10, "boxer": 9, "": 3}
    assert rows["split"].value_counts().to_dict() == {"train": 11, "valid": 4, "test": 4, "unlabelled": 3}
    named = {(kind, id) for kind, _, id, _ in findings(project)}
    assert {name.removeprefix("dogs/") for kind, name in named if kind == "not read"} >= {"train/013.jpg", "fff"}


def test_ids_that_are_in_train_and_in_test_need_their_folder(make_project: MakeProject, tmp_path: Path) -> None:
    project = make_project(**own_photos(write_folder(tmp_path / "dogs", KAGGLE)))
    failed_in_one_line(
        run_stage(project, "download"),
        r".*/dogs: train contains images without class folders; .*; a table of labels does not fit either: .*dogs: labels\.csv:"
        r" row 2: '000' fits 2 photographs \(test/000\.jpg, train/000\.jpg\); write the path with its folder in the table",
    )


def test_a_museum_exports_darwin_core(make_project: MakeProject, tmp_path: Path) -> None:
    names = ["Pica pica (L.)", "Corvus corax L.", "Ärgernis sp."]
    lines = [f'{n}\tAves\tPasserines\tCorvidae\t{names[n % 3]}\thttps://museum.org/media/{n}.JPG\t"{n}"' for n in range(30)]
    head = "gbifID\tclass\torder\tfamily\tscientificName\tidentifier\tnote"
    text = "\r\n".join((head, *lines)).encode("utf-16")
    files = photographs(*(f"media/{n}.jpg" for n in range(30))) | {"occurrence.tsv": text}
    project = make_project(**own_photos(write_zip(tmp_path / "export.zip", files)))
    succeeded(run_stage(project, "download"))
    succeeded(run_stage(project, "split_check"))
    rows = manifest(project)
    assert sorted(rows["class_name"].unique()) == sorted(names)
    assert pd.crosstab(rows["class_name"], rows["split"]).to_numpy().tolist() == [[2, 6, 2]] * 3


def test_one_column_for_each_class(make_project: MakeProject, tmp_path: Path) -> None:
    lines = [f"{n},{int(n % 3 == 0)}.0,{int(n % 3 == 1)}.0" for n in range(30)]  # a third has no label
    files = photographs(*(f"images/{n}.jpg" for n in range(30))) | {"GroundTruth.csv": table("image,MEL,NV", *lines)}
    project = make_project(**own_photos(write_folder(tmp_path / "skin", files)))
    output = succeeded(run_stage(project, "download"))
    assert "GroundTruth.csv: columns: file 'image', label 2 columns of 0 and 1" in output
    succeeded(run_stage(project, "split_check"))
    assert manifest(project)["class_name"].value_counts().to_dict() == {"MEL": 10, "NV": 10, "": 10}


def trap(n: int) -> str:
    return f"cam{n % 6}/{n:03d}.jpg"


def camera_trap(split: str = "") -> dict[str, bytes]:
    head = "file_name,category,location,seq_id" + (",split" if split else "")
    own = [f",{['train', 'test', 'val'][n % 3]}" if split == "torn" else "" for n in range(60)]
    lines = [f"{trap(n)},{['deer', 'fox'][n // 6 % 2]},L{n % 6},s{n // 2}_{n % 6}{own[n]}" for n in range(60)]
    return photographs(*map(trap, range(60))) | {"annotations.csv": table(head, *lines)}


def test_locations_stay_in_one_split(make_project: MakeProject, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "traps", camera_trap())
    project = make_project(**own_photos(source))
    failed_in_one_line(  # cam0 to cam5 could be the classes
        run_stage(project, "download"),
        r".*/traps: the labels of annotations\.csv differ from the folders of the photographs;"
        r" set data\.table to annotations\.csv, or to none if the folders are the classes",
    )
    project = make_project("again", **own_photos(source, **{"data.table": "annotations.csv"}))
    assert "group 'location'" in succeeded(run_stage(project, "download"))
    assert labels(project)[:2] == [["id", "split", "class_name", "group"], ["cam0/000.jpg", "", "deer", "L0"]]
    succeeded(run_stage(project, "split_check"))
    rows = manifest(project)
    assert rows.groupby(rows["id"].str[:4])["split"].nunique().eq(1).all()
    assert rows["split"].value_counts().to_dict() == {"train": 40, "test": 10, "valid": 10}
    assert not [kind for kind, *_ in findings(project) if kind == "group in two splits"]


def test_a_split_that_tears_locations_apart_is_a_finding(make_project: MakeProject, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "traps", camera_trap("torn"))
    project = make_project(**own_photos(source, **{"data.table": "annotations.csv", "data.columns.group": "seq_id"}))
    succeeded(run_stage(project, "download"))
    succeeded(run_stage(project, "split_check"))
    assert not [kind for kind, *_ in findings(project) if kind == "group in two splits"]
    frame = manifest(project)
    assert frame["split"].value_counts().to_dict() == {"train": 20, "test": 20, "valid": 20}
    settings = {"data.table": "annotations.csv", "data.columns.group": "camera"}
    lines = camera_trap("torn")["annotations.csv"].decode().replace("location", "camera").splitlines()
    torn = [line.replace(f",L{n % 6},", f",{n // 30},") for n, line in enumerate(lines[1:])]
    (source / "annotations.csv").write_bytes(table(lines[0], *torn))
    project = make_project("torn", **own_photos(source, **settings))
    succeeded(run_stage(project, "download"))
    output = succeeded(run_stage(project, "split_check"))
    assert "2 x group in two splits" in output
    details = "10 train, 10 valid, 10 test images; train and test are not independent"
    assert [row for row in findings(project) if row[0] == "group in two splits"] == [
        ["group in two splits", "", group, details] for group in "01"
    ]


def test_numbers_take_their_names_from_a_second_table(make_project: MakeProject, tmp_path: Path) -> None:
    files = photographs(*(f"images/{n}.jpg" for n in range(4)))
    files |= {"labels.csv": table("id,label", "0,0", "1,1", "2,0", "3,1"), "classes.csv": table("label,name", "0,oak", "1,ash")}
    project = make_project(**own_photos(write_folder(tmp_path / "trees", files)))
    succeeded(run_stage(project, "download"))
    assert [row[2] for row in labels(project)] == ["class_name", "oak", "ash", "oak", "ash"]


def test_the_table_may_lie_elsewhere(make_project: MakeProject, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", photographs("a.jpg", "b.jpg"))
    write_folder(tmp_path, {"my labels.csv": table("file;label", "/home/jo/photos/a.jpg;oak", "/home/jo/photos/b.jpg;ash")})
    project = make_project(**own_photos(source, **{"data.table": str(tmp_path / "my labels.csv")}))
    succeeded(run_stage(project, "download"))
    assert labels(project)[1:] == [["a.jpg", "", "oak"], ["b.jpg", "", "ash"]]
    (source / "inner").mkdir()
    (tmp_path / "my labels.csv").rename(source / "inner" / "labels.csv")
    for number, path in enumerate(("labels.csv", "inner/labels.csv", str(source / "inner" / "labels.csv"))):
        project = make_project(f"again {number}", **own_photos(source, **{"data.table": path}))
        succeeded(run_stage(project, "download"))
        assert labels(project)[1:] == [["a.jpg", "", "oak"], ["b.jpg", "", "ash"]]
        assert json.loads((project / "data" / "raw" / "receipt.json").read_text())["ignored"] == {}
    (source / "inner" / "labels.csv").unlink()
    project = make_project("none", **own_photos(source, **{"data.table": "x.csv"}))
    failed_in_one_line(
        run_stage(project, "download"),
        r"data\.table: x\.csv is neither in .*/photos nor a file that can be read \(.*x\.csv: No such .*\); correct the path",
    )


CLASS_FOLDERS = photographs("A/1.jpg", "A/2.jpg", "B/3.jpg", "B/4.jpg")


def test_class_folders_stay_the_classes_where_a_table_agrees_or_has_none(make_project: MakeProject, tmp_path: Path) -> None:
    files = CLASS_FOLDERS | {
        "labels.csv": table("file,label", "A/1.jpg,a", "A/2.jpg,A ", "B/3.jpg,b", "B/4.jpg,"),
        "split.csv": table("file,label,split", "A/1.jpg,a,train", "A/2.jpg,a,test", "B/3.jpg,b,train", "5.jpg,b,train"),
        "5.jpg": photograph(5),
        "exif.csv": table("file,iso", "A/1.jpg,100"),
    }
    project = make_project(**own_photos(write_folder(tmp_path / "photos", files)))
    output = succeeded(run_stage(project, "download"))
    assert "labels.csv is not used, but the class folders, with which it agrees\n" in output
    more = (
        "; it also has labels of 1 photographs that are not in class folders and splits, for which data.table must be split.csv"
    )
    assert f"split.csv is not used, but the class folders, with which it agrees{more}\n" in output
    assert "exif.csv is not used, but the class folders: " in output
    assert [row[2] for row in labels(project)[1:]] == ["A", "A", "B", "B"]


def test_folders_with_several_labels_are_perhaps_not_the_classes(make_project: MakeProject, tmp_path: Path) -> None:
    files = CLASS_FOLDERS | {"labels.csv": table("file,label", "1.jpg,deer", "2.jpg,fox", "3.jpg,boar", "4.jpg,boar")}
    project = make_project(**own_photos(write_folder(tmp_path / "cameras", files)))
    failed_in_one_line(run_stage(project, "download"), r".*: the labels of labels\.csv differ from the folders of the .*")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"labels.csv": table("file,label", "1.jpg,a", "2.jpg,b"), "other.csv": table("file,label", "1.jpg,b", "2.jpg,a")},
            r".*/photos: labels\.csv and other\.csv may each be the table of labels; set data\.table to one of them, or"
            " append them",
        ),
        (
            {"labels.csv": table("file,Baum", "1.jpg,a", "2.jpg,b")},
            r".*; a table of labels does not fit either: .*labels\.csv: no column has a usual name of a label column"
            r" \(label, class, species\); set data\.columns\.label to one of its columns: file, Baum",
        ),
        (
            {"labels.csv": table("file,label", "1.jpg,a", '2.jpg,"b')},
            r".*; a table of labels does not fit either: .*labels\.csv: cannot be read \(EOF inside string .* row 2\); .*",
        ),
        ({"labels.xlsx": b"PK"}, r".*; if labels\.xlsx has the labels, save it as CSV and set data\.table"),
        (
            {"sample_submission.csv": table("file,label", "1.jpg,a", "2.jpg,b")},
            r".*; if sample_submission\.csv has the labels, set data\.table",
        ),
    ],
)
def test_loose_photographs_without_a_clear_table_are_one_line(
    make_project: MakeProject, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    source = write_folder(tmp_path / "photos", photographs("1.jpg", "2.jpg") | files)
    failed_in_one_line(run_stage(make_project(**own_photos(source)), "download"), message)
