"""Which columns of a table are the file, the label, the split and the group: by `data.columns`, or by their usual names."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.params import Columns
from fieldguide.sources.layout import UNKNOWN, is_split, is_unlabelled, split_in
from fieldguide.sources.photo_names import UNLABELLED_SPLIT, Finder, find_files
from fieldguide.sources.table import Table, quoted

NO_COLUMN = "none"  # in data.columns: do not use a column although its name is usual

# Usual names of columns without case, spaces and punctuation, the preferred first; a later tier counts only without the former
USUAL = {
    "file": (
        "file filename filepath path imagepath imagefile imagefilename imagefilepath imagename filenames filepaths paths image"
        " img imgname imgpath imgfile photo photofile photopath picture pic images photos imageid imgid photoid id identifier"
        " uuid gbifid occurrenceid catalognumber",
    ),
    "label": (
        "labelname classname categoryname speciesname label labels target",
        "commonname species scientificname class classes category breed variety taxon taxonname disease diagnosis dx",
        "labelid classid categoryid speciesid targetid",
    ),
    "split": ("split splits set subset partition dataset datasplit datasetsplit phase usage",),
    "group": (
        "group groupid individual individualid animalid specimen specimenid plantid patientid lesionid location locationid site"
        " siteid deployment deploymentid camera cameraid sequence sequenceid seq seqid event eventid observation observationid"
        " occurrenceid burst",
    ),
}
IS_TRAIN = frozenset("istrainingimg istrainingimage istraining istrain".split())  # 1 = train, 0 = test (CUB-200-2011)
RANKS = frozenset("kingdom phylum order family genus".split())  # beside them `class` is a rank of biology


class Chosen(NamedTuple):
    """The columns of a table by role; several of the label are one-hot."""

    file: int
    label: tuple[int, ...]
    split: int | None
    group: int | None


def plain(name: str) -> str:
    """A column's name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def key_message(table: Table, role: str, problem: str) -> UserError:
    return UserError(f"{table.where}: {problem}; set data.columns.{role} to one of its columns: {table.listing()}")


def _named(table: Table, role: str, name: str) -> int:
    """The column that `data.columns` names; raises `UserError` if there is none or more than one."""
    places = [place for place, column in enumerate(table.columns) if column == name.strip()]
    places = places or [place for place, column in enumerate(table.columns) if plain(column) == plain(name)]
    if not places:
        raise key_message(table, role, f"no column {name!r}")
    if len(places) > 1:
        raise UserError(f"{table.where}: {len(places)} columns are named {name!r}; rename all but one")
    return places[0]


def _usual(table: Table, role: str, taken: Iterable[int] = ()) -> list[int]:
    """The columns with a usual name of the first tier that has any, the preferred first."""
    names = [plain(column) for column in table.columns]
    barred = {"class"} if role == "label" and len(RANKS & set(names)) > 1 else set()
    for tier in USUAL[role]:
        order = [name for name in tier.split() if name not in barred]
        places = [place for place, name in enumerate(names) if name in order and place not in taken]
        if places:
            return sorted(places, key=lambda place: order.index(names[place]))
    return []


def _names_of(table: Table, places: Iterable[int]) -> str:
    return ", ".join(quoted(table.columns[place]) for place in places)


def choose_file(table: Table, wanted: str, finder: Finder) -> tuple[int, list[list[str]]]:
    """The column of the files and what each row names; raises `UserError` if no column or more than one is possible."""
    places = [_named(table, "file", wanted)] if wanted else _usual(table, "file")
    if not places:
        raise key_message(table, "file", "no column has a usual name of a file column (file, filename, image, id, path)")
    found = {place: find_files(table.rows[place].tolist(), finder) for place in places}
    n_found = {place: sum(map(bool, files)) for place, files in found.items()}
    best = [place for place in places if n_found[place] == max(n_found.values())]
    if not n_found[best[0]]:
        first = next((text for text in table.rows[best[0]] if text), "")
        raise key_message(
            table, "file", f"no row names a photograph (column {_names_of(table, best[:1])}, for example {quoted(first)})"
        )
    if any(found[place] != found[best[0]] for place in best[1:]):
        raise key_message(table, "file", f"columns {_names_of(table, best)} name different photographs")
    return best[0], found[best[0]]


def choose_columns(table: Table, wanted: Columns, file: int) -> tuple[Chosen, list[str]]:
    """The columns by role, and notes; raises `UserError` for a column that is missing or unclear."""
    notes: list[str] = []
    split = _split_column(table, wanted.split, file, notes)
    label = _label_columns(table, wanted.label, [file] if split is None else [file, split])
    taken = [file, *label, *([] if split is None else [split])]
    return Chosen(file, label, split, _group_column(table, wanted.group, taken)), notes


def _label_columns(table: Table, wanted: str, taken: Sequence[int]) -> tuple[int, ...]:
    places = [_named(table, "label", wanted)] if wanted else _usual(table, "label", taken)
    if places:
        names = [table.rows[place] for place in places]
        if not all(_same_partition(names[0], other) for other in names[1:]):
            raise key_message(table, "label", f"columns {_names_of(table, places)} may be the label, and differ")
        if not wanted:
            _refuse_epithets(table, places[0])
        return (places[0],)
    binary = [place for place in range(len(table.columns)) if place not in taken and _is_binary(table.rows[place])]
    if len(binary) < 2:
        raise key_message(table, "label", "no column has a usual name of a label column (label, class, species)")
    return tuple(binary)


def _refuse_epithets(table: Table, place: int) -> None:
    """Raises `UserError` for a column of species whose names mean a species only with the genus, in another column."""
    genus = next((other for other, column in enumerate(table.columns) if plain(column) == "genus"), None)
    if genus is None or plain(table.columns[place]) != "species":
        return
    genera: dict[str, str] = {}
    for epithet, own in zip(table.rows[place].str.strip(), table.rows[genus].str.strip(), strict=True):
        if epithet and (other := genera.setdefault(epithet, own)) != own:
            names = f"{quoted(f'{other} {epithet}')} and {quoted(f'{own} {epithet}')} would be one class"
            raise key_message(table, "label", f"{names} by column {quoted(table.columns[place])}; add a column with both names")


def _is_binary(column: pd.Series) -> bool:
    values = set(column.str.strip().str.casefold().unique())
    return values <= {"0", "1", "0.0", "1.0", "0.", "1.", ""} and not values <= {""}


def _same_partition(one: pd.Series, other: pd.Series) -> bool:
    """Whether equal texts in one column are equal in the other, and the reverse."""
    pairs = pd.DataFrame({"one": one, "other": other}).drop_duplicates()
    return bool(pairs["one"].is_unique and pairs["other"].is_unique)


def _split_column(table: Table, wanted: str, file: int, notes: list[str]) -> int | None:
    if wanted == NO_COLUMN:
        return None
    if wanted:
        return _named(table, "split", wanted)
    flags = [place for place, column in enumerate(table.columns) if plain(column) in IS_TRAIN]
    usual = _usual(table, "split", [file])
    words = [place for place in usual if any(split_word(text) for text in table.rows[place].unique())]
    numbered = [place for place in usual if is_numbered(table.rows[place])]
    if len(flags) + len(words) > 1:
        raise key_message(table, "split", f"columns {_names_of(table, [*words, *flags])} may be the split")
    if not words and not flags and numbered:
        refuse_numbers(table, numbered[0])
    unused = [place for place in usual if place not in words]
    if unused:
        notes.append(f"column {_names_of(table, unused)} contains no names of splits and is not used")
    return next(iter([*words, *flags]), None)


def is_numbered(column: pd.Series) -> bool:
    values = set(column.unique()) - {""}
    return bool(values) and values <= {"0", "1", "2", "3"}


def refuse_numbers(table: Table, place: int) -> None:
    raise UserError(
        f"{table.where}: column {quoted(table.columns[place])} numbers the splits, and numbers do not say which is train;"
        " replace them by train, valid and test, or set data.columns.split: none"
    )


def split_word(text: str) -> str:
    """The split that a field names, in the spellings of folders; "" if it names none."""
    own = split_in(text) if is_split(text) else None
    return own[0] if own else UNLABELLED_SPLIT if is_unlabelled(text, UNKNOWN) else ""


def _group_column(table: Table, wanted: str, taken: Sequence[int]) -> int | None:
    """The group column; of several, the one that contains the groups of all others."""
    if wanted == NO_COLUMN:
        return None
    if wanted:
        return _named(table, "group", wanted)
    places = [place for place in _usual(table, "group", taken) if table.rows[place].ne("").any()]
    for place in places:
        if all(_is_nested(table.rows[other], table.rows[place]) for other in places if other != place):
            return place
    if places:
        raise key_message(table, "group", f"columns {_names_of(table, places)} may be the group, and none contains the others")
    return None


def _is_nested(inner: pd.Series, outer: pd.Series) -> bool:
    """Whether every group of `inner` lies in one group of `outer`."""
    pairs = pd.DataFrame({"inner": inner, "outer": outer}).drop_duplicates()
    return bool(pairs.loc[pairs["inner"].ne(""), "inner"].is_unique)
