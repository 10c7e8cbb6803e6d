"""The version says from which commit it is, of a checkout as of an installation, and never of a project around it."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fieldguide.commands import version
from fieldguide.commands.version import __version__
from support import ROOT


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_checkout_is_named_by_its_commit_and_whether_it_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "v9")
    monkeypatch.setattr(version, "ROOT", tmp_path)
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert version.version_text() == f"{__version__} (commit {commit})"
    (tmp_path / "a").write_text("2")
    assert version.version_text() == f"{__version__} (commit {commit}-dirty)"


def test_an_installation_is_named_by_what_pip_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "ROOT", tmp_path)
    recorded: dict[str, object] = {"url": "https://example.org/fieldguide", "vcs_info": {"vcs": "git", "commit_id": 40 * "a"}}
    found = SimpleNamespace(read_text=lambda name: {"direct_url.json": json.dumps(recorded)}.get(name))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    assert version.version_text() == f"{__version__} (commit aaaaaaa)"
    recorded.pop("vcs_info")
    assert version.version_text() == __version__


def test_without_git_and_installation_there_is_the_version_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()  # no repository
    monkeypatch.setattr(version, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version.version_text() == __version__


def test_the_command_prints_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fieldguide", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith(f"fieldguide {__version__}")
