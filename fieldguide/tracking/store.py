"""MLflow's store with the runs and models of a project: at `MLFLOW_TRACKING_URI`, else `mlflow.db` at the project's root.

MLflow is imported late, because that takes seconds, and because `predict` does without.
"""

import json
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from fieldguide.core.errors import UserError
from fieldguide.core.files import atomic_path
from fieldguide.core.paths import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from fieldguide.tracking.journal import Journal

EXPERIMENT = "fieldguide"
CHECKPOINT_TAG = "fieldguide.checkpoint_md5"
RESTORED_TAG = "fieldguide.restored"  # of a run whose training DVC restored from its cache
KEY_TAG = "fieldguide.run"  # the journal's key, which identifies a run
STAGE_TAG = "fieldguide.stage"
EXPERIMENT_TAG = "dvc.experiment"
PARAMS_TAG = "fieldguide.params_sha256"
DATA_TAG = "fieldguide.data_md5"
ONNX_TAG = "fieldguide.onnx_md5"
MODEL = "fieldguide"  # the name of every model that is logged
MODEL_NOTE = (  # MLflow shows it on the model's page
    "Input: pixels as whole numbers from 0 to 255, uint8 [N, H, W, 3], RGB. `mlflow models serve` casts others without a word:"
    " pixels scaled to 0..1 all become 0, a black image."
)
VIEW_NAME = "headlines"  # of a view of the table of runs, in its address: #/experiments/1/runs?viewStateShareKey=headlines
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_NAME}"
VIEW_COLUMNS = ("test_accuracy", "test_macro_f1", "test_ece", "valid_accuracy", "latency_ms")
VIEW_NOTE = "[The trainings with five headlines as columns](#/experiments/{id}/runs?viewStateShareKey=" + VIEW_NAME + ")"
NOTE_TAG = "mlflow.note.content"  # MLflow shows it on the page of an experiment, run or model
MODEL_NEEDS = ("mlflow", "numpy", "onnx", "onnxruntime", "pandas")  # to load and serve it; MLflow's own detection takes seconds
DEFAULTS = {  # set here, because MLflow reads some of them when it is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # with MLflow's 7 each call to a server that is down blocks for 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
os.environ.update({name: value for name, value in DEFAULTS.items() if name not in os.environ})
LOCATIONS = (  # tables and columns of MLflow's database with addresses of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
MLFLOW_TYPES = {"string": "string", "Int64": "long", "int64": "long", "bool": "boolean"}  # of the manifest's columns
REFUSED = (400, 404, 409)  # HTTP statuses of a store that will never accept this entry


class Store:
    """Writes journals into MLflow's store. Calls are idempotent: repeated ones find what exists."""

    def __init__(self) -> None:
        """Connects to the store and creates it if needed, one process of this machine at a time."""
        from filelock import FileLock
        from mlflow import MlflowClient

        root, artifacts = project_root(), None
        uri = os.environ.get("MLFLOW_TRACKING_URI") or _sqlite(root / "mlflow.db")
        self.is_remote = uri.startswith("http")
        self.at_file = False  # whether the last entry was a file or model
        self.is_described = False  # whether the experiment has a view, as far as this process may give it one
        self.ids: dict[str, str] = {}  # MLflow's run ids, by key or by the checkpoint's MD5
        with ExitStack() as stack:
            if not self.is_remote:  # MlflowClient creates tables: not safe in parallel
                database = Path(unquote(urlsplit(uri).path[1:])) if uri.startswith("sqlite:") else root / "mlflow.db"
                stack.enter_context(FileLock(f"{database}.lock", thread_local=False))
                if uri.startswith("sqlite:") and not database.exists():
                    _make_tables(database)
                if database.resolve() == root / "mlflow.db":  # the project's own
                    artifacts = (root / "mlartifacts").as_uri()
                    _follow_project(database, artifacts)
            self.client = MlflowClient(uri)
            self.experiment_id = _experiment(self.client, artifacts)

    def add(self, run_id: str, params: dict[str, Any], metrics: dict[str, float], time_ms: int, step: int = 0) -> None:
        """Logs values that a run does not have yet."""
        from mlflow.entities import Metric, Param

        self.client.log_batch(
            run_id,
            [Metric(storable(name), value, time_ms, step) for name, value in metrics.items()],
            [Param(storable(name), str(value)) for name, value in params.items()],
        )

    def send(self, journal: "Journal", entry: dict[str, Any]) -> None:
        """Writes an entry; warns and skips one that the store will never accept."""
        from mlflow.exceptions import MlflowException, RestException

        self.at_file = entry["kind"] in ("file", "model")
        try:
            getattr(self, f"_{entry['kind']}")(journal, entry)
        except MlflowException as error:
            understood = isinstance(error, RestException) or not self.is_remote  # else not MLflow may have answered
            if not understood or error.get_http_status_code() not in REFUSED:
                raise
            warn(f"{in_words(error)}; left out: {entry['kind']} of run {journal.key}")

    def _start(self, journal: "Journal", entry: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        if not self.is_described:
            _describe(self.client, self.experiment_id)
            self.is_described = True
        if entry["of"]:
            self.run_of_checkpoint(entry["of"], entry.get("parent"))
        identity = self._identity(journal.key, entry)
        if run_id := self._search(identity):
            self.client.update_run(run_id, status="RUNNING")
            self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in entry["tags"].items()])
        self.ids[journal.key] = run_id or self._create(entry["name"], entry["tags"] | identity, entry["time"])

    def _identity(self, key: str, start: dict[str, Any]) -> dict[str, str]:
        """The tags by which the run of a journal with this start is found: its key, or model, stage and params of a stage."""
        if not start["of"]:
            return {KEY_TAG: key}
        same = {tag: start["tags"].get(tag, "") for tag in (STAGE_TAG, PARAMS_TAG)}
        return same | {"mlflow.parentRunId": self.run_of_checkpoint(start["of"])}

    def _params(self, journal: "Journal", entry: dict[str, Any]) -> None:
        run_id = self._id(journal)
        known = self.client.get_run(run_id).data.params  # MLflow refuses to change a param
        new = {name: value for name, value in entry["values"].items() if storable(name) not in known}
        self.add(run_id, new, {}, entry["time"])

    def _metrics(self, journal: "Journal", entry: dict[str, Any]) -> None:
        self.add(self._id(journal, entry["of"]), {}, entry["values"], entry["time"], entry["step"])

    def _file(self, journal: "Journal", entry: dict[str, Any]) -> None:
        self.client.log_artifact(self._id(journal, entry["of"]), str(journal.folder / entry["file"]), entry["folder"])

    def _data(self, journal: "Journal", entry: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"name": name, "type": MLFLOW_TYPES.get(kind, "string")} for name, kind in entry["columns"].items()]
        source, schema, profile = map(json.dumps, (entry["source"], {"mlflow_colspec": columns}, entry["profile"]))
        dataset = Dataset(entry["name"], entry["digest"], "local", source, schema, profile)
        tags = [InputTag("mlflow.data.context", entry["context"])]
        self.client.log_inputs(self._id(journal, entry["of"]), [DatasetInput(dataset, tags)])

    def _model(self, journal: "Journal", entry: dict[str, Any]) -> None:
        from mlflow.entities import LoggedModelOutput

        run_id = self._id(journal, entry["of"])
        query = f"name = '{MODEL}' AND source_run_id = '{run_id}' AND tags.`{ONNX_TAG}` = '{entry['md5']}'"
        models = self.client.search_logged_models([self.experiment_id], query)
        tags = {CHECKPOINT_TAG: entry["of"], ONNX_TAG: entry["md5"], NOTE_TAG: MODEL_NOTE}
        model = models[0] if models else self.client.create_logged_model(self.experiment_id, MODEL, run_id, tags)
        if model.status == "READY":
            return
        with TemporaryDirectory() as folder:
            example = np.array(entry["example"]["array"], entry["example"]["dtype"])
            _save_model(journal.folder / entry["file"], example, Path(folder, MODEL), model.model_id, run_id)
            self.client.log_model_artifacts(model.model_id, str(Path(folder, MODEL)))
        outputs = self.client.get_run(run_id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])  # MLflow refuses a second time
        self.client.finalize_logged_model(model.model_id, "READY")

    def _tag(self, journal: "Journal", entry: dict[str, Any]) -> None:
        self.client.set_tag(self._id(journal), entry["name"], entry["value"])

    def _end(self, journal: "Journal", entry: dict[str, Any]) -> None:
        self.client.set_terminated(self._id(journal), entry["status"], entry["time"])

    def _id(self, journal: "Journal", of: str = "") -> str:
        """The id of the journal's run, or of the run `of` a checkpoint; raises `MlflowException` if it was deleted."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        if of:
            return self.run_of_checkpoint(of)
        run_id = self.ids.get(journal.key) or self._search(self._identity(journal.key, next(journal.read())[0]))
        if not run_id:
            raise MlflowException(f"run {journal.key} is no longer in the store", RESOURCE_DOES_NOT_EXIST)
        return self.ids.setdefault(journal.key, run_id)

    def run_of_checkpoint(self, digest: str, otherwise: dict[str, Any] | None = None) -> str:
        """The latest run that made the checkpoint with this MD5; a new one with name and tags of `otherwise` if none did."""
        if digest not in self.ids:
            run_id = self._search({CHECKPOINT_TAG: digest})
            if not run_id:
                new = otherwise or {"name": "restored", "tags": {}}
                tags = {STAGE_TAG: "train", CHECKPOINT_TAG: digest, RESTORED_TAG: "true"} | new["tags"]
                run_id = self._create(new["name"], tags, int(time.time() * 1000))
                self.client.set_terminated(run_id, "FINISHED")
            self.ids[digest] = run_id
        return self.ids[digest]

    def _create(self, name: str, tags: dict[str, str], start: int) -> str:
        return self.client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=name).info.run_id

    def _search(self, tags: dict[str, str]) -> str:
        """The id of the latest run with these tags, or empty."""
        query = " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"])
        return runs[0].info.run_id if runs else ""


@contextmanager
def open_store() -> Iterator[Store]:
    """The store, for commands that cannot do without; raises `UserError` if it cannot be reached or used."""
    try:
        yield Store()
    except UserError:
        raise
    except faults() as error:
        name = store_name() or project_root() / "mlflow.db"
        raise UserError(f"MLflow: {name}: {in_words(error)}; start the server or set MLFLOW_TRACKING_URI") from error


def all_pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    page = search(*arguments, **options)
    rows = list(page)
    while page.token:
        page = search(*arguments, **options, page_token=page.token)
        rows += page
    return rows


def storable(name: str) -> str:
    """The name of a metric or param with `_` for each character that MLflow refuses (the whole entry): `101+` is `101_`."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def store_name() -> str:
    """The store's address without its password; empty for the one at the project's root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme, separator, rest = uri.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def faults() -> tuple[type[Exception], ...]:
    """Exceptions of a store that cannot be reached or used."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, ImportError, OSError, UserError


def in_words(error: Exception) -> str:
    """One line, without the user and password of an address, which MLflow repeats."""
    text = re.sub(r"://[^/\s]*@", "://", " ".join(str(error).split()))
    return text[:300] or type(error).__name__


def warn(text: str) -> None:
    print(f"warning: MLflow: {text}", file=sys.stderr)


def _sqlite(database: Path) -> str:
    """The address of a file, quoting only what SQLAlchemy would interpret: MLflow creates the folder as spelled there."""
    return "sqlite:///" + re.sub("[%?#]", lambda match: quote(match[0]), str(database))


def _make_tables(database: Path) -> None:
    """Creates the database atomically: MLflow refuses one with half of its tables."""
    from mlflow import MlflowClient

    with atomic_path(database) as temporary:
        client = MlflowClient(_sqlite(temporary))
        client.search_experiments(max_results=1)
        client._tracking_client.store.engine.dispose()


def _follow_project(database: Path, artifacts: str) -> None:
    """Changes addresses of artifacts after the project was moved or copied: MLflow stores them absolute."""
    try:
        with closing(sqlite3.connect(database)) as store, store:
            found = store.execute("select artifact_location from experiments where name = ?", [EXPERIMENT]).fetchone()
            before = found[0] if found else artifacts
            if before == artifacts or not re.fullmatch("file://.*/mlartifacts", before):  # a place that a user chose stays
                return
            for table, column in LOCATIONS:
                store.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where {column} = ? or substr({column}, 1, ?) = ?",
                    [artifacts, len(before) + 1, before, len(before) + 1, f"{before}/"],
                )
    except sqlite3.Error as error:
        raise UserError(f"{database}: {error}; restore it, or remove it to begin a new store") from error


def _experiment(client: "MlflowClient", artifacts: str | None) -> str:
    """The id of the experiment, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    if experiment := client.get_experiment_by_name(EXPERIMENT):
        return experiment.experiment_id
    try:
        client.create_experiment(EXPERIMENT, artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise  # else another client of the server was first
    return _experiment(client, artifacts)


def _describe(client: "MlflowClient", experiment_id: str) -> None:
    """Sets the view of the runs, and a description that links it, where there are none."""
    from mlflow.exceptions import MlflowException

    from fieldguide.core.headlines import TRACKED  # late: predict asks the registry, and does without pydantic

    columns = [f"metrics.`{TRACKED[name]}`" for name in VIEW_COLUMNS]
    view = json.dumps({"searchFilter": f"tags.`{STAGE_TAG}` = 'train'", "selectedColumns": columns})
    tags = client.get_experiment(experiment_id).tags
    with suppress(MlflowException):  # it is refused to a user who may not change the experiment
        for name, value in ((VIEW_TAG, view), (NOTE_TAG, VIEW_NOTE.format(id=experiment_id))):
            if name not in tags:
                client.set_experiment_tag(experiment_id, name, value)


def _save_model(file: Path, example: np.ndarray, target: Path, model_id: str, run_id: str) -> None:
    """Saves an ONNX file, byte for byte, as an MLflow model (flavours onnx and pyfunc) with signature and metadata."""
    import onnx
    from mlflow.models import Model, infer_signature
    from mlflow.onnx import save_model

    proto = onnx.load(file)
    outputs = {}
    for value in proto.graph.output:
        shape = [dimension.dim_value or 1 for dimension in value.type.tensor_type.shape.dim]
        outputs[value.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    save_model(
        proto,
        str(target),
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=infer_signature(example, outputs),
        input_example=example,
        pip_requirements=[f"{package}=={version(package)}" for package in MODEL_NEEDS],
        onnx_execution_providers=["CPUExecutionProvider"],
        metadata={entry.key: json.loads(entry.value) for entry in proto.metadata_props},
        save_as_external_data=False,
    )
    shutil.copyfile(file, target / "model.onnx")  # not serialised again, so that its MD5 stays
