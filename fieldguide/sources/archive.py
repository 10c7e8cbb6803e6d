"""Photographs from a user's folder or archive, and the uncompressed zip in which raw data are stored.

An uncompressed zip opens in any file manager, is one file for DVC instead of many, and each image in it has an offset for the
manifest.
"""

import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fieldguide.core.errors import UserError
from fieldguide.core.files import atomic_path
from fieldguide.core.formats import counted, readable
from fieldguide.sources.layout import wrapper_of
from fieldguide.sources.members import READ_ERRORS, Bound, LeftOut, Member, is_writable, open_members

EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first date, so that a zip does not depend on the clock
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # zip specification (APPNOTE 4.3.7)


@dataclass(frozen=True)
class Archive:
    """The selected files of a folder or archive: photographs by their whole path, shards without the wrapping folder."""

    where: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    tables: tuple[str, ...]  # of `left_out`; `read` reads them too
    n_system: int
    n_bytes: int
    garbled: frozenset[str]  # names in an unknown code page
    members: Mapping[str, Member]
    read: Callable[[str], bytes]


@contextmanager
def open_archive(
    path: Path, max_bytes: int, keep: Callable[[str], bool] | None = None, scratch: Path | None = None
) -> Iterator[Archive]:
    """The photographs of `path`, or the files whose names `keep` accepts; `scratch` is for temporary files.

    Raises `UserError` if `path` is missing, neither a folder nor a zip or tar, unsafe, or larger than `max_bytes`, and if
    nothing is selected.
    """
    bound = Bound(max_bytes, f"more than data.max_gigabytes ({max_bytes / 1e9:g}); increase it", scratch)
    where = f"data.path: {path}"
    with ExitStack() as stack:
        members = open_members(path, where, bound, stack, keep)
        if not members.selected:
            kinds = counted(file.kind for file in members.left_out)
            found = f"contains {kinds}, but no" if kinds else "contains no"
            if keep is None:
                raise UserError(f"{where}: {found} photograph that is read ({readable()}); use another folder or archive")
            raise UserError(f"{where}: {found} TFRecord shard, or none of data.resolution; change data.path or data.resolution")
        n_bytes = sum(member.n_bytes for member in members.selected)
        bound.check(n_bytes, where)
        for member in members.selected:
            if not is_writable(member.name):
                raise UserError(f"{where}: the name {member.name!r} has control characters or is not UTF-8; rename it")
            if member.fault:
                raise UserError(f"{where}: {member.name} {member.fault}")
        by_name = {member.name: member for member in members.selected}
        left_out = list(members.left_out)
        tables = {member.name: member for member in members.tables}
        if keep is not None and all("/" in name for name in by_name):  # otherwise shards or class names are beside a folder
            wrapper = wrapper_of(by_name)
            by_name = {str(PurePosixPath(name).relative_to(wrapper)): member for name, member in by_name.items()}
        yield Archive(
            where=str(path),
            names=tuple(by_name),
            folders=tuple(sorted(members.folders)),
            left_out=tuple(left_out),
            tables=tuple(sorted(tables)),
            n_system=members.n_system,
            n_bytes=n_bytes,
            garbled=frozenset(name for name, member in by_name.items() if member.is_garbled),
            members=by_name,
            read=lambda name: _read(by_name.get(name) or tables[name], path),
        )


def _read(member: Member, path: Path) -> bytes:
    try:
        return member.read()
    except READ_ERRORS as error:
        if path.is_dir() and isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"{path / member.name}: cannot be read ({reason}); fix the permissions or remove it") from error
        raise UserError(f"data.path: {path}: {member.name} is damaged ({error}); download the archive again") from error


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
    except READ_ERRORS as error:
        raise UserError(f"{path}: not a valid zip ({error}); recreate it with: dvc repro -f download") from error
    with archive, path.open("rb") as stream:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            stream.seek(info.header_offset)
            header = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
            yield info.filename, info.header_offset + LOCAL_HEADER.size + header[9] + header[10], info.file_size
