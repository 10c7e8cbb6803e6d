"""Atomic writes and hashes of files."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldguide.core.errors import UserError

CHUNK_BYTES = 1 << 20
UNSEALED = "sha256:" + 64 * "0"  # placeholder for the hash that `seal` fills in
SEAL = re.compile(rb"sha256:[0-9a-f]{64}")


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, which replaces `target` when the block ends without an error.

    After an error the temporary file is removed and the target is unchanged. Raises `UserError` for an `OSError`.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:30]}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp creates 0600, which other users of a shared DVC cache could not read
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{target}: could not be written ({reason}); free disk space or fix the permissions") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: Path, content: Any) -> None:
    """Writes indented UTF-8 JSON with a final newline, keys in the order given; raises `ValueError` for NaN."""
    write_bytes(target, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(source: Path) -> Any:
    """The parsed JSON of `source`; raises `UserError` when it is missing or damaged."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; create it with: dvc repro") from error
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON ({error}); recreate it with: dvc repro -f") from error


def text_of(source: Path) -> str:
    """The text of a file that a person writes, UTF-8; empty if it is missing. Raises `UserError`, which names a bad line."""
    try:
        return source.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source}, line {line}: not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; restore the file or fix its permissions") from error


def check_free_space(folder: Path, n_bytes: int, use: str = "") -> None:
    """Raises `UserError`, which says for what `use`, if less than `n_bytes` are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise UserError(f"{folder}: {n_bytes / 1e9:.3f} GB are needed{use}, {free / 1e9:.3f} GB are free; free disk space")


def file_hash(source: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content (md5 is DVC's own)."""
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def seal(content: bytes) -> bytes:
    """`content` with its SHA-256 in the place of `UNSEALED`, so that any later change is detected."""
    return content.replace(UNSEALED.encode(), b"sha256:" + hashlib.sha256(content).hexdigest().encode(), 1)


def is_intact(content: bytes) -> bool:
    """Whether `content` is as `seal` returned it."""
    return SEAL.search(content) is not None and seal(SEAL.sub(UNSEALED.encode(), content, count=1)) == content


def is_damaged(content: bytes) -> bool:
    """Whether `content` has a seal that does not match."""
    return SEAL.search(content) is not None and not is_intact(content)
