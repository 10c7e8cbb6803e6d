"""The table of labels that belongs to photographs: the one that `data.table` names, or the only one that fits."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from fieldguide.core.errors import UserError
from fieldguide.core.params import Data
from fieldguide.sources.labels import Joined, join_labels, names_of_numbers
from fieldguide.sources.layout import class_key, is_table
from fieldguide.sources.table import Table, read_table

NO_TABLE = "none"  # in data.table: use the class folders
SUBMISSION = re.compile(r"submi(ssion|t)", re.IGNORECASE)  # a competition's example of answers, whose labels are made up
MOST_TABLES = 20  # beside photographs; more are a file per photograph


@dataclass(frozen=True)
class LabelTable:
    """A table that fits the photographs; `used` are the files of the source that were read for it."""

    name: str
    joined: Joined
    used: frozenset[str]


@dataclass(frozen=True)
class Candidates:
    """The tables that fit, and why others do not, by name."""

    fits: tuple[LabelTable, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """Photographs and tables of a folder or archive, by their names in it; `read` gives the bytes of a table."""

    where: str
    photographs: Sequence[str]
    tables: Sequence[str]
    read: Callable[[str], bytes]

    def table(self, name: str) -> Table:
        """Raises `UserError` for a table that cannot be read without loss."""
        return read_table(self.read(name), f"{self.where}: {name}")


def named_table(source: Contents, data: Data, project: Path) -> LabelTable:
    """The table `data.table`: a file of the source, or of the disk; raises `UserError` if it is missing or does not fit."""
    wanted = data.table.replace("\\", "/").removeprefix("./")
    ends = [name for name in source.tables if name == wanted or name.endswith(f"/{wanted}")]
    exact = [name for name in ends if name == wanted] or ends
    if len(exact) > 1:
        raise UserError(f"data.table: {wanted} fits {' and '.join(exact[:3])} in {source.where}; write its whole path")
    if exact:
        return _fit(source, exact[0], data)
    path = project / os.path.expanduser(data.table)
    with suppress(ValueError):
        if (inside := path.relative_to(source.where).as_posix()) in source.tables:
            return _fit(source, inside, data)
    try:
        content = path.read_bytes()
    except OSError as error:
        own = f", which has the tables {', '.join(source.tables[:5])}" if source.tables else ""
        raise UserError(
            f"data.table: {data.table} is neither in {source.where}{own} nor a file that can be read"
            f" ({path}: {error.strerror}); correct the path"
        ) from error
    fit = _join(source, path.name, read_table(content, str(path)), data, "")
    return replace(fit, used=fit.used - {path.name})


def tables_that_fit(source: Contents, data: Data) -> Candidates:
    """The tables beside or above photographs that have their labels; leaves out examples of submissions and text files."""
    folders = {
        "" if str(parent) == "." else str(parent) for name in source.photographs for parent in PurePosixPath(name).parents
    }
    names = [name for name in source.tables if _is_candidate(name) and _folder(name) in folders]
    if len(names) > MOST_TABLES:
        return Candidates(problems={names[0]: f"one of {len(names)} tables; set data.table to the one with the labels"})
    fits, problems = [], {}
    for name in names:
        try:
            fits.append(_fit(source, name, data))
        except UserError as error:
            problems[name] = str(error)
    return Candidates(tuple(fits), problems)


def _is_candidate(name: str) -> bool:
    base = PurePosixPath(name).name
    return is_table(name) and not SUBMISSION.search(base) and ".txt" not in base.casefold()


def _folder(name: str) -> str:
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent


def _fit(source: Contents, name: str, data: Data) -> LabelTable:
    return _join(source, name, source.table(name), data, _folder(name))


def _join(source: Contents, name: str, table: Table, data: Data, folder: str) -> LabelTable:
    """The photographs with the labels of `table`, and with the names of numbered labels if one other table has them."""
    joined = join_labels(table, source.photographs, data.columns, folder)
    others = [other for other in source.tables if other != name]
    numbers = set(joined.rows["class_name"]) - {""}
    if not all(number.isdigit() for number in numbers) or len(others) > MOST_TABLES:
        return LabelTable(name, joined, frozenset({name}))
    with_names = [(other, found) for other in others if (found := _names_table(source, other, numbers)) is not None]
    if len(with_names) != 1:
        return LabelTable(name, joined, frozenset({name}))
    other, class_names = with_names[0]
    joined = join_labels(table, source.photographs, data.columns, folder, class_names)
    return LabelTable(name, joined, frozenset({name, other}))


def _names_table(source: Contents, name: str, numbers: Iterable[str]) -> Table | None:
    """The table if it names all `numbers`; None also if it cannot be read, because it was not asked for."""
    try:
        table = source.table(name)
    except UserError:
        return None
    return table if names_of_numbers(table, numbers) else None


def agrees_with_folders(fit: LabelTable, classes: Mapping[str, str]) -> bool:
    """Whether every label of the table is one class folder, and the reverse; `classes` are those of the photographs."""
    labelled = fit.joined.rows[fit.joined.rows["class_name"].ne("")]
    pairs = {
        (class_key(label), class_key(classes[name]))
        for name, label in zip(labelled["id"], labelled["class_name"], strict=True)
        if classes.get(name)
    }
    return len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs})


def only_in_table(fit: LabelTable, classes: Mapping[str, str], splits: Mapping[str, str]) -> str:
    """What the table has and the folders lack, for a message: labels of other photographs, splits and groups; or ""."""
    rows = fit.joined.rows
    labelled = rows[rows["class_name"].ne("")]
    n_more = sum(not classes.get(name) for name in labelled["id"])
    parts = [f"labels of {n_more} photographs that are not in class folders"] if n_more else []
    own = zip(labelled["id"], labelled["split"], strict=True)
    parts += ["splits"] if fit.joined.has_splits and any(splits.get(name) != split for name, split in own) else []
    parts += ["groups"] if rows["group"].ne("").any() else []
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def the_only(candidates: Candidates, where: str) -> LabelTable | None:
    """The table that fits, or None; raises `UserError` if several fit."""
    if len(candidates.fits) > 1:
        names = " and ".join(fit.name for fit in candidates.fits[:3])
        raise UserError(f"{where}: {names} may each be the table of labels; set data.table to one of them, or append them")
    return candidates.fits[0] if candidates.fits else None
