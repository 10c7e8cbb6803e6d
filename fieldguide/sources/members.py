"""The files of a folder, zip or tar, one by one, for `download` and `fieldguide predict` alike.

Nothing is unpacked to a path that an archive chooses: members are read where they lie, and a compressed tar or an archive
inside an archive is first unpacked to a temporary file without a name. Needs only the standard library.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

from fieldguide.core.errors import UserError
from fieldguide.core.files import CHUNK_BYTES
from fieldguide.core.formats import ARCHIVE, EMPTY, HEAD_BYTES, OTHER, Kind, claims_photograph, is_candidate, kind_of
from fieldguide.sources.layout import is_system, is_table

READ_ERRORS = (  # raised by zipfile, tarfile and the file system for damaged archives and files
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
ARCHIVE_NAME = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
NOT_READ = {  # first bytes of archives for which the standard library has no reader
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x1f\x9d": "a compressed file (.Z)",
    b"MSCF": "a cabinet file",
}
ZIP_STARTS = (b"PK", b"MZ", b"\x7fELF", b"#!")  # the others unpack themselves
ZIP_MARKER_BYTES = 4  # before the first file of an archive that was once in parts (APPNOTE 8.5.4)
METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 96: "JPEG", 97: "WavPack", 98: "PPMd"}  # APPNOTE 4.4.5
SUPPORTED = {
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
    getattr(zipfile, "ZIP_ZSTANDARD", 0),
}
MAX_NESTED = 3  # archives in archives
UTF8_FLAG = 0x800  # APPNOTE 4.4.4, bit 11
UNICODE_PATH = 0x7075  # APPNOTE 4.6.9, Info-ZIP's extra field
WESTERN = frozenset("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜáíóúñÑß")  # letters of the zip's own code page (437)
MOST_ACCENTED = 0.4  # share of such letters in names that have any; more is another code page. A guess
NO_LOCK = nullcontext()
UNREADABLE = Kind("unreadable file", remedy="fix its permissions, or download it again")
UNPACK = "unpack it and use the folder"
FRESH_NS = 2_000_000_000  # within which a file may be changed twice at the same time, as the file system has it


class NotReadable(OSError):
    """A member that is no ordinary file, or that is packed in a way that is not read; the text says what to do."""


@dataclass(frozen=True)
class Member:
    """A file of a source. `name` has forward slashes and is relative to the source; `n_bytes` is what is declared."""

    name: str
    n_bytes: int
    open: Callable[[], IO[bytes]]
    fault: str = ""  # why it cannot be read, and what to do
    is_garbled: bool = False  # its name is in an unknown code page
    lock: AbstractContextManager[object] = NO_LOCK
    path: Path | None = None  # of a file in a folder
    stamp: str = ""  # changes whenever the content does; "" if nothing is known that does

    def read(self, most: int | None = None) -> bytes:
        """Its bytes, or the first `most` of them, never more than declared; raises one of `READ_ERRORS`."""
        if self.fault:
            raise NotReadable(self.fault)
        with self.lock, self.open() as stream:
            return stream.read(self.n_bytes if most is None else min(most, self.n_bytes))


class LeftOut(NamedTuple):
    """A file that is not used: of another kind, or (with a `reason`) in a place where it has no meaning."""

    name: str
    kind: Kind
    remedy: str = ""
    reason: str = ""


@dataclass
class Members:
    """All files of a source: those that were asked for, those that are left out, and its folders."""

    selected: list[Member]
    left_out: list[LeftOut]
    folders: set[str]
    tables: list[Member] = field(default_factory=list)  # of `left_out`, those that have the name of a table
    n_system: int = 0  # hidden files and what systems leave behind


class Bound:
    """How much may be unpacked into temporary files below `folder`; `remedy` follows the message of an excess."""

    def __init__(self, n_bytes: int, remedy: str, folder: Path | None = None) -> None:
        self.n_bytes, self.remedy, self.folder, self.used = n_bytes, remedy, folder, 0

    def check(self, n_bytes: int, where: str) -> None:
        if n_bytes > self.n_bytes:
            raise UserError(f"{where}: {n_bytes / 1e9:.3g} GB to unpack, {self.remedy}")

    def unpack(self, stream: IO[bytes], where: str, stack: ExitStack) -> IO[bytes]:
        """The content of `stream` in a temporary file, which `stack` closes; raises `UserError` if it is too large."""
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=self.folder))  # noqa: SIM115
        except OSError as error:
            raise self._not_unpacked(where, error) from error
        while chunk := stream.read(CHUNK_BYTES):
            self.used += len(chunk)
            if self.used > self.n_bytes:
                raise UserError(f"{where}: more than {self.n_bytes / 1e9:.3g} GB to unpack, {self.remedy}")
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise self._not_unpacked(where, error) from error
        return file

    def _not_unpacked(self, where: str, error: OSError) -> UserError:
        folder = self.folder or tempfile.gettempdir()
        return UserError(f"{where}: cannot be unpacked ({error.strerror}); free disk space in {folder} or fix its permissions")


def open_members(
    source: Path | IO[bytes], where: str, bound: Bound, stack: ExitStack, wanted: Callable[[str], bool] | None = None
) -> Members:
    """The files of a folder or archive; `stack` closes what is opened.

    Selects photographs by their content (or, if it is damaged, by their suffix), or the names that `wanted` accepts. Archives
    inside are opened if nothing that is wanted lies beside them. Raises `UserError` for a source that cannot be read, for an
    unsafe path in an archive, and for a link without a target or in a loop.
    """
    try:
        is_folder = isinstance(source, Path) and source.is_dir()
    except OSError as error:  # a name that is too long, or below a closed folder
        raise UserError(f"{where} cannot be read ({error.strerror}); fix the path or the permissions") from error
    if isinstance(source, Path) and is_folder:
        listed, folders, n_system = _folder(source)
    else:
        listed, folders, n_system = _archive(source, where, bound, stack)
    members = Members([], [], folders, n_system=n_system)
    _select(listed, where, bound, stack, wanted, members, MAX_NESTED)
    members.selected.sort(key=lambda member: member.name)
    members.left_out.sort()
    _check_repeated(members.selected, where)
    return members


Listed = tuple[list[Member], set[str], int]  # files, folders, number of system files


def _select(
    listed: list[Member],
    where: str,
    bound: Bound,
    stack: ExitStack,
    wanted: Callable[[str], bool] | None,
    members: Members,
    n_nested: int,
) -> None:
    """Sorts the listed files into `members`."""
    kinds = [_kind(member, wanted) for member in listed]
    nested = n_nested > 0 and not any(kind is None or kind.is_photograph for kind in kinds)
    for member, kind in zip(listed, kinds, strict=True):
        if kind is None:
            members.selected.append(member)
        elif nested and not member.fault and kind in (ARCHIVE, OTHER, EMPTY, UNREADABLE) and ARCHIVE_NAME.search(member.name):
            place = f"{where}: {printable(member.name)}"
            inner, folders, n_system = _archive(member.path or _unpacked(member, place, bound, stack), place, bound, stack)
            prefix = ARCHIVE_NAME.sub("", member.name)
            members.folders |= {prefix, *(f"{prefix}/{folder}" for folder in folders)}
            members.n_system += n_system
            renamed = [replace(each, name=f"{prefix}/{each.name}") for each in inner]
            _select(renamed, place, bound, stack, wanted, members, n_nested - 1)
        else:
            remedy = member.fault or kind.remedy or ("unpack it, if it has photographs" if kind == ARCHIVE else "")
            members.left_out.append(LeftOut(member.name, kind, remedy))
            members.tables += [member] if is_table(member.name) else []


def _unpacked(member: Member, where: str, bound: Bound, stack: ExitStack) -> IO[bytes]:
    try:
        with member.lock, member.open() as stream:
            return bound.unpack(stream, where, stack)
    except READ_ERRORS as error:
        raise UserError(f"{where} is damaged ({error}); download the archive again") from error


def _kind(member: Member, wanted: Callable[[str], bool] | None) -> Kind | None:
    """None for a file that is selected, otherwise its kind."""
    if wanted and wanted(member.name):
        return None
    try:
        head = member.read(HEAD_BYTES)
    except READ_ERRORS:
        return None if not wanted and claims_photograph(member.name) else OTHER if member.fault else UNREADABLE
    return None if not wanted and is_candidate(head, member.name) else kind_of(head, member.name)


def _check_repeated(members: Iterable[Member], where: str) -> None:
    """Raises `UserError` for a name that occurs twice."""
    counts = Counter(member.name for member in members)
    for name, n in counts.items():
        if n > 1:
            raise UserError(f"{where}: {printable(name)} occurs twice; create the archive again")


def is_writable(name: str) -> bool:
    """Whether a name is valid Unicode without control characters; joiners and wide spaces are allowed."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def printable(name: str) -> str:
    """A name with escapes for what `is_writable` refuses."""
    return "".join(letter if is_writable(letter) else ascii(letter)[1:-1] for letter in name)


# --- folders ---


def _folder(root: Path) -> Listed:
    """All files below a folder, through links."""
    members: list[Member] = []
    folders: set[str] = set()
    n_system = 0
    waiting: list[tuple[Path, str, tuple[str, ...]]] = [(root, "", ())]  # folder, its name, real paths of links on the way
    while waiting:
        folder, prefix, left_from = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)  # folders are taken from the end
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); fix the permissions or remove it") from error
        for entry in entries:
            name, path = prefix + entry.name, Path(entry.path)
            if is_system(entry.name):
                n_system += 1
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if not entry.is_symlink():
                    raise UserError(f"{path}: cannot be read ({error.strerror}); fix the permissions or remove it") from error
                raise UserError(
                    f"{path}: is a link to {os.readlink(path)}, which cannot be read ({error.strerror}); remove the link"
                ) from error
            if stat.S_ISDIR(status.st_mode):
                folders.add(name)
                way = left_from
                if entry.is_symlink():
                    way, target = (*left_from, os.path.realpath(folder)), os.path.realpath(path)
                    if any(place == target or place.startswith(os.path.join(target, "")) for place in way):
                        raise UserError(f"{path}: is a link to {target}, a folder that contains it; remove the link")
                waiting.append((path, f"{name}/", way))
            else:
                fault = "" if stat.S_ISREG(status.st_mode) else "is not an ordinary file; remove it"
                stamp = _stamp(status.st_mtime_ns, status.st_ino)
                members.append(Member(name, status.st_size, partial(_open, path), fault, path=path, stamp=stamp))
    return members, folders, n_system


def _stamp(mtime_ns: int, inode: int) -> str:
    """The stamp of a file in a folder; "" if it was changed just now, and may change again without another time."""
    return f"{mtime_ns} {inode}" if mtime_ns < time.time_ns() - FRESH_NS else ""


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


# --- archives ---


def is_archive(head: bytes) -> bool:
    """Whether the first bytes are those of an archive or a compressed file, readable here or not."""
    return kind_of(head) == ARCHIVE or head.startswith(tuple(NOT_READ))


def _archive(source: Path | IO[bytes], where: str, bound: Bound, stack: ExitStack) -> Listed:
    try:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
    except FileNotFoundError as error:
        raise UserError(f"{where} does not exist; use a folder or an archive (zip, tar)") from error
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}); fix the permissions") from error
    head = _head(file)
    if name := next((name for magic, name in NOT_READ.items() if head.startswith(magic)), ""):
        raise UserError(f"{where} is {name}, which is not read; {UNPACK}")
    if opener := next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None):
        try:
            with opener(file) as stream:
                file = bound.unpack(stream, where, stack)
        except READ_ERRORS as error:
            raise UserError(f"{where} is damaged ({error}); download it again") from error
        head = _head(file)
        if not _is_tar(head):
            raise UserError(f"{where} is one compressed file, not a compressed tar; {UNPACK}")
    try:
        return _tar(file, where, stack) if _is_tar(head) else _zip(file, head, where, stack)
    except READ_ERRORS as error:
        kind = kind_of(head, getattr(file, "name", "") if isinstance(source, Path) else "")
        if kind.is_photograph:
            raise UserError(f"{where} is a photograph ({kind.name}); use a folder or an archive (zip, tar)") from error
        raise UserError(f"{where} is not a valid zip or tar ({error}); download it again or use a folder") from error


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head


def _is_tar(head: bytes) -> bool:
    """Whether the first header is that of a tar; the oldest have no signature."""
    if head.startswith(b"PK") or len(head) < tarfile.BLOCKSIZE:
        return False
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def safe_name(name: str, where: str) -> str:
    """The member's name with forward slashes; raises `UserError` for a name that could leave its folder."""
    posix = name.replace("\\", "/")
    parts = posix.rstrip("/").split("/")
    kept = [part for part in parts if part != "."]
    if posix.startswith("/") or ":" in parts[0] or any(part in ("", "..") for part in parts) or (name[-1:] != "/" and not kept):
        raise UserError(f"{where}: {name!r} has an unsafe path; create the archive again")
    return "/".join(kept)


def _zip(file: IO[bytes], head: bytes, where: str, stack: ExitStack) -> Listed:
    """Raises `zipfile.BadZipFile` also for what `zipfile` reads in part: a zip behind another one or behind other data."""
    if not head.startswith(ZIP_STARTS):
        raise zipfile.BadZipFile("File is not a zip file")
    archive = stack.enter_context(zipfile.ZipFile(file))
    infos = archive.infolist()
    if head.startswith(b"PK") and infos and min(info.header_offset for info in infos) > ZIP_MARKER_BYTES:
        raise zipfile.BadZipFile("two archives are joined")
    members: list[Member] = []
    folders: set[str] = set()
    n_system = 0
    for info, raw, is_garbled in _zip_names(infos):
        name = safe_name(raw, where)
        if raw.endswith(("/", "\\")) and not info.file_size:
            folders |= {name} - {""}
        elif is_system(name):
            n_system += 1
        else:
            read, crc = partial(archive.open, info), f"{info.CRC:08x}"
            members.append(Member(name, info.file_size, read, _zip_fault(info), is_garbled, stamp=crc))
    return members, folders, n_system


def _zip_fault(info: zipfile.ZipInfo) -> str:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link, which is not supported; pack the file itself"
    if info.flag_bits & 1:
        return "is encrypted; use an archive without a password"
    if info.compress_type not in SUPPORTED:
        method = METHODS.get(info.compress_type, f"method {info.compress_type}")
        return f"is compressed with {method}, which is not read; unpack the archive and use the folder"
    return ""


def _zip_names(infos: list[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, str, bool]]:
    """Each entry with its name and whether that is garbled.

    A name without the flag for UTF-8 is in code page 437 by the specification; most tools write UTF-8 or the system's code
    page instead. If all such names are valid UTF-8, they are read so; otherwise they must look like Western words.
    """
    raw = {id(info): name for info in infos if (name := _raw_name(info)) and not name.isascii()}
    try:
        decoded = {key: name.decode() for key, name in raw.items()}
    except UnicodeDecodeError:
        decoded = {}
    foreign = not decoded and not _is_western([info.filename for info in infos if id(info) in raw])
    for info in infos:
        own = _unicode_path(info)
        yield info, own or decoded.get(id(info), info.filename), foreign and id(info) in raw and own is None


def _raw_name(info: zipfile.ZipInfo) -> bytes | None:
    """The bytes of a name that is not marked as UTF-8, or None."""
    if info.flag_bits & UTF8_FLAG:
        return None
    return info.orig_filename.partition("\0")[0].encode("cp437", "replace")


def _unicode_path(info: zipfile.ZipInfo) -> str | None:
    """The name in the extra field of Info-ZIP, if it belongs to the entry's own name."""
    extra, raw = info.extra, _raw_name(info)
    while raw is not None and len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == UNICODE_PATH and len(field) > 5 and struct.unpack_from("<I", field, 1)[0] == zlib.crc32(raw):
            return field[5:].decode("utf-8", "replace")
    return None


def _is_western(names: list[str]) -> bool:
    """Whether names read in code page 437 look like words of Western languages."""
    words = {part for name in names for part in re.split(r"[/\\]", name) if not part.isascii()}
    letters = "".join(words)
    accented = [letter for letter in letters if not letter.isascii()]
    return set(accented) <= WESTERN and len(accented) <= MOST_ACCENTED * len(letters)


def _tar(file: IO[bytes], where: str, stack: ExitStack) -> Listed:
    """Raises `tarfile.ReadError` also for what `tarfile` takes for the end: a damaged header, and data after the end."""
    archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))  # noqa: SIM115
    lock = Lock()  # its members share one position in the file
    members: list[Member] = []
    folders: set[str] = set()
    n_system, last = 0, -1
    while info := archive.next():
        archive.members = []  # type: ignore[attr-defined]  # kept by tarfile only to find the targets of links
        if info.offset <= last or info.size < 0:
            raise tarfile.ReadError("sizes are damaged")
        last = info.offset
        name = safe_name(f"{info.name}/" if info.isdir() else info.name, where)
        if info.isdir():
            folders |= {name} - {""}
        elif is_system(name):
            n_system += 1
        else:
            members.append(Member(name, info.size, partial(_tar_stream, archive, info), _tar_fault(info), lock=lock))
    file.seek(archive.offset)
    rest = file.read(CHUNK_BYTES)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {archive.offset}, or joined to another archive")
    return members, folders, n_system


def _tar_stream(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    return archive.extractfile(info) or io.BytesIO()


def _tar_fault(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link, which is not supported; pack the file itself"
    return "" if info.isreg() else "is not an ordinary file; pack it without"
