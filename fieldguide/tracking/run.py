"""What runs tell MLflow.

Training opens a run, named after the DVC experiment, and marks it with the MD5 of the checkpoint, which is also the hash that
`dvc.lock` holds; evaluate, export, benchmark and report find that run by the file that they were given, and add to it. Each
has a child run there for its own params; run again with the same ones, it adds to that child, whose metrics then show the
latest values and keep the earlier ones in their history.

A stage never waits for the store: it writes its journal, and a thread sends it. What could not be sent when the stage ends
stays in the journal and goes out with the next run's, or at once with `python -m fieldguide sync`.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash, read_json
from fieldguide.core.names import flat
from fieldguide.core.params import Params, Section
from fieldguide.core.paths import LOCK, MANIFEST, RECEIPT, stage_metrics
from fieldguide.tracking.journal import LOOK_SECONDS, Journal, find_journal, new_journal
from fieldguide.tracking.sender import Sender, left_words, unsent_journals
from fieldguide.tracking.store import DATA_TAG, EXPERIMENT_TAG, PARAMS_TAG, STAGE_TAG, prepare, store_name, warn

SYSTEM_SECONDS = 10.0  # from one sample of the machine's load to the next
PACKAGES = ("dvc", "mlflow", "numpy", "onnx", "onnxruntime", "pillow", "torch", "torchvision")  # whose versions a run tells
CONTEXTS = {"train": "training", "valid": "validation", "test": "test"}  # what MLflow calls the use of a split


class Run:
    """One run. Its calls write the journal; none waits for the store, and none raises."""

    def __init__(self, journal: Journal | None = None, sender: Sender | None = None) -> None:
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
            warn(f"{self.sender.fault}; {left_words(unsent_journals())}")

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
                warn(f"{error.filename or self.journal.folder}: {error.strerror or error}; this run is not tracked further")
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
            warn(f"{error}; this run is not tracked")
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
