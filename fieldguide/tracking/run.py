"""MLflow runs of the stages: one run per training; later stages add child runs.

A training's run has the name of the DVC experiment and is tagged with the MD5 of the checkpoint, which is also the hash in
`dvc.lock`. Evaluate, export, benchmark and report find it by their checkpoint. Each has a child run for its own params; run
again with the same params, it adds to that child, whose metrics then show the latest values.

A stage never waits for the store: it writes a journal, and a thread sends it. What could not be sent when the stage ends is
sent with the next run, or by `python -m fieldguide sync`.
"""

import hashlib
import itertools
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
from fieldguide.core.headlines import TRACKED
from fieldguide.core.names import flat
from fieldguide.core.params import Params, Section
from fieldguide.core.paths import LOCK, MANIFEST, RECEIPT, headlines_json, stage_metrics
from fieldguide.tracking.journal import LOOK_SECONDS, Journal, all_journals, new_journal
from fieldguide.tracking.sender import Sender, left_words, unsent_journals
from fieldguide.tracking.store import DATA_TAG, EXPERIMENT_TAG, PARAMS_TAG, STAGE_TAG, store_name, warn

SYSTEM_SECONDS = 10.0  # between samples of the machine's load
PACKAGES = ("dvc", "mlflow", "numpy", "onnx", "onnxruntime", "pillow", "torch", "torchvision")  # whose versions are logged
CONTEXTS = {"train": "training", "valid": "validation", "test": "test"}  # MLflow's names


class Run:
    """A run. Its methods write the journal; none waits for the store, and no error of store or journal is raised.

    A later stage logs metrics and data to its own run and to that of the training, and files and model to the latter.
    """

    def __init__(self, stage: str = "train", checkpoint: str = "", journal: Journal | None = None) -> None:
        """checkpoint: its MD5, for a stage after the training; without a journal nothing is logged."""
        self.stage, self.checkpoint, self.journal = stage, checkpoint, journal
        self.sender: Sender | None = None
        self.lock = threading.Lock()  # a thread of its own logs the machine's load

    @property
    def key(self) -> str:
        """Lets `training_run` resume this run; empty if tracking is off."""
        return self.journal.key if self.journal else ""

    def log(self, metrics: dict[str, Any], *files: Path) -> None:
        """Logs metrics as `<stage>.<key>`, and copies of files to the artifacts under `<stage>`."""
        if metrics:
            self.log_metrics({self.stage: metrics})
        self.log_files(*files, folder=self.stage)

    def log_metrics(self, metrics: dict[str, Any], step: int = 0) -> None:
        """Logs nested numbers under dotted names, nothing else."""
        numbers = {name: float(value) for name, value in flat(metrics).items() if isinstance(value, Real)}
        self._write_both("metrics", values=numbers, step=step)

    def log_files(self, *files: Path, folder: str) -> None:
        """Logs copies of files under `folder` of the run's artifacts."""
        for file in files:
            self.write("file", file, folder=folder, of=self.checkpoint)

    def log_data(self, split: str, rows: pd.DataFrame) -> None:
        """Logs the rows of the manifest that this run used."""
        receipt = _content(RECEIPT)
        source = {key: receipt[key] for key in ("title", "home", "version", "release") if key in receipt}
        self._write_both(
            "data",
            name=f"{receipt.get('dataset', 'data')}/{split}",
            digest=file_hash(MANIFEST, "md5"),
            source={"uri": str(MANIFEST)} | source,
            profile={"num_rows": len(rows), "num_classes": int(rows["label"].nunique())},
            columns={name: str(kind) for name, kind in rows.dtypes.items()},
            context=CONTEXTS[split],
        )

    def log_model(self, file: Path, example: np.ndarray) -> None:
        """Logs an ONNX file, with an example input, as a model that MLflow can load and serve."""
        kept = {"array": example.tolist(), "dtype": str(example.dtype)}
        self.write("model", file, of=self.checkpoint, md5=file_hash(file, "md5"), example=kept)

    def tag(self, name: str, value: str) -> None:
        self.write("tag", name=name, value=value)

    def _write_both(self, kind: str, **content: Any) -> None:
        for of in dict.fromkeys(("", self.checkpoint)):
            self.write(kind, **content, of=of)

    def write(self, kind: str, file: Path | None = None, **content: Any) -> None:
        """Writes an entry and wakes the sender; an error of the disk ends the tracking, not the training."""
        with self.lock:
            if self.journal is None:
                return
            try:
                if file is not None:
                    content["file"] = self.journal.keep(file)
                self.journal.append(kind, **content)
            except OSError as error:
                file_name = error.filename or self.journal.folder
                warn(f"{file_name}: {error.strerror or error}; tracking is off for the rest of this run")
                self.journal = None
        if self.sender is not None:
            self.sender.wake.set()


@contextmanager
def training_run(params: Params, key: str = "", device: str = "") -> Iterator[Run]:
    """A new run with all params and provenance, or that of a resumed training; samples the machine's load.

    FINISHED after the block, KILLED after `SystemExit`, FAILED after an error.
    """
    tree = params.model_dump(mode="json")
    with _run("train", _provenance(device), tree, key=key) as run:
        for stage in ("split_check", "label_check"):  # which have no run of their own
            run.log_metrics(_figures(stage))
        ended = threading.Event()
        thread = threading.Thread(target=_sample, args=(run, ended), name="load", daemon=True)
        thread.start()
        try:
            yield run
        finally:
            ended.set()
            thread.join()


@contextmanager
def stage_run(stage: str, section: Section | None, checkpoint: Path) -> Iterator[Run]:
    """A child of the run that made `checkpoint`, for a stage that uses it."""
    tree = {type(section).__name__.lower(): section.model_dump(mode="json")} if section is not None else {}
    with _run(stage, {}, tree, file_hash(checkpoint, "md5")) as run:
        yield run


@contextmanager
def folds_run(params: dict[str, Any], experiments: dict[str, str], key: str) -> Iterator[Run]:
    """The run of a cross-validation, with the name of the experiment of each fold; the same `key` finds it again."""
    tags = {f"fieldguide.fold_{fold}": name for fold, name in experiments.items()}
    with _run("folds", tags, params, key=key, name="folds") as run:
        yield run


@contextmanager
def _run(
    stage: str, tags: dict[str, str], params: dict[str, Any], of: str = "", key: str = "", name: str = ""
) -> Iterator[Run]:
    """A new or resumed run and its sender, which gets a little time at the end."""
    with ExitStack() as stack:
        run = Run(stage, of)
        try:
            run = Run(stage, of, _journal(key, stack))
        except (OSError, UserError) as error:
            warn(f"{error}; tracking is off for this run")
        origin, name = _origin(), name or os.environ.get("DVC_EXP_NAME") or _commit()[:7]
        digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
        tags = {STAGE_TAG: stage, PARAMS_TAG: digest} | tags | origin
        parent = {"name": name or "restored", "tags": origin}
        run.write("start", name=stage if of else name or stage, tags=tags, of=of, parent=parent)
        run.write("params", values={key: str(value) for key, value in flat(params).items()})
        if run.journal:
            run.sender = Sender(run.journal)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except SystemExit:
            status = "KILLED"
            raise
        finally:
            run.write("end", status=status)
            if run.sender and not run.sender.finish():
                warn(f"{run.sender.fault}; {left_words(unsent_journals())}")


def _journal(key: str, stack: ExitStack) -> Journal:
    """The journal of a resumed run, or a new one, held until the stack ends."""
    for journal in all_journals():
        is_same = journal.key == key and journal.store == store_name()
        if is_same and stack.enter_context(journal.held(LOOK_SECONDS)) and journal.folder.exists():
            return journal
    journal = new_journal(key or uuid.uuid4().hex, store_name())
    if not stack.enter_context(journal.held(LOOK_SECONDS)):
        raise UserError(f"{journal.folder} is held by another process; end it")
    return journal


def _sample(run: Run, ended: threading.Event) -> None:
    """Logs the machine's load until the end, under MLflow's names; GPUs if nvidia-ml-py is installed."""
    if ended.wait(SYSTEM_SECONDS):
        return  # too short a run to import mlflow for
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(AttributeError, ImportError, RuntimeError):  # no network, no nvidia-ml-py, no GPU
            monitors.append(kind())
    for number in itertools.count():
        for monitor in monitors:
            monitor.collect_metrics()
            run.log_metrics({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}, step=number)
            monitor.clear_metrics()
        if ended.wait(SYSTEM_SECONDS):
            return


def _origin() -> dict[str, str]:
    """Tags: commit, DVC experiment and its baseline."""
    names = {EXPERIMENT_TAG: "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}
    tags = {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}
    return tags | {"mlflow.source.git.commit": _commit(), "mlflow.source.name": " ".join(sys.orig_argv[1:3])}


def _provenance(device: str) -> dict[str, str]:
    """Tags of what a training depends on: data, dvc.lock at its start, device and versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # not all are needed to train
            versions[package] = version(package)
    tags = {"fieldguide.device": device, "fieldguide.versions": json.dumps(versions)}
    if MANIFEST.exists():
        tags[DATA_TAG] = file_hash(MANIFEST, "md5")
    if LOCK.exists():
        tags["fieldguide.lock_sha256"] = file_hash(LOCK)
    return tags


def _content(source: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it cannot be read, which other code reports."""
    with suppress(UserError):
        return dict(read_json(source))
    return {}


def _figures(stage: str) -> dict[str, Any]:
    """A stage's metrics, or its headlines, which git has, where DVC has not restored them (an experiment that only trains)."""
    if content := _content(stage_metrics(stage)):
        return {stage: content}
    return {TRACKED[name]: value for name, value in _content(headlines_json(stage)).items() if name in TRACKED}


def _commit() -> str:
    """The commit of the working directory; empty outside git or before the first commit."""
    try:
        answer = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return answer.stdout.strip()
