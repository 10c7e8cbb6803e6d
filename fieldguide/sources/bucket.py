"""An archive or a folder in a bucket of S3 or Google Cloud Storage, copied through fsspec with this machine's credentials."""

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from fieldguide.core.addresses import scheme_of, without_secrets
from fieldguide.core.errors import UserError, needs_extra
from fieldguide.core.files import check_free_space, write_bytes, write_json
from fieldguide.core.formats import HEAD_BYTES
from fieldguide.sources import transfer
from fieldguide.sources.members import is_writable
from fieldguide.sources.transfer import check_archive, check_bound, file_name, install, is_complete, part_of, read_note, size_of

BLOCK_BYTES = 8 << 20  # a guess: read at once of a large object; a cut loses a batch of them
BATCH_BYTES, BATCH_FILES = 4 * BLOCK_BYTES, 64  # guesses: asked for at the same time, and held in memory
CONNECT_TIMEOUT_S = 20.0


class Entry(NamedTuple):
    """An object: its path in the bucket, its name below the folder, its size in bytes and its version."""

    path: str
    name: str
    n_bytes: int
    version: str

    def line(self) -> str:
        """What the journal says of a copied object."""
        return json.dumps([self.name, self.n_bytes, self.version]) + "\n"


class Bucket:
    """The objects of an address; a refusal or a fault of the network becomes a `UserError`."""

    def __init__(self, address: str) -> None:
        """Raises `UserError` for a package that is missing, for credentials in the address and for one without a bucket."""
        self.source = without_secrets(address)
        if "@" in address.partition("://")[2].partition("/")[0]:
            raise UserError(f"data.path: {self.source} was given a user or password; set the credentials as for AWS or gcloud")
        self.errors: tuple[type[Exception], ...] = (OSError, ValueError)
        with self.asking():
            self.files, more = {"s3": _s3, "gs": _google}[scheme_of(address)]()
            self.errors += more
            self.path = str(self.files._strip_protocol(address)).rstrip("/")
        if not self.path:
            raise UserError(f"data.path: {self.source} names no bucket; correct the address")

    @contextmanager
    def asking(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"data.path: {self.source}: not found; correct the address") from None
        except PermissionError:
            raise UserError(
                f"data.path: {self.source}: access is refused; correct the address or the credentials of this machine"
            ) from None
        except self.errors as error:  # their texts can hold an address with its signature
            raise UserError(
                f"data.path: {self.source}: {type(error).__name__}; check address, credentials and network, and run again"
                " (finished parts are kept)"
            ) from None

    def entry(self) -> Entry | None:
        """The object that the address names; None if it names a folder."""
        with self.asking():
            self.files.invalidate_cache()
            info = self.files.info(self.path)
        return None if info["type"] == "directory" else _entry(info, self.path, PurePosixPath(self.path).name)

    def entries(self) -> list[Entry]:
        """The objects below the address, by name; raises `UserError` for a name that is no path below a folder."""
        with self.asking():
            self.files.invalidate_cache()
            found = self.files.find(self.path, detail=True)
        below = len(self.path) + 1
        listed = [_entry(info, path, path[below:]) for path, info in sorted(found.items()) if info["type"] != "directory"]
        listed = [entry for entry in listed if entry.name and not entry.name.endswith("/")]  # markers of empty folders
        folders = {str(parent) for entry in listed for parent in PurePosixPath(entry.name).parents}
        for entry in listed:
            if not _is_safe(entry.name) or entry.name in folders:
                raise UserError(f"data.path: {self.source}: the name of {entry.name!r} is no file's in a folder; rename it")
        return listed

    def check_unchanged(self, entry: Entry) -> None:
        """Raises `UserError` if an object that was read in parts has another version by now."""
        with self.asking():
            info = self.files.info(entry.path)
        if _entry(info, entry.path, entry.name) != entry:
            raise self._changed(entry.name)

    def _changed(self, name: str) -> UserError:
        return UserError(f"data.path: {self.source}: {name} has changed while it was copied; run again")

    def read(self, wants: list[tuple[Entry, int, int]]) -> list[bytes]:
        """The bytes from a start to an end of each object, asked for at the same time."""
        with self.asking():
            paths, starts, ends = (
                [entry.path for entry, _, _ in wants],
                [want[1] for want in wants],
                [want[2] for want in wants],
            )
            contents = self.files.cat_ranges(paths, starts, ends, on_error="raise")
        for (entry, start, end), content in zip(wants, contents, strict=True):
            if len(content) != end - start:
                raise self._changed(entry.name)
        return contents


def _s3() -> tuple[Any, tuple[type[Exception], ...]]:
    """S3 and its errors; without credentials on this machine as a public visitor."""
    with needs_extra("data.path s3://", "team"):
        importlib.import_module("s3fs")
        from aiohttp import ClientError as HttpError
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.session import Session
    try:
        is_public = Session().get_credentials() is None
    except BotoCoreError as error:
        raise UserError(f"data.path s3://: {error}; correct the settings of AWS on this machine") from None
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": transfer.TIMEOUT_S}
    return _file_system("s3", anon=is_public, config_kwargs=timeouts), (BotoCoreError, ClientError, HttpError)


def _google() -> tuple[Any, tuple[type[Exception], ...]]:
    """Google Cloud Storage and its errors."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError("data.path gs:// needs gcsfs; install it with: pip install gcsfs")
    from aiohttp import ClientError as HttpError
    from google.auth.exceptions import GoogleAuthError

    return _file_system("gs"), (HttpError, GoogleAuthError, importlib.import_module("gcsfs.retry").HttpError)


def _file_system(scheme: str, **settings: Any) -> Any:
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **settings)


def copy_from_bucket(address: str, folder: Path, max_bytes: int) -> tuple[Path, str]:
    """The archive or folder at `address`, copied into `folder`, and its version; raises `UserError`."""
    bucket = Bucket(address)
    entry = bucket.entry()
    return _copy_folder(bucket, folder, max_bytes) if entry is None else _copy_archive(bucket, entry, folder, max_bytes)


def _copy_archive(bucket: Bucket, entry: Entry, folder: Path, max_bytes: int) -> tuple[Path, str]:
    """An archive, which is not copied again while its version stays."""
    target = folder / "archive" / file_name(entry.name)
    if not is_complete(target, entry.version):
        check_bound(entry.n_bytes, bucket.source, max_bytes)
        target.parent.mkdir(exist_ok=True)
        check_archive(bucket.read([(entry, 0, min(HEAD_BYTES, entry.n_bytes))])[0] if entry.n_bytes else b"", bucket.source)
        _copy_large(bucket, entry, part_of(target))
        install(part_of(target), target, entry.version, whole=True)
    return target, entry.version


def _copy_folder(bucket: Bucket, folder: Path, max_bytes: int) -> tuple[Path, str]:
    """A folder's files, of which those are copied again that have another size or version; its version is that of the list."""
    entries = bucket.entries()
    if not entries:
        raise UserError(f"data.path: {bucket.source} contains no file; correct the address")
    check_bound(sum(entry.n_bytes for entry in entries), bucket.source, max_bytes)
    place, journal = folder / "files", folder / "files.jsonl"
    noted = _read_journal(journal)
    there = {entry for entry in entries if entry.line() in noted and _has_size(place / entry.name, entry.n_bytes)}
    missing = [entry for entry in entries if entry not in there]
    _remove_others(place, {entry.name for entry in entries})
    check_free_space(folder, sum(entry.n_bytes for entry in missing))
    write_bytes(journal, "".join(entry.line() for entry in entries if entry in there).encode())
    progress = {"total": len(entries), "initial": len(there), "unit": "file"}
    with journal.open("a", encoding="ascii") as notes, tqdm(leave=False, disable=None, **progress) as bar:
        for batch in _batches(missing):
            _copy_batch(bucket, batch, place)
            notes.writelines(entry.line() for entry in batch)
            notes.flush()
            bar.update(len(batch))
    listed = "".join(entry.line() for entry in entries)
    return place, f"{len(entries)} files, sha256:{hashlib.sha256(listed.encode()).hexdigest()[:16]}"


def _copy_batch(bucket: Bucket, batch: list[Entry], place: Path) -> None:
    """Small files, or a single large one."""
    for entry in batch:
        (place / entry.name).parent.mkdir(parents=True, exist_ok=True)
    if batch[0].n_bytes > BLOCK_BYTES:
        part = part_of(place / batch[0].name)
        _copy_large(bucket, batch[0], part)
        part.replace(place / batch[0].name)
        Path(f"{part}.json").unlink()
        return
    full = [entry for entry in batch if entry.n_bytes]
    contents = bucket.read([(entry, 0, entry.n_bytes) for entry in full])
    for entry in batch:
        (place / entry.name).write_bytes(b"")
    for entry, content in zip(full, contents, strict=True):
        (place / entry.name).write_bytes(content)


def _copy_large(bucket: Bucket, entry: Entry, part: Path) -> None:
    """Completes `part`; bytes of an earlier try are kept if the note beside them names the same version."""
    note, stated = Path(f"{part}.json"), {"validator": entry.version, "bytes": entry.n_bytes}
    if read_note(note) != stated or size_of(part) > entry.n_bytes:
        part.unlink(missing_ok=True)
        write_json(note, stated)
    start = size_of(part)
    check_free_space(part.parent, entry.n_bytes - start)
    progress = {"total": entry.n_bytes, "initial": start, "unit": "B", "unit_scale": True}
    with part.open("ab") as out, tqdm(desc=part.stem, leave=False, disable=None, **progress) as bar:
        while start < entry.n_bytes:
            end = min(start + BATCH_BYTES, entry.n_bytes)
            starts = range(start, end, BLOCK_BYTES)
            for content in bucket.read([(entry, first, min(first + BLOCK_BYTES, end)) for first in starts]):
                out.write(content)
                bar.update(len(content))
            start = end
    bucket.check_unchanged(entry)


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Groups of small entries; a large one alone."""
    batch: list[Entry] = []
    for entry in entries:
        n_bytes = sum(other.n_bytes for other in batch) + entry.n_bytes
        if batch and (n_bytes > BATCH_BYTES or len(batch) == BATCH_FILES or entry.n_bytes > BLOCK_BYTES):
            yield batch
            batch = []
        batch.append(entry)
        if entry.n_bytes > BLOCK_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _entry(info: dict[str, Any], path: str, name: str) -> Entry:
    """An object from what fsspec knows of it: the version is the ETag, else the generation, else the date."""
    version = next((info[key] for key in ("ETag", "etag", "generation", "LastModified", "updated") if info.get(key)), "")
    return Entry(path, name, int(info["size"]), str(version).strip('"'))


def _is_safe(name: str) -> bool:
    """Whether a name stays below its folder and is free of control characters."""
    return is_writable(name) and not any(part in ("", ".", "..") for part in name.split("/"))


def _has_size(path: Path, n_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == n_bytes


def _read_journal(journal: Path) -> set[str]:
    """The lines of the files that were copied."""
    return set(journal.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)) if journal.is_file() else set()


def _remove_others(place: Path, names: set[str]) -> None:
    """Removes files that the bucket no longer has; parts of files that it has stay."""
    for path in sorted(place.rglob("*"), reverse=True):  # a folder after its content
        name = path.relative_to(place).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in names and re.sub(r"\.part(\.json)?$", "", name) not in names:
            path.unlink()
