"""Zips and folders from anywhere: what is safe is read exactly, what is not is refused in one line, nothing is half written."""

import os
import random
import re
import stat
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fieldguide.core.errors import UserError
from fieldguide.core.formats import readable
from fieldguide.sources.archive import open_archive, pack, stored_members
from support import ROOT
from support.archives import write_folder, write_zip

BOUND = 10**9
LAYOUT = {f"{split}/{name}/1.jpg": f"{split} {name}".encode() for split in ("train", "valid", "test") for name in ("A", "B")}
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"  # zip specification (APPNOTE 4.3.12, 4.3.7)
SCRIPTS = ["蝴蝶", "Бабочка", "פרפר", "ผีเสื้อ", "Ägäis", "🦋", "a'b\"c", "a,b", "# 1", "100 %"]


def read_all(path: Path, max_bytes: int = BOUND) -> dict[str, bytes]:
    with open_archive(path, max_bytes) as source:
        return {name: source.read(name) for name in source.names}


def patched(path: Path, signature: bytes, offset: int, form: str, value: int) -> Path:
    """A zip whose first record of a kind has another value in one field."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(signature) + offset, value)
    path.write_bytes(content)
    return path


def refusal(path: Path, max_bytes: int = BOUND) -> str:
    """What is said, with the folder left out, when a source is opened and read."""
    with pytest.raises(UserError) as caught:
        read_all(path, max_bytes)
    return str(caught.value).replace(f"{path.parent}/", "").removeprefix("data.path: ")


@pytest.fixture(params=["zip", "folder"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """`written(members)`: the same members once as a zip and once as a folder."""
    if request.param == "zip":
        return lambda members: write_zip(tmp_path / "photos.zip", members)
    return lambda members: write_folder(tmp_path / "my photos", members)


def test_zip_and_folder_give_the_same_names_and_bytes(written: Callable[[dict[str, bytes]], Path]) -> None:
    path = written(LAYOUT)
    with open_archive(path, BOUND) as source:
        assert source.names == tuple(sorted(LAYOUT))
        assert {name: source.read(name) for name in source.names} == LAYOUT
        assert source.n_bytes == sum(map(len, LAYOUT.values()))
        assert (source.left_out, source.n_system) == ((), 0)
        assert source.where == str(path)


def test_names_in_any_script_are_read(written: Callable[[dict[str, bytes]], Path]) -> None:
    members = {f"train/{script}/{number}.jpg": script.encode() for number, script in enumerate(SCRIPTS)}
    assert read_all(written(members)) == members


@pytest.mark.parametrize("name", ["پروانه\u200cها", "PAPER KITE ", "क्\u200dष", "全\u3000角"])
def test_names_with_joiners_and_wide_spaces_are_read(written: Callable[[dict[str, bytes]], Path], name: str) -> None:
    members = {f"train/{name}/1.jpg": b"1", "valid/A/1.jpg": b"2"}
    assert read_all(written(members)) == members


def test_strays_are_named_and_what_systems_leave_is_counted(written: Callable[[dict[str, bytes]], Path]) -> None:
    strays = dict.fromkeys(
        (
            "readme.txt",
            "moths.csv",
            ".DS_Store",
            "train/A/._1.jpg",
            "__MACOSX/train/A/._1.jpg",
            "train/A/notes",
            "train/A/Thumbs.db",
        ),
        b"x" * 1000,
    )
    with open_archive(written(LAYOUT | strays), BOUND) as source:
        assert set(source.names) == set(LAYOUT)
        assert [(file.name, file.kind.name) for file in source.left_out] == [
            (name, "text file") for name in ("moths.csv", "readme.txt", "train/A/notes")
        ]
        assert source.n_system == 4
        assert source.n_bytes == sum(map(len, LAYOUT.values()))


def test_a_zip_beside_photographs_is_named_and_not_opened(written: Callable[[dict[str, bytes]], Path], tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner", {"train/C/1.jpg": b"inner"}).read_bytes()
    with open_archive(written(LAYOUT | {"train/A/more.zip": inner}), BOUND) as source:
        assert set(source.names) == set(LAYOUT)
        assert [(file.name, file.kind.name, file.remedy) for file in source.left_out] == [
            ("train/A/more.zip", "archive", "unpack it, if it has photographs")
        ]


def test_empty_folders_are_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT)
    (folder / "train" / "EMPTY").mkdir()
    expected = {"train", "valid", "test", "train/EMPTY"} | {name.rpartition("/")[0] for name in LAYOUT}
    with open_archive(folder, BOUND) as source:
        assert set(source.folders) == expected
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("train/", "train/EMPTY/", "test\\"):
            archive.writestr(name, b"")
        for name, content in LAYOUT.items():
            archive.writestr(name, content)
    with open_archive(tmp_path / "photos.zip", BOUND) as source:
        assert set(source.folders) == {"train", "train/EMPTY", "test"}


def test_nothing_but_strays_is_refused(written: Callable[[dict[str, bytes]], Path]) -> None:
    path = written({"readme.txt": b"x"})
    said = f"{path.name}: contains 1 text file, but no photograph that is read ({readable()}); use another folder or archive"
    assert refusal(path) == said


def test_the_size_bound_counts_images_and_is_inclusive(written: Callable[[dict[str, bytes]], Path]) -> None:
    path = written({"train/A/1.jpg": bytes(700_000), "train/A/2.jpg": bytes(300_000), "movie.mp4": bytes(10_000)})
    assert len(read_all(path, 1_000_000)) == 2
    said = r"GB to unpack, more than data\.max_gigabytes \(0\.000999999\); increase it"
    assert re.search(said, refusal(path, 999_999))


def test_a_bomb_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "photos.zip", {"train/A/1.jpg": bytes(100)})
    patched(path, CENTRAL, 24, "<I", 3_000_000_000)  # uncompressed size
    assert refusal(path, 2 * BOUND) == ("photos.zip: 3 GB to unpack, more than data.max_gigabytes (2); increase it")


def test_a_bomb_that_claims_little_takes_little_memory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "photos.zip", {"train/A/1.jpg": bytes(64 << 20)})
    patched(path, CENTRAL, 24, "<I", 1000)
    patched(path, LOCAL, 22, "<I", 1000)
    tracemalloc.start()
    try:
        said = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said.startswith("photos.zip: train/A/1.jpg is damaged (Bad CRC-32")
    assert peak < 16 << 20


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "train/../../evil.jpg",
        "train/A/..",
        "/etc/evil.jpg",
        "//server/evil.jpg",
        "\\evil.jpg",
        "..\\evil.jpg",
        "train\\..\\..\\evil.jpg",
        "C:/evil.jpg",
        "C:\\evil.jpg",
        "c:evil.jpg",
        "train//evil.jpg",
        ".",
    ],
)
def test_a_member_whose_path_could_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "photos.zip", LAYOUT | {name: b"x"})
    assert refusal(path) == f"photos.zip: {name!r} has an unsafe path; create the archive again"


@pytest.mark.parametrize("folder", ["A\n", "A\x1b[31m"])
def test_control_characters_stop_only_in_the_name_of_an_image(tmp_path: Path, folder: str) -> None:
    stray = write_zip(tmp_path / "stray.zip", LAYOUT | {f"train/{folder}/Icon\r": b"x"})
    assert read_all(stray) == LAYOUT
    name = f"train/{folder}/evil.jpg"
    said = f"photos.zip: the name {name!r} has control characters or is not UTF-8; rename it"
    assert refusal(write_zip(tmp_path / "photos.zip", LAYOUT | {name: b"x"})) == said


def test_backslashes_of_windows_are_folders(tmp_path: Path) -> None:
    members = {name.replace("/", "\\"): content for name, content in LAYOUT.items()}
    assert read_all(write_zip(tmp_path / "photos.zip", members)) == LAYOUT


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "photos.zip", LAYOUT)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/A/passwd.jpg")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, b"/etc/passwd")
    assert refusal(path) == "photos.zip: train/A/passwd.jpg is a link, which is not supported; pack the file itself"


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "photos.zip", {"train/A/1.jpg": b"1"})
    patched(path, CENTRAL, 8, "<H", 1)  # general purpose flag, bit 0
    patched(path, LOCAL, 6, "<H", 1)
    assert refusal(path) == "photos.zip: train/A/1.jpg is encrypted; use an archive without a password"


@pytest.mark.parametrize("again", ["train/A/1.jpg", "train\\A\\1.jpg"])
@pytest.mark.filterwarnings("ignore:Duplicate name")  # what zipfile says while the test makes such an archive
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path, again: str) -> None:
    path = write_zip(tmp_path / "photos.zip", LAYOUT)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(again, b"other")
    assert refusal(path) == "photos.zip: train/A/1.jpg occurs twice; create the archive again"


@pytest.mark.parametrize(
    ("content", "why"), [(b"", "File is not a zip file"), (b"hello, no zip at all", "File is not a zip file")]
)
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "photos.zip").write_bytes(content)
    assert refusal(tmp_path / "photos.zip") == (
        f"photos.zip is not a valid zip or tar ({why}); download it again or use a folder"
    )


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_zip_is_refused(tmp_path: Path, kept: float) -> None:
    path = write_zip(tmp_path / "photos.zip", LAYOUT)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert refusal(path).startswith("photos.zip is not a valid zip or tar (")


@pytest.mark.parametrize(
    "method",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=["stored", "deflate", "bzip2", "lzma"],
)
def test_a_damaged_member_is_named_and_the_others_are_read(tmp_path: Path, method: int) -> None:
    content = random.Random(1).randbytes(2000)
    path = write_zip(tmp_path / "photos.zip", {"train/A/1.jpg": content, "train/B/1.jpg": content}, method)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"train/A/1.jpg") + 60 : damaged.index(b"train/A/1.jpg") + 100] = bytes(40)
    path.write_bytes(damaged)
    with open_archive(path, BOUND) as source:
        assert source.read("train/B/1.jpg") == content
        with pytest.raises(UserError, match=r"photos\.zip: train/A/1\.jpg is damaged \(.+\); download the archive again$"):
            source.read("train/A/1.jpg")


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (95, "XZ"), (98, "PPMd"), (77, "method 77")])
def test_a_compression_that_python_lacks_is_named(tmp_path: Path, method: int, name: str) -> None:
    def compressed(path: Path) -> Path:
        return patched(patched(path, CENTRAL, 10, "<H", method), LOCAL, 8, "<H", method)

    said = f"is compressed with {name}, which is not read; unpack the archive and use the folder"
    path = compressed(write_zip(tmp_path / "photos.zip", {"train/A/1.jpg": b"1"}))
    assert refusal(path) == f"photos.zip: train/A/1.jpg {said}"
    with open_archive(compressed(write_zip(path, {"movie.mp4": b"1", "train/A/1.jpg": b"1"})), BOUND) as source:
        assert source.names == ("train/A/1.jpg",)
        assert [(file.name, file.remedy) for file in source.left_out] == [("movie.mp4", said)]


def test_a_zip_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = patched(write_zip(tmp_path / "photos.zip", LAYOUT), CENTRAL, 6, "<H", 200)  # version needed to extract
    assert refusal(path).startswith("photos.zip is not a valid zip or tar (zip file version 20.0")


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "photos.zip", {"train/Ä/1.jpg": b"1"})
    path.write_bytes(path.read_bytes().replace("Ä".encode(), b"\xc3("))
    assert "photos.zip" in refusal(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_changed_bytes_is_read_or_refused_in_one_way(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "photos.zip", {f"{split}/Ä/1.jpg": bytes(range(200)) for split in ("train", "test")}, method)
    whole, rng, outcomes = path.read_bytes(), random.Random(method), set()
    for _ in range(100):
        changed = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 4])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed[: rng.choice([len(changed), len(changed), rng.randrange(len(changed))])])
        try:
            read_all(path)
            outcomes.add("read")
        except UserError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_missing_path_is_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "photos.zip") == "photos.zip does not exist; use a folder or an archive (zip, tar)"


def test_a_name_too_long_for_the_system_is_one_line(tmp_path: Path) -> None:
    assert "File name too long" in refusal(tmp_path / ("n" * 5000))


def test_a_file_name_with_a_line_break_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT | {"train/Photo\r/1.jpg": b"x"})
    assert re.search(r"^photos: the name 'train/Photo\\r/1.jpg' has control characters.*; rename it$", refusal(folder))


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT)
    write_folder(tmp_path, {"outside.jpg": b"one", "outside/1.jpg": b"two", "outside/deep/2.jpg": b"three"})
    (folder / "train" / "A" / "2.jpg").symlink_to(tmp_path / "outside.jpg")
    (folder / "train" / "C").symlink_to("../../outside")
    (folder / "train" / "D").symlink_to(folder / "train" / "C")
    linked = {"train/A/2.jpg": b"one"}
    linked |= {f"train/{name}/{file}": text for name in "CD" for file, text in (("1.jpg", b"two"), ("deep/2.jpg", b"three"))}
    assert read_all(folder) == LAYOUT | linked
    (tmp_path / "link").symlink_to(folder)
    assert read_all(tmp_path / "link") == LAYOUT | linked


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("missing.jpg", "photos/train/A/2: is a link to missing.jpg, which cannot be read (No such file or directory)"),
        ("2", "photos/train/A/2: is a link to 2, which cannot be read (Too many levels of symbolic links)"),
        ("..", "photos/train/A/2: is a link to ROOT/photos/train, a folder that contains it"),
        ("../..", "photos/train/A/2: is a link to ROOT/photos, a folder that contains it"),
        ("../../../aside", "photos/train/A/2/back: is a link to ROOT/photos/train, a folder that contains it"),
    ],
)
def test_a_link_that_leads_nowhere_or_back_is_one_line(tmp_path: Path, target: str, said: str) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT)
    (folder / "train" / "A" / "2").symlink_to(target)
    (write_folder(tmp_path / "aside", {"1.jpg": b"1"}) / "back").symlink_to(folder / "train")
    with pytest.raises(UserError) as caught:
        read_all(folder)
    assert str(caught.value) == f"{tmp_path}/{said.replace('ROOT', str(tmp_path))}; remove the link"


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT)
    os.mkfifo(folder / "queue")
    with open_archive(folder, BOUND) as source:
        assert [(file.name, file.remedy) for file in source.left_out] == [("queue", "is not an ordinary file; remove it")]
    os.mkfifo(folder / "train" / "A" / "2.jpg")
    assert refusal(folder) == "photos: train/A/2.jpg is not an ordinary file; remove it"


def test_a_file_name_that_is_no_utf_8_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT)
    try:
        (folder / "train" / "A" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(UserError, match="photos"), open_archive(folder, BOUND) as source:
        pack(((name, source.read(name)) for name in source.names), tmp_path / "images.zip")
    assert not (tmp_path / "images.zip").exists()


@pytest.mark.parametrize("closed", ["train/A", "train/A/1.jpg", "."])
def test_what_may_not_be_read_is_named(tmp_path: Path, closed: str) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT)
    (folder / closed).chmod(0)
    code = (
        "import pathlib; from fieldguide.core.errors import UserError; from fieldguide.sources.archive import open_archive\n"
        "try:\n"
        "    with open_archive(pathlib.Path('photos'), 10**9) as source: [source.read(name) for name in source.names]\n"
        "except UserError as error: print(error)"
    )
    try:
        done = as_nobody(tmp_path, [sys.executable, "-c", code])
    finally:
        (folder / closed).chmod(0o755)
    assert done.stderr == ""
    where = "photos" if closed == "." else f"photos/{closed}"
    assert done.stdout == f"{where}: cannot be read (Permission denied); fix the permissions or remove it\n"


def test_a_folder_behind_a_closed_one_is_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "closed" / "photos", LAYOUT)
    (tmp_path / "closed").chmod(0)
    code = (
        "import pathlib; from fieldguide.core.errors import UserError; from fieldguide.sources.archive import open_archive\n"
        "try:\n"
        "    with open_archive(pathlib.Path('closed/photos'), 10**9): pass\n"
        "except UserError as error: print(error)"
    )
    try:
        done = as_nobody(tmp_path, [sys.executable, "-c", code])
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert done.stderr == ""
    assert done.stdout.startswith("data.path: closed/photos cannot be read (Permission denied)")


def as_nobody(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder as a user to whom permissions apply; skips where root cannot become one."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        for place in (folder, *folder.parents):  # pytest's own folders are closed to others
            if place != Path(tempfile.gettempdir()) and place.is_relative_to(tempfile.gettempdir()):
                place.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # that user may not write where coverage is kept
    try:
        able = subprocess.run([*prefix, sys.executable, "-c", "import fieldguide"], cwd=folder, env=environment, check=False)
    except FileNotFoundError:
        pytest.skip("root can read everything, and the command setpriv is missing")
    if able.returncode:
        pytest.skip("another user cannot run this Python")
    return subprocess.run([*prefix, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_packing_gives_an_ordinary_zip_of_the_same_bytes_whenever_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(LAYOUT.items(), tmp_path / "a.zip")
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("sys.platform", "win32")
    pack(LAYOUT.items(), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert {info.filename: archive.read(info) for info in archive.infolist()} == LAYOUT
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {stat.S_IMODE(info.external_attr >> 16) for info in archive.infolist()} == {0o644}


def test_packing_keeps_the_order_that_it_is_given(tmp_path: Path) -> None:
    names = ["b.jpg", "a.jpg", "c/a.jpg"]
    pack(((name, b"") for name in names), tmp_path / "a.zip")
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == names


def test_offsets_give_the_exact_bytes_of_every_member(tmp_path: Path) -> None:
    rng = random.Random(1)
    members = {f"train/{SCRIPTS[n % len(SCRIPTS)]}/{n}.jpg": rng.randbytes(n % 7 * 50) for n in range(1200)}
    pack(members.items(), tmp_path / "images.zip")
    content = (tmp_path / "images.zip").read_bytes()
    stored = list(stored_members(tmp_path / "images.zip"))
    assert [name for name, _, _ in stored] == list(members)
    assert {name: content[offset : offset + length] for name, offset, length in stored} == members


def test_offsets_hold_where_a_header_has_extra_fields(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HHI", 0xCAFE, 4, 0)  # as members of more than 4 GB have
            archive.writestr(info, f"content of {name}")
    content = (tmp_path / "images.zip").read_bytes()
    found = [content[offset : offset + length] for _, offset, length in stored_members(tmp_path / "images.zip")]
    assert found == [b"content of a.jpg", b"content of b.jpg"]


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_a_packed_zip_that_is_missing_or_damaged_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"/images\.zip: .*dvc repro"):
        list(stored_members(tmp_path / "images.zip"))


def test_nothing_packed_is_an_empty_zip(tmp_path: Path) -> None:
    pack([], tmp_path / "images.zip")
    assert list(stored_members(tmp_path / "images.zip")) == []


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("damaged")])
def test_an_interrupted_pack_leaves_what_was_there(tmp_path: Path, old: bytes | None, error: BaseException) -> None:
    def members() -> Iterator[tuple[str, bytes]]:
        yield "a.jpg", b"a"
        raise error

    target = tmp_path / "images.zip"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(type(error)):
        pack(members(), target)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({"images.zip": old} if old else {})
