"""The tables of an evaluation: predictions of every image, metrics per class, and data of the charts."""

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from fieldguide.core.intervals import accuracy_interval
from fieldguide.core.manifest import is_corrected, write_table
from fieldguide.core.names import MAX_NAMED_CLASSES, SPLITS
from fieldguide.core.paths import (
    CONFUSED_PAIRS_CSV,
    CONFUSED_TAXA_CSV,
    COVERAGE_CSV,
    PER_CLASS_CSV,
    PREDICTIONS_CSV,
    RELIABILITY_CSV,
    SUBMISSION_CSV,
    confusion_csv,
)
from fieldguide.core.taxonomy import class_groups
from fieldguide.evaluation.blocks import confused_blocks
from fieldguide.evaluation.metrics import N_BEST, SHARES, Answers, confidence_bins, coverage_curve
from fieldguide.evaluation.summary import Evaluation, LabelledSplit
from fieldguide.network.checkpoint import Checkpoint


def save_submission(answers: Answers, facts: Checkpoint, rows: pd.DataFrame) -> None:
    """Writes the prediction for every unlabelled image in the competition's format (`id,label`); the table may be empty."""
    table = pd.DataFrame({"id": rows["id"], "label": np.array(facts.labels)[answers.predicted]})
    write_table(table, SUBMISSION_CSV)


def save_tables(evaluation: Evaluation, ece_bins: int) -> None:
    """Writes all tables except the submission."""
    splits, unseen = evaluation.splits, evaluation.unseen
    corrected = any(is_corrected(split.rows) for split in unseen)
    write_table(pd.concat(predictions(split, corrected) for split in unseen), PREDICTIONS_CSV)
    write_table(pd.concat(per_class(split, evaluation.train_images) for split in unseen), PER_CLASS_CSV)
    write_table(confused_taxa(unseen[::-1]), CONFUSED_TAXA_CSV)
    write_table(coverage(unseen), COVERAGE_CSV)
    for name in SPLITS:
        write_table(confusions(splits.get(name)), confusion_csv(name))
    write_table(pd.concat(reliability(split, ece_bins) for split in splits.values()), RELIABILITY_CSV)
    pairs = pd.concat(confused_pairs(split) for split in reversed(splits.values()))
    names = np.array(evaluation.facts.class_names, dtype=object)
    write_table(pairs.assign(truth=names[pairs["truth"]], predicted=names[pairs["predicted"]]), CONFUSED_PAIRS_CSV)


def predictions(split: LabelledSplit, corrected: bool = False) -> pd.DataFrame:
    """Every image in the manifest's order; with fewer than five classes some cells are empty.

    `truth` is the class that the data give; with `corrected` a column has the corrected one, empty for a dropped image.
    """
    names, answers = np.append(split.class_names, ""), split.answers
    columns = {"split": split.name, "id": split.rows["id"], "sha256": split.rows["sha256"], "truth": names[split.targets]}
    if corrected:
        columns["corrected"] = split.rows["class_name"].where(split.rows["decision"].ne("drop"), "")
    columns |= {f"answer_{place + 1}": names[answers.best[:, place]] for place in range(N_BEST)}
    columns |= {f"probability_{place + 1}": answers.probabilities[:, place].round(6) for place in range(N_BEST)}
    columns |= {"known_score": answers.known, "verdict": split.verdict}
    return pd.DataFrame(columns | (told_taxa(split) if answers.ranks else {}))


def told_taxa(split: LabelledSplit) -> dict[str, np.ndarray]:
    """Columns with the rank, the taxon and the probability of the images that are told at a rank; empty for the others."""
    answers, (rows,) = split.answers, np.nonzero(split.told >= 0)
    ranks, taxa = (np.full(len(split.targets), "", dtype=object) for _ in range(2))
    probability = np.full(len(split.targets), np.nan)
    for row in rows:
        place = split.told[row]
        ranks[row], taxa[row] = answers.ranks[place].name, answers.ranks[place].names[answers.groups[row, place]]
        probability[row] = answers.group_probability[row, place].round(6)
    return {"rank": ranks, "taxon": taxa, "taxon_probability": probability}


def confused_taxa(splits: list[LabelledSplit]) -> pd.DataFrame:
    """Images by the taxa of truth and prediction where they differ, at each rank, most frequent first; none without any."""
    tables = [pd.DataFrame(columns=["split", "rank", "truth", "predicted", "n", "n_truth"])]
    for split in splits:
        for place, rank in enumerate(split.answers.ranks):
            truth, predicted = rank.of_class[split.targets], split.answers.groups[:, place]
            table = pd.DataFrame({"split": split.name, "rank": rank.name, "truth": truth, "predicted": predicted})
            table = table[truth != predicted].groupby(["split", "rank", "truth", "predicted"]).size().reset_index(name="n")
            table["n_truth"] = np.bincount(truth, minlength=len(rank.names))[table["truth"]]
            names = np.array(rank.names, dtype=object)
            table = table.sort_values(["n", "n_truth"], ascending=[False, True], kind="stable")
            tables.append(table.assign(truth=names[table["truth"]], predicted=names[table["predicted"]]))
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def per_class(split: LabelledSplit, train_images: np.ndarray) -> pd.DataFrame:
    """Precision, recall, F1 and support of every class, as scikit-learn defines them, and its train images, int `[K]`.

    Figures of a class without images in the split are not measured: empty. The precision of one never predicted is 0.
    """
    labels = np.arange(len(split.class_names))
    figures = precision_recall_fscore_support(split.targets, split.answers.predicted, labels=labels, zero_division=0)
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "support"), figures, strict=True)))
    table.loc[table["support"] == 0, ["precision", "recall", "f1"]] = np.nan
    table.insert(0, "split", split.name)
    table.insert(1, "class_name", split.class_names)
    return table.assign(train_images=train_images)


def coverage(splits: list[LabelledSplit]) -> pd.DataFrame:
    """Accuracy on each share of the images, and their lowest confidence; the plot needs both splits, even if empty."""
    columns = ["coverage", *(f"{split}{what}" for split in ("valid", "test") for what in ("", "_probability"))]
    table = pd.DataFrame({"coverage": SHARES}, columns=columns)
    for split in splits:
        table[split.name], table[f"{split.name}_probability"] = coverage_curve(split.confidence, split.right)
    return table


def confusions(split: LabelledSplit | None) -> pd.DataFrame:
    """Truth and prediction of every image; no rows for a split without labels.

    Of more than `MAX_NAMED_CLASSES` classes the images (`n`) of each pair of blocks, since DVC's page holds the whole table.
    """
    if split and len(split.class_names) > MAX_NAMED_CLASSES:
        names = split.class_names.tolist()
        groups = class_groups(names, split.answers.ranks)
        return confused_blocks(groups.of_class if groups else names, split.targets, split.answers.predicted)
    truth, predicted = (split.class_names[[split.targets, split.answers.predicted]]) if split else ([], [])
    return pd.DataFrame({"truth": truth, "predicted": predicted})


def reliability(split: LabelledSplit, n_bins: int) -> pd.DataFrame:
    """For each equal-width bin (low, high] of the confidence: n, mean confidence, accuracy and its 95 % interval.

    NaN in empty bins.
    """
    bins = confidence_bins(split.confidence, n_bins)
    counts, n_right = (np.bincount(each, minlength=n_bins) for each in (bins, bins[split.right]))
    intervals = [accuracy_interval(k, n) if n else (np.nan, np.nan) for k, n in zip(n_right, counts, strict=True)]
    divisor = np.where(counts, counts, np.nan)
    edges = np.arange(n_bins + 1) / n_bins
    columns = {
        "low": edges[:-1],
        "high": edges[1:],
        "n": counts,
        "confidence": np.bincount(bins, split.confidence, minlength=n_bins) / divisor,
        "accuracy": n_right / divisor,
    }
    columns["accuracy_low"], columns["accuracy_high"] = np.transpose(intervals)
    return pd.DataFrame(columns).assign(split=split.name)


def confused_pairs(split: LabelledSplit) -> pd.DataFrame:
    """The off-diagonal entries of the confusion matrix, most frequent first, with their share of the true class.

    The classes are numbers.
    """
    table = pd.DataFrame({"split": split.name, "truth": split.targets, "predicted": split.answers.predicted})[~split.right]
    table = table.groupby(["split", "truth", "predicted"]).size().reset_index(name="n")
    table["n_truth"] = np.bincount(split.targets, minlength=len(split.class_names))[table["truth"]]
    table["share"] = table["n"] / table["n_truth"]
    return table.sort_values(["n", "share"], ascending=False, kind="stable")
