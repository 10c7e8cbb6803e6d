"""MLflow: the only module that imports it.

Every run lands in one store at the project's root, whatever started it and in whichever temporary folder it works;
`MLFLOW_TRACKING_URI` is honoured when set. Training opens a run and marks it with the MD5 of the checkpoint, which is
also the hash that `dvc.lock` holds; evaluate, export and benchmark find that run by the file that they were given.
A store that cannot be reached never stops a stage: one warning, and the work goes on.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from filelock import FileLock

from fieldguide.files import file_hash
from fieldguide.params import Params, Section
from fieldguide.paths import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "fieldguide"
CHECKPOINT_TAG = "fieldguide.checkpoint_md5"
STAGE_TAG = "fieldguide.stage"

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # with MLflow's 7 each call to a server that is down blocks for 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
}


class Run:
    """One run in the store. The first call that fails is reported and ends the tracking, not the work."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client: MlflowClient | None = client
        self.run_id = run_id

    def log_params(self, params: dict[str, Any]) -> None:
        """Nested params under dotted names, as in params.yaml."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in flat(params).items()]
        self._attempt(lambda client: client.log_batch(self.run_id, params=entries))

    def log_metrics(self, metrics: dict[str, Any], step: int = 0) -> None:
        """Nested numbers under dotted names in one call; what is no number is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {name: value for name, value in flat(metrics).items() if isinstance(value, Real)}
        entries = [Metric(name, value, now, step) for name, value in numbers.items()]
        self._attempt(lambda client: client.log_batch(self.run_id, metrics=entries))

    def log_files(self, *files: Path, folder: str) -> None:
        """Copies of files under `folder` of the run's artifacts."""
        for file in files:
            self._attempt(lambda client, file=file: client.log_artifact(self.run_id, str(file), folder))

    def tag(self, name: str, value: str) -> None:
        self._attempt(lambda client: client.set_tag(self.run_id, name, value))

    def end(self, status: str) -> None:
        self._attempt(lambda client: client.set_terminated(self.run_id, status))

    def _attempt(self, action: Callable[["MlflowClient"], object]) -> None:
        if self.client is not None and not _attempt(lambda: action(self.client)):
            self.client = None


@contextmanager
def training_run(params: Params, run_id: str = "") -> Iterator[Run]:
    """A new run with all params, or that of a training that goes on.

    FINISHED after the block, KILLED when it is left to go on another time, FAILED after an error.
    """
    run = _continued(run_id) if run_id else Run(None, "")
    if run.client is None:
        run = _start(os.environ.get("DVC_EXP_NAME") or _commit()[:7] or "train", {STAGE_TAG: "train"})
        run.log_params(params.model_dump(mode="json"))
    with _ending(run):
        yield run


@contextmanager
def stage_run(stage: str, section: Section, checkpoint: Path) -> Iterator["StageRun"]:
    """A child of the run that made `checkpoint`, for a stage that measures it."""
    digest = file_hash(checkpoint, "md5")
    parent = _find(digest)
    child = Run(None, "") if parent.client is None else _start(stage, {STAGE_TAG: stage, "mlflow.parentRunId": parent.run_id})
    child.log_params({type(section).__name__.lower(): section.model_dump(mode="json")})
    with _ending(child):
        yield StageRun(stage, child, parent)


class StageRun:
    """The child run of a stage; its metrics are copied to the run of the model that it measures."""

    def __init__(self, stage: str, child: Run, parent: Run) -> None:
        self.stage, self.child, self.parent = stage, child, parent

    def log(self, metrics: dict[str, Any], *files: Path) -> None:
        """Metrics as `<stage>.<key of its metrics file>`, and files, on both runs."""
        for run in (self.child, self.parent):
            run.log_metrics({self.stage: metrics})
        self.parent.log_files(*files, folder=self.stage)


def attach(checkpoint: Path, folder: str, *files: Path) -> None:
    """Copies of files under `folder` of the run that made `checkpoint`."""
    _find(file_hash(checkpoint, "md5")).log_files(*files, folder=folder)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


@contextmanager
def _ending(run: Run) -> Iterator[None]:
    try:
        yield
    except SystemExit:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")


def _start(name: str, tags: dict[str, str]) -> Run:
    """A new run in the experiment, or one that logs nothing when the store cannot be reached."""
    run = Run(None, "")

    def start() -> None:
        client, experiment_id = _store()
        created = client.create_run(experiment_id, run_name=name, tags=tags | _origin())
        run.client, run.run_id = client, created.info.run_id

    _attempt(start)
    return run


def _continued(run_id: str) -> Run:
    """A run of the store, running again; one without a client where the store no longer has it."""
    run = Run(None, "")

    def find() -> None:
        client, _ = _store()
        client.update_run(run_id, status="RUNNING")
        run.client, run.run_id = client, run_id

    _attempt(find)
    return run


def _find(digest: str) -> Run:
    """The latest run whose checkpoint has this MD5; a new one when the checkpoint came from a cache without a run."""
    run = Run(None, "")

    def find() -> None:
        client, experiment_id = _store()
        query = f"tags.`{CHECKPOINT_TAG}` = '{digest}'"
        found = client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"])
        if found:
            run.client, run.run_id = client, found[0].info.run_id

    if _attempt(find) and run.client is None:
        name = os.environ.get("DVC_EXP_NAME") or _commit()[:7] or "restored"
        run = _start(name, {STAGE_TAG: "train", CHECKPOINT_TAG: digest, "fieldguide.restored": "true"})
        run.end("FINISHED")
    return run


def _store() -> tuple["MlflowClient", str]:
    """The client and the experiment's id; makes both on first use, one process of this machine at a time."""
    from mlflow import MlflowClient

    root = project_root()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        client = MlflowClient(uri)
        return client, _experiment(client, artifacts=None)
    with FileLock(root / "mlflow.db.lock"):  # MlflowClient makes the tables: several processes at once would break them
        client = MlflowClient(f"sqlite:///{quote(str(root / 'mlflow.db'))}")
        return client, _experiment(client, artifacts=(root / "mlartifacts").as_uri())


def _experiment(client: "MlflowClient", artifacts: str | None) -> str:
    """The experiment's id; on a server another process may make it between the look and the attempt."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return experiment.experiment_id
    try:
        return client.create_experiment(EXPERIMENT, artifacts)
    except MlflowException:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        return experiment.experiment_id


def _attempt(action: Callable[[], object]) -> bool:
    """Whether `action` succeeded; a store's failure is one warning on standard error."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)  # before the first import of mlflow, which starts its telemetry
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        action()
    except (MlflowException, RequestException, SQLAlchemyError, ImportError, OSError) as error:
        print(f"warning: MLflow: {' '.join(str(error).split())[:300]}; this run is not tracked further", file=sys.stderr)
        return False
    return True


def _origin() -> dict[str, str]:
    """Where a run comes from: commit, DVC experiment and its baseline."""
    names = {"dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}
    tags = {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}
    return tags | {"mlflow.source.git.commit": _commit(), "mlflow.source.name": " ".join(sys.orig_argv[1:3])}


def _commit() -> str:
    """The commit of the folder that DVC works in; empty outside git or before the first commit."""
    try:
        answer = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return answer.stdout.strip()
