"""Every way of running with real DVC and real MLflow: each training is in the one store, and each experiment has its run."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fieldguide.core.files import file_hash
from support.projects import copy_built, run, tracked_runs, values, wait_for_queue

pytestmark = pytest.mark.slow
CHANGES = {  # one of every section
    "data.sample.seed": 2,
    "split_check.few_images": 4,
    "label_check.image_px": 128,
    "model.image_px": 16,
    "train.lr": 0.00001,
    "augment.rotation_degrees": 10.0,
    "evaluate.ece_bins": 7,
    "export.opset": 19,
    "benchmark.warmup_runs": 3,
    "runtime.workers": 1,
}


@pytest.fixture(scope="module")
def project(built_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy on which `dvc repro` has run."""
    target = tmp_path_factory.mktemp("experiments") / "a field guide"
    copy_built(built_project, target)
    yield target
    shutil.rmtree(target)


def checkpoint(project: Path, revision: str) -> str:
    """MD5 of the checkpoint in dvc.lock at a git revision."""
    lock = yaml.safe_load(run(project, "git", "show", f"{revision}:dvc.lock").stdout)
    return next(out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == "models/model.safetensors")


def run_named(project: Path, name: str) -> pd.Series:
    """The one training run of this name."""
    runs = tracked_runs(project)
    found = runs[(runs["name"] == name) & (runs["fieldguide.stage"] == "train")]
    assert len(found) == 1, runs[["name", "fieldguide.stage", "status"]]
    return found.iloc[0]


def holds(project: Path, name: str, at: Path | None = None) -> pd.Series:
    """Asserts that the experiment has its finished run, with name, baseline and checkpoint of its revision."""
    found = run_named(project, name)
    assert (found["status"], found["dvc.experiment"]) == ("FINISHED", name)
    baseline = found["dvc.baseline"]
    assert baseline == run(at or project, "git", "rev-parse", "HEAD").stdout.strip()
    assert found["fieldguide.checkpoint_md5"] == checkpoint(at or project, f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}")
    return found


def workspace(project: Path) -> tuple[str, str]:
    """What git says of it, and the hash of its checkpoint."""
    return run(project, "git", "status", "--porcelain").stdout, file_hash(project / "models" / "model.safetensors")


def restore(project: Path) -> None:
    run(project, "git", "checkout", "--force", "HEAD")
    run(project, "dvc", "checkout", "--force", "--allow-missing")  # the copy has no cache of what was not run


def test_repro_is_a_run_named_after_the_commit(project: Path) -> None:
    commit = run(project, "git", "rev-parse", "HEAD~1").stdout.strip()
    found = run_named(project, commit[:7])
    assert found["mlflow.source.git.commit"] == commit
    assert found["fieldguide.checkpoint_md5"] == checkpoint(project, "HEAD")
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["train"]["deps"]
    assert found["fieldguide.data_md5"] == next(dep["md5"] for dep in lock if dep["path"] == "data/manifest.csv")


def test_an_experiment_in_a_temporary_folder_takes_a_change_in_every_section(project: Path) -> None:
    assert {name.split(".")[0] for name in CHANGES} == set(yaml.safe_load((project / "params.yaml").read_text()))
    before = workspace(project)
    changes = [part for name, value in CHANGES.items() for part in ("-S", f"{name}={value}")]
    run(project, "dvc", "exp", "run", "--temp", "--name", "every-section", *changes, "train")
    found = holds(project, "every-section")
    params = values(project, "params", found["run_uuid"])
    assert {name: float(params[name]) for name in CHANGES} == CHANGES
    kept = {file.name for file in (project / "mlartifacts").rglob("*") if found["run_uuid"] in file.parts}
    assert "model.safetensors" in kept
    assert workspace(project) == before


def test_queued_experiments_side_by_side_leave_the_workspace_alone(project: Path) -> None:
    before = workspace(project)
    for seed in (7, 8):
        run(project, "dvc", "exp", "run", "--queue", "--name", f"seed-{seed}", "-S", f"train.seed={seed}", "train")
    run(project, "dvc", "queue", "start", "--jobs", "2")
    status = wait_for_queue(project)
    assert status.count("Success") == 2, status
    for seed in (7, 8):
        holds(project, f"seed-{seed}")
    assert workspace(project) == before


def test_an_experiment_from_a_subfolder_on_a_dirty_tree(project: Path) -> None:
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"  label_smoothing: [0-9.]+", "  label_smoothing: 0.2", params))
    (project / "README.md").write_text("edited")
    (project / "untracked").write_text("new")
    try:
        run(project / "metrics", "dvc", "exp", "run", "--name", "dirty", "../dvc.yaml:train")
        assert (project / "README.md").read_text() == "edited"
        assert (project / "untracked").read_text() == "new"
    finally:
        (project / "untracked").unlink()
        restore(project)
    found = holds(project, "dirty")
    assert values(project, "params", found["run_uuid"])["train.label_smoothing"] == "0.2"


def clone(project: Path, target: Path) -> None:
    """A clone that shares the project's cache."""
    run(project, "git", "clone", "--quiet", str(project), str(target))
    run(target, "dvc", "cache", "dir", "--local", str(project / ".dvc" / "cache"))


def test_a_clone_without_a_git_identity_reaches_the_store_that_is_named(project: Path, tmp_path: Path) -> None:
    target = tmp_path / "clone"
    clone(project, target)
    nobody = {name: None for name in os.environ if name.startswith("GIT_")}
    nobody |= {f"GIT_{role}_{key}": None for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}", "HOME": str(tmp_path)}
    run(target, "dvc", "exp", "run", "--name", "nobody", "-S", "train.seed=9", "train", environment=nobody | store)
    holds(project, "nobody", target)


def test_a_workspace_on_another_disk_than_the_cache(project: Path) -> None:
    disk = Path("/dev/shm")
    if not os.access(disk, os.W_OK) or disk.stat().st_dev == project.stat().st_dev:
        pytest.skip("this machine has no second disk at /dev/shm")
    target = disk / f"fieldguide-{os.getpid()}"
    try:
        clone(project, target)
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
        run(target, "dvc", "exp", "run", "--temp", "--name", "elsewhere", "-S", "train.seed=10", "train", environment=store)
        holds(project, "elsewhere", target)
    finally:
        shutil.rmtree(target)


def listed(project: Path, **environment: str) -> dict[str, dict]:
    """What `python -m fieldguide runs` says, by experiment; runs without one under their own name."""
    output = run(project, "python", "-m", "fieldguide", "runs", "--format", "json", environment=environment).stdout
    rows = json.loads(output[output.index("[\n") :])
    return {row["experiment"] or row["run"]: row for row in rows}


def test_an_experiment_that_dvc_restores_finds_the_run_that_made_its_checkpoint(project: Path) -> None:
    n_runs = len(tracked_runs(project))
    changes = ("-S", "train.seed=7", "-S", "runtime.workers=1")
    output = run(project, "dvc", "exp", "run", "--temp", "--name", "again", *changes, "train").stdout
    assert "Stage 'train' is cached" in output, output
    assert len(tracked_runs(project)) == n_runs
    rows = listed(project)
    assert rows["again"]["run_id"] == rows["seed-7"]["run_id"] == run_named(project, "seed-7")["run_uuid"]
    assert rows["again"]["differ"] == ["runtime.workers"]
    for name in ("every-section", "seed-7", "seed-8", "dirty"):
        row = rows[name]
        assert (row["run"], row["mlflow_lacks"], row["dvc_lacks"], row["differ"]) == (name, [], [], [])
    assert rows["nobody"]["dvc_lacks"] == ["experiment"]  # it lies in another clone


def test_sync_gives_a_new_store_all_experiments_and_nothing_twice(project: Path, tmp_path: Path) -> None:
    new = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'new.db'}"}
    first, second = (run(project, "python", "-m", "fieldguide", "sync", environment=new).stdout for _ in range(2))
    assert re.search(r"DVC: 5 runs added to MLflow, [1-9][0-9]+ params and metrics", first), first
    assert "DVC: 0 runs added to MLflow, 0 params and metrics" in second
    rows = listed(project, **new)
    assert {name: row["mlflow_lacks"] for name, row in rows.items()} == {name: [] for name in rows}
    assert rows["dirty"]["run"] == "dirty"
    assert rows["dirty"]["metrics"]["train.valid.loss"]["dvc"] == rows["dirty"]["metrics"]["train.valid.loss"]["mlflow"]
