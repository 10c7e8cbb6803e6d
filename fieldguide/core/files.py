"""Files written whole or not at all, and their hashes: the only place that writes what others read."""

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
UNSEALED = "sha256:" + 64 * "0"  # what stands in a file's own text until `sealed`
SEAL = re.compile(rb"sha256:[0-9a-f]{64}")


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`; leaving the block without an error flushes it and puts it in the target's place.

    After an error the temporary file is gone and the target is as it was. Raises `UserError` when the disk refuses.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp gives 0600, which others in a team's shared cache could not read
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"{target}: could not be written ({error.strerror or error}); free space or permit it") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    """`target` with exactly `content`, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: Path, content: Any) -> None:
    """`target` as indented UTF-8 JSON with a final newline, keys in the order given; NaN is refused."""
    write_bytes(target, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(source: Path) -> Any:
    """The parsed JSON of `source`; raises `UserError` when it is missing or damaged."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; run the stage that makes it (dvc repro)") from error
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON ({error}); make it again (dvc repro -f)") from error


def check_free_space(folder: Path, n_bytes: int) -> None:
    """Raises `UserError` when the disk under `folder` has less than `n_bytes` left."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise UserError(f"{folder}: {n_bytes / 1e9:.3f} GB are needed, {free / 1e9:.3f} GB are free; free some space")


def file_hash(source: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content, read in chunks (md5 is DVC's own)."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sealed(content: bytes) -> bytes:
    """`content`, which holds `UNSEALED`, with the SHA-256 of the whole in its place: any byte that changes later is found."""
    return content.replace(UNSEALED.encode(), b"sha256:" + hashlib.sha256(content).hexdigest().encode(), 1)


def is_whole(content: bytes) -> bool:
    """Whether `content` is as `sealed` left it."""
    return SEAL.search(content) is not None and sealed(SEAL.sub(UNSEALED.encode(), content, count=1)) == content


def is_damaged(content: bytes) -> bool:
    """Whether `content` was sealed, and has changed since."""
    return SEAL.search(content) is not None and not is_whole(content)
