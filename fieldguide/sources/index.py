"""Raw data of any format to a table with one row per image; later code does not depend on the format."""

from pathlib import Path

import pandas as pd

from fieldguide.core.artifacts import Receipt
from fieldguide.core.errors import UserError
from fieldguide.sources.archive import stored_members
from fieldguide.sources.catalog import CATALOG
from fieldguide.sources.layout import class_alone, class_key, class_name, shard_split, split_and_class
from fieldguide.sources.tfrecord import read_shard

INDEX_COLUMNS = ["split", "label", "class_name", "id", "file", "offset", "length"]


def index_folders(images_zip: Path) -> pd.DataFrame:
    """One row per image in images.zip: split ("" if not yet drawn), class, position of its bytes."""
    rows = []
    for name, offset, length in stored_members(images_zip):
        place = split_and_class(name) or class_alone(name)
        assert place is not None, name  # `download` ignores other files
        rows.append((place[0], None, place[1], name, images_zip.name, offset, length))
    return pd.DataFrame(rows, columns=INDEX_COLUMNS)


def index_shards(receipt: Receipt, raw: Path) -> pd.DataFrame:
    """One row per record of the shards, after verifying its checksums; the test split may be unlabelled.

    Raises `UserError` for damage, a missing or unknown label, a repeated id, and for shards without records.
    """
    names = CATALOG[receipt.dataset].class_names
    features = {f"{kind}_feature": name for kind, name in receipt.features}
    rows = []
    for file in receipt.files:
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
