"""Experiments as git has them: which are listed, in which order, and the content of their files."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from fieldguide.core.errors import UserError
from fieldguide.tracking.experiments import contents, experiments, list_refs, workspace

LOCK = """schema: '2.0'
stages:
  train:
    cmd: python -m stages.train
    outs:
    - path: models/model.safetensors
      hash: md5
      md5: {}
"""


def git(*arguments: str, time: int = 0) -> str:
    identity = {f"GIT_{role}_{key}": "t@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    dates = {f"GIT_{role}_DATE": f"@{time} +0000" for role in ("AUTHOR", "COMMITTER")}
    answer = subprocess.run(["git", *arguments], env=os.environ | identity | dates, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def md5(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def commit(name: str, epochs: int, time: int) -> str:
    """A commit of the project's files; its id."""
    Path("dvc.lock").write_text(LOCK.format(md5(name)))
    Path("params.yaml").write_text(f"train: {{epochs: {epochs}}}\n")
    Path("metrics/headlines").mkdir(parents=True, exist_ok=True)
    Path("metrics/headlines/train.json").write_text(f'{{"epochs": {epochs}, "best_loss": 0.5}}')
    git("add", "--all")
    git("commit", "--quiet", "--message", name, time=time)
    return git("rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a subfolder of a git repository: two commits, experiments of both."""
    folder = tmp_path / "repository" / "a field guide"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    git("init", "--quiet", "--initial-branch", "main", "..")
    first = commit("first", 1, 100)
    for name, epochs, time in (("older", 2, 300), ("newer", 3, 400)):
        rev = commit(name, epochs, time)
        git("update-ref", f"refs/exps/{first[:2]}/{first[2:]}/{name}", rev)
        git("reset", "--quiet", "--hard", first)
    second = commit("second", 4, 350)
    rev = commit("of-second", 5, 500)
    git("update-ref", f"refs/exps/{second[:2]}/{second[2:]}/of-second", rev)
    git("reset", "--quiet", "--hard", second)
    return folder


def test_experiments_of_the_last_commit_or_of_all_come_newest_first(project: Path) -> None:
    assert [ref.name for ref in list_refs()] == ["of-second", "main"]
    every = list_refs(all_commits=True)
    assert [(ref.name, ref.state) for ref in every[:4]] == [
        ("of-second", "success"),
        ("newer", "success"),
        ("main", "commit"),
        ("older", "success"),
    ]
    assert (every[4].name, every[4].time) == (every[4].rev[:7], 100.0)
    git("tag", "v1", every[4].rev)
    assert list_refs(all_commits=True)[4].name == "v1"


def test_an_experiment_has_the_checkpoint_params_and_headlines_of_its_commit(project: Path) -> None:
    found = {each.name: each for each in experiments(all_commits=True)}
    assert {name: each.params for name, each in found.items() if each.state == "success"} == {
        "of-second": {"train.epochs": 5},
        "newer": {"train.epochs": 3},
        "older": {"train.epochs": 2},
    }
    assert found["older"].checkpoint == md5("older")
    assert found["older"].metrics == {"train.epochs": 2.0, "train.valid.loss": 0.5}
    assert workspace().checkpoint == md5("second")


def test_a_file_that_a_commit_lacks_is_empty(project: Path) -> None:
    assert list(contents([])) == []
    names = ["HEAD:./none.json", "HEAD:./params.yaml", "HEAD:./no such file", "HEAD:./metrics/headlines/train.json"]
    none, params, other, figures = contents(names)
    assert (none, params, other) == (b"", b"train: {epochs: 4}\n", b"")
    assert figures.startswith(b'{"epochs": 4')


def test_without_a_commit_the_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    with pytest.raises(UserError, match=r"git log: .*; experiments need a git repository with a commit"):
        list_refs()
