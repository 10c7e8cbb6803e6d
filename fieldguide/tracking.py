"""What runs tell MLflow, and how it is sent.

Every run lands in one store at the project's root, whatever started it and in whichever temporary folder it works;
`MLFLOW_TRACKING_URI` is honoured when set. Training opens a run, named after the DVC experiment, and marks it with the MD5 of
the checkpoint, which is also the hash that `dvc.lock` holds; evaluate, export, benchmark and report find that run by the file
that they were given, and add to it. Each has a child run there for its own params; run again with the same ones, it adds to
that child, whose metrics then show the latest values and keep the earlier ones in their history.

A stage never waits for the store: it writes its journal, and a thread sends it. What could not be sent when the stage ends
stays in the journal and goes out with the next run's, or at once with `python -m fieldguide sync`.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pandas as pd
from filelock import FileLock

from fieldguide.errors import UserError
from fieldguide.files import atomic_path, file_hash, read_json
from fieldguide.journal import Journal, all_journals, find_journal, new_journal
from fieldguide.params import Params, Section
from fieldguide.paths import LOCK, MANIFEST, RECEIPT, journals, project_root, stage_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as StoredRun

EXPERIMENT = "fieldguide"
CHECKPOINT_TAG = "fieldguide.checkpoint_md5"
RESTORED_TAG = "fieldguide.restored"  # of a run whose training came out of DVC's cache
KEY_TAG = "fieldguide.run"  # the journal's key, by which a run is found again
STAGE_TAG = "fieldguide.stage"
EXPERIMENT_TAG = "dvc.experiment"
PARAMS_TAG = "fieldguide.params_sha256"
DATA_TAG = "fieldguide.data_md5"
ONNX_TAG = "fieldguide.onnx_md5"
MODEL = "fieldguide"  # the name of every model that is logged
MODEL_NEEDS = ("mlflow", "numpy", "onnx", "onnxruntime", "pandas")  # to load and serve it; stated, as finding out costs seconds

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # with MLflow's 7 each call to a server that is down blocks for 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
SYSTEM_SECONDS = 10.0  # from one sample of the machine's load to the next
PACKAGES = ("dvc", "mlflow", "numpy", "onnx", "onnxruntime", "pillow", "torch", "torchvision")  # whose versions a run tells
MLFLOW_TYPES = {"string": "string", "Int64": "long", "int64": "long", "bool": "boolean"}  # of the manifest's columns
CONTEXTS = {"train": "training", "valid": "validation", "test": "test"}  # what MLflow calls the use of a split
RETRY_SECONDS = 30.0  # until a store that could not be reached is tried again
PATIENCE_SECONDS = {"remote": 15.0, "local": 120.0}  # that the end of a stage waits for a store that takes nothing
LOOK_SECONDS = 10.0  # that another process's sender may hold a journal
NO_ANSWER = "the store did not answer in time"
PARAMS_A_CALL = 100  # MLflow refuses more
REFUSED = (400, 404, 409)  # of HTTP: the store is there and will never take this entry


class Run:
    """One run. Its calls write the journal; none waits for the store, and none raises."""

    def __init__(self, journal: Journal | None = None, sender: "Sender | None" = None) -> None:
        self.journal, self.sender = journal, sender
        self.lock = threading.Lock()  # the load of the machine is told by a thread of its own

    @property
    def key(self) -> str:
        """By which `training_run` goes on with it; empty where nothing is tracked."""
        return self.journal.key if self.journal else ""

    def log_params(self, params: dict[str, Any]) -> None:
        """Nested params under dotted names, as in params.yaml."""
        self.write("params", values={name: str(value) for name, value in flat(params).items()})

    def log_metrics(self, metrics: dict[str, Any], step: int = 0, of: str = "") -> None:
        """Nested numbers under dotted names; what is no number is left out. `of`: the run that made this checkpoint (MD5)."""
        numbers = {name: float(value) for name, value in flat(metrics).items() if isinstance(value, Real)}
        self.write("metrics", values=numbers, step=step, of=of)

    def log_files(self, *files: Path, folder: str, of: str = "") -> None:
        """Copies of files under `folder` of the run's artifacts."""
        for file in files:
            self.write("file", file, folder=folder, of=of)

    def log_data(self, split: str, rows: pd.DataFrame, of: str = "") -> None:
        """The rows of the manifest on which the run `of` a checkpoint, or this one, has trained or was measured."""
        receipt = _content(RECEIPT)
        source = {key: receipt[key] for key in ("title", "home", "version", "release") if key in receipt}
        self.write(
            "data",
            name=f"{receipt.get('dataset', 'data')}/{split}",
            digest=file_hash(MANIFEST, "md5"),
            source={"uri": str(MANIFEST)} | source,
            profile={"num_rows": len(rows), "num_classes": int(rows["label"].nunique())},
            columns={name: str(kind) for name, kind in rows.dtypes.items()},
            context=CONTEXTS[split],
            of=of,
        )

    def log_model(self, file: Path, example: np.ndarray, of: str) -> None:
        """An exported ONNX file as a model that MLflow can load and serve, made by the run `of` a checkpoint (MD5).

        example: an input that the model takes, kept beside it.
        """
        kept = {"array": example.tolist(), "dtype": str(example.dtype)}
        self.write("model", file, of=of, md5=file_hash(file, "md5"), example=kept)

    def tag(self, name: str, value: str) -> None:
        self.write("tag", name=name, value=value)

    def finish(self, status: str) -> None:
        """The end of the run; what could not be sent is told."""
        self.write("end", status=status)
        if self.sender is not None and not self.sender.finish():
            _warn(f"{self.sender.fault}; {left_words(unsent_journals())}")

    def write(self, kind: str, file: Path | None = None, **content: Any) -> None:
        """An entry of the journal, whose sender is told; a disk that refuses it ends the tracking, not the work."""
        with self.lock:
            if self.journal is None:
                return
            try:
                if file is not None:
                    content["file"] = self.journal.keep(file)
                self.journal.append(kind, **content)
            except OSError as error:
                _warn(f"{error.filename or self.journal.folder}: {error.strerror or error}; this run is not tracked further")
                self.journal = None
        if self.sender is not None:
            self.sender.wake.set()


@contextmanager
def training_run(params: Params, key: str = "", device: str = "") -> Iterator[Run]:
    """A new run with all params and what it came from, or that of a training that goes on; samples the machine's load.

    FINISHED after the block, KILLED when it is left to go on another time, FAILED after an error.
    """
    tree = params.model_dump(mode="json")
    with _run(_name() or "train", {STAGE_TAG: "train"} | _provenance(tree, device), key) as run:
        run.log_params(tree)
        run.log_metrics({"split_check": _content(stage_metrics("split_check"))})  # a stage that has no run of its own
        with _sampled(run):
            yield run


@contextmanager
def stage_run(stage: str, section: Section | None, checkpoint: Path) -> Iterator["StageRun"]:
    """A child of the run that made `checkpoint`, for a stage that measures or shows it."""
    digest = file_hash(checkpoint, "md5")
    tree = {type(section).__name__.lower(): section.model_dump(mode="json")} if section is not None else {}
    with _run(stage, {STAGE_TAG: stage, PARAMS_TAG: _digest(tree)}, of=digest) as run:
        run.log_params(tree)
        yield StageRun(stage, run, digest)


class StageRun:
    """The child run of a stage; its metrics are copied to the run of the model that it measures."""

    def __init__(self, stage: str, child: Run, digest: str) -> None:
        self.stage, self.child, self.digest = stage, child, digest

    def log(self, metrics: dict[str, Any], *files: Path) -> None:
        """Metrics as `<stage>.<key of its metrics file>`, and files, on both runs."""
        for of in ("", self.digest) if metrics else ():
            self.child.log_metrics({self.stage: metrics}, of=of)
        self.child.log_files(*files, folder=self.stage, of=self.digest)

    def log_data(self, split: str, rows: pd.DataFrame) -> None:
        """The rows of the manifest that were measured, on both runs."""
        for of in ("", self.digest):
            self.child.log_data(split, rows, of)

    def log_model(self, file: Path, example: np.ndarray) -> None:
        """The exported form of the model that the stage measures."""
        self.child.log_model(file, example, of=self.digest)


def send_all() -> str:
    """Sends what earlier runs left; says in words how much. Raises `UserError` when the store does not take it."""
    prepare()
    before = len(unsent_journals())
    sender = Sender()
    sender.start()
    all_sent, left = sender.finish(), unsent_journals()
    if not all_sent:
        raise UserError(f"MLflow: {sender.fault}; {left_words(left)}")
    return f"MLflow: {before - len(left)} runs sent" + (f"; {left_words(left)}" if left else "")


def unsent_journals() -> list[Journal]:
    """Those with something in them that is not sent."""
    return [journal for journal in all_journals() if journal.has_unsent()]


def left_words(left: list[Journal]) -> str:
    """What is not sent, where it is kept and how it goes out."""
    n_entries = sum(sum(1 for _ in journal.unsent()) for journal in left)
    others = {journal.store or "" for journal in left} - {store_name()}
    return (
        f"{n_entries} entries of {len(left)} runs are not sent; they are kept in {journals()} and go out with the next run, or"
        " by: python -m fieldguide sync" + (f" (with MLFLOW_TRACKING_URI for {', '.join(sorted(others))})" if others else "")
    )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


class Sender:
    """A thread that sends journals, oldest first, while the stage works; `own` is the one that is being written."""

    def __init__(self, own: Journal | None = None) -> None:
        self.own = own
        self.wake, self.closing, self.abandoned = threading.Event(), threading.Event(), threading.Event()
        self.fault = ""  # why the store took nothing at the last attempt
        self.taken = 0.0  # when it last took something, seconds
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def finish(self) -> bool:
        """Waits until all is sent, but not long for a store that takes nothing; whether all is sent."""
        self.taken = time.monotonic()
        self.closing.set()
        self.wake.set()
        patience = PATIENCE_SECONDS["remote" if store_name().startswith("http") else "local"]
        while self.thread.is_alive() and time.monotonic() - self.taken < patience:
            self.thread.join(0.05)
        self.abandoned.set()
        return not self.thread.is_alive() and not self.fault

    def _work(self) -> None:
        n_faults = 0
        while not self.abandoned.is_set():
            closing = self.closing.is_set()  # before the attempt: what is written after it is for the next one
            self.wake.clear()
            self.fault = NO_ANSWER  # until it is known
            fault = _fault_of(self._send)
            if fault and not n_faults and not closing:  # else the end says so
                _warn(f"{fault}; what is logged is kept in {journals()} and sent when the store can be reached")
            n_faults += bool(fault)
            self.fault = fault
            if closing:
                return
            if fault:
                self.closing.wait(RETRY_SECONDS)
            else:
                self.wake.wait()

    def _send(self) -> None:
        """Sends what there is; raises what the store raises, for an artifact only after the other journals."""
        store: Store | None = None
        fault: Exception | None = None
        for journal in all_journals():
            if journal.store != store_name():
                continue
            with ExitStack() as stack:
                if self.own is None or journal.folder != self.own.folder:
                    if not stack.enter_context(journal.held()):
                        continue  # of a run that is at work
                    if journal.last() not in ("", "end"):
                        journal.append("end", status="KILLED")  # its process is gone
                store = store or Store()
                try:
                    self._send_one(journal, store)
                except _faults() as error:
                    if not store.at_file:
                        raise
                    fault = fault or error
        if fault:
            raise fault

    def _send_one(self, journal: Journal, store: "Store") -> None:
        for entry, place in journal.unsent():
            if self.abandoned.is_set():
                return
            store.take(journal, entry)
            journal.mark(place)
            self.taken = time.monotonic()
        if journal.last() == "end" and not journal.has_unsent():  # in this order: an end may be written just now
            journal.remove()


class Store:
    """MLflow's store, as far as a journal needs it. Its calls may be made again: they find what they made before."""

    def __init__(self) -> None:
        """Makes the store on first use, one process of this machine at a time."""
        from mlflow import MlflowClient

        root, uri = project_root(), os.environ.get("MLFLOW_TRACKING_URI", "")
        artifacts = None if uri else (root / "mlartifacts").as_uri()
        uri = uri or _sqlite(root / "mlflow.db")
        self.is_remote = uri.startswith("http")
        self.at_file = False  # whether the last entry was a file
        self.ids: dict[str, str] = {}  # MLflow's own id of a run, by its key or the checkpoint's digest
        with ExitStack() as stack:
            if not self.is_remote:  # MlflowClient makes the tables: several processes at once would break them
                database = Path(unquote(urlsplit(uri).path[1:])) if uri.startswith("sqlite:") else root / "mlflow.db"
                stack.enter_context(FileLock(f"{database}.lock", thread_local=False))
                if uri.startswith("sqlite:") and not database.exists():
                    _make_tables(database)
            self.client = MlflowClient(uri)
            self.experiment_id = _experiment(self.client, artifacts)

    def add(self, run_id: str, params: dict[str, Any], metrics: dict[str, float]) -> None:
        """Values that a run does not have yet."""
        from mlflow.entities import Metric, Param

        names = list(params)
        for start in range(0, len(names), PARAMS_A_CALL):
            chunk = names[start : start + PARAMS_A_CALL]
            self.client.log_batch(run_id, params=[Param(name, str(params[name])) for name in chunk])
        now = int(time.time() * 1000)
        self.client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])

    def trainings(self, query: str) -> list["StoredRun"]:
        """The training runs that match a filter of MLflow, "" being all; raises `UserError` for what is no filter."""
        from mlflow.exceptions import MlflowException

        of_train = f"tags.`{STAGE_TAG}` = 'train'" + (f" and {query}" if query else "")
        try:
            return all_pages(self.client.search_runs, [self.experiment_id], of_train)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(f"{query!r} is no filter of MLflow ({_words(error)}); correct it") from error

    def take(self, journal: Journal, entry: dict[str, Any]) -> None:
        """One entry; one that the store will never take is named and left out."""
        from mlflow.exceptions import MlflowException, RestException

        self.at_file = entry["kind"] in ("file", "model")
        try:
            getattr(self, f"_{entry['kind']}")(journal, entry)
        except MlflowException as error:
            understood = isinstance(error, RestException) or not self.is_remote  # else another server may have answered
            if not understood or error.get_http_status_code() not in REFUSED:
                raise
            _warn(f"{_words(error)}; left out: {entry['kind']} of run {journal.key}")

    def _start(self, journal: Journal, entry: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        if entry["of"]:
            self.made(entry["of"], entry.get("parent"))
        found = self._found(journal.key, entry)
        if found:
            self.client.update_run(found, status="RUNNING")
            self.client.log_batch(found, tags=[RunTag(name, value) for name, value in entry["tags"].items()])
        else:
            parent = {"mlflow.parentRunId": self.made(entry["of"])} if entry["of"] else {KEY_TAG: journal.key}
            found = self._create(entry["name"], entry["tags"] | parent, entry["time"])
        self.ids[journal.key] = found

    def _found(self, key: str, start: dict[str, Any]) -> str:
        """The id of the run that a journal with this first entry tells of, or nothing: a stage's by model, stage and params."""
        if not start["of"]:
            return self._search({KEY_TAG: key})
        same = {tag: start["tags"].get(tag, "") for tag in (STAGE_TAG, PARAMS_TAG)}
        return self._search(same | {"mlflow.parentRunId": self.made(start["of"])})

    def _params(self, journal: Journal, entry: dict[str, Any]) -> None:
        run_id = self._id(journal)
        known = self.client.get_run(run_id).data.params  # a value of a run that goes on cannot be changed
        self.add(run_id, {name: value for name, value in entry["values"].items() if name not in known}, {})

    def _metrics(self, journal: Journal, entry: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, entry["time"], entry["step"]) for name, value in entry["values"].items()]
        self.client.log_batch(self._id(journal, entry["of"]), metrics=metrics)

    def _file(self, journal: Journal, entry: dict[str, Any]) -> None:
        self.client.log_artifact(self._id(journal, entry["of"]), str(journal.folder / entry["file"]), entry["folder"])

    def _data(self, journal: Journal, entry: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"name": name, "type": MLFLOW_TYPES.get(kind, "string")} for name, kind in entry["columns"].items()]
        source, schema, profile = map(json.dumps, (entry["source"], {"mlflow_colspec": columns}, entry["profile"]))
        dataset = Dataset(entry["name"], entry["digest"], "local", source, schema, profile)
        tags = [InputTag("mlflow.data.context", entry["context"])]
        self.client.log_inputs(self._id(journal, entry["of"]), [DatasetInput(dataset, tags)])

    def _model(self, journal: Journal, entry: dict[str, Any]) -> None:
        from mlflow.entities import LoggedModelOutput

        run_id = self._id(journal, entry["of"])
        query = f"name = '{MODEL}' AND source_run_id = '{run_id}' AND tags.`{ONNX_TAG}` = '{entry['md5']}'"
        found = self.client.search_logged_models([self.experiment_id], query)
        tags = {CHECKPOINT_TAG: entry["of"], ONNX_TAG: entry["md5"]}
        model = found[0] if found else self.client.create_logged_model(self.experiment_id, MODEL, run_id, tags)
        if model.status == "READY":
            return
        with TemporaryDirectory() as folder:
            example = np.array(entry["example"]["array"], entry["example"]["dtype"])
            _save_model(journal.folder / entry["file"], example, Path(folder, MODEL), model.model_id, run_id)
            self.client.log_model_artifacts(model.model_id, str(Path(folder, MODEL)))
        outputs = self.client.get_run(run_id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])  # a second time it would raise
        self.client.finalize_logged_model(model.model_id, "READY")

    def _tag(self, journal: Journal, entry: dict[str, Any]) -> None:
        self.client.set_tag(self._id(journal), entry["name"], entry["value"])

    def _end(self, journal: Journal, entry: dict[str, Any]) -> None:
        self.client.set_terminated(self._id(journal), entry["status"], entry["time"])

    def _id(self, journal: Journal, of: str = "") -> str:
        """MLflow's id of the journal's run, or of the run `of` a checkpoint; raises `MlflowException` where it is gone."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        if of:
            return self.made(of)
        found = self.ids.get(journal.key) or self._found(journal.key, journal.first())
        if not found:
            raise MlflowException(f"run {journal.key} is no longer in the store", RESOURCE_DOES_NOT_EXIST)
        return self.ids.setdefault(journal.key, found)

    def made(self, digest: str, otherwise: dict[str, Any] | None = None) -> str:
        """The latest run whose checkpoint has this MD5; a new one when the checkpoint came from a cache without a run.

        otherwise: name and tags of the new one.
        """
        if digest not in self.ids:
            found = self._search({CHECKPOINT_TAG: digest})
            if not found:
                new = otherwise or {"name": "restored", "tags": {}}
                tags = {STAGE_TAG: "train", CHECKPOINT_TAG: digest, RESTORED_TAG: "true"} | new["tags"]
                found = self._create(new["name"], tags, int(time.time() * 1000))
                self.client.set_terminated(found, "FINISHED")
            self.ids[digest] = found
        return self.ids[digest]

    def _create(self, name: str, tags: dict[str, str], start: int) -> str:
        return self.client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=name).info.run_id

    def _search(self, tags: dict[str, str]) -> str:
        """The id of the latest run with these tags, or nothing."""
        query = " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = self.client.search_runs([self.experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"])
        return found[0].info.run_id if found else ""


@contextmanager
def opened_store() -> Iterator[Store]:
    """The store, for a command that can do nothing without it; raises `UserError` where it cannot be reached or used."""
    prepare()
    try:
        yield Store()
    except UserError:
        raise
    except _faults() as error:
        name = store_name() or project_root() / "mlflow.db"
        raise UserError(f"MLflow: {name}: {_words(error)}; start the server or set MLFLOW_TRACKING_URI") from error


def all_pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """All that MLflow finds, of whose answers each is one page."""
    found = search(*arguments, **options)
    everything = list(found)
    while found.token:
        found = search(*arguments, **options, page_token=found.token)
        everything += found
    return everything


def prepare() -> None:
    """MLflow's settings for this process; before its first import, which starts its telemetry."""
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)


def store_name() -> str:
    """The store's address without a password; nothing for the one at the project's root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme, separator, rest = uri.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


@contextmanager
def _run(name: str, tags: dict[str, str], key: str = "", of: str = "") -> Iterator[Run]:
    """A run, begun or gone on with, that is being sent; its end waits a little for the store, and says what was not sent."""
    prepare()
    with ExitStack() as stack:
        run = Run()
        try:
            journal = _journal(key, stack)
            run = Run(journal, Sender(journal))
        except (OSError, UserError) as error:
            _warn(f"{error}; this run is not tracked")
        origin = _origin()
        run.write("start", name=name, tags=tags | origin, of=of, parent={"name": _name() or "restored", "tags": origin})
        if run.sender:
            run.sender.start()
        try:
            yield run
        except SystemExit:
            run.finish("KILLED")
            raise
        except BaseException:
            run.finish("FAILED")
            raise
        run.finish("FINISHED")


def _journal(key: str, stack: ExitStack) -> Journal:
    """The journal of a run that goes on, or a new one; held until the stack ends. Another process may just look into it."""
    found = find_journal(key) if key else None
    if found and found.store == store_name() and stack.enter_context(found.held(LOOK_SECONDS)) and found.folder.exists():
        return found
    made = new_journal(key or uuid.uuid4().hex, store_name())
    if not stack.enter_context(made.held(LOOK_SECONDS)):
        raise UserError(f"{made.folder} is held by another process; end it")
    return made


def _sqlite(database: Path) -> str:
    """Its address, in which only what means something there is quoted: MLflow makes the folder as the address spells it."""
    return "sqlite:///" + re.sub("[%?#]", lambda match: quote(match[0]), str(database))


def _make_tables(database: Path) -> None:
    """A store whole or not at all: with half of its tables, MLflow would refuse it for ever."""
    from mlflow import MlflowClient

    with atomic_path(database) as temporary:
        client = MlflowClient(_sqlite(temporary))
        client.search_experiments(max_results=1)
        client._tracking_client.store.engine.dispose()


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


def _save_model(file: Path, example: np.ndarray, target: Path, model_id: str, run_id: str) -> None:
    """An ONNX file as a folder in MLflow's form (flavours onnx and pyfunc), byte for byte the same file.

    Its signature: one tensor without a name in, tensors with the graph's names out; its metadata: those of the file.
    """
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.onnx import save_model
    from mlflow.types import Schema, TensorSpec

    def spec(value: onnx.ValueInfoProto, name: str | None) -> TensorSpec:
        tensor = value.type.tensor_type
        shape = [dimension.dim_value or -1 for dimension in tensor.shape.dim]
        return TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape, name)

    proto = onnx.load(file)
    inputs, outputs = proto.graph.input, proto.graph.output
    save_model(
        proto,
        str(target),
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=ModelSignature(
            Schema([spec(value, None) for value in inputs]), Schema([spec(value, value.name) for value in outputs])
        ),
        input_example=example,
        pip_requirements=[f"{package}=={version(package)}" for package in MODEL_NEEDS],
        onnx_execution_providers=["CPUExecutionProvider"],
        metadata={entry.key: json.loads(entry.value) for entry in proto.metadata_props},
        save_as_external_data=False,
    )
    shutil.copyfile(file, target / "model.onnx")  # a second serialisation would break its seal


def _faults() -> tuple[type[Exception], ...]:
    """What a store raises that cannot be reached or used."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, ImportError, OSError, UserError


def _fault_of(action: Callable[[], object]) -> str:
    """What a store raised, in words; nothing where all went well."""
    try:
        action()
    except _faults() as error:
        return _words(error)
    return ""


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _warn(text: str) -> None:
    print(f"warning: MLflow: {text}", file=sys.stderr)


@contextmanager
def _sampled(run: Run) -> Iterator[None]:
    """The load of this machine, under MLflow's own names, while the block works; GPUs where nvidia-ml-py is installed."""
    ended = threading.Event()
    thread = threading.Thread(target=_sample, args=(run, ended), name="load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sample(run: Run, ended: threading.Event) -> None:
    if ended.wait(SYSTEM_SECONDS):
        return  # before mlflow is imported here, too
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(AttributeError, ImportError, RuntimeError):  # no network, no nvidia-ml-py, no GPU
            monitors.append(kind())
    number = 0
    while not ended.is_set():
        for monitor in monitors:
            monitor.collect_metrics()
            run.log_metrics({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}, step=number)
            monitor.clear_metrics()
        number += 1
        ended.wait(SYSTEM_SECONDS)


def _name() -> str:
    """What a run is called: the DVC experiment, else the commit; nothing outside of both."""
    return os.environ.get("DVC_EXP_NAME") or _commit()[:7]


def _origin() -> dict[str, str]:
    """Where a run comes from: commit, DVC experiment and its baseline."""
    names = {EXPERIMENT_TAG: "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}
    tags = {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}
    return tags | {"mlflow.source.git.commit": _commit(), "mlflow.source.name": " ".join(sys.orig_argv[1:3])}


def _provenance(params: dict[str, Any], device: str) -> dict[str, str]:
    """What a training depends on: data, params, the state of the pipeline when it began, device and versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # a training alone does not need them all
            versions[package] = version(package)
    tags = {PARAMS_TAG: _digest(params), "fieldguide.device": device, "fieldguide.versions": json.dumps(versions)}
    if MANIFEST.exists():
        tags[DATA_TAG] = file_hash(MANIFEST, "md5")
    if LOCK.exists():
        tags["fieldguide.lock_sha256"] = file_hash(LOCK)
    return tags


def _digest(tree: dict[str, Any]) -> str:
    """SHA-256 of values, whatever their order and the comments beside them."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _content(source: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none that can be read, which is for others to tell."""
    with suppress(UserError):
        return dict(read_json(source))
    return {}


def _commit() -> str:
    """The commit of the folder that DVC works in; empty outside git or before the first commit."""
    try:
        answer = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return answer.stdout.strip()
