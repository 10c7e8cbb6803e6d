"""The checkpoint, measured on every split in fp32, without training's augmentation, and what its answers are worth.

Reads models/model.safetensors, data/manifest.csv, data/raw and `evaluate` of params.yaml. Temperature and thresholds are
fitted on valid, class means on train, nothing on test. Writes models/calibration.safetensors; metrics/evaluate.json;
metrics/predictions.csv (every image of valid and test with truth, top 5 and verdict); metrics/per_class.csv;
metrics/coverage.csv (accuracy when the least certain are refused); the pictures of `fieldguide/report/pictures.py`, the tables
beside them; and, for images without labels, metrics/submission.csv. Run it with `dvc repro evaluate`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from sklearn.metrics import f1_score
from tqdm import tqdm

from fieldguide.core.errors import run_command
from fieldguide.core.files import write_json
from fieldguide.core.manifest import leaked, read_manifest, rows_of, splits_in_use, write_table
from fieldguide.core.params import Evaluate, Runtime, read_params
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    COVERAGE_CSV,
    MANIFEST,
    PER_CLASS_CSV,
    PREDICTIONS_CSV,
    RAW,
    SUBMISSION_CSV,
    stage_metrics,
)
from fieldguide.evaluation.metrics import accuracy_interval, coverage_table, per_class_table, refused_strangers, split_metrics
from fieldguide.evaluation.ood import noises
from fieldguide.network.calibration import (
    Calibration,
    KnownScore,
    Moments,
    fit_temperature,
    fit_unknown_below,
    fit_unsure_below,
    save_calibration,
    score_tensors,
    verdicts,
)
from fieldguide.network.checkpoint import Checkpoint, load_checkpoint
from fieldguide.network.device import pick_device, repeatable
from fieldguide.network.inference import N_VIEWS, batches_of, views
from fieldguide.network.loader import Ahead, Resident, Source, decode_all
from fieldguide.network.models import Classifier
from fieldguide.onnx.export import Exported
from fieldguide.report import pictures
from fieldguide.tracking import run as tracking

N_NOISE = 100  # pictures of each kind of noise
N_ANSWERS = 5  # in predictions.csv


@dataclass(frozen=True)
class Answers:
    """What the network says of the images of one split.

    logits: float32 `[N, K]`, the mean over the views; plain: int64 `[N]`, the answers to the first view, the image alone;
    known: float32 `[N]`, known scores.
    """

    logits: np.ndarray
    plain: np.ndarray
    known: np.ndarray


def main() -> None:
    params = read_params()
    model, facts = load_checkpoint(CHECKPOINT)
    manifest = read_manifest(MANIFEST)
    rows = {split: rows_of(manifest, split) for split in dict.fromkeys(["train", "valid", *splits_in_use(manifest)])}
    unlabelled = manifest[(manifest["split"] == "unlabelled") & manifest["use"]].reset_index(drop=True)
    device = pick_device(params.runtime.device)
    repeatable(device)
    network = Network(model.to(device), facts, params.evaluate, params.runtime)
    answers, strange, calibration = measured(network, rows | {"unlabelled": unlabelled})
    save_calibration(CALIBRATION, calibration)
    save_submission(answers.pop("unlabelled"), facts, unlabelled)
    metrics = evaluate_metrics(answers, facts, rows, calibration, params.evaluate)
    metrics["strangers"] = strangers_metrics(answers[list(rows)[-1]].known, strange, calibration)
    write_json(stage_metrics("evaluate"), metrics)
    save_predictions(answers, facts, rows, calibration)
    save_tables(answers, facts, rows, calibration)
    drawn = save_all_pictures(network, answers, rows, calibration)
    with tracking.stage_run("evaluate", params.evaluate, CHECKPOINT) as run:
        run.log_data(list(rows)[-1], list(rows.values())[-1])
        run.log(metrics, CALIBRATION, stage_metrics("evaluate"), PREDICTIONS_CSV, PER_CLASS_CSV, COVERAGE_CSV, *drawn)
    print_headline(list(rows)[-1], metrics)
    print(f"-> {CALIBRATION} {stage_metrics('evaluate')} {PREDICTIONS_CSV} {PER_CLASS_CSV} {COVERAGE_CSV}")
    print(f"-> {' '.join(str(path) for path in drawn if path.suffix == '.png')} {SUBMISSION_CSV} ({len(unlabelled)} rows)")


@dataclass(frozen=True)
class Network:
    """A trained network on its device, and how it is to be run."""

    model: Classifier
    facts: Checkpoint
    evaluate: Evaluate
    runtime: Runtime

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    def rows(self, rows: pd.DataFrame) -> Source:
        """The images of `rows`; decoding runs ahead of the network."""
        return Ahead(rows, RAW, self.facts.image_px, self.runtime.n_workers, self.device)

    def views(self, source: Source, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits `[V, B, K]` and embeddings `[V, B, F]` of each batch."""
        chosen = batches_of(len(source), self.evaluate.batch_size)
        with tqdm(total=len(source), unit="image", desc=name, disable=None) as bar:
            for logits, embeddings in views(self.model, source, chosen, self.device, self.evaluate.tta):
                yield logits, embeddings
                bar.update(logits.shape[1])


def measured(network: Network, rows: dict[str, pd.DataFrame]) -> tuple[dict[str, Answers], dict[str, np.ndarray], Calibration]:
    """The answers for each table of rows, the known scores of each kind of noise, and what is fitted on train and valid.

    Train has no known scores.
    """
    evaluate, targets = network.evaluate, {split: network.facts.classes.targets(rows[split]) for split in ("train", "valid")}
    moments = Moments(len(network.facts.class_names), network.model.head.in_features)
    batches = iter(torch.from_numpy(targets["train"]).split(evaluate.batch_size))

    def learn(logits: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        moments.add(embedding, next(batches))
        return torch.full((len(logits),), torch.nan)

    answers = {"train": answers_of(network, network.rows(rows["train"]), "train", learn)}
    tensors = score_tensors(evaluate.known_score, moments)
    unfitted = Calibration(evaluate.tta, 1.0, 0.0, evaluate.known_score, 0.0, tensors)
    known_score = KnownScore(unfitted).to(network.device)
    answers |= {
        name: answers_of(network, network.rows(table), name, known_score) for name, table in rows.items() if name != "train"
    }
    strange = {
        kind: answers_of(network, Resident(images.to(network.device)), kind, known_score).known
        for kind, images in noises(network.facts.image_px, N_NOISE).items()
    }
    valid = answers["valid"]
    temperature = fit_temperature(valid.logits, targets["valid"])
    right = valid.logits.argmax(axis=1) == targets["valid"]
    confidence = softmax(valid.logits.astype(np.float64) / temperature, axis=1).max(axis=1)
    fitted = replace(
        unfitted,
        temperature=temperature,
        unsure_below=fit_unsure_below(confidence, right, evaluate.sure_accuracy),
        unknown_below=fit_unknown_below(valid.known, evaluate.accept),
    )
    return answers, strange, fitted


def answers_of(
    network: Network, source: Source, name: str, known: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Answers:
    """The answers for its images; `known` turns logits `[B, K]` and embeddings `[B, F]` of a batch into scores `[B]`."""
    n_images, n_classes = len(source), len(network.facts.class_names)
    answers = Answers(  # at once: parts kept from each batch would lie among its freed buffers, 20 kB of memory an image
        np.empty((n_images, n_classes), np.float32), np.empty(n_images, np.int64), np.empty(n_images, np.float32)
    )
    start = 0
    for seen, embeddings in network.views(source, name):
        logits = seen.mean(dim=0)
        batch = slice(start, start := start + len(logits))
        answers.logits[batch] = logits.cpu()
        answers.plain[batch] = seen[0].argmax(dim=1).cpu()
        answers.known[batch] = known(logits, embeddings.mean(dim=0)).cpu()
    return answers


def evaluate_metrics(
    answers: dict[str, Answers],
    facts: Checkpoint,
    rows: dict[str, pd.DataFrame],
    calibration: Calibration,
    evaluate: Evaluate,
) -> dict[str, dict[str, Any]]:
    """The content of metrics/evaluate.json; without labels for a test split there are no test figures."""
    temperature = calibration.temperature
    metrics: dict[str, dict[str, Any]] = {}
    gains: dict[str, float | None] = {}
    for split, table in rows.items():
        targets, logits = facts.classes.targets(table), answers[split].logits
        metrics[split] = split_metrics(logits, targets, temperature, evaluate.ece_bins)
        if split != "train":
            metrics[split] |= verdict_metrics(answers[split], targets, calibration)
        if calibration.tta != "none":
            gains[f"{split}_accuracy_gain"] = metrics[split]["accuracy"] - float((answers[split].plain == targets).mean())
    if "test" in rows:
        clean = ~leaked(rows["test"])
        targets, predicted = facts.classes.targets(rows["test"])[clean], answers["test"].logits.argmax(axis=1)[clean]
        metrics["test_without_leaks"] = clean_metrics(targets, predicted)
    metrics["tta"] = {"forward_passes": N_VIEWS[calibration.tta], **gains}
    metrics["calibration"] = {key: getattr(calibration, key) for key in ("temperature", "unsure_below", "unknown_below")}
    return metrics


def clean_metrics(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    """Accuracy, its interval and F1 of the test images that are in no other split."""
    if not len(targets):
        return {"accuracy": None, "n": 0}
    n_right = int((predicted == targets).sum())
    low, high = accuracy_interval(n_right, len(targets))
    f1 = {f"{mean}_f1": float(f1_score(targets, predicted, average=mean, zero_division=0)) for mean in ("macro", "weighted")}
    return {"accuracy": n_right / len(targets), "accuracy_low": low, "accuracy_high": high, **f1, "n": len(targets)}


def verdict_metrics(answers: Answers, targets: np.ndarray, calibration: Calibration) -> dict[str, float | None]:
    """Shares of a split's images that are accepted as known, and called sure; and how often the sure answers are right."""
    verdict = verdicts(probabilities_of(answers, calibration).max(axis=1), answers.known, calibration)
    sure = verdict == "sure"
    right = answers.logits.argmax(axis=1) == targets
    return {
        "known": float((verdict != "unknown").mean()),
        "sure": float(sure.mean()),
        "accuracy_when_sure": float(right[sure].mean()) if sure.any() else None,
    }


def strangers_metrics(
    known: np.ndarray, strange: dict[str, np.ndarray], calibration: Calibration
) -> dict[str, dict[str, float]]:
    """How each kind of stranger is told from the images whose known scores are `known` `[N]`: the share refused, and AUROC."""
    found = {kind: refused_strangers(known, scores, calibration.unknown_below) for kind, scores in strange.items()}
    return {
        kind: {"refused": figures["strangers_refused"], "auroc": figures["auroc"], "n": len(strange[kind])}
        for kind, figures in found.items()
    }


def probabilities_of(answers: Answers, calibration: Calibration) -> np.ndarray:
    """Calibrated: float64 `[N, K]`."""
    return softmax(answers.logits.astype(np.float64) / calibration.temperature, axis=1)


def save_submission(answers: Answers, facts: Checkpoint, rows: pd.DataFrame) -> None:
    """The answer for every unlabelled image in the competition's form (`id,label`); only the head where there is none."""
    table = pd.DataFrame({"id": rows["id"], "label": np.array(facts.labels)[answers.logits.argmax(axis=1)]})
    write_table(table, SUBMISSION_CSV)


def save_predictions(
    answers: dict[str, Answers], facts: Checkpoint, rows: dict[str, pd.DataFrame], calibration: Calibration
) -> None:
    """Every image of valid and test, in the manifest's order; a network of fewer than five classes leaves cells empty."""
    names = np.array([*facts.class_names, ""])
    parts = []
    for split in rows:
        if split == "train":
            continue
        probabilities = probabilities_of(answers[split], calibration)
        best = np.argsort(-answers[split].logits, axis=1, kind="stable")[:, :N_ANSWERS]
        largest = np.take_along_axis(probabilities, best, axis=1)
        missing = ((0, 0), (0, N_ANSWERS - best.shape[1]))
        best, largest = np.pad(best, missing, constant_values=-1), np.pad(largest, missing, constant_values=np.nan)
        columns = {"split": split, "id": rows[split]["id"], "sha256": rows[split]["sha256"]}
        columns |= {"truth": names[facts.classes.targets(rows[split])]}
        columns |= {f"answer_{place + 1}": names[best[:, place]] for place in range(N_ANSWERS)}
        columns |= {f"probability_{place + 1}": largest[:, place].round(6) for place in range(N_ANSWERS)}
        columns |= {"known_score": answers[split].known, "verdict": verdicts(largest[:, 0], answers[split].known, calibration)}
        parts.append(pd.DataFrame(columns))
    write_table(pd.concat(parts), PREDICTIONS_CSV)


def save_tables(
    answers: dict[str, Answers], facts: Checkpoint, rows: dict[str, pd.DataFrame], calibration: Calibration
) -> None:
    """Per class, and over coverage: valid and test."""
    per_class, confidence, right = [], {}, {}
    for split in rows:
        if split == "train":
            continue
        targets, predicted = facts.classes.targets(rows[split]), answers[split].logits.argmax(axis=1)
        table = per_class_table(targets, predicted, np.array(facts.class_names))
        table.insert(0, "split", split)
        per_class.append(table)
        confidence[split], right[split] = probabilities_of(answers[split], calibration).max(axis=1), predicted == targets
    write_table(pd.concat(per_class), PER_CLASS_CSV)
    columns = ["coverage", *(f"{split}{what}" for split in ("valid", "test") for what in ("", "_probability"))]
    write_table(coverage_table(confidence, right).reindex(columns=columns), COVERAGE_CSV)  # a plot needs both, if empty


def save_all_pictures(
    network: Network, answers: dict[str, Answers], rows: dict[str, pd.DataFrame], calibration: Calibration
) -> list[Path]:
    """The pictures of the evaluation, with photographs and with where the network looked, and the tables beside them."""
    facts, device = network.facts, network.device
    said = {
        split: pictures.Answers(facts.classes.targets(table), probabilities_of(answers[split], calibration))
        for split, table in rows.items()
    }
    exported = Exported(network.model, calibration, facts.image_px).eval().to(device)

    def photographs(split: str, chosen: np.ndarray, image_px: int = pictures.THUMBNAIL_PX) -> np.ndarray:
        table = rows[split].iloc[chosen].reset_index(drop=True)
        return decode_all(table, RAW, image_px, network.runtime.n_workers).permute(0, 2, 3, 1).numpy()

    @torch.inference_mode()
    def activations(split: str, chosen: np.ndarray, classes: np.ndarray) -> np.ndarray:
        maps = exported(torch.from_numpy(photographs(split, chosen, facts.image_px)).to(device))[-1]
        return maps[torch.arange(len(classes)), torch.from_numpy(classes)].cpu().numpy()

    seen = activations if exported.map_name is not None else None
    return pictures.save_pictures(facts.class_names, said, network.evaluate.ece_bins, photographs, seen)


def print_headline(split: str, metrics: dict[str, dict[str, float | None]]) -> None:
    """Accuracy and what the calibration is worth, on the split on which the network is measured."""
    figures, fitted = metrics[split], metrics["calibration"]
    print(
        f"{split} accuracy {figures['accuracy']:.2%}, 95 % interval {figures['accuracy_low']:.1%} to"
        f" {figures['accuracy_high']:.1%} (n={figures['n']}); macro F1 {figures['macro_f1']:.4f}"
        + (f"; valid accuracy {metrics['valid']['accuracy']:.2%}" if split != "valid" else "")
    )
    sure = figures["accuracy_when_sure"]
    print(
        f"temperature {fitted['temperature']:.3f}: calibration error {figures['ece_uncalibrated']:.4f} -> {figures['ece']:.4f};"
        f" sure {figures['sure']:.1%}{'' if sure is None else f', of these right {sure:.2%}'};"
        f" accepted as known {figures['known']:.1%}"
    )


if __name__ == "__main__":
    run_command(main)
