"""Photographs from a user's zip or folder, and the uncompressed zip in which raw data are stored.

An uncompressed zip opens in any file manager, is one file for DVC instead of many, and each image in it has an offset for the
manifest. Members are read one by one: nothing is unpacked to a path that an archive chooses.
"""

import lzma
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fieldguide.core.errors import UserError
from fieldguide.core.files import atomic_path
from fieldguide.sources.layout import is_hidden, is_image, wrapper_of

ZIP_ERRORS = (  # raised by zipfile for damaged archives
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first date, so that a zip does not depend on the clock
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # zip specification (APPNOTE 4.3.7)


@dataclass(frozen=True)
class Archive:
    """The selected files of a zip or folder, with names relative to the wrapping folder."""

    where: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    n_ignored: int
    n_bytes: int
    read: Callable[[str], bytes]


@contextmanager
def open_archive(path: Path, max_bytes: int, keep: Callable[[str], bool] = is_image) -> Iterator[Archive]:
    """The files of `path` whose names `keep` accepts, by default the images.

    Raises `UserError` if `path` is missing, not a zip, unsafe, or larger than `max_bytes`.
    """
    try:
        archive = None if path.is_dir() else zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise UserError(f"data.path: {path} does not exist; use a zip or a folder") from error
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read ({error.strerror}); fix the permissions") from error
    except ZIP_ERRORS as error:
        raise UserError(f"data.path: {path} is not a valid zip ({error}); download it again or use a folder") from error
    with archive or nullcontext():
        members = _zip_members(archive, path, keep) if archive else _folder_members(path, keep)
        yield _source(path, members, max_bytes, keep)


Members = tuple[dict[str, int], set[str], Callable[[str], bytes]]  # bytes by name, folders, reader


def _zip_members(archive: zipfile.ZipFile, path: Path, keep: Callable[[str], bool]) -> Members:
    """All members; raises `UserError` for a fault of a selected member, and for any path outside the archive."""
    members: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in archive.infolist():
        name = _safe_name(info.filename, path)
        if info.is_dir():
            folders.add(name)
            continue
        if keep(name):
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{path}: member {name} is a link, which is not supported; pack the file itself")
            if info.flag_bits & 1:
                raise UserError(f"{path}: member {name} is encrypted; use an archive without a password")
            if name in members:
                raise UserError(f"{path}: member {name} occurs twice; create the archive again")
            if not _writable(name):
                raise UserError(f"{path}: the name of member {name!r} has control characters; rename it in a new archive")
        members[name] = info

    def read(name: str) -> bytes:
        try:
            with archive.open(members[name]) as stream:
                return stream.read(members[name].file_size)  # never more than declared
        except ZIP_ERRORS as error:
            raise UserError(f"{path}: member {name} is damaged ({error}); download the archive again") from error

    return {name: info.file_size for name, info in members.items()}, folders, read


def _folder_members(path: Path, keep: Callable[[str], bool]) -> Members:
    """All files; raises `UserError` for a link or an invalid name of a selected file, and for any link to a folder."""
    sizes: dict[str, int] = {}
    folders: set[str] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); fix the permissions or remove it")

    for parent, subfolders, files in os.walk(path, onerror=refuse):
        for entry in subfolders + [entry for entry in files if keep(entry)]:
            if os.path.islink(os.path.join(parent, entry)) and not is_hidden(PurePosixPath(entry)):
                raise UserError(f"{os.path.join(parent, entry)}: is a link, which is not supported; replace it by the files")
        folders.update(Path(parent, entry).relative_to(path).as_posix() for entry in subfolders if _writable(entry))
        for entry in files:
            file = Path(parent, entry)
            name = file.relative_to(path).as_posix()
            if keep(name) and not _writable(name):
                raise UserError(f"{str(file)!r}: the name has control characters; rename it")
            sizes[name] = file.lstat().st_size

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise UserError(f"{path / name}: cannot be read ({error.strerror}); fix the permissions or remove it") from error

    return sizes, folders, read


def _source(path: Path, members: Members, max_bytes: int, keep: Callable[[str], bool]) -> Archive:
    """The selected files without their wrapping folder; raises `UserError` if there are none or they are too large."""
    sizes, folders, read = members
    wanted = sorted(filter(keep, sizes))
    if not wanted:
        if keep is is_image:
            raise UserError(f"{path}: contains no image (jpg, png, webp, bmp, gif, tiff); change data.path")
        raise UserError(f"{path}: contains no TFRecord shard, or none of data.resolution; change data.path or data.resolution")
    n_bytes = sum(sizes[name] for name in wanted)
    if n_bytes > max_bytes:
        size, bound = f"{n_bytes / 1e9:.3g} GB", f"{max_bytes / 1e9:g}"
        raise UserError(f"{path}: {size} to unpack, more than data.max_gigabytes ({bound}); increase it")
    wrapper = wrapper_of(wanted)
    inner = {
        str(PurePosixPath(name).relative_to(wrapper)): name
        for name in wanted
        if PurePosixPath(name).is_relative_to(wrapper)  # ignores images beside the wrapping folder
    }
    inside = (PurePosixPath(name) for name in folders)
    return Archive(
        where=str(path),
        names=tuple(inner),
        folders=tuple(sorted(str(folder.relative_to(wrapper)) for folder in inside if folder.is_relative_to(wrapper))),
        n_ignored=len(sizes) - len(inner),
        n_bytes=n_bytes,
        read=lambda name: read(inner[name]),
    )


def _safe_name(name: str, path: Path) -> str:
    """The member's name with forward slashes; raises `UserError` for a name that could leave its folder."""
    posix = name.replace("\\", "/")
    parts = posix.rstrip("/").split("/")
    if posix.startswith("/") or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{path}: member {name!r} has an unsafe path; create the archive again")
    return "/".join(parts)


def _writable(name: str) -> bool:
    """Whether a name is valid Unicode without control characters; joiners and wide spaces are allowed."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def pack(members: Iterable[tuple[str, bytes]], target: Path) -> None:
    """Writes an uncompressed zip of (name, content), atomically and reproducibly."""
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16  # as on Unix, on every system
            archive.writestr(info, content)


def stored_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, length) of every member of a zip written by `pack`, in its order; `offset` is that of the content."""
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise UserError(f"{path}: not a valid zip ({error}); recreate it with: dvc repro -f download") from error
    with archive, path.open("rb") as stream:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            stream.seek(info.header_offset)
            header = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
            yield info.filename, info.header_offset + LOCAL_HEADER.size + header[9] + header[10], info.file_size
