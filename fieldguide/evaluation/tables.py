"""The tables of an evaluation: predictions of every image, metrics per class, and data of the charts."""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from fieldguide.core.manifest import write_table
from fieldguide.core.names import SPLITS
from fieldguide.core.paths import (
    CONFUSED_PAIRS_CSV,
    COVERAGE_CSV,
    PER_CLASS_CSV,
    PREDICTIONS_CSV,
    RELIABILITY_CSV,
    SUBMISSION_CSV,
    confusion_csv,
)
from fieldguide.evaluation.answers import Answers
from fieldguide.evaluation.metrics import accuracy_interval, confidence_bins, coverage_table, per_class_table
from fieldguide.evaluation.summary import Evaluation
from fieldguide.network.calibration import verdicts
from fieldguide.network.checkpoint import Checkpoint

N_ANSWERS = 5  # in predictions.csv


def save_submission(answers: Answers, facts: Checkpoint, rows: pd.DataFrame) -> None:
    """Writes the prediction for every unlabelled image in the competition's format (`id,label`); the table may be empty."""
    table = pd.DataFrame({"id": rows["id"], "label": np.array(facts.labels)[answers.predicted]})
    write_table(table, SUBMISSION_CSV)


def save_tables(evaluation: Evaluation, ece_bins: int) -> None:
    """Writes all tables except the submission."""
    save_predictions(evaluation)
    save_per_class(evaluation)
    save_coverage(evaluation)
    save_confusions(evaluation)
    save_reliability(evaluation, ece_bins)
    save_confused_pairs(evaluation)


def save_predictions(evaluation: Evaluation) -> None:
    """Writes every image of valid and test, in the manifest's order; with fewer than five classes some cells are empty."""
    names = np.array([*evaluation.facts.class_names, ""])
    parts = []
    for split in _not_trained_on(evaluation):
        answers, rows = evaluation.answers[split], evaluation.rows[split]
        best = np.argsort(-answers.logits, axis=1, kind="stable")[:, :N_ANSWERS]
        largest = np.take_along_axis(evaluation.probabilities(split), best, axis=1)
        missing = ((0, 0), (0, N_ANSWERS - best.shape[1]))
        best, largest = np.pad(best, missing, constant_values=-1), np.pad(largest, missing, constant_values=np.nan)
        columns = {"split": split, "id": rows["id"], "sha256": rows["sha256"]}
        columns |= {"truth": names[evaluation.targets(split)]}
        columns |= {f"answer_{place + 1}": names[best[:, place]] for place in range(N_ANSWERS)}
        columns |= {f"probability_{place + 1}": largest[:, place].round(6) for place in range(N_ANSWERS)}
        columns |= {
            "known_score": answers.known,
            "verdict": verdicts(largest[:, 0], answers.known, evaluation.calibration),
        }
        parts.append(pd.DataFrame(columns))
    write_table(pd.concat(parts), PREDICTIONS_CSV)


def save_per_class(evaluation: Evaluation) -> None:
    """Writes precision, recall, F1 and support of every class in valid and test."""
    parts = []
    for split in _not_trained_on(evaluation):
        names = np.array(evaluation.facts.class_names)
        table = per_class_table(evaluation.targets(split), evaluation.answers[split].predicted, names)
        table.insert(0, "split", split)
        parts.append(table)
    write_table(pd.concat(parts), PER_CLASS_CSV)


def save_coverage(evaluation: Evaluation) -> None:
    """Writes the accuracy of valid and test by coverage."""
    splits = _not_trained_on(evaluation)
    confidence = {split: evaluation.probabilities(split).max(axis=1) for split in splits}
    right = {split: evaluation.answers[split].predicted == evaluation.targets(split) for split in splits}
    columns = ["coverage", *(f"{split}{what}" for split in ("valid", "test") for what in ("", "_probability"))]
    write_table(coverage_table(confidence, right).reindex(columns=columns), COVERAGE_CSV)  # the plot needs both, even if empty


def save_confusions(evaluation: Evaluation) -> None:
    """Writes truth and prediction of every image of each split; an empty table for a split without labels."""
    names = np.array(evaluation.facts.class_names, dtype=object)
    for split in SPLITS:
        columns: dict[str, object] = {"truth": [], "predicted": []}
        if split in evaluation.rows:
            columns = {"truth": names[evaluation.targets(split)], "predicted": names[evaluation.answers[split].predicted]}
        write_table(pd.DataFrame(columns), confusion_csv(split))


def save_reliability(evaluation: Evaluation, n_bins: int) -> None:
    """Writes the reliability of every split."""
    tables = [reliability(evaluation, split, n_bins).assign(split=split) for split in evaluation.rows]
    write_table(pd.concat(tables), RELIABILITY_CSV)


def reliability(evaluation: Evaluation, split: str, n_bins: int) -> pd.DataFrame:
    """For each equal-width bin (low, high] of the confidence: n, mean confidence, accuracy and its 95 % interval.

    NaN in empty bins.
    """
    probabilities = evaluation.probabilities(split)
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == evaluation.targets(split)
    bins = confidence_bins(confidence, n_bins)
    counts = np.bincount(bins, minlength=n_bins)
    n_right = np.bincount(bins[is_right], minlength=n_bins)
    intervals = [
        accuracy_interval(k, n) if n else (np.nan, np.nan) for k, n in zip(n_right.tolist(), counts.tolist(), strict=True)
    ]
    divisor = np.where(counts, counts, np.nan)
    edges = np.arange(n_bins + 1) / n_bins
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "n": counts,
            "confidence": np.bincount(bins, confidence, minlength=n_bins) / divisor,
            "accuracy": n_right / divisor,
            "accuracy_low": [low for low, _ in intervals],
            "accuracy_high": [high for _, high in intervals],
        }
    )


def save_confused_pairs(evaluation: Evaluation) -> None:
    """Writes `confused_pairs` with the names of the classes."""
    table, names = confused_pairs(evaluation), np.array(evaluation.facts.class_names, dtype=object)
    named = {column: names[table[column].to_numpy(dtype=int)] for column in ("truth", "predicted")}
    write_table(table.assign(**named), CONFUSED_PAIRS_CSV)


def confused_pairs(evaluation: Evaluation) -> pd.DataFrame:
    """The off-diagonal entries of the confusion matrix of each split, with their share of the true class; classes by number.

    The held-out split and the most frequent pairs come first.
    """
    tables = []
    for split in reversed(evaluation.rows):
        counts = confusion_matrix(
            evaluation.targets(split),
            evaluation.answers[split].predicted,
            labels=np.arange(len(evaluation.facts.class_names)),
        )
        n_truth = counts.sum(axis=1)
        np.fill_diagonal(counts, 0)
        truth, predicted = np.nonzero(counts)
        columns = {"truth": truth, "predicted": predicted, "n": counts[truth, predicted], "n_truth": n_truth[truth]}
        table = pd.DataFrame({"split": split} | columns)
        table["share"] = table["n"] / table["n_truth"]
        tables.append(table.sort_values(["n", "share"], ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True)


def _not_trained_on(evaluation: Evaluation) -> list[str]:
    return [split for split in evaluation.rows if split != "train"]
