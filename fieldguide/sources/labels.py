"""Labels from a table beside the photographs: every row and every photograph is joined, or counted and named.

`download` joins table and photographs once and stores the result as data/raw/labels.csv.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.names import SPLITS
from fieldguide.core.params import Columns
from fieldguide.sources.columns import (
    IS_TRAIN,
    NO_COLUMN,
    Chosen,
    choose_columns,
    choose_file,
    is_numbered,
    key_message,
    plain,
    refuse_numbers,
    split_word,
)
from fieldguide.sources.index import GROUPED_COLUMNS
from fieldguide.sources.layout import class_key, class_name, split_in
from fieldguide.sources.photo_names import UNLABELLED_SPLIT, Finder, folder_split
from fieldguide.sources.table import Table, quoted

NO_ROW, NO_FILE = "no row in the table", "row without a file"
TRUE, FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no", ""})
CLASS_NAMES = frozenset("name labelname classname species label class".split())  # of the second column of a table of classes
SEPARATORS = ("|", ";", ",")
MAX_NAME = 1000  # characters of a file that is not there
MAX_LABEL = 200  # characters; a longer text is a description
N_NAMED = 3  # examples in a message


@dataclass(frozen=True)
class Joined:
    """A table's rows joined to photographs."""

    rows: pd.DataFrame  # GROUPED_COLUMNS, a row per photograph, by id
    left_out: tuple[tuple[str, str], ...]  # (photograph or file in the table, reason)
    n_repeated: int  # rows that repeat another one
    notes: tuple[str, ...]
    has_splits: bool  # in a column of the table

    def counts(self) -> Counter[str]:
        """What is left out, by the reason."""
        return Counter(reason for _, reason in self.left_out)


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
        name = _one_file(table, number, texts[place], found[place], splits[place])
        if not name:
            left_out.append((texts[place][:MAX_NAME] or f"row {number}", NO_FILE))
            continue
        row = labels[place], splits[place], groups[place]
        if name in rows:
            _check_repeated(table, name, (origin[name], number), rows[name], row)
            n_repeated += 1
            continue
        rows[name], origin[name] = row, number
    for name in names:
        if name not in rows:
            if folder_split(name) in ("test", UNLABELLED_SPLIT):
                rows[name] = "", UNLABELLED_SPLIT, ""
            else:
                left_out.append((name, NO_ROW))
    frame = pd.DataFrame(
        [(name, *rows[name]) for name in sorted(rows)], columns=["id", "class_name", "split", "group"], dtype="str"
    )
    if chosen.split is None:
        frame["split"] = _splits_of_folders(table, frame)
    frame.loc[frame["class_name"].eq(""), "split"] = UNLABELLED_SPLIT
    frame.loc[frame["split"].eq(UNLABELLED_SPLIT), "class_name"] = ""
    _check_classes(table, frame, chosen)
    notes = [*table.notes, *notes, _used_columns(table, chosen), _summary(frame, n_repeated)]
    return Joined(frame[GROUPED_COLUMNS], tuple(left_out), n_repeated, tuple(notes), chosen.split is not None)


def _summary(frame: pd.DataFrame, n_repeated: int) -> str:
    labelled = frame.loc[frame["class_name"].ne(""), "class_name"]
    more = f"; {n_repeated} rows repeat another row" if n_repeated else ""
    n_classes, n_unlabelled = labelled.map(class_key).nunique(), len(frame) - len(labelled)
    return f"{n_classes} classes; {len(labelled)} photographs with a label, {n_unlabelled} unlabelled{more}"


def _used_columns(table: Table, chosen: Chosen) -> str:
    label = f"{len(chosen.label)} columns of 0 and 1" if chosen.label[1:] else quoted(table.columns[chosen.label[0]])
    others = {"split": chosen.split, "group": chosen.group}
    more = "".join(f", {role} {quoted(table.columns[place])}" for role, place in others.items() if place is not None)
    return f"columns: file {quoted(table.columns[chosen.file])}, label {label}{more}"


def _refuse_line_breaks(table: Table, chosen: Chosen) -> None:
    """Raises `UserError` for a line break in a column that is used: a quote is not closed."""
    others = [place for place in (chosen.split, chosen.group) if place is not None]
    for place in (chosen.file, *chosen.label, *others):
        broken = table.rows[place][table.rows[place].str.strip().str.contains("\n", regex=False)]
        if len(broken):
            text = broken.iloc[0]
            raise UserError(
                f"{table.where}: row {broken.index[0]}: {quoted(text)} contains a line break; close the quote before it"
            )


def _one_file(table: Table, number: int, text: str, found: Sequence[str], split: str) -> str:
    """The photograph of a row, or ""; of several, the one in the folder of the row's split, or of the table's own name.

    A name without a folder in `train.csv` is no photograph of test.
    """
    own = split or _table_split(table.where)
    if len(found) == 1 and own and not split and "/" not in text.replace("\\", "/"):
        return found[0] if folder_split(found[0]) in ("", own) else ""
    if len(found) > 1:
        narrowed = [name for name in found if own and folder_split(name) == own]
        if len(narrowed) != 1:
            more = f" and {len(found) - N_NAMED} more" if len(found) > N_NAMED else ""
            raise UserError(
                f"{table.where}: row {number}: {quoted(text)} fits {len(found)} photographs"
                f" ({', '.join(sorted(found)[:N_NAMED])}{more}); write the path with its folder in the table"
            )
        found = narrowed
    return found[0] if found else ""


def _table_split(where: str) -> str:
    """`train` for `train.csv` and `train_labels.csv`."""
    own = split_in(re.split(r"[/\\ ]", where)[-1].partition(".")[0])
    return own[0] if own else ""


def _check_repeated(
    table: Table, name: str, numbers: tuple[int, int], first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    """Raises `UserError` if two rows of a photograph differ in a column that is used."""
    for role, one, other in zip(("label", "split", "group"), first, second, strict=True):
        same = class_key(one) == class_key(other) if role == "label" else one == other
        if not same:
            advice = "a photograph has one label here: remove a row" if role == "label" else "remove a row"
            raise UserError(
                f"{table.where}: rows {numbers[0]} and {numbers[1]} give {name} two {role}s, {quoted(one)} and"
                f" {quoted(other)}; {advice}"
            )


def _labels(table: Table, chosen: Chosen) -> list[str]:
    """The label of each row, "" without; raises `UserError` for several labels in a row."""
    if len(chosen.label) == 1:
        labels = [class_name(text) for text in table.rows[chosen.label[0]]]
        long = next((label for label in labels if len(label) > MAX_LABEL), "")
        if long:
            number = table.rows.index[labels.index(long)]
            raise UserError(
                f"{table.where}: row {number}: a label of {len(long)} characters, {quoted(long)}; set data.columns.label"
            )
        _refuse_several_labels(table, labels)
        return labels
    ones = table.rows[list(chosen.label)].apply(lambda column: column.str.strip().isin(["1", "1.0", "1."]))
    n_ones = ones.sum(axis="columns")
    if (n_ones > 1).any():
        number = n_ones.index[n_ones > 1][0]
        names = [quoted(table.columns[place]) for place in chosen.label if ones.at[number, place]]
        raise UserError(
            f"{table.where}: row {number} has 1 in {len(names)} columns ({', '.join(names[:N_NAMED])}), but a photograph has"
            f" one label here; keep one, or set data.columns.label to one of: {table.listing()}"
        )
    columns = pd.Series([class_name(table.columns[place]) for place in chosen.label], index=list(chosen.label))
    return [columns[place] if any_one else "" for place, any_one in zip(ones.idxmax(axis="columns"), n_ones > 0, strict=True)]


def _refuse_several_labels(table: Table, labels: Sequence[str]) -> None:
    """Raises `UserError` for a row with several labels, where it is certain: a list, or labels of other rows."""
    known = set(labels)
    for label in dict.fromkeys(labels):
        parts = _listed(label)
        for separator in SEPARATORS:
            pieces = [piece.strip() for piece in label.split(separator)]
            if not parts and len(pieces) > 1 and all(piece in known for piece in pieces):
                parts = pieces
        if len(parts) > 1:
            number = table.rows.index[labels.index(label)]
            raise UserError(
                f"{table.where}: row {number}: {quoted(label)} contains {len(parts)} labels, but a photograph has one label"
                " here; keep one of them"
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
        if is_numbered(texts):
            refuse_numbers(table, place)
        meaning = {text: split_word(text) for text in texts.unique()}
        splits = [meaning[text] for text in texts]
    for number, text, split in zip(table.rows.index, texts, splits, strict=True):
        if not split:
            what = f"{quoted(text)} is not a split" if text else "no split"
            raise UserError(
                f"{table.where}: row {number}: {what} in column {quoted(table.columns[place])}; use train, valid or test, or"
                f" set data.columns.split to another column or to {NO_COLUMN}"
            )
    return splits


def _splits_of_folders(table: Table, frame: pd.DataFrame) -> list[str]:
    """The splits by folders; "" if there are none. Raises `UserError` if only a part of the labelled photographs has one."""
    splits = frame["id"].map(folder_split)
    labelled = frame["class_name"].ne("")
    present = set(splits[labelled])
    if present <= {"test"} or present <= {"valid"}:
        return ["" if known else UNLABELLED_SPLIT for known in labelled]  # a name that is no split: all are in one folder
    if present & {"", UNLABELLED_SPLIT} and present & set(SPLITS):
        inside = frame.loc[labelled & splits.isin(SPLITS), "id"].iloc[0]
        outside = frame.loc[labelled & ~splits.isin(SPLITS), "id"].iloc[0]
        raise UserError(
            f"{table.where}: {inside} is in the folder of a split, {outside} is not; move it, or add a column split"
        )
    return splits.where(splits.isin(SPLITS), "").where(labelled, UNLABELLED_SPLIT).tolist()


def _check_classes(table: Table, frame: pd.DataFrame, chosen: Chosen) -> None:
    """Raises `UserError` for fewer than two classes, and for a split column without train."""
    labelled = frame[frame["class_name"].ne("")]
    keys = sorted(labelled["class_name"].map(class_key).unique())
    if len(keys) < 2:
        raise key_message(table, "label", f"only one class ({', '.join(keys)})" if keys else "no photograph has a label")
    if set(labelled["split"]) - {""} and "train" not in set(labelled["split"]):
        present = ", ".join(sorted(set(labelled["split"])))
        raise UserError(f"{table.where}: no labelled photograph is in train (only {present}); correct the split column")
