"""Tars, compressed tars and archives in archives: read as zips are, with the same bounds and refusals."""

import io
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fieldguide.core.errors import UserError
from fieldguide.sources.archive import open_archive
from fieldguide.sources.members import Bound, Members, is_archive, open_members, safe_name
from support.archives import write_folder, write_tar, write_zip

BOUND = 10**9
JPEG = b"\xff\xd8\xff\xe0" + bytes(100)
LAYOUT = {f"{split}/{name}/1.jpg": JPEG + f"{split}{name}".encode() for split in ("train", "test") for name in ("A", "B")}
COMPRESSIONS = ["", "gz", "bz2", "xz"]


def read_all(path: Path, max_bytes: int = BOUND, scratch: Path | None = None) -> dict[str, bytes]:
    with open_archive(path, max_bytes, scratch=scratch) as source:
        return {name: source.read(name) for name in source.names}


def listed(path: Path) -> Members:
    with ExitStack() as stack:
        return open_members(path, path.name, Bound(BOUND, "too much"), stack)


def refusal(path: Path, max_bytes: int = BOUND) -> str:
    with pytest.raises(UserError) as caught:
        read_all(path, max_bytes)
    return str(caught.value).replace(f"{path.parent}/", "").removeprefix("data.path: ")


def bytes_of(write: Callable[[Path], Path], tmp_path: Path) -> bytes:
    return write(tmp_path / "inner").read_bytes()


# --- tars ---


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["photos.tar", "photos", "photos.zip"])
def test_a_tar_is_known_by_its_content_and_read(tmp_path: Path, compression: str, name: str) -> None:
    path = write_tar(tmp_path / name, LAYOUT | {"notes.txt": b"words"}, compression)
    assert is_archive(path.read_bytes()[:4096])
    assert read_all(path) == LAYOUT
    assert [(file.name, file.kind.name) for file in listed(path).left_out] == [("notes.txt", "text file")]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_folder_packed_from_within_has_the_same_names(tmp_path: Path, compression: str) -> None:
    folder = write_folder(tmp_path / "photos", LAYOUT | {"train/._1.jpg": b"x", "@eaDir/1.jpg": JPEG})
    with tarfile.open(tmp_path / "photos.tar", f"w:{compression}") as archive:
        archive.add(folder, ".")
    members = listed(tmp_path / "photos.tar")
    assert {member.name for member in members.selected} == set(LAYOUT)
    assert members.folders >= {"train", "train/A", "test"}
    assert members.n_system == 2


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_of_any_script_are_read(tmp_path: Path, form: int) -> None:
    long = "train/" + "/".join(["n" * 60] * 3) + "/1.jpg"
    with tarfile.open(tmp_path / "photos.tar", "w", format=form) as archive:
        for name in (long, "train/蝴蝶/1.jpg", "train/Ä ö/2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(JPEG)
            archive.addfile(info, io.BytesIO(JPEG))
    assert set(read_all(tmp_path / "photos.tar")) == {long, "train/蝴蝶/1.jpg", "train/Ä ö/2.jpg"}


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "train/../../evil.jpg", "C:\\evil.jpg", "..\\evil.jpg"])
@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_member_of_a_tar_whose_path_could_leave_its_folder_is_refused(tmp_path: Path, name: str, compression: str) -> None:
    path = write_tar(tmp_path / "photos.tar", LAYOUT | {name: JPEG}, compression)
    assert refusal(path) == f"photos.tar: {name!r} has an unsafe path; create the archive again"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "is a link, which is not supported; pack the file itself"),
        (tarfile.LNKTYPE, "is a link, which is not supported; pack the file itself"),
        (tarfile.CHRTYPE, "is not an ordinary file; pack it without"),
        (tarfile.FIFOTYPE, "is not an ordinary file; pack it without"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused_as_photographs_and_named_otherwise(
    tmp_path: Path, kind: bytes, said: str
) -> None:
    for name in ("train/A/2.jpg", "latest"):
        with tarfile.open(write_tar(tmp_path / "photos.tar", LAYOUT), "a") as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "train/A/1.jpg"
            archive.addfile(info)
        if name == "latest":
            assert [(file.name, file.remedy) for file in listed(tmp_path / "photos.tar").left_out] == [(name, said)]
        else:
            assert refusal(tmp_path / "photos.tar") == f"photos.tar: {name} {said}"


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_tar_is_refused(tmp_path: Path, compression: str, kept: float) -> None:
    path = write_tar(
        tmp_path / "photos.tar", {name: content + os.urandom(9000) for name, content in LAYOUT.items()}, compression
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert refusal(path).startswith("photos.tar is ")


@pytest.mark.parametrize("place", [512 * 2 + 5, 512 * 4 + 100, 512 * 6 + 150])
def test_a_tar_whose_later_header_is_damaged_is_not_read_in_part(tmp_path: Path, place: int) -> None:
    """`tarfile` takes such a header for the end."""
    path = write_tar(tmp_path / "photos.tar", LAYOUT)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert "photos.tar is not a valid zip or tar (damaged at byte " in refusal(path)


@pytest.mark.parametrize("more", [b"rubbish" * 100, None, JPEG * 30])
def test_what_follows_a_tar_is_not_passed_over(tmp_path: Path, more: bytes | None) -> None:
    path = write_tar(tmp_path / "photos.tar", LAYOUT)
    path.write_bytes(path.read_bytes() + (path.read_bytes() if more is None else more))
    assert "or joined to another archive)" in refusal(path)
    path = write_zip(tmp_path / "photos.zip", LAYOUT)
    path.write_bytes(path.read_bytes() * 2)
    assert "(two archives are joined)" in refusal(path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tar_is_bounded_before_it_fills_the_disk(tmp_path: Path, compression: str) -> None:
    path = write_tar(tmp_path / "photos.tar", {"train/A/1.jpg": bytes(3_000_000)}, compression)
    assert "GB to unpack, more than data.max_gigabytes (0.001); increase it" in refusal(path, 1_000_000)
    assert len(read_all(path, 4_000_000)["train/A/1.jpg"]) == 3_000_000


def test_a_compressed_tar_takes_little_memory_and_leaves_no_file(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "photos.tgz", {f"train/A/{n}.jpg": bytes(2 << 20) for n in range(20)}, "gz")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tracemalloc.start()
    try:
        with open_archive(path, BOUND, scratch=scratch) as source:
            assert [len(source.read(name)) for name in source.names] == [2 << 20] * 20
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert list(scratch.iterdir()) == []


# --- archives in archives ---


@pytest.mark.parametrize("outer", [write_zip, write_tar, write_folder])
@pytest.mark.parametrize("inner", [write_zip, write_tar])
def test_archives_of_splits_are_read_where_no_photograph_lies_beside_them(
    tmp_path: Path, outer: Callable[..., Path], inner: Callable[..., Path]
) -> None:
    suffix = "zip" if inner is write_zip else "tar"
    parts = {
        f"{split}.{suffix}": bytes_of(lambda path, split=split: inner(path, {f"{name}/1.jpg": JPEG for name in "AB"}), tmp_path)
        for split in ("train", "test")
    }
    path = outer(tmp_path / "competition", parts | {"sample.csv": b"id,label\n"})
    assert set(read_all(path)) == set(LAYOUT)
    assert [(file.name, file.kind.name) for file in listed(path).left_out] == [("sample.csv", "text file")]


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz", "tar.gz", "tar.bz2", "tar.xz"])
def test_the_folder_of_an_archive_inside_has_its_name_without_the_suffix(tmp_path: Path, suffix: str) -> None:
    compression = {"zip": "", "tar": "", "tgz": "gz"}.get(suffix, suffix.rpartition(".")[2])
    content = {"A/1.jpg": JPEG}
    write = write_zip if suffix == "zip" else lambda path, files: write_tar(path, files, compression)
    inner = bytes_of(lambda path: write(path, content), tmp_path)
    assert set(read_all(write_zip(tmp_path / "outer.zip", {f"x/my.photos.{suffix}": inner}))) == {"x/my.photos/A/1.jpg"}


def test_archives_inside_are_opened_three_deep_and_then_named(tmp_path: Path) -> None:
    content = write_zip(tmp_path / "0.zip", {"A/1.jpg": JPEG}).read_bytes()
    for depth in range(1, 6):
        path = write_zip(tmp_path / f"{depth}.zip", {"x.zip": content})
        content = path.read_bytes()
        members = listed(path)
        assert bool(members.selected) == (depth <= 3)
        assert [file.kind.name for file in members.left_out] == ([] if depth <= 3 else ["archive"])


def test_archives_inside_are_bounded_together(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"A/1.jpg": os.urandom(400_000)}).read_bytes()
    path = write_zip(tmp_path / "outer.zip", {f"{n}.zip": inner for n in range(4)})
    assert "more than 0.001 GB to unpack, more than data.max_gigabytes (0.001); increase it" in refusal(path, 1_000_000)


@pytest.mark.parametrize("content", [b"PK\3\4 broken", b"\x1f\x8b broken", b"Rar!\x1a\7\0" + bytes(99), b""])
def test_an_archive_inside_that_cannot_be_read_is_told(tmp_path: Path, content: bytes) -> None:
    path = write_zip(tmp_path / "outer.zip", {"train.zip": content})
    assert refusal(path).startswith("outer.zip: train.zip is ")


def test_a_document_that_is_a_zip_is_no_archive_of_photographs(tmp_path: Path) -> None:
    document = write_zip(tmp_path / "x", {"word/media/1.jpg": JPEG}).read_bytes()
    folder = write_folder(tmp_path / "photos", {"notes.docx": document})
    assert refusal(folder).startswith("photos: contains 1 archive, but no photograph that is read (")


# --- other archives, names ---


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
        (b"MSCF", "a cabinet file"),
    ],
)
def test_an_archive_that_is_not_read_is_called_by_its_name(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "photos.zip").write_bytes(content + bytes(2000))
    assert refusal(tmp_path / "photos.zip") == f"photos.zip is {name}, which is not read; unpack it and use the folder"


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_file_that_is_no_tar_is_refused(tmp_path: Path, compression: str) -> None:
    openers = {"gz": "gzip", "bz2": "bz2", "xz": "lzma"}
    with __import__(openers[compression]).open(tmp_path / "1.jpg.gz", "wb") as stream:
        stream.write(JPEG * 20)
    said = "1.jpg.gz is one compressed file, not a compressed tar; unpack it and use the folder"
    assert refusal(tmp_path / "1.jpg.gz") == said


@pytest.mark.parametrize("start", [b"MZ", b"\x7fELF", b"#!/bin/sh\n"])
def test_a_zip_that_unpacks_itself_is_read(tmp_path: Path, start: bytes) -> None:
    path = write_zip(tmp_path / "photos.exe", LAYOUT)
    path.write_bytes(start + bytes(1000) + path.read_bytes())
    assert read_all(path) == LAYOUT


@pytest.mark.parametrize(
    ("name", "expected"),
    [("./a/1.jpg", "a/1.jpg"), ("a\\b\\1.jpg", "a/b/1.jpg"), ("a/./1.jpg", "a/1.jpg"), ("./", ""), (".\\a/", "a"), ("a/", "a")],
)
def test_dots_and_backslashes_are_read_alike(name: str, expected: str) -> None:
    assert safe_name(name, "x") == expected


def test_a_folder_entry_with_content_is_not_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "photos.zip", LAYOUT), "a") as archive:
        archive.writestr("train/A/2.jpg/", JPEG)
    assert "train/A/2.jpg" in read_all(tmp_path / "photos.zip")


def test_photographs_are_chosen_by_content(tmp_path: Path) -> None:
    chosen = {"A/1.jfif": JPEG, "A/2.JPG": JPEG, "A/3": JPEG, "A/4.jpg": b"\x89PNG\r\n\x1a\n" + bytes(9), "A/5.txt": JPEG}
    damaged = {"A/6.jpg": b"", "A/7.png": b"words", "A/8.JPEG": bytes(50)}  # for the split check to report
    other = {"A/9.jpg": b"\xff\x0a" + bytes(9), "B/1.mp4": b"\0\0\0\x18ftypmp42", "B/2": b"words", "B/3.jpg.txt": b"words"}
    for path in (write_folder(tmp_path / "x", chosen | damaged | other), write_zip(tmp_path / "y", chosen | damaged | other)):
        assert read_all(path) == chosen | damaged
        named = {file.name: file.kind.name for file in listed(path).left_out}
        assert named == {"A/9.jpg": "JPEG XL", "B/1.mp4": "video", "B/2": "text file", "B/3.jpg.txt": "text file"}


def test_a_damaged_file_of_which_nothing_is_known_is_named_with_a_remedy(tmp_path: Path) -> None:
    content = bytearray(write_zip(tmp_path / "photos.zip", LAYOUT | {"train/A/2": JPEG * 50}).read_bytes())
    place = content.index(b"train/A/2") + len("train/A/2")
    content[place : place + 20] = b"\xff" * 20
    (tmp_path / "photos.zip").write_bytes(content)
    left_out = listed(tmp_path / "photos.zip").left_out
    assert [(file.name, file.kind.name, file.remedy) for file in left_out] == [
        ("train/A/2", "unreadable file", "fix its permissions, or download it again")
    ]
