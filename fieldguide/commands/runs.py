"""`fieldguide runs` compares DVC's experiments with MLflow's runs; `fieldguide sync` sends what MLflow lacks.

An experiment belongs to the run that produced its checkpoint, whose MD5 is in `dvc.lock` at its revision. If DVC restored the
training from its cache, this is the run of another experiment. An experiment without a checkpoint (queued, running or failed)
belongs to the run of the same name.
"""

import hashlib
import json
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from fieldguide.core.errors import write_utf8
from fieldguide.core.files import write_bytes
from fieldguide.core.headlines import TRACKED, tracked_headlines
from fieldguide.core.paths import LOCK, project_root, synced
from fieldguide.tracking.experiments import (
    WORKSPACE,
    Experiment,
    Ref,
    contents,
    list_refs,
    read_experiments,
    unfinished,
    workspace,
)
from fieldguide.tracking.sender import send_all
from fieldguide.tracking.store import CHECKPOINT_TAG, EXPERIMENT_TAG, STAGE_TAG, Store, all_pages, open_store, store_name

COLUMNS = ("best_loss", "valid_accuracy", "test_accuracy")  # headlines in the table
KEY_METRICS = tuple(TRACKED[name] for name in COLUMNS)
N_NAMED = 3  # names in a cell of the table; JSON and CSV have all
WIDTH = 160  # of the table where there is no terminal, characters
PAGE = 100  # runs of a page, where all are read

Row = dict[str, Any]  # what JSON shows of an experiment and its run


@dataclass(frozen=True)
class TrackedRun:
    """A training's run in MLflow; `metrics`: the headlines; `time` of its start, seconds since 1970.

    children: runs of the stages that measured its checkpoint, oldest first.
    """

    run_id: str
    name: str
    status: str
    experiment: str = ""
    checkpoint: str = ""
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    children: tuple["TrackedRun", ...] = ()
    time: float = 0.0

    def with_params(self, params: dict[str, Any]) -> "TrackedRun":
        """The run with params and metrics of those children whose stages had these params."""
        run = self
        for child in self.children:
            if not any(unequal(params.get(name), value) for name, value in child.params.items()):
                run = replace(run, params=run.params | child.params, metrics=run.metrics | child.metrics)
        return run


def unequal(ours: Any, theirs: Any) -> bool:
    """Whether two values differ; params are texts in MLflow, where 20 may be 20.0."""
    try:
        return float(ours) != float(theirs)
    except (TypeError, ValueError):
        return str(ours) != str(theirs)


def compare(experiment: Experiment | None, run: TrackedRun | None, again: str = "") -> Row:
    """An experiment and its run, one of which may be missing, and their differences.

    again: for a run without an experiment, the experiment with the same checkpoint.
    """
    mlflow_lacks = [] if run else ["run"]
    dvc_lacks = [] if experiment or again else ["experiment"]
    differ: list[str] = []
    if experiment and run:
        for ours, theirs in ((experiment.params, run.params), (experiment.metrics, run.metrics)):
            mlflow_lacks += sorted(ours.keys() - theirs.keys())
            differ += [name for name in sorted(ours.keys() & theirs.keys()) if unequal(ours[name], theirs[name])]
        if experiment.checkpoint:
            stale = tuple(f"{stage}." for stage in experiment.stale)  # figures of an earlier run, which DVC does not count
            known = {name for name in TRACKED.values() if not (stale and name.startswith(stale))}
            dvc_lacks = sorted(run.metrics.keys() & known - experiment.metrics.keys())
    values = {
        name: {"dvc": experiment and experiment.metrics.get(name), "mlflow": run and run.metrics.get(name)}
        for name in KEY_METRICS
    }
    return {
        "experiment": experiment and experiment.name,
        "rev": experiment and experiment.rev,
        "state": experiment and experiment.state,
        "time": _iso(experiment.time if experiment else run.time if run else 0.0),
        "checkpoint_md5": experiment.checkpoint if experiment else run and run.checkpoint,
        "run": run and run.name,
        "run_id": run and run.run_id,
        "run_status": run and run.status,
        "params": experiment.params if experiment else run.params if run else {},
        "metrics": values,
        "mlflow_lacks": mlflow_lacks,
        "dvc_lacks": dvc_lacks,
        "differ": differ,
        "stale": list(experiment.stale) if experiment else [],
        "again": again,
    }


def tracked_run(run: Any) -> TrackedRun:
    """A run of MLflow's."""
    tags, info = run.data.tags, run.info
    names = tags.get(EXPERIMENT_TAG, ""), tags.get(CHECKPOINT_TAG, "")
    metrics = tracked_headlines(run.data.metrics)
    return TrackedRun(info.run_id, info.run_name, info.status, *names, run.data.params, metrics, time=info.start_time / 1000)


class Tracked:
    """The runs in the store, of which only those that are asked for are read."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def trainings(self, limit: int | None, query: str = "") -> list[TrackedRun]:
        """The latest training runs, newest first; all without a limit."""
        search = self.store.client.search_runs if limit else partial(all_pages, self.store.client.search_runs)
        query, order = f"tags.`{STAGE_TAG}` = 'train'{query}", ["attributes.start_time DESC"]
        found = search([self.store.experiment_id], query, max_results=limit or PAGE, order_by=order)
        return [tracked_run(run) for run in found]

    def candidates(self, experiment: Experiment) -> list[TrackedRun]:
        """The runs of which one may belong to the experiment, newest first."""
        if experiment.checkpoint:
            return self.trainings(None, f" AND tags.`{CHECKPOINT_TAG}` = '{experiment.checkpoint}'")
        name = experiment.name.replace("'", "")
        named = [self.trainings(1, f" AND {of} = '{name}'") for of in (f"tags.`{EXPERIMENT_TAG}`", "attributes.run_name")]
        return sorted((run for runs in named for run in runs), key=lambda run: -run.time)

    def children(self, run: TrackedRun) -> tuple[TrackedRun, ...]:
        """The runs of the stages that measured the run's checkpoint, oldest first."""
        query, order = f"tags.`mlflow.parentRunId` = '{run.run_id}'", ["attributes.start_time ASC"]
        found = all_pages(self.store.client.search_runs, [self.store.experiment_id], query, order_by=order)
        return tuple(map(tracked_run, found))


def match_runs(
    experiments: list[Experiment],
    runs: list[TrackedRun],
    children: Callable[[TrackedRun], tuple[TrackedRun, ...]] = lambda run: run.children,
) -> list[Row]:
    """A row for each experiment, in their order, then for each run that belongs to none; `runs`: the latest first."""
    by_name, by_checkpoint = _index(runs)
    rows, taken = [], set()
    for experiment in experiments:
        run = run_of(experiment, by_name.get(experiment.name, []), by_checkpoint.get(experiment.checkpoint, []))
        row = compare(experiment, run)
        if run and (row["mlflow_lacks"] or row["differ"]):  # a stage of its own may have other params than the last one
            row = compare(experiment, replace(run, children=children(run)).with_params(experiment.params))
        rows.append(row)
        taken.add(run and run.run_id)
    names = {experiment.checkpoint: experiment.name for experiment in experiments if experiment.checkpoint}
    return rows + [compare(None, run, names.get(run.checkpoint, "")) for run in runs if run.run_id not in taken]


def _index(runs: list[TrackedRun]) -> tuple[dict[str, list[TrackedRun]], dict[str, list[TrackedRun]]]:
    """The runs by name and by checkpoint, in their order."""
    by_name: dict[str, list[TrackedRun]] = {}
    by_checkpoint: dict[str, list[TrackedRun]] = {}
    for run in runs:
        for name in {run.name, run.experiment}:
            by_name.setdefault(name, []).append(run)
        by_checkpoint.setdefault(run.checkpoint, []).append(run)
    return by_name, by_checkpoint


def run_of(experiment: Experiment, named: list[TrackedRun], makers: list[TrackedRun]) -> TrackedRun | None:
    """The latest run that produced the checkpoint, preferably one of the same name; both lists: the latest first."""
    if not experiment.checkpoint:
        return next(iter(named), None)
    return next((run for run in makers if experiment.name in (run.experiment, run.name)), next(iter(makers), None))


def listed_experiments(refs: list[Ref], limit: int | None) -> list[Experiment]:
    """The workspace if it differs from the last commit, those that are not finished, the newest others, the last commit."""
    newest, head = refs[:limit], next(ref for ref in refs if ref.state == "commit")
    found = read_experiments(newest if head in newest else [*newest, head])
    last = next(each for each in found if each.state == "commit")
    here = workspace()
    is_clean = replace(here, name=last.name, rev=last.rev, state=last.state) == last
    return ([] if is_clean else [here]) + unfinished(refs) + found


def sync(args: Namespace) -> None:
    """Sends what earlier runs could not send, then runs, params and metrics of finished experiments that MLflow lacks.

    What a store has been given is noted: the next time only newer experiments are read.
    """
    print(send_all())
    if not (project_root() / ".dvc").is_dir():
        return
    n_new, n_values = 0, 0
    with open_store() as store:
        tracked, note = Tracked(store), _note(store)
        known = set(note.read_text().split()) if note.exists() and not args.again else set()
        refs = [ref for ref in list_refs(args.all_commits) if ref.rev not in known]
        for experiment in reversed(read_experiments(refs)):
            if not experiment.checkpoint:
                continue
            run = run_of(experiment, [], tracked.candidates(experiment))
            if not run:
                tags = {EXPERIMENT_TAG: experiment.name} if experiment.state == "success" else {}
                run_id = store.run_of_checkpoint(experiment.checkpoint, {"name": experiment.name, "tags": tags})
                run = TrackedRun(run_id, experiment.name, "FINISHED", checkpoint=experiment.checkpoint)
                n_new += 1
            own = replace(run, children=tracked.children(run)).with_params(experiment.params)
            params = {name: value for name, value in experiment.params.items() if name not in own.params}
            metrics = {name: value for name, value in experiment.metrics.items() if name not in own.metrics}
            if params or metrics:
                store.add(run.run_id, params, metrics, int(time.time() * 1000))
            n_values += len(params) + len(metrics)
        if refs:
            write_bytes(note, "\n".join(sorted(known | {ref.rev for ref in refs})).encode())
    print(f"DVC: {n_new} runs added to MLflow, {n_values} params and metrics")


def _note(store: Store) -> Path:
    """The file with the commits of which a store has all params and metrics."""
    created = store.client.get_experiment(store.experiment_id).creation_time  # a store that was made anew lacks them again
    identity = hashlib.sha256(f"{store_name()} {store.experiment_id} {created}".encode()).hexdigest()[:16]
    return synced() / identity


def runs(args: Namespace) -> None:
    """Prints the newest experiments and runs as a table, JSON or CSV."""
    limit = None if args.all else args.n
    with open_store() as store:
        tracked, refs = Tracked(store), list_refs(args.all_commits)
        experiments = listed_experiments(refs, limit)
        latest = tracked.trainings(limit)
        if limit is not None:
            checkpoints, names = {run.checkpoint for run in latest}, {run.experiment or run.name for run in latest}
            for each in experiments:
                if each.checkpoint not in checkpoints if each.checkpoint else each.name not in names:
                    latest += [run for run in tracked.candidates(each) if run not in latest]
            latest = _without_those_of(refs[limit:], latest, experiments)
        rows = match_runs(experiments, latest, tracked.children)
        rows.sort(key=lambda row: row["time"] or "9", reverse=True)  # an ISO date begins with a smaller digit
        if limit is not None and (len(refs) > limit or len(rows) > limit):
            print(f"the newest {limit}; -n N lists more, --all all experiments and runs", file=sys.stderr)
        older = rows[limit:] if limit is not None else []
        print_rows(rows[:limit] + [row for row in older if is_commit(row)][:1], args.format)


def is_commit(row: Row) -> bool:
    """Whether the row is that of a commit, with which experiments are compared."""
    return row["state"] == "commit" and row["rev"] != WORKSPACE


def _without_those_of(older: list[Ref], latest: list[TrackedRun], experiments: list[Experiment]) -> list[TrackedRun]:
    """The runs without those of older experiments, which are not listed."""
    listed = {text for each in experiments for text in (each.checkpoint, each.name) if text}
    names = {ref.name for ref in older}
    rest = [run for run in latest if run.checkpoint not in listed and not {run.name, run.experiment} & listed]
    gone = {run.run_id for run in rest if names & {run.name, run.experiment}}
    locks = b"".join(contents(f"{ref.rev}:./{LOCK}" for ref in older)) if len(gone) < len(rest) else b""
    gone |= {run.run_id for run in rest if run.checkpoint and run.checkpoint.encode() in locks}
    return [run for run in latest if run.run_id not in gone]


def print_rows(rows: list[Row], form: str) -> None:
    """Prints rows; the table abbreviates the differences, JSON and CSV contain all of them."""
    if form != "table":
        write_utf8()
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif form == "csv":
        pd.DataFrame([_flat_row(row) for row in rows]).to_csv(sys.stdout, index=False, lineterminator="\n")
    else:
        lines = [("experiment", "rev", "created", "DVC", "MLflow", *COLUMNS, "params and remarks")]
        lines += zip(*_cells(rows), strict=True) if rows else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        total = shutil.get_terminal_size((WIDTH, 0)).columns
        for line in lines:
            print(_cut("  ".join(map(str.ljust, line, widths)).rstrip(), total))
        print(f"values: DVC / MLflow where they differ, - where one is missing; MLflow: {store_name() or 'mlflow.db'}")


def _cells(rows: list[Row]) -> list[list[str]]:
    """The columns of the table."""
    reference: dict[str, Any] = next((row["params"] for row in rows if is_commit(row)), {})
    return [
        [row["experiment"] or "-" for row in rows],
        [(row["rev"] or "-")[:9] for row in rows],
        [(row["time"] or "-")[:16].replace("T", " ") for row in rows],
        [row["state"] or "-" for row in rows],
        [_run_cell(row) for row in rows],
        *([_both(**row["metrics"][name]) for row in rows] for name in KEY_METRICS),
        ["; ".join(filter(None, [_changes(row["params"], reference), _remarks(row)])) for row in rows],
    ]


def _run_cell(row: Row) -> str:
    """The state of the run, and its name if it is not that of the experiment."""
    if not row["run_id"]:
        return "-"
    return row["run_status"] + ("" if row["run"] == row["experiment"] else f" ({row['run']})")


def _changes(params: dict[str, Any], reference: dict[str, Any]) -> str:
    """The params that differ from the last commit's, by their last names."""
    return " ".join(
        f"{name.partition('.')[2]}={value}"
        for name, value in params.items()
        if name in reference and unequal(value, reference[name])
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _iso(time_s: float) -> str:
    """A time in seconds since 1970 as local ISO date and time; empty for one that is not known."""
    return datetime.fromtimestamp(time_s).isoformat(timespec="seconds") if 0 < time_s < float("inf") else ""


def _flat_row(row: Row) -> Row:
    values = {f"{name} ({side})": value for name, sides in row["metrics"].items() for side, value in sides.items()}
    nested = ("metrics", "params")
    plain = {name: " ".join(cell) if isinstance(cell, list) else cell for name, cell in row.items() if name not in nested}
    return plain | values


def _both(dvc: float | None, mlflow: float | None) -> str:
    """One number if both are equal."""
    texts = ["-" if value is None else f"{value:.4f}" for value in (dvc, mlflow)]
    return texts[0] if texts[0] == texts[1] else " / ".join(texts)


def _remarks(row: Row) -> str:
    """The first differences in words."""
    parts = []
    for words, key in (("MLflow lacks", "mlflow_lacks"), ("DVC lacks", "dvc_lacks"), ("differ:", "differ")):
        if names := row[key]:
            more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
            parts.append(f"{words} {', '.join(names[:N_NAMED])}{more}")
    if row["stale"]:
        parts.append(f"DVC shows {', '.join(row['stale'])} of another checkpoint")
    if row["again"]:
        parts.append(f"same checkpoint as {row['again']}")
    return "; ".join(parts)
