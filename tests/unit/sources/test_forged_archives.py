"""Five hundred forged archives: each is read or refused in one line, and every file in it is used or named."""

import io
import random
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from fieldguide.core.errors import UserError
from fieldguide.sources.archive import open_archive
from fieldguide.sources.members import READ_ERRORS, Bound, open_members

BOUND = 10_000_000
N_FORGED, N_FAST = 500, 60
LIMIT_S = 10.0
ODD_NAMES = [
    *(
        "train/A/{n}.jpg",
        "train/B/{n}",
        "val/Ä ö/{n}.JPG",
        "test/蝴蝶/{n}.png",
        "{n}.jpg",
        "train\\A\\{n}.jfif",
        "./train/C/{n}.jpg",
    ),
    *("notes {n}.txt", ".DS_Store{n}", "@eaDir/{n}.jpg", "__MACOSX/._{n}.jpg", "a/" * 60 + "{n}.jpg", "n" * 200 + "{n}.gif"),
    *("train/A \x1b{n}.txt", "movie{n}.mp4", "x/{n}.CR2", "train/A/{n}.jpg/", "table{n}.csv", "con/{n}.jpg", "train/A/{n}.zip"),
]
UNSAFE_NAMES = ["../{n}.jpg", "/etc/{n}", "a//{n}.jpg", "C:\\{n}.jpg", "train/A\n/{n}.jpg", ".", "", "train/A/.."]
CONTENTS = [
    *(b"\xff\xd8\xff\xe0" + bytes(200), b"\x89PNG\r\n\x1a\n" + bytes(50), b"RIFF\0\0\0\0WEBPVP8 ", b"words\n" * 40, b""),
    *(b"\0\0\0\x18ftypmp42" + bytes(90), b"II*\0\0\0\0\0CR\2\0", b"PK\3\4 not a zip", bytes(3000), b"\x1f\x8b broken"),
]
Files = list[tuple[str, bytes]]


def files_of(rng: random.Random) -> Files:
    names = [*ODD_NAMES, *([rng.choice(UNSAFE_NAMES)] if rng.random() < 0.1 else [])]
    return [(rng.choice(names).format(n=n), rng.choice(CONTENTS)) for n in range(rng.randrange(1, 12))]


def zipped(files: Files, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice([0, 8, 8, 12, 14])) as archive:
        for name, content in files:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is
            info.compress_type = archive.compression
            if rng.random() < 0.03:
                info.create_system, info.external_attr = 3, 0o120777 << 16  # a link
            archive.writestr(info, content)
    return stream.getvalue()


def tarred(files: Files, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    options = {"format": rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])}
    with tarfile.open(fileobj=stream, mode=rng.choice(["w:", "w:", "w:gz", "w:bz2", "w:xz"]), **options) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            kind = rng.random()
            if kind < 0.06:
                info.type = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
                info.size, info.linkname = 0, "/etc/passwd"
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # too long for this format
                archive.addfile(tarfile.TarInfo(f"short{rng.random()}"))
    return stream.getvalue()


def nested(files: Files, rng: random.Random) -> bytes:
    inner = [(f"part{n}.{rng.choice(['zip', 'tar', 'tgz'])}", rng.choice([zipped, tarred])(files, rng)) for n in range(2)]
    return rng.choice([zipped, tarred])([*inner, ("readme", b"words")], rng)


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def oversized(content: bytes, rng: random.Random) -> bytes:
    """With a huge declared size somewhere: of a zip's member (32 bits), or of a tar's (base 256, also negative)."""
    changed = bytearray(content)
    if (place := changed.find(b"PK\1\2")) >= 0:
        struct.pack_into("<I", changed, place + 24, rng.choice([0xFFFFFFFE, 0x7FFFFFFF, 0xFFFFFFFF, 0]))
    elif content[257:262] == b"ustar":
        changed[124:136] = rng.choice(
            [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 11 + b"\0", b"\xff" * 10 + b"\xfe\0"]
        )
        changed[148:156] = b" " * 8
        changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def joined(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice([content, bytes(2000), b"rubbish" * 100, b"\0"])


FAULTS: list[Callable[[bytes, random.Random], bytes]] = [flipped, flipped, truncated, oversized, joined]


def forged(number: int) -> tuple[bytes, bool]:
    """An archive, and whether it is as its tool wrote it."""
    rng = random.Random(number)
    content = rng.choice([zipped, zipped, tarred, tarred, nested])(files_of(rng), rng)
    whole = rng.random() < 0.3
    return (content if whole else rng.choice(FAULTS)(content, rng)), whole


def contents(archive: bytes) -> Files:
    """All files in an archive, by another reading; bytes are left out where they are damaged."""
    if archive[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            infos = [info for info in opened.infolist() if not info.filename.endswith(("/", "\\")) or info.file_size]
            links = {info.filename for info in infos if stat.S_ISLNK(info.external_attr >> 16)}
            return [(info.filename, b"" if info.filename in links else readable(partial(opened.read, info))) for info in infos]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        infos = [info for info in tar.getmembers() if not info.isdir()]
        return [
            (info.name, readable(lambda info=info: tar.extractfile(info).read()) if info.isreg() else b"") for info in infos
        ]


def readable(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (*READ_ERRORS, RuntimeError):
        return b""


def n_files(archive: bytes) -> set[int]:
    """How many files an archive has, if the archives in it count as files, and if those in it count instead."""
    files = contents(archive)
    inside = [len(contents(content)) if name.startswith("part") and content else 1 for name, content in files]
    return {len(files), sum(inside)}


def outcome(path: Path) -> str:
    """`read` or `refused`; fails unless every file is used or named."""
    try:
        with ExitStack() as stack:
            members = open_members(path, "x", Bound(BOUND, "too much"), stack)
            assert len(members.selected) + len(members.left_out) + members.n_system in n_files(path.read_bytes())
            for member in members.selected:
                assert len(readable(member.read)) <= member.n_bytes
        with open_archive(path, BOUND) as archive:
            assert set(archive.names) == {member.name for member in members.selected}
            for name in archive.names:
                archive.read(name)
    except UserError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        return "refused"
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise AssertionError("read here, but not by another") from error
    return "read"


@pytest.mark.parametrize(
    "numbers", [range(N_FAST), pytest.param(range(N_FAST, N_FORGED), marks=pytest.mark.slow)], ids=["fast", "all"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_forged_archive_is_read_or_refused_and_nothing_is_lost(tmp_path: Path, numbers: range) -> None:
    outcomes = set()
    for number in numbers:
        content, whole = forged(number)
        path = tmp_path / "photos"
        path.write_bytes(content)
        began = time.monotonic()
        try:
            outcomes.add((outcome(path), whole))
        except Exception as error:
            raise AssertionError(f"forging {number}") from error
        assert time.monotonic() - began < LIMIT_S, number
    assert outcomes == {("read", True), ("refused", True), ("read", False), ("refused", False)}
