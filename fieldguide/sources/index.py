"""Raw data of any format to a table with one row per image; later code does not depend on the format."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from fieldguide.core.artifacts import Receipt
from fieldguide.core.errors import UserError
from fieldguide.core.manifest import named_tuples, write_table
from fieldguide.core.paths import LABELS, LEFT_OUT
from fieldguide.sources.archive import stored_members
from fieldguide.sources.catalog import CATALOG
from fieldguide.sources.class_names import is_class_name
from fieldguide.sources.layout import class_key, class_name, is_shard, shard_split
from fieldguide.sources.members import LeftOut, printable
from fieldguide.sources.tfrecord import read_shard

INDEX_COLUMNS = ["split", "label", "class_name", "id", "file", "offset", "length"]
LABEL_COLUMNS = ["id", "split", "class_name"]
GROUPED_COLUMNS = [*LABEL_COLUMNS, "group"]  # of labels from a table with groups
LISTED_CLASSES = 10  # a guess: enough to see which, but still one line


def write_labels(rows: Iterable[Sequence[str]]) -> None:
    """Writes id, split ("" if not yet drawn), class and, if the rows have one, group of each stored image."""
    frame = pd.DataFrame(rows)
    write_table(frame.set_axis(GROUPED_COLUMNS[: frame.shape[1]], axis="columns"), LABELS)


def write_left_out(files: Iterable[LeftOut]) -> None:
    """Writes name, kind and remedy of each file that is not used."""
    rows = [(printable(file.name), file.kind.name, "; ".join(filter(None, (file.reason, file.remedy)))) for file in files]
    write_table(pd.DataFrame(sorted(rows), columns=["file", "kind", "remedy"]), LEFT_OUT)


def read_left_out(raw: Path) -> pd.DataFrame:
    """The table of `write_left_out`, without rows if nothing was left out."""
    source = raw / LEFT_OUT.name
    return (
        pd.read_csv(source, dtype=str, keep_default_na=False)
        if source.exists()
        else pd.DataFrame(columns=["file", "kind", "remedy"])
    )


def index_images(receipt: Receipt, raw: Path) -> pd.DataFrame:
    """One row per image of the raw data, of any layout."""
    return index_shards(receipt, raw) if receipt.layout == "tfrecords" else index_folders(receipt, raw)


def index_folders(receipt: Receipt, raw: Path) -> pd.DataFrame:
    """One row per image in the zips: split ("" if not yet drawn), class ("" if unlabelled), position of its bytes.

    Also has the column `group` if the labels have it.
    """
    source = raw / LABELS.name
    try:
        labels = pd.read_csv(source, dtype=str, keep_default_na=False, na_filter=False)
        places = {row.id: (row.split, row.class_name) for row in named_tuples(labels)}
        rows = [
            (places[name][0], None, places[name][1], name, file, offset, length)
            for file in receipt.files
            if file.endswith(".zip")
            for name, offset, length in stored_members(raw / file)
        ]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{source}: missing or not of these photographs; recreate it with: dvc repro -f download") from error
    frame = pd.DataFrame(rows, columns=INDEX_COLUMNS)
    return frame.assign(group=frame["id"].map(labels.set_index("id")["group"])) if "group" in labels else frame


def index_shards(receipt: Receipt, raw: Path) -> pd.DataFrame:
    """One row per record of the shards, after verifying its checksums; the test split may be unlabelled.

    A row whose label is a class name has no number, unless the receipt lists the class names. Raises `UserError` for damage, a
    missing or unknown label, for names beside numbers, a repeated id, and for shards without records.
    """
    names = receipt.class_names or list(CATALOG[receipt.dataset].class_names)
    numbers = {class_key(name): number for number, name in enumerate(names)}
    features = {f"{kind}_feature": name for kind, name in receipt.features}
    rows = []
    first: int | str | None = None
    for file in filter(is_shard, receipt.files):
        split = shard_split(file)
        for record in read_shard(raw / file, **features):
            where = f"{raw / file}: record {record.index}, image at byte {record.offset}"
            first = record.label if first is None else first
            if type(record.label) not in (type(first), type(None)):
                raise UserError(f"{where}: label {record.label!r}, but the first is {first!r}; use only names or only numbers")
            kept, label, name = split, None, ""
            if isinstance(record.label, str):
                label, name = _named_class(record.label, names, numbers, where)
            elif record.label is not None:
                label, name = record.label, _name_of_class(record.label, names, where)
            elif split == "test":
                kept = "unlabelled"
            else:
                missing = f"no label in feature {receipt.features.label!r} (missing, empty or -1)"
                raise UserError(f"{where}: {missing}; set data.features.label, or move unlabelled images to test")
            own_id = record.id if receipt.features.id else f"{file}/{record.index}"
            rows.append((kept, label, name, own_id, file, record.offset, record.length))
    if not rows:
        raise UserError(f"{raw}: {len(receipt.files)} shards contain no record; change data.path")
    frame = pd.DataFrame(rows, columns=INDEX_COLUMNS).astype({"label": "Int64"})
    if frame["id"].duplicated().any():
        twice = frame[frame["id"].duplicated()].iloc[0]
        raise UserError(f"{raw / twice['file']}: id {twice['id']!r} occurs in two records; set data.features.id")
    if unused := sorted(set(receipt.class_names or []) - set(frame["class_name"])):
        more = f" and {len(unused) - LISTED_CLASSES} more" if len(unused) > LISTED_CLASSES else ""
        print(f"{len(unused)} of {len(names)} class names have no image: {', '.join(unused[:LISTED_CLASSES])}{more}")
    return frame


def _name_of_class(number: int, names: list[str], where: str) -> str:
    """The name of a class by its number; raises `UserError` for a number beyond the names."""
    if names and number >= len(names):
        beyond = f"class {number}, but there are {len(names)} class names, for 0 to {len(names) - 1}"
        raise UserError(f"{where}: {beyond}; correct data.class_names or data.features.label")
    return names[number] if names else f"class {number:04d}"


def _named_class(label: str, names: list[str], numbers: dict[str, int], where: str) -> tuple[int | None, str]:
    """Number, None without a list of names, and name of a class by its name; raises `UserError` for one outside the list."""
    name = class_name(label)
    if not is_class_name(name):
        raise UserError(f"{where}: label {label[:64]!r} is not a class name; set data.features.label")
    number = numbers.get(class_key(name))
    if names and number is None:
        raise UserError(f"{where}: class {name!r} is not among the {len(names)} class names; correct data.class_names")
    return number, name if number is None else names[number]


def united_classes(frame: pd.DataFrame) -> pd.Series:
    """The class name of every row; folders that differ only in case, surrounding space or Unicode form are one class.

    Its name is the most frequent spelling, stripped.
    """
    folded = frame["class_name"].map(class_key)
    counts = frame.groupby([folded.rename("folded"), "class_name"]).size().reset_index(name="n")
    best = counts.sort_values(["n", "class_name"], ascending=[False, True]).drop_duplicates("folded")
    return folded.map(best.set_index("folded")["class_name"].map(class_name))
