"""The download stage as a command: every kind of source gives the same raw data, every mistake is one line."""

import hashlib
import json
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from fieldguide.core.formats import readable
from fieldguide.sources.archive import pack
from fieldguide.sources.raw import RENAME
from support.archives import write_folder, write_zip
from support.disk import on_a_tiny_disk
from support.projects import TINY, copy_project, run
from support.stages import OLD, TINY_SAMPLE, MakeProject, failed_in_one_line, run_stage, succeeded

PHOTOS = {
    f"{split}/{name}/{n}.jpg": f"{split} {name} {n}".encode()
    for split in ("train", "val", "Test")
    for name in "AB"
    for n in "12"
}


def own_photos(path: str | Path) -> dict[str, object]:
    return {"data.dataset": "folder", "data.path": str(path)}


def raw(project: Path) -> dict[str, bytes]:
    folder = project / "data" / "raw"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("kind", ["folder", "wrapped zip"])
def test_own_photographs_become_one_uncompressed_zip_and_a_receipt(
    make_project: MakeProject, tmp_path: Path, kind: str
) -> None:
    strays = {"readme.txt": b"x", "train/A/.DS_Store": b"x", "train/loose.jpg": b"outside", "more/A/1.jpg": b"outside"}
    strays |= {"train/A/3.CR2": b"II*\0\0\0\0\0CR\2\0", "train/A/4.jxl": b"\xff\x0a"}
    source = tmp_path / "some where" / "my photos"
    source.parent.mkdir()
    if kind == "folder":
        write_folder(source, PHOTOS | strays)
    else:
        write_zip(source, {f"moths/{name}": content for name, content in (PHOTOS | strays).items()})
    project = make_project(**own_photos(source))
    output = succeeded(run_stage(project, "download"))
    with zipfile.ZipFile(project / "data" / "raw" / "images.zip") as archive:
        assert archive.namelist() == sorted(PHOTOS)
        assert {info.filename: archive.read(info) for info in archive.infolist()} == PHOTOS
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    packed = raw(project)["images.zip"]
    pack(sorted(PHOTOS.items()), tmp_path / "reference.zip")
    assert packed == (tmp_path / "reference.zip").read_bytes()  # whatever the source, the same bytes
    receipt = json.loads(raw(project)["receipt.json"])
    written = {name: content for name, content in raw(project).items() if name != "receipt.json"}
    assert set(written) == {"images.zip", "labels.csv", "left_out.csv"}
    assert receipt["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in written.items()
    }
    assert receipt["images"] == {"test": 4, "train": 4, "valid": 4}
    reasons = {"outside class folders": 1, "outside the splits": 1, "hidden or system file": 1}
    assert receipt["ignored"] == reasons | {"JPEG XL": 1, "RAW (.CR2)": 1, "text file": 1}
    wrap = "" if kind == "folder" else "moths/"
    assert set(raw(project)["left_out.csv"].decode().splitlines()) == {
        "file,kind,remedy",
        f"{wrap}train/A/3.CR2,RAW (.CR2),export as JPEG",
        f"{wrap}readme.txt,text file,",
        f"{wrap}train/A/4.jxl,JPEG XL,convert to JPEG",
        f"{wrap}train/loose.jpg,photograph,outside class folders; move it into a class folder",
        f'{wrap}more/A/1.jpg,photograph,"outside the splits; {RENAME}"',
    }
    assert sum(receipt["images"].values()) + sum(receipt["ignored"].values()) == len(PHOTOS | strays)
    assert (receipt["dataset"], receipt["layout"], receipt["source"]) == ("folder", "folders", "my photos")
    assert str(tmp_path) not in raw(project)["receipt.json"].decode()  # it would differ between machines
    assert "my photos -> data/raw" in output
    assert (
        "\nleft out: 1 JPEG XL (convert to JPEG), 1 RAW (.CR2; export as JPEG), 1 text file, 1 outside class folders,"
        " 1 outside the splits, 1 hidden or system file; see data/raw/left_out.csv\n"
    ) in f"\n{output}"


def test_a_relative_path_is_meant_from_the_projects_own_folder(make_project: MakeProject, tmp_path: Path) -> None:
    write_folder(tmp_path / "home" / "my photos", PHOTOS)
    project = make_project("home/queue/tmp1", **own_photos("my photos"))  # as DVC runs queued experiments
    failed_in_one_line(run_stage(project, "download"), rf"data\.path: {project}/my photos does not exist; .*")
    succeeded(run_stage(project, "download", DVC_ROOT=str(tmp_path / "home")))
    assert json.loads(raw(project)["receipt.json"])["images"] == {"test": 4, "train": 4, "valid": 4}


def test_a_tilde_is_the_users_home(make_project: MakeProject, tmp_path: Path) -> None:
    write_folder(tmp_path / "home" / "photos", PHOTOS)
    project = make_project(**own_photos("~/photos"))
    succeeded(run_stage(project, "download", HOME=str(tmp_path / "home")))
    assert set(raw(project)) == {"images.zip", "labels.csv", "receipt.json"}


@pytest.mark.slow
def test_the_sample_is_drawn_in_the_numbers_asked_for_and_the_same_each_time(make_project: MakeProject) -> None:
    results = []
    for folder in ("once", "again"):
        project = make_project(folder, **TINY_SAMPLE)
        succeeded(run_stage(project, "download"))
        results.append(raw(project))
    assert results[0] == results[1]
    receipt = json.loads(results[0]["receipt.json"])
    assert receipt["images"] == {"test": 2, "train": 6, "valid": 4}
    with zipfile.ZipFile(project / "data" / "raw" / "images.zip") as archive:
        assert len(archive.namelist()) == 12
        assert archive.testzip() is None


@pytest.mark.parametrize("names", [("photos/A/1.jpg", "photos/B/1.jpg"), ("train/A/1.jpg", "train/B/1.jpg")])
def test_own_photographs_may_come_without_splits(make_project: MakeProject, tmp_path: Path, names: tuple[str, ...]) -> None:
    project = make_project(**own_photos(write_folder(tmp_path / "photos", dict.fromkeys(names, b"x"))))
    succeeded(run_stage(project, "download"))
    with zipfile.ZipFile(project / "data" / "raw" / "images.zip") as archive:
        assert archive.namelist() == [name.removeprefix("photos/") for name in names]


def test_an_archive_in_place_of_a_known_download_says_when_its_counts_are_unknown(
    make_project: MakeProject, tmp_path: Path
) -> None:
    write_zip(tmp_path / "butterflies.zip", PHOTOS)
    project = make_project(**{"data.dataset": "butterflies", "data.path": str(tmp_path / "butterflies.zip")})
    output = succeeded(run_stage(project, "download"))
    assert "counts differ from all known releases: none: 4/4/4 train/valid/test images" in output
    assert json.loads(raw(project)["receipt.json"])["dataset"] == "butterflies"


def test_shards_are_kept_as_they_are(make_project: MakeProject, tmp_path: Path) -> None:
    shards = {"train/00-2.tfrec": b"\x00\x01", "val/00-1.tfrec": b"\x02", "test/00-1.tfrec": b""}
    write_folder(tmp_path / "shards", shards | {"sample_submission.csv": b"id,label\n"})
    project = make_project(**{"data.dataset": "tfrecords", "data.path": str(tmp_path / "shards")})
    output = succeeded(run_stage(project, "download"))
    assert {name: content for name, content in raw(project).items() if name.endswith(("1.tfrec", "2.tfrec"))} == shards
    assert "left out: 1 text file; see data/raw/left_out.csv" in output
    assert raw(project)["left_out.csv"] == b"file,kind,remedy\nsample_submission.csv,text file,\n"


@pytest.mark.parametrize("receipt", [None, b"{}", b"damaged"])
def test_what_the_stage_did_not_bring_stays_in_data_raw_and_is_named(make_project: MakeProject, receipt: bytes | None) -> None:
    project = make_project(**TINY_SAMPLE)
    mine = {"train/A/1.jpg": b"mine", "train/A/2.jpg": b"mine"} | ({"receipt.json": receipt} if receipt else {})
    for name in OLD:
        (project / "data" / "raw" / name).unlink()
    write_folder(project / "data" / "raw", mine)
    failed_in_one_line(
        run_stage(project, "download"),
        r"data/raw/train/A/1\.jpg \(and 1 more\) was not written by this stage, which replaces data/raw; move it"
        r" elsewhere and set its new path: -S data\.path=/photos",
    )
    assert raw(project) == mine


@pytest.mark.slow
def test_dvc_too_leaves_it_there(tmp_path: Path) -> None:
    """Without `persist` in dvc.yaml DVC would have deleted it before the stage could look."""
    project = tmp_path / "project"
    copy_project(project, TINY)
    mine = {"train/A/1.jpg": b"mine", "valid/A/1.jpg": b"mine"}
    write_folder(project / "data" / "raw", mine)
    done = run(project, "dvc", "repro", "download", check=False, environment={"DVC_ROOT": None})
    assert done.returncode != 0
    assert "data/raw/train/A/1.jpg (and 1 more) was not written by this stage" in done.stdout
    assert raw(project) == mine


def test_what_a_killed_download_left_is_replaced(make_project: MakeProject) -> None:
    project = make_project(**TINY_SAMPLE)
    write_folder(project / "data" / "raw", {".begun": b"", "train/00-1.tfrec": b"half", ".images.zip.x.tmp": b"half"})
    succeeded(run_stage(project, "download"))
    assert set(raw(project)) == {"images.zip", "labels.csv", "receipt.json"}
    assert not (project / "data" / "raw" / "train").exists()


def test_a_systems_own_files_in_data_raw_do_not_count(make_project: MakeProject) -> None:
    project = make_project(**TINY_SAMPLE)
    write_folder(project / "data" / "raw", {".DS_Store": b"x", "__MACOSX/images.zip": b"x"})
    succeeded(run_stage(project, "download"))
    assert set(raw(project)) == {"images.zip", "labels.csv", "receipt.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (own_photos("data/raw"), "is inside"),
        (own_photos("data/raw/images.zip"), "is inside"),
        ({"data.dataset": "tfrecords", "data.path": "."}, "contains"),
    ],
)
def test_data_raw_is_no_source_of_its_own(make_project: MakeProject, settings: dict[str, object], said: str) -> None:
    project = make_project(**settings)
    failed_in_one_line(
        run_stage(project, "download"), rf"data\.path: \S.* {said} data/raw, which this stage replaces; move the data"
    )
    assert raw(project) == OLD


@pytest.mark.parametrize(
    ("class_from", "classes"),
    [("last", {"robur", "rubra"}), ("first", {"Acer", "Quercus"}), ("path", {"Acer rubra", "Quercus robur"})],
)
def test_the_class_of_nested_folders_is_told(
    make_project: MakeProject, tmp_path: Path, class_from: str, classes: set[str]
) -> None:
    names = [f"{split}/{name}/{n}.jpg" for split in ("train", "test") for name in ("Acer/rubra", "Quercus/robur") for n in "12"]
    source = write_folder(tmp_path / "all", dict.fromkeys(names, b"x"))
    project = make_project(**own_photos(source) | {"data.class_from": class_from})
    first = {"last": "rubra", "first": "Acer", "path": "Acer rubra"}[class_from]
    said = f"class of test/Acer/rubra/1.jpg: {first} (data.class_from: {class_from}; last, path or first)"
    assert said in succeeded(run_stage(project, "download"))
    labels = raw(project)["labels.csv"].decode().splitlines()[1:]
    assert {line.rpartition(",")[2] for line in labels} == classes
    assert {line.partition(",")[0] for line in labels} == set(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("1.jpg", "2.jpg"),
            "no class folder with images; arrange the photographs as train/<CLASS>/, valid/<CLASS>/, test/<CLASS>/",
        ),
        (("train/1.jpg", "test/2.jpg"), "train contains images without class folders; move them to train/<CLASS>/"),
        (("images/1.jpg", "images/2.jpg"), "only one class: images; a classifier needs at least two class folders"),
    ],
)
def test_a_table_beside_the_images_is_pointed_out(
    make_project: MakeProject, tmp_path: Path, names: tuple[str, ...], said: str
) -> None:
    source = write_folder(
        tmp_path / "photos", dict.fromkeys(names, b"x") | {"labels.csv": b"image,label\n", "readme.txt": b"x"}
    )
    note = (
        f"; a table of labels does not fit either: {source}: labels.csv: contains no row below its header; use a table with a"
    )
    whole = re.escape(f"{source}: {said}{note} row for each photograph")
    failed_in_one_line(run_stage(make_project(**own_photos(source)), "download"), whole)


def raw_zip(path: Path, names: list[bytes], flag: int = 0) -> Path:
    """A zip with names as they are, which `zipfile` does not write."""
    out, central = b"", b""
    for name in names:
        head = struct.pack("<5H3I2H", 20, flag, 0, 0, 33, zlib.crc32(b"x"), 1, 1, len(name), 0)
        central += b"PK\1\2" + struct.pack("<H", 20) + head + struct.pack("<3H2I", 0, 0, 0, 0, len(out)) + name
        out += b"PK\3\4" + head + name + b"x"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(names), len(names), len(central), len(out), 0)
    path.write_bytes(out + central + end)
    return path


@pytest.mark.parametrize(
    ("encoding", "classes"),
    [
        ("utf-8", ("Bläuling", "Märzfliege")),
        ("utf-8", ("蝴蝶", "Бабочка")),
        ("cp437", ("Bläuling", "Märzfliege")),
        ("cp437", ("Frêne", "Érable")),
    ],
)
def test_names_of_a_zip_without_the_flag_are_read(
    make_project: MakeProject, tmp_path: Path, encoding: str, classes: tuple[str, str]
) -> None:
    source = raw_zip(tmp_path / "photos.zip", [f"{name}/1.jpg".encode(encoding) for name in classes])
    project = make_project(**own_photos(source))
    succeeded(run_stage(project, "download"))
    labels = raw(project)["labels.csv"].decode().splitlines()[1:]
    assert {line.rpartition(",")[2] for line in labels} == set(classes)


@pytest.mark.parametrize(
    ("encoding", "names"), [("shift_jis", ("チョウ", "トンボ")), ("cp866", ("Бабочка", "Дуб")), ("gbk", ("蝴蝶", "蜻蜓"))]
)
def test_garbled_names_stop_where_they_are_classes(
    make_project: MakeProject, tmp_path: Path, encoding: str, names: tuple[str, str]
) -> None:
    source = raw_zip(tmp_path / "photos.zip", [f"{name}/1.jpg".encode(encoding) for name in names])
    project = make_project(**own_photos(source))
    failed_in_one_line(
        run_stage(project, "download"),
        rf"{source}: the class name '.+' is garbled: the zip's names are not in UTF-8; pack the folder again .*",
    )
    raw_zip(source, [f"{name}/{file}.jpg".encode(encoding) for name in "AB" for file in names])
    succeeded(run_stage(project, "download"))


def without(split: str) -> dict[str, bytes]:
    return {name: content for name, content in PHOTOS.items() if not name.startswith(split)}


def damaged_zip(path: Path) -> Path:
    whole = write_zip(path, PHOTOS, zipfile.ZIP_STORED).read_bytes()
    path.write_bytes(whole.replace(b"train B 2", b"train B !"))
    return path


def empty_class(path: Path) -> Path:
    (write_folder(path, PHOTOS) / "train" / "EMPTY").mkdir()
    return path


def text_file(path: Path) -> Path:
    path.write_text("hello")
    return path


BAD_SOURCES = {
    "missing": (lambda path: path, "data.path: SOURCE does not exist; use a folder or an archive (zip, tar)"),
    "no zip": (
        text_file,
        "data.path: SOURCE is not a valid zip or tar (File is not a zip file); download it again or use a folder",
    ),
    "loose images": (
        lambda path: write_folder(path, {"1.jpg": b"x", "2.jpg": b"x"}),
        "SOURCE: no class folder with images; arrange the photographs as train/<CLASS>/, valid/<CLASS>/, test/<CLASS>/",
    ),
    "no train": (
        lambda path: write_folder(path, without("train")),
        "SOURCE: no train split; arrange the photographs as train/<CLASS>/, valid/<CLASS>/, test/<CLASS>/",
    ),
    "one class": (
        lambda path: write_folder(path, {"oak/1.jpg": b"x", "oak/2.jpg": b"x"}),
        "SOURCE: only one class: oak; a classifier needs at least two class folders",
    ),
    "empty": (
        lambda path: path.mkdir() or path,
        "data.path: SOURCE: contains no photograph that is read (" + readable() + "); use another folder or archive",
    ),
    "nested twice": (
        lambda path: write_folder(path, {f"{name}/summer/1.jpg": b"x" for name in ("oak", "ash")}),
        "SOURCE: ash/summer and oak/summer would be one class; set data.class_from to path, or to first, or remove one if it"
        " has copies of the other",
    ),
    "mixed depths": (
        lambda path: write_folder(path, {"oak/1.jpg": b"x", "ash/1.jpg": b"x", "oak/summer/2.jpg": b"x"}),
        "SOURCE: images lie at different depths (ash/1.jpg, oak/summer/2.jpg), so the last folder may not be the class;"
        " set data.class_from to first (subfolders belong to their class) or path (they are classes)",
    ),
    "7z": (
        lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100)) and path,
        "data.path: SOURCE is a 7z archive, which is not read; unpack it and use the folder",
    ),
    "photograph": (
        lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(100)) and path,
        "data.path: SOURCE is a photograph (JPEG); use a folder or an archive (zip, tar)",
    ),
    "empty class": (empty_class, "SOURCE: class folder train/EMPTY contains no image; add images or remove the folder"),
    "damaged": (
        damaged_zip,
        "data.path: SOURCE: train/B/2.jpg is damaged (Bad CRC-32 for file 'train/B/2.jpg'); download the archive again",
    ),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_a_bad_source_is_one_line_and_leaves_the_old_raw_data(make_project: MakeProject, tmp_path: Path, kind: str) -> None:
    make, said = BAD_SOURCES[kind]
    source = make(tmp_path / "the source")
    project = make_project(**own_photos(source))
    failed_in_one_line(run_stage(project, "download"), re.escape(said.replace("SOURCE", str(source))))
    assert raw(project) == OLD


BAD_SETTINGS = {
    "range": ({"train.lr": -1}, r"params\.yaml: train\.lr must be in \(0, 10\], got -1"),
    "no path": (own_photos(""), r".*data\.path is empty.*: -S data\.path=/photos"),
    "bound": (
        {**own_photos("photos"), "data.max_gigabytes": 1e-9},
        r".* to unpack, more than data\.max_gigabytes \(1e-09\); .*",
    ),
    "no such user": (own_photos("~nobody-of-this-name/photos"), r".*~nobody-of-this-name.*"),
    "all splits": ({"data.dataset": "butterflies", "data.path": "no test"}, r".*: no test split; arrange .*"),
    "shards": ({"data.dataset": "tfrecords", "data.path": "shards"}, r".*: a\.tfrec has no split in its path; move .*"),
}


@pytest.mark.parametrize("kind", BAD_SETTINGS)
def test_a_bad_setting_is_one_line_and_leaves_the_old_raw_data(make_project: MakeProject, kind: str) -> None:
    settings, said = BAD_SETTINGS[kind]
    project = make_project(**settings)
    write_folder(project / "photos", PHOTOS)
    write_folder(project / "no test", without("Test"))
    write_folder(project / "shards", {"a.tfrec": b"", "b.tfrec": b""})
    failed_in_one_line(run_stage(project, "download"), said)
    assert raw(project) == OLD


def test_a_file_in_the_place_of_data_raw_is_one_line(make_project: MakeProject) -> None:
    project = make_project(**TINY_SAMPLE)
    for name in OLD:
        (project / "data" / "raw" / name).unlink()
    (project / "data" / "raw").rmdir()
    (project / "data" / "raw").write_bytes(b"")
    failed_in_one_line(run_stage(project, "download"), r"data/raw.*(File exists|Not a directory).*")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            TINY_SAMPLE | {"data.sample.train_images": 200},
            r"data/raw/images\.zip: could not be written \(No space left on device\); .*",
        ),
        (own_photos("photos"), r"data/raw: \d+\.\d{3} GB are needed, 0\.000 GB are free; free disk space"),
    ],
    ids=["sample", "folder"],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_raw_data(
    make_project: MakeProject, settings: dict[str, object], said: str
) -> None:
    project = make_project(**settings)
    write_folder(project / "photos", PHOTOS | {"train/A/big.jpg": bytes(200_000)})
    old = "printf old > data/raw/images.zip; " + """printf '{"files": {"images.zip": {}}}' > data/raw/receipt.json"""
    stage = f'cd "$1" && {old}; "{sys.executable}" -m stages.download; code=$?; '
    stage += "ls -A data/raw; cat data/raw/images.zip; exit $code"
    done = on_a_tiny_disk(project / "data" / "raw", ["sh", "-c", stage, "sh", str(project)])
    failed_in_one_line(done, said)
    assert done.stdout == "images.zip\nreceipt.json\nold"


def test_the_data_stages_never_load_what_only_training_needs(make_project: MakeProject) -> None:
    command = [sys.executable, "-c", "import sys, stages.download, stages.split_check; print(*sys.modules)"]
    done = subprocess.run(command, cwd=make_project(), capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "fieldguide" in loaded
    assert loaded.isdisjoint({"torch", "torchvision", "mlflow", "dvc", "onnx", "onnxruntime", "sklearn", "kaggle"})
