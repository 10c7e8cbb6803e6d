"""The manifest of every image, and what is wrong with the data, acted on by stated policies.

Reads data/raw and `split_check` of params.yaml; writes data/manifest.csv, metrics/split_check.json,
metrics/classes.csv (images per class and split) and metrics/findings.csv (one line per fault).
Run it with `dvc repro split_check`.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from tqdm import tqdm

from fieldguide.archive import stored_members
from fieldguide.catalog import CATALOG
from fieldguide.duplicates import exact_groups, label_conflicts, leaks
from fieldguide.errors import UserError, run_command
from fieldguide.files import atomic_path, read_json, write_json
from fieldguide.images import UnreadableImage, inspect, read_encoded
from fieldguide.layout import SPLITS, class_alone, shard_split, split_and_class
from fieldguide.manifest import LEAK, write_manifest
from fieldguide.params import SplitCheck, read_params
from fieldguide.paths import CLASSES_CSV, FINDINGS_CSV, IMAGES_ZIP, MANIFEST, RAW, RECEIPT, stage_metrics
from fieldguide.splitting import assign_splits
from fieldguide.tfrecord import read_shard

INDEX_COLUMNS = ["split", "label", "class_name", "id", "file", "offset", "length"]
FINDING_COLUMNS = ["kind", "split", "class_name", "id", "detail", "action"]
Finding = dict[str, str]


def main() -> None:
    params = read_params()
    receipt = read_json(RECEIPT)
    frame = index_shards(receipt) if receipt["layout"] == "tfrecords" else index_folders()
    frame, findings = with_united_classes(frame) if receipt["layout"] == "folders" else (frame, [])
    frame = inspected(frame, params.runtime.n_workers)
    frame = with_splits(frame, params.split_check)
    frame, found, metrics = checked(frame, params.split_check)
    table = pd.DataFrame(findings + found, columns=FINDING_COLUMNS)
    write_manifest(frame, MANIFEST)
    for content, target in ((class_counts(frame), CLASSES_CSV), (table, FINDINGS_CSV)):
        with atomic_path(target) as temporary:
            content.to_csv(temporary, index=False, lineterminator="\n")
    write_json(stage_metrics("split_check"), metrics)
    images = ", ".join(f"{metrics['images'][split]} {split}" for split in SPLITS)
    print(f"{metrics['classes']} classes; {images}, {metrics['unlabelled']} unlabelled; {metrics['dropped']} dropped")
    for kind, n in table["kind"].value_counts().items():
        print(f"{n} x {kind}: see {FINDINGS_CSV}")
    print(f"-> {MANIFEST} {stage_metrics('split_check')} {CLASSES_CSV} {FINDINGS_CSV}")


def index_folders() -> pd.DataFrame:
    """One row for each image in the packed zip: split ("" where it is still to be cut), class, place of its bytes."""
    rows = []
    for name, offset, length in stored_members(IMAGES_ZIP):
        place = split_and_class(name) or class_alone(name)
        assert place is not None, name  # the download keeps no others
        rows.append((place[0], None, place[1], name, IMAGES_ZIP.name, offset, length))
    return pd.DataFrame(rows, columns=INDEX_COLUMNS)


def index_shards(receipt: dict[str, Any]) -> pd.DataFrame:
    """One row for each record of the shards, whose checksums are verified; a test split may be without labels."""
    names = CATALOG[receipt["dataset"]].class_names
    features = {f"{kind}_feature": name for kind, name in receipt["features"].items()}
    rows = []
    for file in tqdm(receipt["files"], unit="shard", disable=None):
        split = shard_split(file)
        for record in read_shard(RAW / file, **features):
            where = f"{RAW / file}: record {record.index} at byte {record.offset}"
            if record.label is None and split != "test":
                raise UserError(f"{where}: no feature {receipt['features']['label']!r}; set data.features.label")
            if record.label is not None and names and record.label >= len(names):
                raise UserError(f"{where}: class {record.label}, but {receipt['dataset']} has {len(names)} classes")
            name = "" if record.label is None else names[record.label] if names else f"class {record.label:04d}"
            kept = "unlabelled" if record.label is None else split
            rows.append((kept, record.label, name, record.id, file, record.offset, record.length))
    frame = pd.DataFrame(rows, columns=INDEX_COLUMNS).astype({"label": "Int64"})
    if frame["id"].duplicated().any():
        twice = frame[frame["id"].duplicated()].iloc[0]
        raise UserError(f"{RAW / twice['file']}: id {twice['id']!r} stands in two records; set data.features.id")
    return frame


def with_united_classes(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Class folders that differ only in case are one class, under the spelling of most images; labels are numbered."""
    folded = frame["class_name"].str.casefold()
    counts = frame.groupby([folded.rename("folded"), "class_name"]).size().reset_index(name="n")
    best = counts.sort_values(["n", "class_name"], ascending=[False, True]).drop_duplicates("folded")
    spelling = folded.map(best.set_index("folded")["class_name"])
    other = frame[frame["class_name"] != spelling].drop_duplicates(["split", "class_name"])
    findings = [_finding("class name", row, f"taken for {spelling[row.Index]!r}", "united") for row in other.itertuples()]
    numbers = {name: number for number, name in enumerate(sorted(spelling.unique()))}
    return frame.assign(class_name=spelling, label=spelling.map(numbers).astype("Int64")), findings


def with_splits(frame: pd.DataFrame, settings: SplitCheck) -> pd.DataFrame:
    """Cuts the splits that own photographs came without out of the others; identical images stay on one side."""
    fractions = {"test": settings.test_fraction, "valid": settings.valid_fraction}
    present = set(frame["split"])
    absent = {split: fraction for split, fraction in fractions.items() if split not in present}
    if "unlabelled" in present or not absent:
        return frame
    pool = frame[frame["split"].isin(["", "train"])]
    splits = assign_splits(pool, absent, groups=pool["sha256"], seed=settings.seed)
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"]))


def inspected(frame: pd.DataFrame, n_workers: int) -> pd.DataFrame:
    """Adds `width`, `height`, `sha256` and, for an image that cannot be decoded, the reason."""
    places = list(zip(frame["file"], frame["offset"], frame["length"], strict=True))
    with ThreadPoolExecutor(n_workers) as pool:
        facts = list(tqdm(pool.map(_inspect_one, places), total=len(places), unit="image", disable=None))
    columns = pd.DataFrame(facts, columns=["width", "height", "sha256", "reason"])
    return frame.join(columns.astype({"width": "Int64", "height": "Int64"}))


def _inspect_one(place: tuple[str, int, int]) -> tuple[int | None, int | None, str, str]:
    file, offset, length = place
    encoded = read_encoded(RAW / file, offset, length)
    digest = hashlib.sha256(encoded).hexdigest()
    try:
        facts = inspect(encoded)
    except UnreadableImage as error:
        return None, None, digest, f"unreadable: {error}"
    return facts.width, facts.height, digest, ""


def checked(frame: pd.DataFrame, policy: SplitCheck) -> tuple[pd.DataFrame, list[Finding], dict[str, Any]]:
    """The table with `use` and `reason`, the findings, and the metrics; raises `UserError` where a policy says fail."""
    unreadable = frame["reason"].ne("")
    frame["use"] = ~unreadable
    findings = [_finding("unreadable", row, row.reason, "left out") for row in frame[unreadable].itertuples()]
    _stop(policy.unreadable, "unreadable", findings)

    groups = exact_groups(frame)
    pairs = leaks(groups)
    place = frame["split"] + " " + frame["id"]
    action = {"report": "kept", "drop": "dropped", "fail": "stopped"}[policy.leaks]
    found = [_finding("leak", frame.loc[pair.row], f"same bytes as {place[pair.twin]}", action) for pair in pairs.itertuples()]
    _stop(policy.leaks, "leaks", found)
    findings += found
    frame.loc[pairs["row"], "reason"] = (LEAK + "same bytes as " + place[pairs["twin"]]).to_numpy()
    if policy.leaks == "drop":
        frame.loc[pairs["row"], "use"] = False
    else:
        frame.loc[pairs["twin"], "reason"] = (LEAK + "same bytes as " + place[pairs["row"]]).to_numpy()

    missing = dict(_missing_classes(frame))
    found = [
        {
            "kind": "missing class",
            "split": split,
            "class_name": name,
            "id": "",
            "detail": "no image in use",
            "action": "kept",
        }
        for split, names in missing.items()
        for name in names
    ]
    _stop(policy.missing_classes, "missing_classes", found)
    findings += found

    metrics = {
        "classes": int(frame["label"].nunique()),
        "images": {split: int((frame["split"] == split).sum()) for split in SPLITS},
        "unlabelled": int(frame["label"].isna().sum()),
        "unreadable": int(unreadable.sum()),
        "exact_duplicates": int(groups.duplicated("sha256").sum()),
        "near_duplicates": {"across_splits": None, "within_split": None},
        "label_conflicts": label_conflicts(groups),
        "missing_classes": {split: len(missing.get(split, ())) for split in SPLITS},
        "dropped": int((~frame["use"]).sum()),
    }
    return frame, findings, metrics


def _finding(kind: str, row: object, detail: str, action: str) -> Finding:
    return {
        "kind": kind,
        "split": row.split,
        "class_name": row.class_name,
        "id": row.id,
        "detail": detail,
        "action": action,
    }


def _stop(policy: str, name: str, findings: list[Finding]) -> None:
    """Raises when the policy `split_check.<name>` is to fail and there is something."""
    if policy == "fail" and findings:
        first = findings[0]
        raise UserError(
            f"{len(findings)} finding(s) of kind {first['kind']}: {first['id'] or first['class_name']} in {first['split']}"
            f" ({first['detail']})"
            + "".join(f"; {finding['id'] or finding['class_name']}" for finding in findings[1:10])
            + (" ..." if len(findings) > 10 else "")
            + f"; mend the data or set split_check.{name}"
        )


def _missing_classes(frame: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """For each split the classes that have no image in use there."""
    names = set(frame[frame["label"].notna()]["class_name"])
    for split in sorted(set(SPLITS) & set(frame["split"]), key=SPLITS.index):
        yield split, sorted(names - set(frame[(frame["split"] == split) & frame["use"]]["class_name"]))


def class_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Images in use: a row per class, a column per split."""
    counts = pd.crosstab([frame["label"], frame["class_name"]], frame["split"].where(frame["use"]))
    return counts.reindex(columns=list(SPLITS), fill_value=0).reset_index()


if __name__ == "__main__":
    run_command(main)
