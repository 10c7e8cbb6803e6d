"""`fieldguide runs` compares DVC's experiments with MLflow's runs; `fieldguide sync` sends what MLflow lacks.

An experiment belongs to the run that produced its checkpoint, whose MD5 is in `dvc.lock` at its revision. If DVC restored the
training from its cache, this is the run of another experiment. An experiment without a checkpoint (queued, running or failed)
belongs to the run of the same name.
"""

import json
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fieldguide.core.errors import UserError, write_utf8
from fieldguide.core.names import flat
from fieldguide.core.paths import CHECKPOINT, LOCK, METRICS, PARAMS, project_root
from fieldguide.tracking.sender import send_all
from fieldguide.tracking.store import CHECKPOINT_TAG, EXPERIMENT_TAG, STAGE_TAG, Store, all_pages, open_store, store_name

KEY_METRICS = ("train.valid.loss", "evaluate.valid.accuracy", "evaluate.test.accuracy")
CURVES = ("train.loss", "train.accuracy")  # MLflow has them for each epoch, DVC in metrics/history.csv
CELLS = ("experiment", "rev", "state", "run", "run_status")  # of the table
N_NAMED = 3  # names in a cell of the table; JSON and CSV have all

Row = dict[str, Any]  # what JSON shows of an experiment and its run


@dataclass(frozen=True)
class Experiment:
    """A row of `dvc exp show`.

    checkpoint: MD5, empty before the training has ended. metrics: `<stage>.<key>`. stale: stages whose metrics the revision
    inherited from another checkpoint; `metrics` is without them.
    """

    name: str
    rev: str
    state: str
    checkpoint: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    stale: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrackedRun:
    """A training's run in MLflow; `children`: runs of the stages that measured its checkpoint, oldest first."""

    run_id: str
    name: str
    status: str
    experiment: str = ""
    checkpoint: str = ""
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    children: tuple["TrackedRun", ...] = ()

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
            stages = {path.stem for path in (project_root() / METRICS).glob("*.json")}
            stages -= set(experiment.stale)  # figures of an earlier run, which DVC does not count
            extra = run.metrics.keys() - experiment.metrics.keys() - set(CURVES)
            dvc_lacks = sorted(name for name in extra if name.split(".")[0] in stages)
    values = {
        name: {"dvc": experiment and experiment.metrics.get(name), "mlflow": run and run.metrics.get(name)}
        for name in KEY_METRICS
    }
    return {
        "experiment": experiment and experiment.name,
        "rev": experiment and experiment.rev,
        "state": experiment and experiment.state,
        "checkpoint_md5": experiment.checkpoint if experiment else run and run.checkpoint,
        "run": run and run.name,
        "run_id": run and run.run_id,
        "run_status": run and run.status,
        "metrics": values,
        "mlflow_lacks": mlflow_lacks,
        "dvc_lacks": dvc_lacks,
        "differ": differ,
        "stale": list(experiment.stale) if experiment else [],
        "again": again,
    }


def training_runs(store: Store) -> list[TrackedRun]:
    """All training runs in the store, the latest first."""
    children: dict[str, list[TrackedRun]] = {}
    trainings = []
    for run in all_pages(store.client.search_runs, [store.experiment_id], order_by=["attributes.start_time ASC"]):
        tags, data = run.data.tags, run.data
        names = tags.get(EXPERIMENT_TAG, ""), tags.get(CHECKPOINT_TAG, "")
        tracked = TrackedRun(run.info.run_id, run.info.run_name, run.info.status, *names, data.params, data.metrics)
        children.setdefault(tags.get("mlflow.parentRunId", ""), []).append(tracked)
        if tags.get(STAGE_TAG) == "train":
            trainings.append(tracked)
    return [replace(run, children=tuple(children.get(run.run_id, ()))) for run in reversed(trainings)]


def match_runs(experiments: list[Experiment], runs: list[TrackedRun]) -> list[Row]:
    """A row for each experiment, in DVC's order, then for each run that belongs to none; `runs`: the latest first."""
    rows, taken = [], set()
    for experiment in experiments:
        run = run_of(experiment, runs)
        rows.append(compare(experiment, run and run.with_params(experiment.params)))
        taken.add(run and run.run_id)
    names = {experiment.checkpoint: experiment.name for experiment in experiments if experiment.checkpoint}
    return rows + [compare(None, run, names.get(run.checkpoint, "")) for run in runs if run.run_id not in taken]


def run_of(experiment: Experiment, runs: list[TrackedRun]) -> TrackedRun | None:
    """The latest run that produced the checkpoint, preferably one of the same name."""
    named = [run for run in runs if experiment.name in (run.experiment, run.name)]
    if not experiment.checkpoint:
        return next(iter(named), None)
    makers = [run for run in runs if run.checkpoint == experiment.checkpoint]
    return next((run for run in makers if run in named), next(iter(makers), None))


def experiments(all_commits: bool = False) -> list[Experiment]:
    """The workspace if it has changed, the last commit (or all of them) and its experiments, as DVC lists them."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *(["--all-commits"] if all_commits else [])]
    answer = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"dvc exp show: {answer.stderr.strip().splitlines()[-1]}; run it in a DVC project with a commit")
    rows: list[Experiment] = []
    for baseline in json.loads(answer.stdout):
        rows.append(_experiment(baseline["name"] or baseline["rev"], baseline, ""))
        for group in baseline["experiments"] or []:
            state = (group["executor"] or {}).get("state") or "success"
            rows += [_experiment(revision["name"] or group["name"] or "", revision, state) for revision in group["revs"]]
    workspace, *rest = rows
    is_clean = rest and replace(rest[0], name=workspace.name, rev=workspace.rev, state=workspace.state) == workspace
    return rest if is_clean else rows


def _experiment(name: str, revision: dict[str, Any], state: str) -> Experiment:
    data, rev = revision["data"], revision["rev"]
    if data is None:
        return Experiment(name, rev[:7], state or "failed")
    stages = locked_stages(rev)
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    stale = tuple(  # run on another output than the present one
        name
        for name, stage in stages.items()
        if any(outs.get(dep["path"], dep["md5"]) != dep["md5"] for dep in stage.get("deps", []))
    )
    checkpoint = outs.get(str(CHECKPOINT), "") if state in ("", "success") else ""
    contents = {Path(file).stem: content.get("data") or {} for file, content in data["metrics"].items() if checkpoint}
    values = flat({stage: content for stage, content in contents.items() if stage in stages.keys() - stale})
    metrics = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    params = flat(data["params"].get(str(PARAMS), {}).get("data") or {})
    return Experiment(name, rev[:9], state or "commit", checkpoint, params, metrics, stale)  # 9: all of "workspace"


def locked_stages(rev: str) -> dict[str, Any]:
    """The stages in dvc.lock at a revision; empty without such a file."""
    if rev == "workspace":
        file = project_root() / LOCK
        text = file.read_text() if file.exists() else ""
    else:
        command = ["git", "show", f"{rev}:./{LOCK}"]
        text = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False).stdout
    return (yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}).get("stages") or {}


def sync(args: Namespace) -> None:
    """Sends what earlier runs could not send, then runs, params and metrics of finished experiments that MLflow lacks."""
    print(send_all())
    if not (project_root() / ".dvc").is_dir():
        return
    n_new, n_values = 0, 0
    with open_store() as store:
        tracked = training_runs(store)
        for experiment in experiments(args.all_commits):
            if not experiment.checkpoint or experiment.name == "workspace":
                continue
            run = run_of(experiment, tracked)
            if not run:
                tags = {EXPERIMENT_TAG: experiment.name} if experiment.state == "success" else {}
                run_id = store.run_of_checkpoint(experiment.checkpoint, {"name": experiment.name, "tags": tags})
                run = TrackedRun(run_id, experiment.name, "FINISHED", checkpoint=experiment.checkpoint)
                tracked.insert(0, run)
                n_new += 1
            known = run.with_params(experiment.params)
            params = {name: value for name, value in experiment.params.items() if name not in known.params}
            metrics = {name: value for name, value in experiment.metrics.items() if name not in known.metrics}
            store.add(run.run_id, params, metrics, int(time.time() * 1000))
            run.params.update({name: str(value) for name, value in params.items()})
            run.metrics.update(metrics)
            n_values += len(params) + len(metrics)
    print(f"DVC: {n_new} runs added to MLflow, {n_values} params and metrics")


def runs(args: Namespace) -> None:
    """Prints experiments and runs as a table, JSON or CSV."""
    with open_store() as store:
        print_rows(match_runs(experiments(args.all_commits), training_runs(store)), args.format)


def print_rows(rows: list[Row], form: str) -> None:
    """Prints rows; the table abbreviates the differences, JSON and CSV contain all of them."""
    if form != "table":
        write_utf8()
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif form == "csv":
        pd.DataFrame([_flat_row(row) for row in rows]).to_csv(sys.stdout, index=False, lineterminator="\n")
    else:
        lines: list[tuple[str, ...]] = [("experiment", "rev", "DVC", "run", "MLflow", *KEY_METRICS, "")]
        lines += [
            (*(row[name] or "-" for name in CELLS), *(_both(**row["metrics"][name]) for name in KEY_METRICS), _remarks(row))
            for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(map(str.ljust, line, widths)).rstrip())
        print(f"values: DVC / MLflow where they differ, - where one is missing; MLflow: {store_name() or 'mlflow.db'}")


def _flat_row(row: Row) -> Row:
    values = {f"{name} ({side})": value for name, sides in row["metrics"].items() for side, value in sides.items()}
    plain = {name: " ".join(cell) if isinstance(cell, list) else cell for name, cell in row.items() if name != "metrics"}
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
    return "; ".join(parts) or "the same"
