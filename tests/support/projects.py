"""A whole project with DVC and MLflow: a copy of this checkout on a tiny sample, commands in it, what its runs tell."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pandas as pd
from filelock import FileLock

from support import ROOT
from support.forked import python_folder
from support.settings import TEXT

BIN = Path(sys.executable).parent
TINY = {
    "species: 12 ": "species: 3 ",
    "train_images: 40 ": "train_images: 16 ",
    "valid_images: 20 ": "valid_images: 4 ",
    "test_images: 20 ": "test_images: 4 ",
    "    image_px: 128 ": "    image_px: 40 ",
    "\n  image_px: 128 ": "\n  image_px: 32 ",
    "  image_px: 192 ": "  image_px: 64 ",  # of label_check
    "decode_px: 144 ": "decode_px: 40 ",
    "batch_size: 64 ": "batch_size: 16 ",
    "name: fieldnet ": "name: cnn ",
    "optimizer: muon ": "optimizer: sgd ",  # a step of muon costs more than all else in so small a training
    "weight_decay: 1.0 ": "weight_decay: 0.0005 ",
    "lr: 0.005 ": "lr: 0.01 ",
    "int8_images: 128 ": "int8_images: 16 ",
    "batch_sizes: [1, 8, 32] ": "batch_sizes: [1, 8] ",
    "warmup_runs: 10 ": "warmup_runs: 1 ",
    "latency_runs: 100 ": "latency_runs: 10 ",
}


def run(
    project: Path, *command: str, check: bool = True, environment: Mapping[str, str | None] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in the project, whose stages are forked (see `forked`); its output goes through files, not pipes.

    environment: variables besides the usual ones; None takes one away.
    """
    variables = os.environ | {
        "PATH": os.pathsep.join([str(python_folder()), str(BIN), os.environ["PATH"]]),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{role}_{key}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
        **(environment or {}),
    }
    variables = {name: value for name, value in variables.items() if value is not None}
    with tempfile.TemporaryFile("w+") as stream:
        code = subprocess.run(command, cwd=project, env=variables, stdout=stream, stderr=stream, check=False).returncode
        stream.seek(0)
        output = stream.read()
    assert not check or code == 0, output
    return subprocess.CompletedProcess(command, code, output)


def copy_project(target: Path, changes: dict[str, str], epochs: int = 2) -> None:
    """A git repository with one commit: this checkout's files, `changes` made to the text of the recipe `scratch`."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    params = TEXT
    for old, new in changes.items():
        assert old in params, old
        params = params.replace(old, new)
    params = re.sub(r"\n  epochs: \d+ ", f"\n  epochs: {epochs} ", params)
    (target / "params.yaml").write_text(params)
    run(target, "git", "init", "--quiet")
    commit(target, "copy")


def built_once(folder: Path) -> Path:
    """A tiny project in `folder` on which `dvc repro` has run, made by the first of the processes that ask for it."""
    target, done = folder / "built once" / "a field guide", folder / "built once" / "done"
    with FileLock(folder / "built once.lock"):
        if not done.exists():
            shutil.rmtree(target.parent, ignore_errors=True)
            copy_project(target, TINY)
            run(target, "dvc", "repro")
            commit(target, "results")
            done.touch()
    return target


def commit(project: Path, message: str) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "--message", message)


def copy_built(built: Path, target: Path) -> None:
    """A built project in another place: with its cache, its commits and its runs."""
    shutil.copytree(built, target, symlinks=True)


def wait_for_queue(project: Path) -> str:
    """What `dvc queue status` says once nothing runs or waits; asked seldom, as each time costs a second of CPU."""
    for _ in range(150):
        status = run(project, "dvc", "queue", "status").stdout
        if "Running" not in status and "Queued" not in status:
            return status
        time.sleep(2)
    raise AssertionError(status)


def tracked_runs(project: Path) -> pd.DataFrame:
    """The runs in the project's own store: name, status and tags."""
    with closing(sqlite3.connect(project / "mlflow.db")) as store:
        runs = pd.read_sql("select run_uuid, name, status from runs", store)
        tags = pd.read_sql("select run_uuid, key, value from tags", store)
    wide = tags.pivot(index="run_uuid", columns="key", values="value")
    return runs.join(wide, on="run_uuid")


def values(project: Path, table: str, run_uuid: str) -> dict[str, str]:
    """The params or latest metrics of one run."""
    with closing(sqlite3.connect(project / "mlflow.db")) as store:
        return dict(store.execute(f"select key, value from {table} where run_uuid = ?", [run_uuid]).fetchall())


def read(project: Path, stage: str) -> dict:
    return json.loads((project / "metrics" / f"{stage}.json").read_text())
