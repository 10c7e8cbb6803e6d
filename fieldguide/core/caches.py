"""Caches below `.fieldguide`: files named by all on which their content depends, of which the oldest are removed."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fieldguide.core.imports import import_closure

ROOT = Path(__file__).resolve().parents[2]  # resolved, as the library may be a symlink


def cache_key(facts: Iterable[object], module: Path, libraries: Sequence[str]) -> str:
    """A hash of facts (bytes as they are), of a module with all that it imports of the project, and of versions."""
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(b"\n" + (fact if isinstance(fact, bytes) else repr(fact).encode()))
    for file in sorted(import_closure(module.resolve(), ROOT)):
        digest.update(f"\n{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    for library in libraries:
        with suppress(PackageNotFoundError):
            digest.update(f"\n{library} {version(library)}".encode())
    return digest.hexdigest()[:32]


def remove_oldest(folder: Path, pattern: str, max_bytes: float) -> None:
    """Removes the least recently used files until the rest take at most `max_bytes`; the last used stays."""
    with suppress(OSError):
        files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime)
        sizes = [file.stat().st_size for file in files]
        while len(files) > 1 and sum(sizes) > max_bytes:
            files.pop(0).unlink(missing_ok=True)
            sizes.pop(0)
