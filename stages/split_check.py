"""The manifest of every image, and what is wrong with the data, acted on by stated policies.

Reads data/raw and `split_check` of params.yaml; writes data/manifest.csv, metrics/split_check.json, findings.csv (a line
per fault), near_duplicates.csv and .html (pairs, to be looked at), classes.csv and .png (images per class and split),
samples.png and sizes.png. Run it with `dvc repro split_check`.
"""

import hashlib
import string
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from fieldguide.checks import gallery
from fieldguide.checks.duplicates import exact_pairs, photographs
from fieldguide.checks.near_duplicates import Fingerprint, Pair, fingerprint, near_duplicates
from fieldguide.checks.policies import Findings, check
from fieldguide.checks.splits import assign_splits
from fieldguide.core.errors import UserError, run_command
from fieldguide.core.files import read_json, write_bytes, write_json
from fieldguide.core.images import UnreadableImage, decode, inspect, read_encoded, resized
from fieldguide.core.manifest import named_tuples, write_manifest, write_table
from fieldguide.core.names import SPLITS
from fieldguide.core.params import SplitCheck, read_params
from fieldguide.core.paths import (
    CLASSES_CSV,
    CLASSES_PNG,
    FINDINGS_CSV,
    IMAGES_ZIP,
    MANIFEST,
    NEAR_DUPLICATES_CSV,
    NEAR_DUPLICATES_HTML,
    RAW,
    RECEIPT,
    SAMPLES_PNG,
    SIZES_PNG,
    stage_metrics,
)
from fieldguide.report import plots
from fieldguide.sources.index import index_folders, index_shards, united_classes

INSPECTED_PX = 256  # a larger JPEG is decoded at a scale that leaves both sides at least this; enough for all comparisons
MEAN_PX = 64
N_SAMPLES, SAMPLE_PX = 10, 96  # pictures a split in samples.png
SET_ASIDE = "set aside: split_check.hold_out"
MAX_SHOWN = 5000  # pairs in the gallery; the table has all


def main() -> None:
    params = read_params()
    policy, n_workers = params.split_check, params.runtime.n_workers
    receipt, findings = read_json(RECEIPT), Findings()
    shards = receipt["layout"] == "tfrecords"
    frame = index_shards(receipt, RAW) if shards else numbered_classes(index_folders(IMAGES_ZIP), findings)
    frame, fingerprints, means = inspected(frame, n_workers)
    copies = exact_pairs(frame["sha256"].where(frame["reason"].eq(""), ""))
    pairs = near_pairs(frame, fingerprints, n_workers) if policy.near_duplicates else []
    same = [(pair.i, pair.j) for pair in pairs if pair.verdict != "different"]
    frame["photograph"] = photographs(len(frame), [*copies, *same])
    if receipt["dataset"] == "folder":
        frame = with_splits(frame, policy)
    frame, aside = with_hold_out(frame, policy) if policy.hold_out else (frame, frame[:0])
    try:
        frame, n_conflicts = check(frame, policy, findings)
    except UserError:
        write_table(findings.table(), FINDINGS_CSV)
        raise
    frame = pd.concat([frame, aside.assign(use=False, reason=SET_ASIDE)]).sort_index() if len(aside) else frame
    if not frame["use"].any():
        raise UserError(f"{RAW}: no image in use, the first is out for: {frame['reason'].iloc[0]}; mend the data")
    metrics = metrics_of(frame, copies, pairs if policy.near_duplicates else None, findings, n_conflicts)
    table = pair_table(frame, pairs, copies)
    write_tables(frame, findings, table)
    write_json(stage_metrics("split_check"), metrics)
    write_pictures(frame, table, means)
    report(metrics, findings)


def numbered_classes(frame: pd.DataFrame, findings: Findings) -> pd.DataFrame:
    """Class folders that differ only in case as one class, and labels by the order of the names."""
    names = united_classes(frame)
    other = frame[frame["class_name"] != names].drop_duplicates(["split", "class_name"])
    for row in named_tuples(other):
        findings.add_class("class name", row.split, row.class_name, f"taken for {names[row.Index]!r}", "united")
    numbers = {name: number for number, name in enumerate(sorted(names.unique()))}
    return frame.assign(class_name=names, label=names.map(numbers).astype("Int64"))


class Inspected(NamedTuple):
    """What one decoding of an image tells; `reason` says why it could not be decoded."""

    width: int | None
    height: int | None
    sha256: str
    phash: str
    reason: str
    fingerprint: Fingerprint | None
    small: np.ndarray | None


def inspected(frame: pd.DataFrame, n_workers: int) -> tuple[pd.DataFrame, list[Fingerprint | None], dict[str, np.ndarray]]:
    """Adds `width`, `height`, `sha256`, `phash` and `reason`; a fingerprint for each image; each split's mean image."""
    places = list(zip(frame["file"], frame["offset"], frame["length"], strict=True))
    rows, fingerprints = [], []
    sums = {split: np.zeros((MEAN_PX, MEAN_PX, 3)) for split in dict.fromkeys(frame["split"])}
    counts = dict.fromkeys(sums, 0)
    with ThreadPoolExecutor(n_workers) as pool:
        looks = tqdm(pool.map(_inspect_one, places), total=len(places), unit="image", disable=None)
        for split, look in zip(frame["split"], looks, strict=True):
            rows.append(look[:5])
            fingerprints.append(look.fingerprint)
            if look.small is not None:
                sums[split] += look.small
                counts[split] += 1
    columns = pd.DataFrame(rows, columns=["width", "height", "sha256", "phash", "reason"])
    order = ["", *SPLITS, "unlabelled"]
    means = {
        split or "all": (sums[split] / counts[split]).round().astype(np.uint8)
        for split in sorted(sums, key=order.index)
        if counts[split]
    }
    return frame.join(columns.astype({"width": "Int64", "height": "Int64"})), fingerprints, means


def _inspect_one(place: tuple[str, int, int]) -> Inspected:
    file, offset, length = place
    encoded = read_encoded(RAW / file, offset, length)
    digest = hashlib.sha256(encoded).hexdigest()
    try:
        facts, rgb = inspect(encoded, INSPECTED_PX)
    except UnreadableImage as error:
        return Inspected(None, None, digest, "", f"unreadable: {error}", None, None)
    prints = fingerprint(rgb)
    return Inspected(facts.width, facts.height, digest, f"{prints.hashes[0]:016x}", "", prints, resized(rgb, MEAN_PX))


def near_pairs(frame: pd.DataFrame, fingerprints: list[Fingerprint | None], n_workers: int) -> list[Pair]:
    """Near duplicates among readable images that are not byte-identical, as positions of the table's rows."""
    rows = np.flatnonzero(frame["reason"].eq("") & ~frame.duplicated("sha256"))
    places = list(zip(frame["file"], frame["offset"], frame["length"], strict=True))

    def read_rgb(k: int) -> np.ndarray:
        file, offset, length = places[rows[k]]
        return inspect(read_encoded(RAW / file, offset, length), INSPECTED_PX)[1]

    readable = [look for row in rows if (look := fingerprints[row]) is not None]
    found = near_duplicates(readable, read_rgb, n_workers)
    return [pair._replace(i=int(rows[pair.i]), j=int(rows[pair.j])) for pair in found]


def with_splits(frame: pd.DataFrame, policy: SplitCheck) -> pd.DataFrame:
    """Cuts the splits that own photographs came without out of the others; one photograph stays on one side."""
    fractions = {"test": policy.test_fraction, "valid": policy.valid_fraction}
    absent = {split: fraction for split, fraction in fractions.items() if split not in set(frame["split"])}
    if not absent:
        return frame
    pool = frame[frame["split"].isin(["", "train"])]
    first_id = pool.groupby("photograph")["id"].transform("min")
    splits = assign_splits(pool, absent, groups=first_id, seed=policy.seed)
    counts = splits.value_counts()
    for split, fraction in absent.items():
        if not counts.get(split):
            largest = pool["class_name"].value_counts().max()
            raise UserError(
                f"no {split} split is there, and none can be cut: {fraction} of the largest class ({largest} images) is none;"
                f" add images or raise split_check.{split}_fraction"
            )
        print(f"no {split} split was there: {counts[split]} images were cut out for it, by seed {policy.seed}")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"]))


def with_hold_out(frame: pd.DataFrame, policy: SplitCheck) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A share of train as the test split, to tune on; and the rows of the test split whose place it takes.

    Photographs that valid or test hold too are not chosen: they are leaks. One photograph stays on one side.
    """
    aside = frame[frame["split"] == "test"]
    elsewhere = set(frame.loc[~frame["split"].isin(["train"]), "photograph"])
    pool = frame[(frame["split"] == "train") & ~frame["photograph"].isin(elsewhere) & frame["reason"].eq("")]
    first_id = pool.groupby("photograph")["id"].transform("min")
    splits = assign_splits(pool, {"test": policy.hold_out}, groups=first_id, seed=policy.seed)
    n_chosen = int((splits == "test").sum())
    if not n_chosen:
        raise UserError(f"split_check.hold_out is {policy.hold_out}, of which no class has one image; raise it or set it to 0")
    print(f"held out as test, by seed {policy.seed}: {n_chosen} train images; {len(aside)} test images are set aside")
    return frame.assign(split=splits.reindex(frame.index).fillna(frame["split"])).drop(index=aside.index), aside


def metrics_of(
    frame: pd.DataFrame, copies: list[tuple[int, int]], pairs: list[Pair] | None, findings: Findings, n_conflicts: int
) -> dict[str, Any]:
    """The content of metrics/split_check.json; near duplicates are null where they were not looked for."""
    across = within = None
    if pairs is not None:
        same = [pair for pair in pairs if pair.verdict != "different"]
        splits = frame["split"].to_dict()
        across = sum(splits[pair.i] != splits[pair.j] for pair in same)
        within = len(same) - across
    missing = Counter(finding["split"] for finding in findings.rows if finding["kind"] == "missing class")
    used = frame[frame["use"] & (frame["split"] == "train")]
    per_class = used.groupby("class_name").size()
    return {
        "classes": int(frame["label"].nunique()),
        "images": {split: int((frame["split"] == split).sum()) for split in SPLITS},
        "unlabelled": int(frame["label"].isna().sum()),
        "unreadable": int(frame["width"].isna().sum()),
        "exact_duplicates": len(copies),
        "near_duplicates": {"across_splits": across, "within_split": within},
        "label_conflicts": n_conflicts,
        "missing_classes": {split: missing[split] for split in SPLITS},
        "train_images_per_class": {"smallest": int(per_class.min()), "largest": int(per_class.max())}
        if len(per_class)
        else None,
        "dropped": int((~frame["use"]).sum()),
    }


def pair_table(frame: pd.DataFrame, pairs: list[Pair], copies: list[tuple[int, int]]) -> pd.DataFrame:
    """Every pair of candidates with its verdict, and the byte-identical ones; pairs that matter most first."""
    places = ["split", "class_name", "id"]
    listed = [(*pair[:4], pair.verdict) for pair in pairs] + [(i, j, 0, 1.0, "identical") for i, j in copies]
    table = pd.DataFrame(listed, columns=["i", "j", "distance", "similarity", "verdict"])
    for side, name in (("i", "one"), ("j", "other")):
        part = frame.iloc[table[side]][places].reset_index(drop=True)
        table[[f"{name}_{column}" for column in places]] = part
    table["same"] = table["verdict"].ne("different")
    table["across"] = table["one_split"].ne(table["other_split"])
    table["conflict"] = table["one_class_name"].ne(table["other_class_name"])
    order = ["same", "conflict", "across", "similarity", "i", "j"]
    return table.sort_values(order, ascending=[False, False, False, False, True, True]).reset_index(drop=True)


def write_tables(frame: pd.DataFrame, findings: Findings, pairs: pd.DataFrame) -> None:
    """The manifest and the CSV files."""
    write_manifest(frame, MANIFEST)
    shown = [column for column in pairs.columns if column not in ("i", "j", "same", "across", "conflict")]
    tables = {CLASSES_CSV: class_counts(frame), FINDINGS_CSV: findings.table(), NEAR_DUPLICATES_CSV: pairs[shown]}
    for target, table in tables.items():
        write_table(table, target)


def class_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Images in use: a row per class, a column per split."""
    labelled = frame[frame["label"].notna()]
    in_use = {split: (labelled["split"] == split) & labelled["use"] for split in SPLITS}
    return labelled.assign(**in_use).groupby(["label", "class_name"])[list(SPLITS)].sum().reset_index()


def write_pictures(frame: pd.DataFrame, pairs: pd.DataFrame, means: dict[str, np.ndarray]) -> None:
    """The gallery of pairs and the pictures of the data."""
    counts = class_counts(frame)
    by_split = {split: counts[split].to_numpy() for split in SPLITS if counts[split].any()}
    plots.save_png(plots.class_distribution(by_split, counts["class_name"].tolist()), CLASSES_PNG)
    sized = frame[frame["width"].notna()]
    widths, heights = (sized[side].to_numpy(dtype=np.int64) for side in ("width", "height"))
    plots.save_png(plots.sizes_and_mean(widths, heights, means), SIZES_PNG)
    used = frame[frame["use"]]
    chosen = {split: _samples(used[used["split"] == split]) for split in (*SPLITS, "unlabelled") if split in set(used["split"])}
    pictures = [
        [decode(read_encoded(RAW / row.file, row.offset, row.length), SAMPLE_PX) for row in named_tuples(rows)]
        for rows in chosen.values()
    ]
    captions = [[string.capwords(name) for name in rows["class_name"]] for rows in chosen.values()]
    plots.save_png(plots.image_grid(pictures, list(chosen), "Samples of each split", captions), SAMPLES_PNG)
    write_bytes(NEAR_DUPLICATES_HTML, pairs_page(frame, pairs[pairs["same"]]).encode())


def _samples(rows: pd.DataFrame) -> pd.DataFrame:
    """`N_SAMPLES` rows of classes spread over the list; a small split repeats."""
    by_class = rows.sort_values(["label", "id"]).drop_duplicates("label") if rows["label"].notna().any() else rows
    return by_class.iloc[np.linspace(0, len(by_class) - 1, N_SAMPLES).round().astype(int)]


def pairs_page(frame: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """The gallery: each pair side by side, label conflicts and leaks first."""

    def picture(row: int) -> gallery.Picture:
        place = frame.iloc[row]
        pixels = inspect(read_encoded(RAW / place["file"], place["offset"], place["length"]), INSPECTED_PX)[1]
        used = "" if place["use"] else ", not in use"
        return gallery.Picture(pixels, f"{place['split']}{used}: {place['class_name']}: {place['id']}")

    groups = []
    for pair in named_tuples(pairs.head(MAX_SHOWN)):
        kinds = ["two names"] * pair.conflict + ["two splits"] * pair.across + [pair.verdict]
        heading = f"{', '.join(kinds)}: distance {pair.distance} of 64 bits, similarity {pair.similarity:.2f}"
        groups.append((heading, [picture(pair.i), picture(pair.j)]))
    counted = f"{len(pairs)} pairs" + (f", of which the first {MAX_SHOWN} are shown" if len(pairs) > MAX_SHOWN else "")
    tables = f"What was done about each is in {FINDINGS_CSV}, all that was compared on pixels in {NEAR_DUPLICATES_CSV}."
    introduction = f"{counted}. {tables}"
    return gallery.page("The same photograph twice", introduction, groups)


def report(metrics: dict[str, Any], findings: Findings) -> None:
    """The headline and the paths, for a person at a terminal."""
    images = ", ".join(f"{metrics['images'][split]} {split}" for split in SPLITS)
    near = metrics["near_duplicates"]
    print(f"{metrics['classes']} classes; {images}, {metrics['unlabelled']} unlabelled; {metrics['dropped']} dropped")
    if near["across_splits"] is not None:
        print(f"near duplicates: {near['across_splits']} across splits, {near['within_split']} within: {NEAR_DUPLICATES_HTML}")
    for kind, n_found in findings.table()["kind"].value_counts().items():
        print(f"{n_found} x {kind}: see {FINDINGS_CSV}")
    print(f"-> {MANIFEST} {stage_metrics('split_check')} {CLASSES_CSV} {FINDINGS_CSV} {NEAR_DUPLICATES_CSV}")


if __name__ == "__main__":
    run_command(main)
