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
from fieldguide.sources.layout import class_key, class_name, is_shard, shard_split
from fieldguide.sources.members import LeftOut, printable
from fieldguide.sources.tfrecord import read_shard

INDEX_COLUMNS = ["split", "label", "class_name", "id", "file", "offset", "length"]
LABEL_COLUMNS = ["id", "split", "class_name"]
GROUPED_COLUMNS = [*LABEL_COLUMNS, "group"]  # of labels from a table with groups


def write_labels(rows: Iterable[Sequence[str]]) -> None:
    """Writes id, split ("" if not yet drawn), class and, if the rows have one, group of each image in images.zip."""
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


def index_folders(images_zip: Path) -> pd.DataFrame:
    """One row per image in images.zip: split ("" if not yet drawn), class ("" if unlabelled), position of its bytes.

    Also has the column `group` if the labels have it.
    """
    source = images_zip.with_name(LABELS.name)
    try:
        labels = pd.read_csv(source, dtype=str, keep_default_na=False, na_filter=False)
        places = {row.id: (row.split, row.class_name) for row in named_tuples(labels)}
        rows = [
            (places[name][0], None, places[name][1], name, images_zip.name, offset, length)
            for name, offset, length in stored_members(images_zip)
        ]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{source}: missing or not of {images_zip}; recreate it with: dvc repro -f download") from error
    frame = pd.DataFrame(rows, columns=INDEX_COLUMNS)
    return frame.assign(group=frame["id"].map(labels.set_index("id")["group"])) if "group" in labels else frame


def index_shards(receipt: Receipt, raw: Path) -> pd.DataFrame:
    """One row per record of the shards, after verifying its checksums; the test split may be unlabelled.

    Raises `UserError` for damage, a missing or unknown label, a repeated id, and for shards without records.
    """
    names = CATALOG[receipt.dataset].class_names
    features = {f"{kind}_feature": name for kind, name in receipt.features}
    rows = []
    for file in filter(is_shard, receipt.files):
        split = shard_split(file)
        for record in read_shard(raw / file, **features):
            where = f"{raw / file}: record {record.index}, image at byte {record.offset}"
            if record.label is None and split != "test":
                raise UserError(f"{where}: no feature {receipt.features.label!r}; set data.features.label")
            if record.label is not None and names and record.label >= len(names):
                raise UserError(f"{where}: class {record.label}, but {receipt.dataset} has {len(names)} classes")
            name = "" if record.label is None else names[record.label] if names else f"class {record.label:04d}"
            kept = "unlabelled" if record.label is None else split
            own_id = record.id if receipt.features.id else f"{file}/{record.index}"
            rows.append((kept, record.label, name, own_id, file, record.offset, record.length))
    if not rows:
        raise UserError(f"{raw}: {len(receipt.files)} shards contain no record; change data.path")
    frame = pd.DataFrame(rows, columns=INDEX_COLUMNS).astype({"label": "Int64"})
    if frame["id"].duplicated().any():
        twice = frame[frame["id"].duplicated()].iloc[0]
        raise UserError(f"{raw / twice['file']}: id {twice['id']!r} occurs in two records; set data.features.id")
    return frame


def united_classes(frame: pd.DataFrame) -> pd.Series:
    """The class name of every row; folders that differ only in case, surrounding space or Unicode form are one class.

    Its name is the most frequent spelling, stripped.
    """
    folded = frame["class_name"].map(class_key)
    counts = frame.groupby([folded.rename("folded"), "class_name"]).size().reset_index(name="n")
    best = counts.sort_values(["n", "class_name"], ascending=[False, True]).drop_duplicates("folded")
    return folded.map(best.set_index("folded")["class_name"].map(class_name))
