"""`fieldguide folds` joins a cross-validation: each labelled image with the answer of a network that was not trained on it.

A fold is a finished DVC experiment with `split_check.folds`, whose test split is the part `split_check.fold`. Folds are joined
if all else that their predictions depend on is equal: data, corrections, code and params, as `dvc.lock` has them.
"""

import hashlib
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from fieldguide.core.artifacts import ClassScore, CleanMetrics, ConfusedPair, FoldScore, FoldsMetrics
from fieldguide.core.errors import UserError
from fieldguide.core.manifest import write_table
from fieldguide.core.names import flat
from fieldguide.core.paths import FOLDS_CSV, PREDICTIONS_CSV, project_root, stage_metrics
from fieldguide.evaluation.metrics import accuracy_metrics, macro_f1_interval
from fieldguide.tracking.experiments import Experiment, experiments
from fieldguide.tracking.run import folds_run

FOLD, FOLDS = "split_check.fold", "split_check.folds"
N_LISTED = 10  # worst classes, confused pairs and contradicted images that are printed
N_NAMED = 3  # values and experiments in an error
INCOMPLETE = 3  # exit status


@dataclass(frozen=True)
class Fold:
    """A finished experiment of a cross-validation; `facts`: all that its predictions depend on but the fold, by name."""

    experiment: Experiment
    number: int
    n_folds: int
    predictions_md5: str
    facts: dict[str, Any]


def folds(args: Namespace) -> int:
    """Joins the folds, writes and prints figures; returns 0, or 3 if folds are missing."""
    found = [fold for each in experiments(args.all_commits) if (fold := read_fold(each, each.stages))]
    if args.names:
        if unknown := set(args.names) - {fold.experiment.name for fold in found}:
            raise UserError(f"{min(unknown)}: no finished experiment of this name has {FOLDS}; see: fieldguide runs")
        found = [fold for fold in found if fold.experiment.name in args.names]
    if not found:
        command = f"dvc exp run --queue -S '{FOLDS}=5' -S '{FOLD}=range(0,5)' evaluate, then: dvc queue start"
        raise UserError(f"no finished experiment has {FOLDS}; create them with: {command}")
    check_equal(found)
    chosen, doubles = pick(found)
    with TemporaryDirectory() as folder:
        tables = [fold_predictions(fold, Path(folder)) for fold in chosen]
    table = join(tables)
    metrics = measure(table, chosen)
    root = project_root()
    metrics.write(root / stage_metrics("folds"))
    write_table(table, root / FOLDS_CSV)
    identity = [(fold.number, fold.experiment.checkpoint, fold.predictions_md5) for fold in chosen]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    params = {name: value for name, value in chosen[0].facts.items() if not name.startswith(("cmd ", "dep "))}
    with folds_run(params, {str(fold.number): fold.experiment.name for fold in chosen}, key) as run:
        for score in metrics.per_fold:
            run.log_metrics({"folds": {"of_fold": score.as_dict()}}, step=score.fold)
        run.log(metrics.as_dict(), root / stage_metrics("folds"), root / FOLDS_CSV)
    print_summary(metrics, table, doubles)
    return INCOMPLETE if metrics.missing else 0


def read_fold(experiment: Experiment, stages: dict[str, Any]) -> Fold | None:
    """The experiment as a fold, by its stages in dvc.lock; None if it is not one, or its evaluation is not finished."""
    n_folds = experiment.params.get(FOLDS, 0)
    outs = {out["path"]: (name, out["md5"]) for name, stage in stages.items() for out in stage.get("outs", [])}
    is_finished = experiment.checkpoint and not set(experiment.stale) & {"split_check", "train", "evaluate"}
    if not n_folds or not is_finished or str(PREDICTIONS_CSV) not in outs:
        return None
    facts: dict[str, Any] = {}
    maker, md5 = outs[str(PREDICTIONS_CSV)]
    waiting = [maker]
    while waiting:  # the stages on which the predictions depend
        name = waiting.pop()
        stage = stages[name]
        facts[f"cmd {name}"] = stage["cmd"]
        for sections in stage.get("params", {}).values():
            facts |= flat(sections)
        for dep in stage.get("deps", []):
            if dep["path"] in outs:
                waiting.append(outs[dep["path"]][0])
            else:
                facts[f"dep {dep['path']}"] = dep.get("md5", "")
    return Fold(experiment, int(facts.pop(FOLD, 0)), int(n_folds), md5, facts)


def check_equal(found: Sequence[Fold]) -> None:
    """Raises `UserError`, which says what differs, unless the folds are of one cross-validation."""
    for name in sorted({name for fold in found for name in fold.facts}):
        by_value: dict[str, list[str]] = {}
        for fold in found:
            by_value.setdefault(str(fold.facts.get(name)), []).append(fold.experiment.name)
        if len(by_value) > 1:
            kind, _, path = name.rpartition(" ")
            values = [
                f"{value[:8] if kind else value} in {', '.join(names[:N_NAMED])}{', …' if names[N_NAMED:] else ''}"
                for value, names in list(by_value.items())[:N_NAMED]
            ]
            raise UserError(
                f"the folds are not of one cross-validation: {path} is {'; '.join(values)}; name the experiments to join:"
                f" fieldguide folds {' '.join(max(by_value.values(), key=len)[:N_NAMED])} …"
            )


def pick(found: Sequence[Fold]) -> tuple[list[Fold], list[str]]:
    """The first experiment of each fold, in the order of the folds, and in words the folds that there are twice."""
    by_number: dict[int, list[Fold]] = {}
    for fold in found:
        by_number.setdefault(fold.number, []).append(fold)
    doubles = []
    for number, several in sorted(by_number.items()):
        if several[1:]:
            same = "same predictions" if len({fold.predictions_md5 for fold in several}) == 1 else "other predictions"
            others = ", ".join(fold.experiment.name for fold in several[1:])
            doubles.append(f"fold {number} is double: {several[0].experiment.name} counts, not {others} ({same})")
    return [several[0] for _, several in sorted(by_number.items())], doubles


def fold_predictions(fold: Fold, folder: Path) -> pd.DataFrame:
    """The rows of test in the experiment's predictions, with `fold` and `experiment`; raises `UserError` without the file."""
    target, name = folder / f"{fold.number}.csv", fold.experiment.name
    command = ["get", "--quiet", "--rev", fold.experiment.rev, "--out", str(target), ".", str(PREDICTIONS_CSV)]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command], cwd=project_root(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{name}: {PREDICTIONS_CSV} cannot be read from DVC's cache ({said}); run: dvc pull, or the fold again")
    texts = dict.fromkeys(("id", "sha256", "truth", "corrected", *(f"answer_{k}" for k in range(1, 6))), str)
    table = pd.read_csv(target, dtype=texts, keep_default_na=False, na_values={f"probability_{k}": [""] for k in range(1, 6)})
    test = table[table["split"] == "test"].drop(columns=["split", "known_score"]).reset_index(drop=True)
    test.insert(0, "fold", fold.number)
    test.insert(1, "experiment", name)
    return test


def join(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All images, those that their networks contradict most first; raises `UserError` for an image in two folds.

    `contradiction`, -1..1, is the largest probability of another class less that of the truth.
    """
    table = pd.concat(tables, ignore_index=True)
    if "corrected" in table:  # not in the folds without a corrected image
        decided = table["corrected"].notna()
        table["corrected"] = table["corrected"].where(decided, table["truth"])
    twice = table[table["id"].duplicated(keep=False)]
    if len(twice):
        places = ", ".join(f"{row.fold} ({row.experiment})" for row in twice[twice["id"] == twice["id"].iloc[0]].itertuples())
        raise UserError(f"{twice['id'].iloc[0]}: is in test of the folds {places}; run the folds again")
    answers = table[[f"answer_{k}" for k in range(1, 6)]].to_numpy()
    probabilities = table[[f"probability_{k}" for k in range(1, 6)]].fillna(0.0).to_numpy(dtype=float)
    is_truth = answers == table["truth"].to_numpy()[:, None]
    of_truth = np.where(is_truth, probabilities, 0.0).sum(axis=1)  # 0 beyond the five answers
    of_other = np.where(is_truth, 0.0, probabilities).max(axis=1)
    table = table.assign(probability_of_truth=of_truth, contradiction=(of_other - of_truth).round(6))
    return table.sort_values(["contradiction", "id"], ascending=[False, True], ignore_index=True)


def measure(table: pd.DataFrame, chosen: Sequence[Fold]) -> FoldsMetrics:
    """The content of metrics/folds.json."""
    names = sorted(set(table["truth"]) | set(table["answer_1"]) | set(table.get("corrected", [])) - {""})
    number = {name: k for k, name in enumerate(names)}
    targets, predicted = (table[column].map(number).to_numpy(dtype=np.int64) for column in ("truth", "answer_1"))
    f1_low, f1_high = macro_f1_interval(targets, predicted)
    scores = [
        FoldScore(fold=fold.number, experiment=fold.experiment.name, **accuracy_metrics(targets[rows], predicted[rows]))
        for fold in chosen
        if (rows := table["fold"].eq(fold.number).to_numpy()).any()
    ]
    further: dict[str, Any] = {}
    if "corrected" in table:
        kept = table["corrected"].ne("").to_numpy()
        corrected = table["corrected"][kept].map(number).to_numpy(dtype=np.int64)
        figures = accuracy_metrics(corrected, predicted[kept]) if kept.any() else {"accuracy": None, "n": 0}
        further["as_corrected"] = CleanMetrics(**figures)
    return FoldsMetrics(
        folds=chosen[0].n_folds,
        missing=sorted(set(range(chosen[0].n_folds)) - {fold.number for fold in chosen}),
        **accuracy_metrics(targets, predicted),
        macro_f1_low=f1_low,
        macro_f1_high=f1_high,
        **further,
        per_fold=scores,
        worst_classes=worst_classes(targets, predicted, names),
        confused_pairs=most_confused(table),
    )


def worst_classes(targets: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[ClassScore]:
    """The classes with the lowest F1."""
    columns = precision_recall_fscore_support(targets, predicted, labels=range(len(names)), zero_division=0)
    scores = [
        ClassScore(class_name=name, precision=float(precision), recall=float(recall), f1=float(f1), n=int(n))
        for name, precision, recall, f1, n in zip(names, *columns, strict=True)
        if n
    ]
    return sorted(scores, key=lambda score: (score.f1, score.class_name))[:N_LISTED]


def most_confused(table: pd.DataFrame) -> list[ConfusedPair]:
    """The most frequent confusions of two classes."""
    totals = table["truth"].value_counts()
    pairs = table[table["truth"] != table["answer_1"]].groupby(["truth", "answer_1"]).size().reset_index(name="n")
    pairs = pairs.sort_values(["n", "truth", "answer_1"], ascending=[False, True, True]).head(N_LISTED)
    return [
        ConfusedPair(truth=truth, predicted=predicted, n=int(n), n_truth=int(totals[truth]))
        for truth, predicted, n in pairs.itertuples(index=False, name=None)
    ]


def print_summary(metrics: FoldsMetrics, table: pd.DataFrame, doubles: Sequence[str]) -> None:
    """The figures, what is missing, and the images to look at."""
    for score in metrics.per_fold:
        figures = f"accuracy {score.accuracy:.2%}  macro F1 {score.macro_f1:.4f}  n={score.n}"
        print(f"fold {score.fold}  {score.experiment:20s}  {figures}")
    print(
        f"{len(metrics.per_fold)} of {metrics.folds} folds: accuracy {metrics.accuracy:.2%}, 95 % interval"
        f" {metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%} (n={metrics.n}); macro F1 {metrics.macro_f1:.4f},"
        f" {metrics.macro_f1_low:.4f} to {metrics.macro_f1_high:.4f}"
    )
    if metrics.as_corrected and metrics.as_corrected.accuracy is not None:
        corrected = metrics.as_corrected
        print(f"as corrected: accuracy {corrected.accuracy:.2%}, macro F1 {corrected.macro_f1:.4f} (n={corrected.n})")
    print("lowest F1: " + ", ".join(f"{one.class_name} {one.f1:.2f} (n={one.n})" for one in metrics.worst_classes[:5]))
    for pair in metrics.confused_pairs[:5]:
        print(f"{pair.truth} taken for {pair.predicted}: {pair.n} of {pair.n_truth}")
    print("contradicted most by networks that have not seen them:")
    for row in table[table["truth"] != table["answer_1"]].head(N_LISTED).itertuples():
        print(f"  {row.contradiction:.2f}  {row.id}: {row.truth}, predicted {row.answer_1}")
    print(f"-> {stage_metrics('folds')} {FOLDS_CSV}")
    for text in doubles:
        print(f"warning: {text}", file=sys.stderr)
    if metrics.missing:
        which, listed = ", ".join(map(str, metrics.missing)), ",".join(map(str, metrics.missing))
        command = f"dvc exp run --queue -S '{FOLDS}={metrics.folds}' -S '{FOLD}={listed}' evaluate"
        print(f"warning: missing: fold {which} of {metrics.folds}; run: {command}", file=sys.stderr)
