"""The command line: every kind of source, every format, bad files, exit statuses, and what it needs to be installed."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldguide.__main__ import main
from fieldguide.commands import predict
from fieldguide.commands.predict import BATCH, SOME_FAILED
from fieldguide.core.errors import UserError
from fieldguide.core.images import decode
from support import ROOT
from support.archives import write_folder, write_tar, write_zip
from support.mean_colour import (
    METADATA,
    NAMES,
    YELLOW,
    expected_probabilities,
    mean_colour_network,
    save,
    with_taxonomy,
)

PX = 16
COLOURS = {"RED": (250, 60, 60), "GREEN": (60, 250, 60), "BLUE": (60, 60, 250)}


def photo(colour: tuple[int, int, int], width: int = 40, height: int = 30) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model where it is looked for, and photographs in folders of their classes."""
    (tmp_path / "models").mkdir()
    save(tmp_path / "models", mean_colour_network())
    for name, colour in COLOURS.items():
        for number in range(2):
            file = tmp_path / "photos" / name.title() / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(photo(colour))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_photograph_is_named_with_probabilities(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "photos/Red/0.jpg", "--format", "csv", "--top", "2"])
    row = rows(capsys.readouterr().out)[0]
    expected = expected_probabilities(decode(photo(COLOURS["RED"]), PX)[None])[0]
    assert list(row) == [
        *("image", "truth", "verdict", "known_score", "rank", "taxon", "taxon_probability"),
        *("answer_1", "probability_1", "answer_2", "probability_2", "scientific_name_1", "error"),
    ]
    assert (row["image"], row["truth"], row["answer_1"], row["error"]) == ("photos/Red/0.jpg", "RED", "RED", "")
    assert float(row["probability_1"]) == pytest.approx(expected[0], abs=1e-5)
    assert float(row["known_score"]) == pytest.approx(np.mean(COLOURS["RED"]) / 255, abs=0.01)
    assert row["verdict"] == "sure"


def test_the_table_has_a_line_for_each_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "photos/Red/0.jpg", "photos/Blue/1.jpg"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(NAMES)
    assert lines[0].split()[:2] == ["photos/Red/0.jpg", "sure"]
    assert [line.split()[-1] for line in lines[::4]] == ["RED", "BLUE"]
    assert len({line.index("%") for line in lines}) == 1  # aligned


def test_a_folder_is_walked_in_order_and_tells_the_truth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos" / "notes.txt").write_text("no photograph")
    (folder / "photos" / "Elsewhere").mkdir()
    (folder / "photos" / "Elsewhere" / "x.jpg").write_bytes(photo((90, 80, 80)))
    main(["predict", "photos", "--format", "jsonl"])
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [entry["image"] for entry in found] == [
        *("photos/Blue/0.jpg", "photos/Blue/1.jpg", "photos/Elsewhere/x.jpg", "photos/Green/0.jpg"),
        *("photos/Green/1.jpg", "photos/Red/0.jpg", "photos/Red/1.jpg"),
    ]
    assert [entry["truth"] for entry in found] == ["BLUE", "BLUE", None, "GREEN", "GREEN", "RED", "RED"]
    assert all(entry["truth"] in (None, entry["answers"][0]["name"]) for entry in found)
    assert printed.err == "6 of 6 match their folder's name (100.0%)\nleft out: 1 text file\n"


@pytest.mark.parametrize("n_photos", [1, BATCH, BATCH + 1, 7 * BATCH + 3])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_zip_of_any_number_gives_the_same_as_its_files(
    folder: Path, capsys: pytest.CaptureFixture[str], make_jpeg: Callable[..., bytes], n_photos: int, threads: str
) -> None:
    encoded = [make_jpeg(seed, 20 + seed % 7, 24) for seed in range(n_photos)]
    with zipfile.ZipFile("many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(encoded):
            archive.writestr(f"set/{number:04}.jpg", content)
    main(["predict", "many.zip", "--format", "json", "--threads", threads])
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found] == [f"many.zip/set/{number:04}.jpg" for number in range(n_photos)]
    expected = expected_probabilities(np.stack([decode(content, PX) for content in encoded]))
    assert [entry["answers"][0]["probability"] for entry in found] == pytest.approx(expected.max(axis=1), abs=1e-5)


@pytest.mark.parametrize("zipped", [False, True])
def test_standard_input_is_a_photograph_or_a_zip(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    content = photo(COLOURS["GREEN"])
    if zipped:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.jpg", content)
        content = stream.getvalue()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    main(["predict", "-", "--format", "csv"])
    row = rows(capsys.readouterr().out)[0]
    assert (row["image"], row["answer_1"]) == ("-/a.jpg" if zipped else "-", "GREEN")


def test_standard_input_that_is_too_large_is_refused_without_being_held_in_memory(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "MAX_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo(COLOURS["GREEN"]).ljust(1001, b"\0"))))
    with pytest.raises(SystemExit) as ended:
        main(["predict", "-"])
    assert ended.value.code == SOME_FAILED
    assert capsys.readouterr().err.startswith("-: 1,001 bytes, more than 1,000\n")
    monkeypatch.setattr(predict, "MAX_UNPACKED", 1000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(1001))))
    with pytest.raises(UserError, match=r"^standard input: more than 1e-06 GB to unpack, unpack it and use the folder$"):
        main(["predict", "-"])


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "pipe", "pipe.zip"])
def test_what_is_no_ordinary_file_is_not_opened(folder: Path, path: str) -> None:
    if path.startswith("pipe"):
        os.mkfifo(path)
    with pytest.raises(UserError, match=rf"^{path} is not an ordinary file; use a file, a folder, or - for standard input$"):
        main(["predict", path])


@pytest.mark.parametrize(
    ("name", "said"), [("x" * 300, "File name too long"), ("photos/Red/0.jpg/x", "Not a directory"), ("no.jpg", "No such file")]
)
def test_a_path_that_cannot_be_read_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", name])
    assert ended.value.code == SOME_FAILED
    assert capsys.readouterr().err.startswith(f"{name}: {said}")


def test_a_file_has_the_same_kind_by_itself_as_in_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiff = io.BytesIO()
    Image.new("RGB", (40, 30), COLOURS["RED"]).save(tiff, "TIFF")
    write_folder(Path("raw"), {"a.NEF": tiff.getvalue()})  # a preview, in the structure of a TIFF
    with pytest.raises(SystemExit) as ended:
        main(["predict", "raw/a.NEF"])
    assert ended.value.code == SOME_FAILED
    assert capsys.readouterr().err.startswith("raw/a.NEF: a RAW (.NEF); export as JPEG\n")
    write_folder(Path("named"), {"a.zip": photo(COLOURS["RED"])})
    for source in ("named", "named/a.zip"):
        main(["predict", source, "--format", "csv"])
        assert [(row["image"], row["answer_1"]) for row in rows(capsys.readouterr().out)] == [("named/a.zip", "RED")]


def test_a_name_is_printed_on_one_line_without_codes_for_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(Path("odd"), {"a\nb.jpg": photo(COLOURS["RED"]), "c\x1b[31m.jpg": b"nothing"})
    with pytest.raises(SystemExit):
        main(["predict", "odd"])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].split()[:2] == [r"odd/a\nb.jpg", "sure"]
    assert printed.err.splitlines()[0] == r"odd/c\x1b[31m.jpg: not an image but a text file"


@pytest.mark.parametrize("chosen", ["table", "csv", "json", "jsonl"])
def test_what_cannot_be_read_is_named_and_counted_and_stops_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], chosen: str
) -> None:
    (folder / "photos" / "Red" / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as ended:
        main(["predict", "photos", "gone.jpg", "--format", chosen])
    assert ended.value.code == SOME_FAILED
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    assert errors[0].startswith("photos/Red/bad.jpg: not an image but a text file")
    assert errors[1] == "gone.jpg: No such file or directory"
    assert errors[-1] == "2 of 8 photographs could not be read"
    for number in range(2):
        assert f"photos/Red/{number}.jpg" in printed.out
    if chosen in ("csv", "json", "jsonl"):
        entries = rows(printed.out) if chosen == "csv" else json.loads(_as_array(printed.out, chosen))
        assert len(entries) == 8
        assert [entry["image"] for entry in entries if entry["error"]] == ["photos/Red/bad.jpg", "gone.jpg"]


def _as_array(text: str, chosen: str) -> str:
    return text if chosen == "json" else f"[{','.join(text.splitlines())}]"


def test_a_damaged_member_of_a_zip_stops_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile("some.zip", "w") as archive:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            archive.writestr(name, photo(COLOURS["RED"]))
    content = bytearray(Path("some.zip").read_bytes())
    content[content.index(b"b.jpg") + 60] ^= 1  # inside the content: the checksum no longer fits
    Path("some.zip").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["predict", "some.zip", "--format", "csv"])
    printed = capsys.readouterr()
    assert [row["answer_1"] for row in rows(printed.out)] == ["RED", "", "RED"]
    assert printed.err.startswith("some.zip/b.jpg: Bad CRC-32")


@pytest.mark.parametrize("heatmap", [False, True])
def test_annotated_photographs_keep_their_place_and_carry_a_caption(folder: Path, heatmap: bool) -> None:
    main(["predict", "photos", "--annotate", "out", *(["--heatmap"] if heatmap else [])])
    written = sorted(file.relative_to("out").as_posix() for file in Path("out").rglob("*.jpg"))
    assert written == [f"photos/{name}/{number}.jpg" for name in ("Blue", "Green", "Red") for number in (0, 1)]
    with Image.open("out/photos/Red/0.jpg") as image:
        assert image.height > 30 + 2 * 20  # two lines: the answer, and what the folder says
        pixels = np.asarray(image.convert("RGB")).astype(int)
    middle = pixels[15, pixels.shape[1] // 2]
    assert (np.abs(middle - COLOURS["RED"]).max() < 12) == (not heatmap)
    assert pixels[35:].max() > 200  # letters


@pytest.mark.parametrize("into", [".", "photos/.."])
def test_photographs_are_never_overwritten_by_their_annotated_forms(
    folder: Path, into: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*.jpg")}
    with pytest.raises(UserError, match=r"^--annotate \S+: photos/Blue/0.jpg would be overwritten; use another"):
        main(["predict", "photos", "--annotate", into])
    assert {file: file.read_bytes() for file in folder.rglob("*.jpg")} == before
    assert not capsys.readouterr().out


def test_two_photographs_never_share_an_annotated_file(folder: Path) -> None:
    shutil.copy("photos/Red/0.jpg", "0.png")
    shutil.copy("photos/Red/0.jpg", "0.png.jpg")
    with pytest.raises(
        UserError, match=r"^--annotate out: 0.png and 0.png.jpg would both be \S+/out/0.png.jpg; annotate them separately"
    ):
        main(["predict", "0.png", "0.png.jpg", "--annotate", "out"])
    assert not Path("out").exists()
    main(["predict", "0.png", "0.png", "--annotate", "out"])  # the same one twice
    assert [file.name for file in Path("out").iterdir()] == ["0.png.jpg"]


def test_a_folder_that_is_a_link_is_followed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/more").symlink_to(folder / "photos/Red")
    main(["predict", "photos", "--format", "csv"])
    assert [row["image"] for row in rows(capsys.readouterr().out)][-2:] == ["photos/more/0.jpg", "photos/more/1.jpg"]
    Path("photos/more/round").symlink_to(folder / "photos")
    with pytest.raises(UserError, match=r"^photos/Red/round: is a link to \S+/photos, a folder that contains it; remove"):
        main(["predict", "photos"])


def test_hidden_folders_are_not_looked_into(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/.venv").mkdir()
    Path("photos/.venv/lib64").symlink_to(folder / "photos/Red")
    shutil.copytree("photos/Red", "photos/@eaDir/0.jpg")
    main(["predict", "photos", "--format", "csv"])
    assert len(rows(capsys.readouterr().out)) == 6


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_names_two_photographs_alike_is_refused(folder: Path) -> None:
    with zipfile.ZipFile("twice.zip", "w") as archive:
        for colour in ("RED", "BLUE"):
            archive.writestr("x/1.jpg", photo(COLOURS[colour]))
    with pytest.raises(UserError, match=r"^twice.zip: x/1.jpg occurs twice; create the archive again$"):
        main(["predict", "twice.zip"])


def test_photographs_told_apart_by_capitals_alone_are_not_annotated_together(folder: Path) -> None:
    with zipfile.ZipFile("some.zip", "w") as archive:
        for name in ("a.jpg", "A.JPG"):
            archive.writestr(name, photo(COLOURS["RED"]))
    with pytest.raises(UserError, match=r"some.zip/A.JPG and some.zip/a.jpg would both be"):
        main(["predict", "some.zip", "--annotate", "out"])


def test_a_folder_that_cannot_be_read_is_not_passed_over_in_silence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "Green":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        UserError, match=r"^photos/Green: cannot be read \(Permission denied\); fix the permissions or remove it$"
    ):
        main(["predict", "photos"])


@pytest.mark.parametrize("name", ["../../evil.jpg", "a/../../evil.jpg", "/abs/x.png", "C:\\y.jpg"])
def test_a_member_whose_path_could_leave_its_folder_is_refused(folder: Path, name: str) -> None:
    with zipfile.ZipFile("some.zip", "w") as archive:
        archive.writestr(name, photo(COLOURS["RED"]))
    with pytest.raises(UserError, match=r"^some\.zip: .* has an unsafe path; create the archive again$"):
        main(["predict", "some.zip", "--annotate", "out"])
    assert not Path("out").exists()


def test_nothing_is_written_outside_the_folder_whatever_the_path_of_a_photograph(folder: Path) -> None:
    Path("below").mkdir()
    os.chdir("below")
    main(
        [
            "predict",
            "../photos/Red/0.jpg",
            str(folder / "photos/Red/1.jpg"),
            "--annotate",
            "out",
            "--model",
            "../models/model.onnx",
        ]
    )
    made = {file.relative_to(folder / "below/out").as_posix() for file in Path(folder, "below").rglob("*.jpg")}
    assert made == {"photos/Red/0.jpg", f"{folder.as_posix()[1:]}/photos/Red/1.jpg"}


def packed(path: Path, kind: str) -> Path:
    """The photographs of a folder in an archive of this kind, without a suffix."""
    files = [(file.relative_to(path).as_posix(), file.read_bytes()) for file in sorted(path.rglob("*")) if file.is_file()]
    return write_tar(Path("packed"), dict(files), kind[4:]) if kind[:3] == "tar" else write_zip(Path("packed"), dict(files))


@pytest.mark.parametrize("kind", ["zip", "tar:", "tar:gz", "tar:bz2", "tar:xz"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_any_archive_gives_the_same_as_its_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], make_jpeg: Callable[..., bytes], kind: str, threads: str
) -> None:
    for number in range(2 * BATCH):
        Path(f"photos/Red/more {number}").write_bytes(make_jpeg(number, 20, 24))
    main(["predict", "photos", "--format", "jsonl"])
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    packed(Path("photos"), kind)
    main(["predict", "packed", "--format", "jsonl", "--threads", threads])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["image"] for entry in found] == [entry["image"].replace("photos", "packed", 1) for entry in expected]
    assert [entry["answers"] for entry in found] == [entry["answers"] for entry in expected]
    assert [entry["truth"] for entry in found] == [entry["truth"] for entry in expected]


@pytest.mark.parametrize(
    ("files", "said", "status"),
    [
        ({"notes.txt": b"words"}, "1 text file", 0),
        (
            {"a.heic": b"\0\0\0\x18ftypheic", "x/b.CR2": b"II*\0\0\0\0\0CR\2\0"},
            "1 HEIC (install fieldguide[heic]), 1 RAW (.CR2; export as JPEG)",
            3,
        ),
        (
            {"a.mp4": b"\0\0\0\x18ftypmp42", "b.mp4": b"\0\0\0\x18ftypmp42", "c.jxl": b"\xff\x0a"},
            "1 JPEG XL (convert to JPEG), 2 videos",
            3,
        ),
    ],
)
def test_what_is_not_read_is_counted_on_the_last_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
    said: str,
    status: int,
) -> None:
    monkeypatch.setattr("fieldguide.core.formats.has_heif", lambda: False)
    write_folder(Path("photos"), files)
    ended = None
    try:
        main(["predict", "photos", "--format", "csv"])
    except SystemExit as error:
        ended = error.code
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"left out: {said}"
    assert len(rows(printed.out)) == 6
    assert (ended or 0) == status
    with pytest.raises(UserError, match=rf"^only: contains {re.escape(said)}, but no photograph that is read"):
        main(["predict", str(write_folder(Path("only"), files))])


def test_a_file_that_may_be_a_photograph_and_cannot_be_read_is_a_failure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = write_zip(Path("some.zip"), {"a.jpg": photo(COLOURS["RED"]), "nosuffix": photo(COLOURS["BLUE"])})
    content = packed.read_bytes()
    place = content.index(b"PK\3\4", 4)  # the header of the second
    packed.write_bytes(content[:place] + b"XXXX" + content[place + 4 :])
    with pytest.raises(SystemExit) as ended:
        main(["predict", "some.zip", "--format", "csv"])
    assert ended.value.code == SOME_FAILED
    printed = capsys.readouterr()
    assert printed.err == "left out: 1 unreadable file\n"
    assert [row["answer_1"] for row in rows(printed.out)] == ["RED"]


@pytest.mark.parametrize(
    ("place", "truth"),
    [
        ("Genus/RED/x.jpg", "RED"),
        ("Pieris/red admiral/x.jpg", ""),
        ("RED/summer/x.jpg", "RED"),
        ("sky/BLUE/GREEN/x.jpg", "GREEN"),
    ],
)
def test_the_innermost_folder_that_is_named_after_a_class_tells_the_truth(
    folder: Path, capsys: pytest.CaptureFixture[str], place: str, truth: str
) -> None:
    write_folder(Path("nested"), {place: photo(COLOURS["RED"])})
    main(["predict", "nested", "--format", "csv"])
    assert rows(capsys.readouterr().out)[0]["truth"] == truth


def test_a_heat_map_that_the_network_cannot_give_is_refused(folder: Path) -> None:
    save(folder / "models", mean_colour_network({**METADATA, "model": "vit"}, activation=False))
    with pytest.raises(UserError, match=r"models/model.onnx: vit has no activation maps; remove --heatmap"):
        main(["predict", "photos", "--annotate", "out", "--heatmap"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["predict", "photos", "--model", "no.onnx"],
            "no.onnx: No such file or directory; create it with: dvc repro export_onnx",
        ),
        (["predict", "models"], "models: contains 1 other file, but no photograph that is read (JPEG, "),
        (["predict", "photos/broken.zip"], "photos/broken.zip is not a valid zip or tar (File is not a zip file)"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "photos" / "broken.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("arguments", [[], ["predict"], ["predict", "x", "--top", "0"], ["predict", "x", "--heatmap"], ["fly"]])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: fieldguide" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photographs(folder: Path, make_jpeg: Callable[..., bytes]) -> None:
    """Peak memory of a process that names many large photographs against one that names few."""
    content = make_jpeg(1, 1200, 900)
    script = (
        "import sys; from fieldguide.__main__ import main; from fieldguide.benchmark.footprint import peak_bytes\n"
        "main(sys.argv[1:]); print(peak_bytes(), file=sys.stderr)"
    )
    peaks = []
    for n_photos in (2 * BATCH, 20 * BATCH):
        with zipfile.ZipFile("large.zip", "w") as archive:
            for number in range(n_photos):
                archive.writestr(f"{number}.jpg", content)
        command = [sys.executable, "-c", script, "predict", "large.zip", "--format", "csv", "--threads", "2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert len(ended.stdout.splitlines()) == n_photos + 1
        peaks.append(int(ended.stderr.split()[-1]))
    assert peaks[1] < peaks[0] + 30_000_000, peaks


def test_a_reader_that_has_seen_enough_ends_it_quietly(folder: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m fieldguide predict photos photos photos --format jsonl | head -1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert len(ended.stdout.splitlines()) == 1
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr


def test_a_photograph_above_the_limit_is_named_with_the_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "large.jpg").write_bytes(photo(COLOURS["BLUE"], 1200, 1000))
    with pytest.raises(SystemExit) as ended:
        main(["predict", "large.jpg", "photos/Red/0.jpg", "--max-megapixels", "1", "--format", "csv"])
    assert ended.value.code == SOME_FAILED
    printed = capsys.readouterr()
    assert printed.err.startswith("large.jpg: 1200x1000 pixels, more than 1 million; raise --max-megapixels\n")
    assert [row["answer_1"] for row in rows(printed.out)] == ["", "RED"]
    main(["predict", "large.jpg", "--max-megapixels", "2", "--format", "csv"])
    assert rows(capsys.readouterr().out)[0]["answer_1"] == "BLUE"


def test_an_unsure_photograph_is_told_as_its_genus_in_every_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "models", mean_colour_network(with_taxonomy(genus=0.5)))
    (folder / "yellow.jpg").write_bytes(photo(YELLOW))
    sources = ["yellow.jpg", "photos/Red/0.jpg"]
    main(["predict", *sources, "--format", "json"])
    yellow, red = json.loads(capsys.readouterr().out)
    assert (yellow["verdict"], yellow["taxon"]["rank"], yellow["taxon"]["name"]) == ("unsure", "genus", "Vanessa")
    assert yellow["taxon"]["probability"] == pytest.approx(sum(one["probability"] for one in yellow["answers"][:2]), abs=1e-5)
    assert red["taxon"] is None
    first = {key: red["answers"][0][key] for key in ("name", "common_name", "scientific_name")}
    assert first == {"name": "RED", "common_name": "Red admiral", "scientific_name": "Vanessa atalanta"}
    assert red["answers"][1]["scientific_name"] is None
    main(["predict", *sources, "--format", "csv"])
    row, other = rows(capsys.readouterr().out)
    assert (row["rank"], row["taxon"], float(row["taxon_probability"])) == ("genus", "Vanessa", yellow["taxon"]["probability"])
    assert (other["rank"], other["taxon"], other["scientific_name_1"]) == ("", "", "Vanessa atalanta")
    main(["predict", *sources, "--annotate", "told"])
    table = capsys.readouterr().out
    assert re.search(r"yellow.jpg +unsure +9\d\.\d%  some Vanessa \(genus\)\n +\d+\.\d%  ", table)
    assert re.search(r"Red/0.jpg +sure +\d+\.\d%  RED  Vanessa atalanta\n", table)
    assert (folder / "told" / "yellow.jpg").exists()
