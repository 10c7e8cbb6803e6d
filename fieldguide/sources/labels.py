"""Labels from a table beside the photographs: which columns it has, which photograph each row names, what is left over.

`download` joins table and photographs once and stores the result as data/raw/labels.csv.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.formats import IMAGE_SUFFIXES
from fieldguide.core.params import Columns
from fieldguide.sources.layout import SPLIT_NAMES, class_key, class_name
from fieldguide.sources.table import Table

LABEL_COLUMNS = ["file", "label", "split", "group"]  # of data/raw/labels.csv
NO_ROW, NO_FILE = "no row in the table", "row without a file"
UNLABELLED = "unlabelled"
NO_COLUMN = "none"  # in data.columns: do not use a column although its name is usual

# Usual names of columns without case, spaces and punctuation, the preferred first; a later tier counts only without the former
USUAL = {
    "file": (
        "file filename filepath path imagepath imagefile imagefilename imagefilepath imagename filenames filepaths paths image"
        " img imgname imgpath imgfile photo photofile photopath picture pic images photos imageid imgid photoid id identifier"
        " uuid",
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
PHOTOS = "images?|imgs?|photos?|pictures?"
FOLDER_SPLIT = re.compile(
    rf"([a-z]+)(?:[ _-]?(?:{PHOTOS}|set|data))?|(?:{PHOTOS})[ _-]([a-z]+)"
)  # test, test_images, images-test
UNLABELLED_NAMES = frozenset({"unlabelled", "unlabeled", "unknown", "predict", "inference"})
TRUE, FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no", ""})
CLASS_NAMES = frozenset("name labelname classname species label class".split())  # of the second column of a table of classes
SEPARATORS = ("|", ";", ",")
N_NAMED = 3  # examples in a message


class Chosen(NamedTuple):
    """The columns of a table by role; several of the label are one-hot."""

    file: int
    label: tuple[int, ...]
    split: int | None
    group: int | None


@dataclass(frozen=True)
class Joined:
    """A table's rows joined to photographs."""

    rows: pd.DataFrame  # LABEL_COLUMNS, a row per photograph, by file
    left_out: tuple[tuple[str, str], ...]  # (photograph or file in the table, reason)
    n_repeated: int  # rows that repeat another one
    notes: tuple[str, ...]

    def counts(self) -> Counter[str]:
        """What is left out, by the reason."""
        return Counter(reason for _, reason in self.left_out)


def plain(name: str) -> str:
    """A column's name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def folder_split(name: str) -> str:
    """The split in the folders of a photograph: `test` for `test_images/1.jpg`, `unlabelled`, or ""."""
    for part in PurePosixPath(name).parts[:-1]:
        match = FOLDER_SPLIT.fullmatch(part.casefold())
        word = (match[1] or match[2]) if match else ""
        if word in SPLIT_NAMES or word in UNLABELLED_NAMES:
            return SPLIT_NAMES.get(word, UNLABELLED)
    return ""


# --- photographs by the text of a table ---


def _clean(path: str) -> str:
    """A path with forward slashes in composed Unicode, without `./` and doubled slashes."""
    parts = unicodedata.normalize("NFC", path.strip()).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _stem(path: str) -> str:
    pure = PurePosixPath(path)
    return str(pure.with_suffix("")) if pure.suffix.lower() in IMAGE_SUFFIXES else path


class Index(NamedTuple):
    """Photographs by their whole path and by every trailing part of it."""

    whole: dict[str, list[str]]
    trailing: dict[str, list[str]]


class Finder:
    """The photographs among `names` that texts of a table name; `folder` is the table's own."""

    def __init__(self, names: Iterable[str], folder: str = "") -> None:
        own = {name: _clean(name) for name in names}
        prefix = f"{_clean(folder)}/"
        inside = {name: path for name, path in own.items() if path.startswith(prefix)}
        self.paths = inside if folder and inside else own
        self.folder = _clean(folder)

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

    @staticmethod
    def _index(paths: Mapping[str, str]) -> Index:
        whole: dict[str, list[str]] = {}
        trailing: dict[str, list[str]] = {}
        for name, path in paths.items():
            whole.setdefault(path, []).append(name)
            parts = path.split("/")
            for start in range(len(parts)):
                trailing.setdefault("/".join(parts[start:]), []).append(name)
        return Index(whole, trailing)

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
        found = index.whole.get(f"{folder}/{path}" if folder else path) or index.whole.get(path) or index.trailing.get(path)
        if found:
            return found
        parts = path.split("/")
        tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return next((index.whole[tail] for tail in tails if tail in index.whole), [])


def _shared_folders(texts: Iterable[str]) -> int:
    """The number of leading folders that all paths share."""
    parents = [_clean(text).split("/")[:-1] for text in texts if text]
    depth = 0
    while parents and all(len(parts) > depth and parts[depth] == parents[0][depth] for parts in parents):
        depth += 1
    return depth


def find_files(texts: Sequence[str], finder: Finder) -> list[list[str]]:
    """The photographs of each text; if none fits, without the folders that all texts share."""
    found = [finder.find(text) for text in texts]
    depth = 0 if any(found) else _shared_folders(texts)
    return [finder.find("/".join(_clean(text).split("/")[depth:])) for text in texts] if depth else found


# --- columns ---


def _key_message(table: Table, role: str, problem: str) -> UserError:
    return UserError(f"{table.where}: {problem}; set data.columns.{role} to one of its columns: {table.listing()}")


def _named(table: Table, role: str, name: str) -> int:
    """The column that `data.columns` names; raises `UserError` if there is none or more than one."""
    places = [place for place, column in enumerate(table.columns) if column == name.strip()]
    places = places or [place for place, column in enumerate(table.columns) if plain(column) == plain(name)]
    if not places:
        raise _key_message(table, role, f"no column {name!r}")
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
    return ", ".join(repr(table.columns[place]) for place in places)


def choose_file(table: Table, wanted: str, finder: Finder) -> tuple[int, list[list[str]]]:
    """The column of the files and what each row names; raises `UserError` if no column or more than one is possible."""
    places = [_named(table, "file", wanted)] if wanted else _usual(table, "file")
    if not places:
        raise _key_message(table, "file", "no column has a usual name of a file column (file, filename, image, id, path)")
    found = {place: find_files(table.rows[place].tolist(), finder) for place in places}
    n_found = {place: sum(map(bool, files)) for place, files in found.items()}
    best = [place for place in places if n_found[place] == max(n_found.values())]
    if not n_found[best[0]]:
        first = next((text for text in table.rows[best[0]] if text), "")
        raise _key_message(
            table, "file", f"no row names a photograph (column {_names_of(table, best[:1])}, for example {first!r})"
        )
    if any(found[place] != found[best[0]] for place in best[1:]):
        raise _key_message(table, "file", f"columns {_names_of(table, best)} name different photographs")
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
            raise _key_message(table, "label", f"columns {_names_of(table, places)} may be the label, and differ")
        return (places[0],)
    binary = [place for place in range(len(table.columns)) if place not in taken and _is_binary(table.rows[place])]
    if len(binary) < 2:
        raise _key_message(table, "label", "no column has a usual name of a label column (label, class, species)")
    return tuple(binary)


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
    words = [place for place in usual if any(_split_word(text) for text in table.rows[place].unique())]
    numbered = [place for place in usual if set(table.rows[place].unique()) <= {"0", "1", "2", "3", ""}]
    if len(flags) + len(words) > 1:
        raise _key_message(table, "split", f"columns {_names_of(table, [*words, *flags])} may be the split")
    if not words and not flags and numbered:
        _refuse_numbers(table, numbered[0])
    unused = [place for place in usual if place not in words]
    if unused:
        notes.append(f"column {_names_of(table, unused)} contains no names of splits and is not used")
    return next(iter([*words, *flags]), None)


def _refuse_numbers(table: Table, place: int) -> None:
    raise UserError(
        f"{table.where}: column {table.columns[place]!r} numbers the splits, and numbers do not say which is train; replace"
        " them by train, valid and test, or set data.columns.split: none"
    )


def _split_word(text: str) -> str:
    word = re.sub(r"[ _-]?(?:ing)?[ _-]?(?:set|data|images?)$", "", text.strip().casefold())
    return SPLIT_NAMES.get(text.strip().casefold()) or SPLIT_NAMES.get(word) or (UNLABELLED if word in UNLABELLED_NAMES else "")


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
        raise _key_message(table, "group", f"columns {_names_of(table, places)} may be the group, and none contains the others")
    return None


def _is_nested(inner: pd.Series, outer: pd.Series) -> bool:
    """Whether every group of `inner` lies in one group of `outer`."""
    pairs = pd.DataFrame({"inner": inner, "outer": outer}).drop_duplicates()
    return bool(pairs.loc[pairs["inner"].ne(""), "inner"].is_unique)


# --- the join ---


def join_labels(
    table: Table, names: Sequence[str], wanted: Columns, folder: str = "", class_names: Table | None = None
) -> Joined:
    """The photographs `names` with their labels from `table`, which lies in `folder`; no row and no photograph is lost.

    Raises `UserError` for unclear columns, a row that names several photographs, a photograph with several labels, an unknown
    split, and fewer than two classes.
    """
    file, found = choose_file(table, wanted.file, Finder(names, folder))
    chosen, notes = choose_columns(table, wanted, file)
    _refuse_line_breaks(table, chosen)
    labels = _labels(table, chosen)
    if class_names is not None:
        labels = _with_names(labels, class_names)
    splits = _splits(table, chosen.split)
    groups = [""] * len(labels) if chosen.group is None else [text.strip() for text in table.rows[chosen.group]]
    texts = table.rows[file].tolist()
    rows: dict[str, tuple[str, str, str]] = {}
    origin: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    n_repeated = 0
    for place, number in enumerate(table.rows.index):
        name = _one_file(table, number, texts[place], found[place], splits[place], folder)
        if not name:
            left_out.append((texts[place] or f"row {number}", NO_FILE))
            continue
        row = labels[place], splits[place], groups[place]
        if name in rows:
            _check_repeated(table, name, (origin[name], number), rows[name], row)
            n_repeated += 1
            continue
        rows[name], origin[name] = row, number
    for name in names:
        if name not in rows:
            if folder_split(name) in ("test", UNLABELLED):
                rows[name] = "", UNLABELLED, ""
            else:
                left_out.append((name, NO_ROW))
    frame = pd.DataFrame([(name, *rows[name]) for name in sorted(rows)], columns=LABEL_COLUMNS, dtype="str")
    if chosen.split is None:
        frame["split"] = _splits_of_folders(table, frame)
    frame.loc[frame["label"].eq(""), "split"] = UNLABELLED
    _check_classes(table, frame, chosen)
    return Joined(frame, tuple(left_out), n_repeated, (*table.notes, *notes, _used_columns(table, chosen)))


def _used_columns(table: Table, chosen: Chosen) -> str:
    label = f"{len(chosen.label)} columns of 0 and 1" if chosen.label[1:] else repr(table.columns[chosen.label[0]])
    others = {"split": chosen.split, "group": chosen.group}
    more = "".join(f", {role} {table.columns[place]!r}" for role, place in others.items() if place is not None)
    return f"columns: file {table.columns[chosen.file]!r}, label {label}{more}"


def _refuse_line_breaks(table: Table, chosen: Chosen) -> None:
    """Raises `UserError` for a line break in a column that is used: a quote is not closed."""
    for place in filter(lambda place: place is not None, [chosen.file, *chosen.label, chosen.split, chosen.group]):
        broken = table.rows[place][table.rows[place].str.strip().str.contains("\n", regex=False)]
        if len(broken):
            text = broken.iloc[0][:60]
            raise UserError(f"{table.where}: row {broken.index[0]}: {text!r} contains a line break; close the quote before it")


def _one_file(table: Table, number: int, text: str, found: Sequence[str], split: str, folder: str) -> str:
    """The photograph of a row; of several, the one in the folder of the row's split, or of the table's own name."""
    if len(found) > 1:
        own = split or _table_split(table.where)
        narrowed = [name for name in found if own and folder_split(name) == own]
        if len(narrowed) != 1:
            more = f" and {len(found) - N_NAMED} more" if len(found) > N_NAMED else ""
            raise UserError(
                f"{table.where}: row {number}: {text!r} fits {len(found)} photographs"
                f" ({', '.join(sorted(found)[:N_NAMED])}{more}); write the path with its folder in the table"
            )
        found = narrowed
    return found[0] if found else ""


def _table_split(where: str) -> str:
    """`train` for `train.csv` and `train_labels.csv`."""
    word = re.match(r"[a-z]*", PurePosixPath(where.replace("\\", "/")).name.casefold())
    return SPLIT_NAMES.get(word[0], "") if word else ""


def _check_repeated(
    table: Table, name: str, numbers: tuple[int, int], first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    """Raises `UserError` if two rows of a photograph differ in a column that is used."""
    for role, one, other in zip(("label", "split", "group"), first, second, strict=True):
        same = class_key(one) == class_key(other) if role == "label" else one == other
        if not same:
            advice = "a photograph has one label here: remove a row" if role == "label" else "remove a row"
            raise UserError(
                f"{table.where}: rows {numbers[0]} and {numbers[1]} give {name} two {role}s, {one!r} and {other!r}; {advice}"
            )


def _labels(table: Table, chosen: Chosen) -> list[str]:
    """The label of each row, "" without; raises `UserError` for several labels in a row."""
    if len(chosen.label) == 1:
        labels = [class_name(text) for text in table.rows[chosen.label[0]]]
        _refuse_several_labels(table, labels)
        return labels
    ones = table.rows[list(chosen.label)].apply(lambda column: column.str.strip().isin(["1", "1.0", "1."]))
    n_ones = ones.sum(axis="columns")
    if (n_ones > 1).any():
        number = n_ones.index[n_ones > 1][0]
        names = [table.columns[place] for place in chosen.label if ones.at[number, place]]
        raise UserError(
            f"{table.where}: row {number} has 1 in {len(names)} columns ({', '.join(names[:N_NAMED])}), but a photograph has"
            f" one label here; keep one, or set data.columns.label to one of: {table.listing()}"
        )
    columns = pd.Series([class_name(table.columns[place]) for place in chosen.label], index=list(chosen.label))
    return [columns[place] if any_one else "" for place, any_one in zip(ones.idxmax(axis="columns"), n_ones > 0, strict=True)]


def _refuse_several_labels(table: Table, labels: Sequence[str]) -> None:
    """Raises `UserError` for a row with several labels, where it is certain: a list, or labels of other rows."""
    known = set(labels)
    for place, label in enumerate(labels):
        parts = _listed(label)
        for separator in SEPARATORS:
            pieces = [piece.strip() for piece in label.split(separator)]
            if not parts and len(pieces) > 1 and all(piece in known for piece in pieces):
                parts = pieces
        if len(parts) > 1:
            raise UserError(
                f"{table.where}: row {table.rows.index[place]}: {label[:60]!r} contains {len(parts)} labels, but a photograph"
                " has one label here; keep one of them"
            )


def _listed(label: str) -> list[str]:
    """The elements of a JSON or Python list, or nothing."""
    if not (label.startswith("[") and label.endswith("]")):
        return []
    try:
        parts = json.loads(label.replace("'", '"'))
    except ValueError:
        return []
    return [str(part) for part in parts]


def _with_names(labels: Sequence[str], class_names: Table) -> list[str]:
    """The names of numbered labels."""
    names = dict(zip(class_names.rows[0].map(class_name), class_names.rows[1].map(class_name), strict=True))
    return [names.get(label, label) for label in labels]


def names_of_numbers(table: Table, labels: Iterable[str]) -> bool:
    """Whether a table names every one of the numbered labels: two columns, a number and a name, each occurring once."""
    if len(table.columns) != 2 or plain(table.columns[1]) not in CLASS_NAMES:
        return False
    numbers, names = table.rows[0].map(class_name), table.rows[1].map(class_name)
    wanted = {label for label in labels if label}
    return bool(
        wanted
        and all(label.isdigit() for label in wanted)
        and numbers.is_unique
        and names.is_unique
        and names.ne("").all()
        and wanted <= set(numbers)
    )


def _splits(table: Table, place: int | None) -> list[str]:
    """The split of each row by the split column, "" without one; raises `UserError` for a value that is no split."""
    if place is None:
        return [""] * len(table.rows)
    texts = table.rows[place].str.strip()
    if plain(table.columns[place]) in IS_TRAIN:
        lowered = texts.str.casefold()
        meaning = {text: "train" if text in TRUE else "test" if text in FALSE - {""} else "" for text in lowered.unique()}
        splits = [meaning[text] for text in lowered]
    else:
        if set(texts.unique()) <= {"0", "1", "2", "3"}:
            _refuse_numbers(table, place)
        meaning = {text: _split_word(text) for text in texts.unique()}
        splits = [meaning[text] for text in texts]
    for number, text, split in zip(table.rows.index, texts, splits, strict=True):
        if not split:
            what = f"{text!r} is not a split" if text else "no split"
            raise UserError(
                f"{table.where}: row {number}: {what} in column {table.columns[place]!r}; use train, valid or test, or set"
                f" data.columns.split to another column or to {NO_COLUMN}"
            )
    return splits


def _splits_of_folders(table: Table, frame: pd.DataFrame) -> list[str]:
    """The splits by folders; "" if there are none. Raises `UserError` if only a part of the labelled photographs has one."""
    splits = frame["file"].map(folder_split)
    labelled = frame["label"].ne("")
    with_split = splits[labelled].ne("") & splits[labelled].ne(UNLABELLED)
    if with_split.any() and not with_split.all():
        outside = frame.loc[with_split.index[~with_split][0], "file"]
        inside = frame.loc[with_split.index[with_split][0], "file"]
        raise UserError(
            f"{table.where}: {inside} is in the folder of a split, {outside} is not; move it, or add a column split"
        )
    return splits.where(labelled, UNLABELLED).tolist()


def _check_classes(table: Table, frame: pd.DataFrame, chosen: Chosen) -> None:
    """Raises `UserError` for fewer than two classes, and for a split column without train."""
    labelled = frame[frame["label"].ne("")]
    keys = sorted(labelled["label"].map(class_key).unique())
    if len(keys) < 2:
        raise _key_message(table, "label", f"only one class ({', '.join(keys)})" if keys else "no photograph has a label")
    if set(labelled["split"]) - {""} and "train" not in set(labelled["split"]):
        present = ", ".join(sorted(set(labelled["split"])))
        raise UserError(f"{table.where}: no labelled photograph is in train (only {present}); correct the split column")


def by_reason(left_out: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line for each reason, with its number and the first names."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out:
        names.setdefault(reason, []).append(name)
    for reason, all_names in sorted(names.items()):
        more = ", ..." if all_names[N_NAMED:] else ""
        yield f"{len(all_names)} x {reason}: {', '.join(all_names[:N_NAMED])}{more}"
