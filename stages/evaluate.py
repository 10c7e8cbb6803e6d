"""The checkpoint, measured on every split in fp32, without augmentation.

Reads models/model.safetensors, data/manifest.csv, data/raw and `evaluate` of params.yaml; writes metrics/evaluate.json,
metrics/confusion.csv (truth and prediction of every test image), metrics/confusion.png and, for images without labels,
metrics/submission.csv. Where test has no labels, valid takes its place in the confusion.
Run it with `dvc repro evaluate`.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from fieldguide import plots, tracking
from fieldguide.checkpoint import Checkpoint, load_checkpoint
from fieldguide.device import pick_device
from fieldguide.errors import run_command
from fieldguide.files import write_json
from fieldguide.inference import predict
from fieldguide.loader import Resident, decode_all
from fieldguide.manifest import leaked, read_manifest, rows_of, splits_in_use, write_table
from fieldguide.metrics import accuracy_interval, split_metrics
from fieldguide.models import Classifier
from fieldguide.params import Evaluate, Runtime, read_params
from fieldguide.paths import CHECKPOINT, CONFUSION_CSV, CONFUSION_PNG, MANIFEST, RAW, SUBMISSION_CSV, stage_metrics


def main() -> None:
    params = read_params()
    model, facts = load_checkpoint(CHECKPOINT)
    manifest = read_manifest(MANIFEST)
    rows = {split: rows_of(manifest, split) for split in splits_in_use(manifest)}
    unlabelled = manifest[(manifest["split"] == "unlabelled") & manifest["use"]].reset_index(drop=True)
    logits = split_logits(model, facts, rows | {"unlabelled": unlabelled}, params.evaluate, params.runtime)
    save_submission(logits.pop("unlabelled"), facts, unlabelled)
    metrics = evaluate_metrics(logits, facts, rows, params.evaluate)
    write_json(stage_metrics("evaluate"), metrics)
    split = list(rows)[-1]
    save_confusion(logits[split], facts, rows[split], split)
    with tracking.stage_run("evaluate", params.evaluate, CHECKPOINT) as run:
        run.log(metrics, stage_metrics("evaluate"), CONFUSION_CSV, CONFUSION_PNG)
    figures = metrics[split]
    low, high = accuracy_interval(round(figures["accuracy"] * figures["n"]), figures["n"])
    print(
        f"{split} accuracy {figures['accuracy']:.2%}, 95 % interval {low:.1%} to {high:.1%} (n={figures['n']});"
        f" macro F1 {figures['macro_f1']:.4f}; valid accuracy {metrics['valid']['accuracy']:.2%}"
    )
    print(f"-> {stage_metrics('evaluate')} {CONFUSION_CSV} {CONFUSION_PNG} {SUBMISSION_CSV} ({len(unlabelled)} rows)")


def split_logits(
    model: Classifier, facts: Checkpoint, rows: dict[str, pd.DataFrame], evaluate: Evaluate, runtime: Runtime
) -> dict[str, np.ndarray]:
    """Logits of each split: float32 `[N, K]`."""
    device = pick_device(runtime.device)
    model.to(device)
    logits = {}
    for split, table in rows.items():
        images = decode_all(table, RAW, facts.image_px, runtime.n_workers)
        logits[split] = predict(model, Resident(images), evaluate.batch_size, device).numpy()
    return logits


def evaluate_metrics(
    logits: dict[str, np.ndarray], facts: Checkpoint, rows: dict[str, pd.DataFrame], evaluate: Evaluate
) -> dict[str, dict[str, float]]:
    """The content of metrics/evaluate.json; without labels for a test split there are no test figures."""
    metrics = {
        split: split_metrics(logits[split], facts.classes.targets(table), evaluate.ece_bins) for split, table in rows.items()
    }
    if "test" in rows:
        right = logits["test"].argmax(axis=1) == facts.classes.targets(rows["test"])
        low, high = accuracy_interval(int(right.sum()), len(right))
        metrics["test"] |= {"accuracy_low": low, "accuracy_high": high}
        clean = ~leaked(rows["test"])
        accuracy = float(right[clean].mean()) if clean.any() else None
        metrics["test_without_leaks"] = {"accuracy": accuracy, "n": int(clean.sum())}
    return metrics


def save_submission(logits: np.ndarray, facts: Checkpoint, rows: pd.DataFrame) -> None:
    """The answer for every unlabelled image in the competition's form (`id,label`); only the head where there is none."""
    table = pd.DataFrame({"id": rows["id"], "label": np.array(facts.labels)[logits.argmax(axis=1)]})
    write_table(table, SUBMISSION_CSV)


def save_confusion(logits: np.ndarray, facts: Checkpoint, rows: pd.DataFrame, split: str) -> None:
    """Truth against prediction: a table for `dvc plots`, and a picture."""
    names = np.array(facts.class_names)
    truth, predicted = facts.classes.targets(rows), logits.argmax(axis=1)
    write_table(pd.DataFrame({"truth": names[truth], "predicted": names[predicted]}), CONFUSION_CSV)
    counts = confusion_matrix(truth, predicted, labels=np.arange(len(names)))
    n_right = int(np.trace(counts))
    title = f"{split}: {n_right} of {len(truth)} right ({n_right / len(truth):.1%})"
    plots.save_png(plots.confusion(counts, names, title), CONFUSION_PNG)


if __name__ == "__main__":
    run_command(main)
