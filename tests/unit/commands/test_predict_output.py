"""What predict writes into files: Timelapse's format by its specification, sidecars, and output that is resumed."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from fieldguide.__main__ import main
from fieldguide.commands.predict import SOME_FAILED
from fieldguide.commands.predict_resume import output_file
from fieldguide.core.errors import UserError
from support import ROOT
from support.archives import write_zip
from support.mean_colour import METADATA, NAMES, TAXONOMY, YELLOW, mean_colour_network, save, with_taxonomy

DC, LR = "{http://purl.org/dc/elements/1.1/}", "{http://ns.adobe.com/lightroom/1.0/}"
LIST = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
COLOURS = {"red": (250, 60, 60), "yellow": YELLOW, "grey": (128, 128, 128), "dark": (20, 20, 20)}


def photo(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model that has a taxonomy, and four photographs: sure, of a genus, unsure, unknown."""
    (tmp_path / "models").mkdir()
    taxonomy = TAXONOMY | {"RED": TAXONOMY["RED"] | {"family": "Nymphalidae", "order": "Lepidoptera"}}
    save(tmp_path / "models", mean_colour_network(with_taxonomy(genus=0.9) | {"taxonomy": taxonomy}))
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(photo(colour))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_timelapse_gets_megadetectors_format_1_6(folder: Path) -> None:
    """The rules of the format's specification, and what is told of each photograph."""
    (folder / "photos" / "broken.jpg").write_bytes(photo((9, 9, 9))[:300])
    with pytest.raises(SystemExit) as ended:
        main(["predict", "photos", "--format", "timelapse", "--output", "found.json"])
    assert ended.value.code == SOME_FAILED
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert found["info"]["format_version"] == "1.6"
    categories = found["classification_categories"]
    assert all(key.isdecimal() and name.strip() for key, name in (categories | found["detection_categories"]).items())
    assert set(found["classification_category_descriptions"]) == set(categories)
    assert found["classification_category_descriptions"]["0"] == "lepidoptera;nymphalidae;vanessa;vanessa atalanta"
    images = {image["file"].removeprefix("photos/"): image for image in found["images"]}
    broken = images.pop("broken.jpg")
    assert broken["detections"] is None
    assert isinstance(broken["failure"], str)
    told = {}
    for name, image in images.items():
        (box,) = image["detections"]
        assert isinstance(box["conf"], float)
        assert box["bbox"] == [0.0, 0.0, 1.0, 1.0]
        shares = [share for _, share in box["classifications"]]
        assert shares == sorted(shares, reverse=True)
        told[name] = (found["detection_categories"][box["category"]], categories[box["classifications"][0][0]])
    assert told["red.jpg"] == ("animal", "Red admiral")
    assert told["yellow.jpg"] == ("animal", "some Vanessa")
    assert told["dark.jpg"][0] == "unknown"


def test_without_a_taxonomy_the_categories_are_the_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "models", mean_colour_network(METADATA))
    main(["predict", "photos/red.jpg", "--format", "timelapse"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["classification_categories"].values()) == [name.title() for name in NAMES]
    assert "classification_category_descriptions" not in found


def keywords(file: Path) -> tuple[list[str | None], list[str | None]]:
    tree = ElementTree.parse(file)
    flat, nested = (next(tree.iter(f"{DC}subject")), next(tree.iter(f"{LR}hierarchicalSubject")))
    return [item.text for item in flat.iter(LIST)], [item.text for item in nested.iter(LIST)]


def test_sidecars_have_what_is_certain_and_no_photograph_is_touched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (folder / "photos").iterdir()}
    main(["predict", "photos", "--xmp"])
    assert "XMP sidecars: 2 written, 2 photographs without a certain answer, 0 already there" in capsys.readouterr().err
    assert {file.name for file in (folder / "photos").glob("*.xmp")} == {"red.jpg.xmp", "yellow.jpg.xmp"}
    assert keywords(folder / "photos/red.jpg.xmp") == (
        ["Red admiral", "Vanessa atalanta"],
        ["Lepidoptera|Nymphalidae|Vanessa|Vanessa atalanta"],
    )
    assert keywords(folder / "photos/yellow.jpg.xmp") == (["Vanessa"], ["Lepidoptera|Nymphalidae|Vanessa"])
    assert {name: (Path("photos", name).read_bytes(), Path("photos", name).stat().st_mtime_ns) for name in before} == before


def test_a_sidecar_that_is_there_is_left_and_names_are_escaped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos/red.jpg.xmp").write_text("mine")
    names = ["A & <B>", *NAMES[1:]]
    save(folder / "models", mean_colour_network(METADATA | {"class_names": names}))
    (folder / "photos/second.jpg").write_bytes(photo(COLOURS["red"]))
    main(["predict", "photos/red.jpg", "photos/second.jpg", "--xmp"])
    assert "1 written, 0 photographs without a certain answer, 1 already there, left as they are" in capsys.readouterr().err
    assert (folder / "photos/red.jpg.xmp").read_text() == "mine"
    assert keywords(folder / "photos/second.jpg.xmp") == (["A & <b>"], ["A & <b>"])


def test_what_lies_in_an_archive_has_no_sidecar(folder: Path) -> None:
    write_zip(folder / "some.zip", {"a/1.jpg": photo(COLOURS["red"])})
    (folder / "with archive").mkdir()
    shutil.copy(folder / "some.zip", folder / "with archive")
    for source in ("some.zip", "with archive"):
        with pytest.raises(UserError, match=r"--xmp: .*some(\.zip)?/a/1\.jpg is not a file by itself; save it in a folder"):
            main(["predict", source, "--xmp"])
    assert not list(folder.rglob("*.xmp"))


def test_a_sidecar_that_cannot_be_written_is_a_line_and_the_others_are_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = f"{'x' * 250}.jpg"  # with .xmp too long for a name
    (folder / "photos" / long).write_bytes(photo(COLOURS["red"]))
    with pytest.raises(SystemExit) as ended:
        main(["predict", "photos", "--xmp", "--format", "csv", "--output", "found.csv"])
    assert ended.value.code == SOME_FAILED
    said = capsys.readouterr().err
    assert "File name too long" in said
    assert "2 written, 2 photographs without a certain answer, 0 already there, left as they are, 1 not written" in said
    assert len((folder / "found.csv").read_text().splitlines()) == 6


def test_the_tree_of_a_taxon_has_what_any_of_its_classes_tells(folder: Path) -> None:
    names = {"RED": {"genus": "Vanessa"}, "GREEN": {"genus": "Vanessa", "family": "Nymph|alidae", "order": "Lepidoptera"}}
    save(folder / "models", mean_colour_network(with_taxonomy(genus=0.5) | {"taxonomy": names}))
    main(["predict", "photos/yellow.jpg", "--xmp"])
    assert keywords(folder / "photos/yellow.jpg.xmp")[1] == ["Lepidoptera|Nymph/alidae|Vanessa"]


@pytest.mark.parametrize("arguments", [["photos", "--resume"], ["-", "--resume", "--output", "a.csv"]])
def test_options_that_do_not_go_together_are_refused(folder: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", *arguments])
    assert ended.value.code == 2


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "timelapse"])
def test_the_file_has_what_would_be_printed(folder: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "photos", "--format", form])
    printed = capsys.readouterr().out
    main(["predict", "photos", "--format", form, "--output", "new/found"])
    assert capsys.readouterr().out == ""
    assert (folder / "new/found").read_text(encoding="utf-8") == printed
    assert [file.name for file in (folder / "new").iterdir()] == ["found"]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, *arguments: str) -> None:
    """Ends the command as by Ctrl-C after that many photographs."""
    from fieldguide.commands import predict

    counted = predict.counted_outcomes

    def breaking(*given: Any) -> Any:
        for number, pair in enumerate(counted(*given)):
            if number == after:
                raise KeyboardInterrupt
            yield pair

    with monkeypatch.context() as patch:
        patch.setattr(predict, "counted_outcomes", breaking)
        with pytest.raises(KeyboardInterrupt):
            main(["predict", *arguments])


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "timelapse"])
@pytest.mark.parametrize("broken", ["", '[3, ["photos/gre'], ids=["whole", "broken off"])
def test_an_interrupted_run_resumes_to_the_same_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str, broken: str
) -> None:
    for name in ("a\nb.jpg", "a\rb.jpg", "a\u0085b.jpg", os.fsdecode(b"a\xffb.jpg"), 'a,"b.jpg'):
        (folder / "photos" / name).write_bytes(photo(COLOURS["red"]))
    (folder / "photos" / "RED").mkdir()
    (folder / "photos" / "RED" / "1.jpg").write_bytes(photo(COLOURS["red"]))
    arguments = ["photos", "photos", "--format", form, "--output", "found"]
    main(["predict", *arguments])
    expected, said = (folder / "found").read_bytes(), capsys.readouterr().err
    (folder / "found").write_text("older")
    interrupted(monkeypatch, 3, *arguments)
    assert (folder / "found").read_text() == "older"
    (partial,) = folder.glob(".found.*.partial")
    with partial.open("a") as stream:
        stream.write(broken)
    capsys.readouterr()
    main(["predict", *arguments, "--resume"])
    assert (folder / "found").read_bytes() == expected
    assert capsys.readouterr().err == "resuming after 4 of 20 photographs\n" + said
    assert not list(folder.glob(".found.*"))


@pytest.mark.parametrize("change", ["model", "top", "sources"])
def test_an_interrupted_run_is_not_resumed_with_anything_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    arguments = ["photos", "--format", "csv", "--output", "found.csv"]
    interrupted(monkeypatch, 2, *arguments)
    match change:
        case "model":
            save(folder / "models", mean_colour_network(with_taxonomy(genus=0.5)))
        case "top":
            arguments += ["--top", "2"]
        case "sources":
            arguments.insert(0, "photos/red.jpg")
    capsys.readouterr()
    main(["predict", *arguments, "--resume"])
    assert "resuming" not in capsys.readouterr().err
    rows = list(csv.DictReader(io.StringIO((folder / "found.csv").read_text())))
    assert len(rows) == 4 + (change == "sources")
    assert not list(folder.glob(".found.csv.*"))  # neither of them


def test_a_photograph_that_has_changed_or_could_not_be_read_is_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos" / "a.jpg").write_bytes(photo(COLOURS["red"])[:300])
    arguments = ["photos", "--format", "jsonl", "--output", "found"]
    interrupted(monkeypatch, 4, *arguments)  # a, dark, grey, red
    (folder / "photos" / "a.jpg").write_bytes(photo(COLOURS["red"]))
    (folder / "photos" / "dark.jpg").write_bytes(photo(COLOURS["yellow"]))
    (folder / "photos" / "red.jpg").unlink()
    capsys.readouterr()
    main(["predict", *arguments, "--resume"])
    assert "resuming after 1 of 4 photographs" in capsys.readouterr().err
    found = [json.loads(line) for line in (folder / "found").read_text().splitlines()]
    told = {one["image"]: (one["verdict"], one["taxon"] and one["taxon"]["name"]) for one in found}
    assert told == {
        "photos/a.jpg": ("sure", None),
        "photos/dark.jpg": ("unsure", "Vanessa"),
        "photos/grey.jpg": ("unsure", None),
        "photos/yellow.jpg": ("unsure", "Vanessa"),
    }


def test_the_same_names_in_another_folder_are_other_photographs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "photos", folder / "other")
    output, model = str(folder / "found"), str(folder / "models" / "model.onnx")
    arguments = [".", "--format", "csv", "--output", output, "--model", model]
    monkeypatch.chdir(folder / "photos")
    interrupted(monkeypatch, 2, *arguments)
    monkeypatch.chdir(folder / "other")
    capsys.readouterr()
    main(["predict", *arguments, "--resume"])
    assert "resuming" not in capsys.readouterr().err


def test_two_runs_do_not_write_the_same_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with the same options is refused; what one with others has done is left alone while it runs, and removed later."""
    target = folder / "found"
    with output_file(target, ("one",), [], False):
        with pytest.raises(UserError, match="another run is writing it"), output_file(target, ("one",), [], True):
            pass
        with output_file(target, ("two",), [], False) as (stream, _):
            stream.write("two")
        assert target.read_text() == "two"
        assert len(list(folder.glob(".found.*"))) >= 1
    (folder / ".found.csv.0123456789ab.partial").write_text("")  # of another file
    with output_file(target, ("three",), [], False):
        pass
    assert [file.name for file in folder.glob(".found*")] == [".found.csv.0123456789ab.partial"]


def test_a_run_that_was_killed_resumes(folder: Path) -> None:
    """By SIGKILL, at a moment when some lines are written."""
    for number in range(400):
        (folder / "photos" / f"{number:03d}.jpg").write_bytes(photo(COLOURS["red"]))
    command = [sys.executable, "-m", "fieldguide", "predict", "photos", "--format", "jsonl", "--output", "found.jsonl"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    slow = "import time; from fieldguide.onnx import classifier as c; f = c.OnnxClassifier.predict_pixels;"
    slow += "c.OnnxClassifier.predict_pixels = lambda *a, **k: (time.sleep(0.05), f(*a, **k))[1];"
    slow += f"from fieldguide.__main__ import main; main({command[3:]!r})"
    process = subprocess.Popen([sys.executable, "-c", slow], env=environment)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in folder.glob(".found.jsonl.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "found.jsonl").exists()
    ended = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr.startswith("resuming after "), shlex.join(command)
    lines = (folder / "found.jsonl").read_text().splitlines()
    names = [json.loads(line)["image"] for line in lines]
    assert len(names) == len(set(names)) == 404


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = pytest.raises(UserError, match=r"file/found.csv: .*; use another path for --output")
    with told, output_file(tmp_path / "file" / "found.csv", (), [], False):
        pass


@pytest.mark.parametrize("target", ["photos/red.jpg", "models/model.onnx", "link.jpg", "some.zip"])
def test_what_is_read_is_never_overwritten(folder: Path, target: str) -> None:
    (folder / "link.jpg").symlink_to("photos/red.jpg")
    write_zip(folder / "some.zip", {"a/1.jpg": photo(COLOURS["red"])})
    before = (folder / target).read_bytes()
    with pytest.raises(UserError, match=r"--output .*: would be overwritten, and is read; use another path"):
        main(["predict", "photos", "some.zip", "--output", target])
    assert (folder / target).read_bytes() == before


def test_an_output_that_is_no_file_is_refused_at_once_and_a_link_is_followed(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for target, said in (("photos", "a folder; name a file"), (".", "a folder; name a file"), ("pipe", "a device or pipe")):
        with pytest.raises(UserError, match=said):
            main(["predict", "photos", "--output", target])
    (folder / "link.csv").symlink_to("real.csv")
    main(["predict", "photos", "--format", "csv", "--output", "link.csv"])
    assert (folder / "link.csv").is_symlink()
    assert (folder / "real.csv").read_text().startswith("image,")
