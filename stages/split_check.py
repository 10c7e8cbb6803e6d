"""The manifest of all images, and faults in the data, handled by policies.

Reads data/raw, data/corrections.csv and `split_check` of params.yaml; writes data/manifest.csv, metrics/split_check.json,
findings.csv (a line per fault), near_duplicates.csv and .html (pairs to inspect), classes.csv (images per class and split)
and mean_images.npz (the mean image of each split that the data have, or of all). Run it with `dvc repro split_check`.
"""

import numpy as np
import pandas as pd

from fieldguide.checks.corrections import apply_corrections
from fieldguide.checks.duplicates import exact_pairs, photographs
from fieldguide.checks.gallery import pairs_page
from fieldguide.checks.inspection import find_near_duplicates, inspect_images, save_mean_images
from fieldguide.checks.policies import Finding, check, findings_table, left_out_findings, number_classes
from fieldguide.checks.splits import SET_ASIDE, kept_together, with_folds, with_groups, with_hold_out, with_splits
from fieldguide.checks.summary import INTERNAL, class_counts, pair_table, split_check_metrics
from fieldguide.core.artifacts import Receipt, SplitCheckMetrics
from fieldguide.core.corrections import read_numbered
from fieldguide.core.errors import UserError, run_command
from fieldguide.core.files import write_bytes
from fieldguide.core.headlines import write_metrics
from fieldguide.core.manifest import as_given, write_manifest, write_table
from fieldguide.core.names import SPLITS
from fieldguide.core.params import read_params
from fieldguide.core.paths import (
    CLASSES_CSV,
    CORRECTIONS,
    FINDINGS_CSV,
    MANIFEST,
    MEAN_IMAGES,
    NEAR_DUPLICATES_CSV,
    NEAR_DUPLICATES_HTML,
    RAW,
    RECEIPT,
    stage_metrics,
)
from fieldguide.sources.index import index_images, read_left_out


def main() -> None:
    params = read_params()
    policy, n_workers = params.split_check, params.runtime.n_workers
    receipt = Receipt.read(RECEIPT)
    findings, corrections = left_out_findings(read_left_out(RAW)), read_numbered(CORRECTIONS)
    frame = with_groups(as_given(number_classes(index_images(receipt, RAW), findings)), policy.group, findings)
    search = policy.near_duplicates
    frame, fingerprints, means = inspect_images(frame, RAW, policy.max_megapixels, n_workers, search)
    copies = exact_pairs(frame["sha256"].where(frame["reason"].eq(""), ""))
    pairs = find_near_duplicates(frame, fingerprints, RAW, policy.max_megapixels, n_workers) if search else None
    same = np.array([(pair.i, pair.j) for pair in pairs or [] if pair.is_same], np.int64).reshape(-1, 2)
    frame["photograph"] = photographs(len(frame), np.concatenate([copies, same]))
    given = frame["split"]
    if policy.folds:
        frame = with_folds(frame, policy, findings)
    elif receipt.dataset == "folder" or "valid" not in set(frame["split"]):
        frame = with_splits(frame, policy)
    frame, aside = with_hold_out(frame, policy) if policy.hold_out else (frame, frame[:0])
    corrected = apply_corrections(pd.concat([frame, aside]) if len(aside) else frame, corrections, findings)
    frame, aside = corrected.loc[frame.index], corrected.loc[aside.index]
    try:
        frame, n_conflicts = check(frame, policy, findings)
    except UserError:
        write_table(findings_table(findings), FINDINGS_CSV)
        raise
    frame = pd.concat([frame, aside.assign(use=False, reason=SET_ASIDE)]).sort_index() if len(aside) else frame
    if not frame["use"].any():
        raise UserError(f"{RAW}: no image in use (the first: {frame['reason'].iloc[0]}); fix the data")

    table = pair_table(frame, pairs or [], copies)
    write_manifest(frame.assign(unit=kept_together(frame)), MANIFEST)
    write_table(class_counts(frame), CLASSES_CSV)
    write_table(findings_table(findings), FINDINGS_CSV)
    write_table(table.drop(columns=INTERNAL), NEAR_DUPLICATES_CSV)
    metrics = split_check_metrics(frame, copies, pairs, findings, n_conflicts)
    write_metrics("split_check", metrics)
    save_mean_images(MEAN_IMAGES, means, by_split=frame["split"].equals(given))
    write_bytes(NEAR_DUPLICATES_HTML, pairs_page(frame, table, RAW).encode())
    print_headline(metrics, findings)


def print_headline(metrics: SplitCheckMetrics, findings: list[Finding]) -> None:
    images = ", ".join(f"{metrics.images[split]} {split}" for split in SPLITS)
    near = metrics.near_duplicates
    print(f"{metrics.classes} classes; {images}, {metrics.unlabelled} unlabelled; {metrics.dropped} dropped")
    if near.across_splits is not None:
        print(f"near duplicates: {near.across_splits} across splits, {near.within_split} within: {NEAR_DUPLICATES_HTML}")
    if any(metrics.corrections.as_dict().values()):
        applied = ", ".join(f"{n} {name}" for name, n in metrics.corrections.as_dict().items())
        print(f"corrections: {applied}: {CORRECTIONS}")
    for kind, n in findings_table(findings)["kind"].value_counts().items():
        print(f"{n} x {kind}: see {FINDINGS_CSV}")
    print(f"-> {MANIFEST} {stage_metrics('split_check')} {CLASSES_CSV} {FINDINGS_CSV} {NEAR_DUPLICATES_CSV}")


if __name__ == "__main__":
    run_command(main)
