"""Evaluation of the checkpoint on every split in fp32, without augmentation, and its calibration.

Reads models/model.safetensors, data/manifest.csv, data/taxonomy.csv, data/raw and `evaluate` of params.yaml. Temperature and
thresholds are fitted on valid, class means on train, nothing on test. Figures of valid and test are by the labels that the
data give; where some were corrected, `as_corrected` beside them is by the corrected ones. Writes
models/calibration.safetensors, metrics/evaluate.json, metrics/predictions.csv (every image of valid and test with truth, top 5
and verdict), per_class.csv, coverage.csv (accuracy by coverage), reliability.csv, confused_pairs.csv, confused_taxa.csv, a
confusion_*.csv for each split, gallery.json, and, for images without labels, submission.csv. Run it with `dvc repro evaluate`.
"""

from fieldguide.core import memory
from fieldguide.core.errors import run_command
from fieldguide.core.headlines import write_metrics
from fieldguide.core.manifest import as_labelled, read_manifest, rows_of, splits_in_use, unlabelled_rows
from fieldguide.core.params import read_params
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    COVERAGE_CSV,
    GALLERY_JSON,
    MANIFEST,
    PER_CLASS_CSV,
    PREDICTIONS_CSV,
    RAW,
    SUBMISSION_CSV,
    TAXONOMY,
    stage_metrics,
)
from fieldguide.core.taxonomy import read_taxonomy, unlisted
from fieldguide.evaluation.answers import TrainedNetwork, answer_all
from fieldguide.evaluation.gallery import build_gallery
from fieldguide.evaluation.summary import Evaluation, evaluate_metrics, headline
from fieldguide.evaluation.tables import save_submission, save_tables
from fieldguide.network.calibration import save_calibration
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.device import pick_device, set_up
from fieldguide.tracking.run import stage_run


def main() -> None:
    params = read_params()
    model, facts = load_checkpoint(CHECKPOINT)
    manifest = as_labelled(read_manifest(MANIFEST))
    rows = {split: rows_of(manifest, split) for split in dict.fromkeys(["train", "valid", *splits_in_use(manifest)])}
    unlabelled = unlabelled_rows(manifest)
    device = pick_device(params.runtime.device)
    set_up(device)
    taxonomy = read_taxonomy(TAXONOMY, facts.class_names)
    network = TrainedNetwork(model.to(device), facts, params.evaluate, params.runtime, RAW, taxonomy)
    answers, ood, calibration = answer_all(network, rows | {"unlabelled": unlabelled})
    memory.give_back()
    save_submission(answers.pop("unlabelled"), facts, unlabelled)
    evaluation = Evaluation(facts, rows, answers, calibration)
    save_calibration(CALIBRATION, calibration)
    metrics = evaluate_metrics(evaluation, ood, params.evaluate)
    write_metrics("evaluate", metrics)
    save_tables(evaluation, params.evaluate.ece_bins)
    build_gallery(network, evaluation).write(GALLERY_JSON)
    with stage_run("evaluate", params.evaluate, CHECKPOINT) as run:
        run.log_data(evaluation.held_out, rows[evaluation.held_out])
        run.log(metrics.as_dict(), CALIBRATION, stage_metrics("evaluate"), PREDICTIONS_CSV, PER_CLASS_CSV, COVERAGE_CSV)
    print(headline(metrics, evaluation.held_out))
    if note := unlisted(taxonomy, TAXONOMY, facts.class_names):
        print(note)
    print(f"-> {CALIBRATION} {stage_metrics('evaluate')} {PREDICTIONS_CSV} {PER_CLASS_CSV} {COVERAGE_CSV} {GALLERY_JSON}")
    print(f"-> {SUBMISSION_CSV} ({len(unlabelled)} rows)")


if __name__ == "__main__":
    run_command(main)
