"""DVC's experiments and MLflow's runs side by side, each with what the other has and it lacks; and how a gap is closed.

An experiment belongs to the run that made its checkpoint, whose MD5 `dvc.lock` holds at its revision: where DVC restored the
training from its cache, that is the run of another experiment. One without a checkpoint, which waits, works or has failed,
belongs to the run of its name.
"""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fieldguide.core.errors import UserError
from fieldguide.core.names import flat
from fieldguide.core.paths import CHECKPOINT, LOCK, METRICS, PARAMS, project_root
from fieldguide.tracking.sender import send_all
from fieldguide.tracking.store import CHECKPOINT_TAG, EXPERIMENT_TAG, STAGE_TAG, Store, all_pages, opened_store, store_name

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun

KEY_METRICS = ("train.valid.loss", "evaluate.valid.accuracy", "evaluate.test.accuracy")
CURVES = ("train.loss", "train.accuracy")  # of MLflow alone: of each epoch, where DVC has metrics/history.csv
N_NAMED = 3  # names in the table; JSON has all


@dataclass(frozen=True)
class Experiment:
    """A row of `dvc exp show`.

    checkpoint: MD5, empty before the training has ended. metrics: `<stage>.<key>`, without those of the stages in `stale`,
    which the revision inherited: they are of another checkpoint.
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
    """A training's run in MLflow; `children`: the runs of the stages that measured its checkpoint, oldest first."""

    run_id: str
    name: str
    status: str
    experiment: str = ""
    checkpoint: str = ""
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    children: tuple["TrackedRun", ...] = ()

    def with_params(self, params: dict[str, Any]) -> "TrackedRun":
        """The run as those of its children tell it whose stages had these params: others may have measured it, too."""
        told = self
        for child in self.children:
            if not any(unequal(params.get(name), value) for name, value in child.params.items()):
                told = replace(told, params=told.params | child.params, metrics=told.metrics | child.metrics)
        return told


@dataclass(frozen=True)
class Row:
    """An experiment and its run, one of which may be missing, and where they do not agree.

    again: of a run without an experiment of its own, the one whose checkpoint it made, too.
    """

    experiment: Experiment | None
    run: TrackedRun | None
    again: str = ""

    @property
    def mlflow_lacks(self) -> list[str]:
        """Names of params and metrics, or `run`."""
        if not self.experiment:
            return []
        if not self.run:
            return ["run"]
        metrics = sorted(self.experiment.metrics.keys() - self.run.metrics.keys())
        return sorted(self.experiment.params.keys() - self.run.params.keys()) + metrics

    @property
    def dvc_lacks(self) -> list[str]:
        """Names of metrics, or `experiment`."""
        if not self.run:
            return []
        if not self.experiment:
            return [] if self.again else ["experiment"]
        if not self.experiment.checkpoint:  # it has not ended
            return []
        stages = {path.stem for path in (project_root() / METRICS).glob("*.json")}
        found = {name for name in self.run.metrics if name.split(".")[0] in stages and name not in CURVES}
        return sorted(found - self.experiment.metrics.keys())

    @property
    def differ(self) -> list[str]:
        """Names of params and metrics that both have, with other values."""
        if not self.experiment or not self.run:
            return []
        pairs = ((self.experiment.params, self.run.params), (self.experiment.metrics, self.run.metrics))
        return [
            name for ours, theirs in pairs for name in sorted(ours.keys() & theirs.keys()) if unequal(ours[name], theirs[name])
        ]

    def told(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        experiment, run = self.experiment, self.run
        values = {
            name: {"dvc": experiment and experiment.metrics.get(name), "mlflow": run and run.metrics.get(name)}
            for name in KEY_METRICS
        }
        return {
            "experiment": experiment.name if experiment else None,
            "rev": experiment.rev if experiment else None,
            "state": experiment.state if experiment else None,
            "checkpoint_md5": experiment.checkpoint if experiment else run and run.checkpoint,
            "run": run.name if run else None,
            "run_id": run.run_id if run else None,
            "run_status": run.status if run else None,
            "metrics": values,
            "mlflow_lacks": self.mlflow_lacks,
            "dvc_lacks": self.dvc_lacks,
            "differ": self.differ,
            "stale": list(experiment.stale) if experiment else [],
            "again": self.again,
        }


def unequal(ours: Any, theirs: Any) -> bool:
    """Whether a value of params.yaml or of a metric is another than MLflow's, where params are texts and 20 may be 20.0."""
    try:
        return float(ours) != float(theirs)
    except (TypeError, ValueError):
        return str(ours) != str(theirs)


def compare(store: Store, all_commits: bool = False) -> list[Row]:
    """A row for each experiment, in DVC's order, then one for each run that belongs to none, the latest first."""
    return matched(experiments(all_commits), training_runs(store))


def training_runs(store: Store) -> list[TrackedRun]:
    """All that are in the store, the latest first."""
    stored: list[StoredRun] = all_pages(
        store.client.search_runs, [store.experiment_id], order_by=["attributes.start_time DESC"]
    )
    children: dict[str, list[TrackedRun]] = {}
    for run in reversed(stored):
        children.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(_tracked(run))
    return [
        replace(_tracked(run), children=tuple(children.get(run.info.run_id, ())))
        for run in stored
        if run.data.tags.get(STAGE_TAG) == "train"
    ]


def _tracked(run: "StoredRun") -> TrackedRun:
    tags, data = run.data.tags, run.data
    names = tags.get(EXPERIMENT_TAG, ""), tags.get(CHECKPOINT_TAG, "")
    return TrackedRun(run.info.run_id, run.info.run_name, run.info.status, *names, data.params, data.metrics)


def matched(found: list[Experiment], runs: list[TrackedRun]) -> list[Row]:
    """Experiments with their runs; `runs`: the latest first."""
    rows, taken = [], set()
    for experiment in found:
        run = run_of(experiment, runs)
        rows.append(Row(experiment, run and run.with_params(experiment.params)))
        taken.add(run and run.run_id)
    names = {experiment.checkpoint: experiment.name for experiment in found if experiment.checkpoint}
    return rows + [Row(None, run, names.get(run.checkpoint, "")) for run in runs if run.run_id not in taken]


def run_of(experiment: Experiment, runs: list[TrackedRun]) -> TrackedRun | None:
    """The latest run that made the checkpoint, rather one of the same name."""
    named = [run for run in runs if experiment.name in (run.experiment, run.name)]
    if not experiment.checkpoint:
        return next(iter(named), None)
    made = [run for run in runs if run.checkpoint == experiment.checkpoint]
    return next((run for run in made if run in named), next(iter(made), None))


def experiments(all_commits: bool = False) -> list[Experiment]:
    """The workspace where it has changed, the last commit (or all of them) and the experiments on it, as DVC lists them."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *(["--all-commits"] if all_commits else [])]
    answer = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"dvc exp show: {answer.stderr.strip().splitlines()[-1]}; run it in a DVC project with a commit")
    found: list[Experiment] = []
    for baseline in json.loads(answer.stdout):
        found.append(_experiment(baseline["name"] or baseline["rev"], baseline, ""))
        for group in baseline["experiments"] or []:
            state = (group["executor"] or {}).get("state") or "success"
            found += [_experiment(revision["name"] or group["name"] or "", revision, state) for revision in group["revs"]]
    workspace, *rest = found
    return (
        rest if rest and replace(rest[0], name=workspace.name, rev=workspace.rev, state=workspace.state) == workspace else found
    )


def _experiment(name: str, revision: dict[str, Any], state: str) -> Experiment:
    data, rev = revision["data"], revision["rev"]
    if data is None:
        return Experiment(name, rev[:7], state or "failed")
    stages = _locked(rev)
    made = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    stale = tuple(name for name, stage in stages.items() if _is_stale(stage, made))
    checkpoint = made.get(str(CHECKPOINT), "") if state in ("", "success") else ""
    metrics: dict[str, float] = {}
    for file, content in data["metrics"].items() if checkpoint else ():
        if Path(file).stem in stages and Path(file).stem not in stale:
            metrics |= numbers({Path(file).stem: content.get("data") or {}})
    params = flat(data["params"].get(str(PARAMS), {}).get("data") or {})
    return Experiment(name, rev[:9], state or "commit", checkpoint, params, metrics, stale)  # 9: all of "workspace"


def numbers(tree: dict[str, Any]) -> dict[str, float]:
    """The numbers of nested metrics, under dotted names."""
    return {name: float(value) for name, value in flat(tree).items() if isinstance(value, int | float)}


def _is_stale(stage: dict[str, Any], made: dict[str, str]) -> bool:
    """Whether a stage was run on what is no longer made by the others."""
    return any(made.get(dep["path"], dep["md5"]) != dep["md5"] for dep in stage.get("deps", []))


def _locked(rev: str) -> dict[str, Any]:
    """The stages in dvc.lock at a revision; none where there is none."""
    if rev == "workspace":
        text = (project_root() / LOCK).read_text() if (project_root() / LOCK).exists() else ""
    else:
        command = ["git", "show", f"{rev}:./{LOCK}"]
        text = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False).stdout
    return (yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}).get("stages") or {}


def sync(all_commits: bool = False) -> None:
    """Sends what earlier runs left, then gives MLflow the runs, params and metrics of finished experiments that it lacks."""
    print(send_all())
    if not (project_root() / ".dvc").is_dir():
        return
    n_new, n_values = 0, 0
    with opened_store() as store:
        runs = training_runs(store)
        for experiment in experiments(all_commits):
            if not experiment.checkpoint or experiment.name == "workspace":
                continue
            run = run_of(experiment, runs)
            if not run:
                tags = {EXPERIMENT_TAG: experiment.name} if experiment.state == "success" else {}
                store.made(experiment.checkpoint, {"name": experiment.name, "tags": tags})
                runs, n_new = training_runs(store), n_new + 1
                run = run_of(experiment, runs)
                assert run
            run = run.with_params(experiment.params)
            params = {name: value for name, value in experiment.params.items() if name not in run.params}
            metrics = {name: value for name, value in experiment.metrics.items() if name not in run.metrics}
            if params or metrics:
                store.add(run.run_id, params, metrics)
                runs, n_values = training_runs(store), n_values + len(params) + len(metrics)
    print(f"DVC: {n_new} runs added to MLflow, {n_values} params and metrics")


def show(form: str, all_commits: bool = False) -> None:
    """Prints the rows as a table, as JSON or as CSV."""
    with opened_store() as store:
        rows = compare(store, all_commits)
    {"table": print_table, "json": print_json, "csv": print_csv}[form](rows)


def print_json(rows: list[Row]) -> None:
    print(json.dumps([row.told() for row in rows], indent=2, ensure_ascii=False))


def print_csv(rows: list[Row]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    plain = ("experiment", "rev", "state", "checkpoint_md5", "run", "run_id", "run_status")
    lists = ("mlflow_lacks", "dvc_lacks", "differ", "stale")
    sides = [(name, side) for name in KEY_METRICS for side in ("dvc", "mlflow")]
    writer.writerow([*plain, *(f"{name} ({side})" for name, side in sides), *lists])
    for told in (row.told() for row in rows):
        values = [told["metrics"][name][side] for name, side in sides]
        writer.writerow([*(told[name] for name in plain), *values, *(" ".join(told[name]) for name in lists)])


def print_table(rows: list[Row]) -> None:
    lines: list[tuple[str, ...]] = [("experiment", "rev", "DVC", "run", "MLflow", *KEY_METRICS, "")]
    for row in rows:
        told = row.told()
        texts = [told[name] or "-" for name in ("experiment", "rev", "state", "run", "run_status")]
        lines.append((*texts, *(_both(**told["metrics"][name]) for name in KEY_METRICS), _remarks(row)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"a value of DVC / of MLflow stands where they differ, - where one lacks it; MLflow: {store_name() or 'mlflow.db'}")


def _both(dvc: float | None, mlflow: float | None) -> str:
    """One number where both sides agree, else both."""
    texts = ["-" if value is None else f"{value:.4f}" for value in (dvc, mlflow)]
    return texts[0] if texts[0] == texts[1] else " / ".join(texts)


def _remarks(row: Row) -> str:
    """What one has and the other lacks, in words, the first names of it."""
    lists = {"MLflow lacks": row.mlflow_lacks, "DVC lacks": row.dvc_lacks, "differ:": row.differ}
    parts = [
        f"{words} {', '.join(names[:N_NAMED])}" + (f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else "")
        for words, names in lists.items()
        if names
    ]
    if row.experiment and row.experiment.stale:
        parts.append(f"DVC shows {', '.join(row.experiment.stale)} of another checkpoint")
    if row.again:
        parts.append(f"the checkpoint of {row.again} again")
    return "; ".join(parts) or "the same"
