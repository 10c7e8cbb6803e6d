"""The manifest of every image, and what is wrong with the data, acted on by stated policies.

Reads data/raw and `split_check` of params.yaml; writes data/manifest.csv, metrics/split_check.json,
metrics/classes.csv (images per class and split) and metrics/findings.csv (one line per fault).
Run it with `dvc repro split_check`.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
from tqdm import tqdm

from fieldguide.archive import stored_members
from fieldguide.duplicates import exact_groups, label_conflicts, leaks
from fieldguide.errors import UserError, run_command
from fieldguide.files import atomic_path, write_json
from fieldguide.images import UnreadableImage, inspect, read_encoded
from fieldguide.layout import SPLITS, split_and_class
from fieldguide.manifest import LEAK, write_manifest
from fieldguide.params import SplitCheck, read_params
from fieldguide.paths import CLASSES_CSV, FINDINGS_CSV, IMAGES_ZIP, MANIFEST, RAW, stage_metrics

FINDING_COLUMNS = ["kind", "split", "class_name", "id", "detail", "action"]


def main() -> None:
    params = read_params()
    frame = inspected(index_folders(), params.runtime.n_workers)
    frame, findings, metrics = checked(frame, params.split_check)
    counts = class_counts(frame)
    write_manifest(frame, MANIFEST)
    for table, target in ((counts, CLASSES_CSV), (findings, FINDINGS_CSV)):
        with atomic_path(target) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    write_json(stage_metrics("split_check"), metrics)
    images = ", ".join(f"{metrics['images'][split]} {split}" for split in SPLITS)
    print(f"{metrics['classes']} classes; {images}; {metrics['dropped']} dropped; {len(findings)} findings")
    print(f"-> {MANIFEST} {stage_metrics('split_check')} {CLASSES_CSV} {FINDINGS_CSV}")


def index_folders() -> pd.DataFrame:
    """One row for each image in the packed zip: split, class and where its bytes lie."""
    rows = []
    for name, offset, length in stored_members(IMAGES_ZIP):
        place = split_and_class(name)
        assert place is not None, name  # the download keeps no others
        rows.append((*place, name, IMAGES_ZIP.name, offset, length))
    frame = pd.DataFrame(rows, columns=["split", "class_name", "id", "file", "offset", "length"])
    numbers = {name: number for number, name in enumerate(sorted(frame["class_name"].unique()))}
    frame["label"] = frame["class_name"].map(numbers).astype("Int64")
    return frame


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


def checked(frame: pd.DataFrame, policy: SplitCheck) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, object]]:
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
        "classes": int(frame["class_name"].nunique()),
        "images": {split: int((frame["split"] == split).sum()) for split in SPLITS},
        "unlabelled": int(frame["label"].isna().sum()),
        "unreadable": int(unreadable.sum()),
        "exact_duplicates": int(groups.duplicated("sha256").sum()),
        "near_duplicates": {"across_splits": None, "within_split": None},
        "label_conflicts": label_conflicts(groups),
        "missing_classes": {split: len(names) for split, names in missing.items()},
        "dropped": int((~frame["use"]).sum()),
    }
    return frame, pd.DataFrame(findings, columns=FINDING_COLUMNS), metrics


def _finding(kind: str, row: object, detail: str, action: str) -> dict[str, str]:
    return {
        "kind": kind,
        "split": row.split,
        "class_name": row.class_name,
        "id": row.id,
        "detail": detail,
        "action": action,
    }


def _stop(policy: str, name: str, findings: list[dict[str, str]]) -> None:
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
    names = set(frame["class_name"])
    for split in SPLITS:
        yield split, sorted(names - set(frame[(frame["split"] == split) & frame["use"]]["class_name"]))


def class_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Images in use: a row per class, a column per split."""
    counts = pd.crosstab([frame["label"], frame["class_name"]], frame["split"].where(frame["use"]))
    return counts.reindex(columns=list(SPLITS), fill_value=0).reset_index()


if __name__ == "__main__":
    run_command(main)
