"""Photographs by the names that people write into tables: ids, base names, paths of other machines, other spellings."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import takewhile
from pathlib import PurePosixPath
from typing import NamedTuple

from fieldguide.core.formats import IMAGE_SUFFIXES
from fieldguide.sources.layout import is_split, is_unlabelled, split_in, wrapper_of

UNLABELLED_SPLIT = "unlabelled"


@cache
def _split_of_folder(folder: str) -> str:
    own = split_in(folder) if is_split(folder) else None
    return own[0] if own else UNLABELLED_SPLIT if is_unlabelled(folder) else ""


def folder_split(name: str) -> str:
    """The split in the folders of a photograph: `test` for `test_images/1.jpg`, `unlabelled`, or ""."""
    return next(filter(None, map(_split_of_folder, PurePosixPath(name).parts[:-1])), "")


def _clean(path: str) -> str:
    """A path with forward slashes in composed Unicode, without `./` and doubled slashes."""
    parts = unicodedata.normalize("NFC", path.strip()).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _stem(path: str) -> str:
    stem, _, suffix = path.rpartition(".")
    return stem if f".{suffix.lower()}" in IMAGE_SUFFIXES and stem else path


class Index(NamedTuple):
    """Photographs by their path, with and without the folders that all share, and the pairs (path, photograph) by base name."""

    whole: dict[str, list[str]]
    by_base: dict[str, list[tuple[str, str]]]


class Finder:
    """The photographs among `names` that texts of a table name; `folder` is the table's own."""

    def __init__(self, names: Iterable[str], folder: str = "") -> None:
        own = {name: _clean(name) for name in names}
        prefix = f"{_clean(folder)}/"
        inside = {name: path for name, path in own.items() if path.startswith(prefix)}
        self.paths = inside if folder and inside else own
        self.folder = _clean(folder)
        loose = any("/" not in path for path in self.paths.values())
        self.n_shared = 0 if loose else len(wrapper_of(self.paths.values()).parts)

    @cached_property
    def _exact(self) -> Index:
        return self._index(self.paths)

    @cached_property
    def _without_suffix(self) -> Index:
        return self._index({name: _stem(path) for name, path in self.paths.items()})

    @cached_property
    def _any_case(self) -> Index:
        return self._index({name: path.casefold() for name, path in self.paths.items()})

    @cached_property
    def _any_case_without_suffix(self) -> Index:
        return self._index({name: _stem(path).casefold() for name, path in self.paths.items()})

    def _index(self, paths: Mapping[str, str]) -> Index:
        index = Index({}, {})
        for name, path in paths.items():
            index.whole.setdefault(path, []).append(name)
            inner = path.split("/", self.n_shared)[-1]
            if inner != path:
                index.whole.setdefault(inner, []).append(name)
            index.by_base.setdefault(path.rpartition("/")[2], []).append((path, name))
        return index

    def find(self, text: str) -> list[str]:
        """The photographs that `text` may name: one if it is clear, none, or several.

        In this order: as written, without suffix, in another case, both. Each is relative to the table, to the data or a
        trailing part of a single path; a path of another machine counts by its longest trailing part that is a whole path here.
        """
        path = _clean(text)
        if not path:
            return []
        lowered = path.casefold()
        return (
            self._look_up(path, self.folder, "_exact")
            or self._look_up(path, self.folder, "_without_suffix")
            or self._look_up(lowered, self.folder.casefold(), "_any_case")
            or self._look_up(lowered, self.folder.casefold(), "_any_case_without_suffix")
        )

    def _look_up(self, path: str, folder: str, kind: str) -> list[str]:
        index: Index = getattr(self, kind)
        if found := index.whole.get(f"{folder}/{path}" if folder else path) or index.whole.get(path):
            return found
        same_base = index.by_base.get(path.rpartition("/")[2], [])
        if found := [name for own, name in same_base if own.endswith(f"/{path}")]:
            return found
        parts = path.split("/") if same_base else []
        tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return next((index.whole[tail] for tail in tails if tail in index.whole), [])


def _shared_folders(texts: Iterable[str]) -> int:
    """The number of leading folders that all paths share, above any folder of a split."""
    parents = [_clean(text).split("/")[:-1] for text in texts if text]
    levels = zip(*parents, strict=False)  # as deep as the shallowest path
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1 and not _split_of_folder(level[0]), levels))


def find_files(texts: Sequence[str], finder: Finder) -> list[list[str]]:
    """The photographs of each text; if none fits, without the folders that all texts share."""
    found = [finder.find(text) for text in texts]
    depth = 0 if any(found) else _shared_folders(texts)
    return [finder.find("/".join(_clean(text).split("/")[depth:])) for text in texts] if depth else found
