"""Stages as commands in a folder that has this checkout's code, and how they end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support.settings import TEXT, changed

MakeProject = Callable[..., Path]
OLD = {"images.zip": b"old", "receipt.json": b'{"files": {"images.zip": {}}}'}


def with_settings(settings: dict[str, object]) -> str:
    """This checkout's params.yaml with other values."""
    text = TEXT
    for key, value in settings.items():
        text = changed(key, json.dumps(value), text)
    return text


def run_stage(project: Path, stage: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", f"stages.{stage}"]
    return subprocess.run(
        command, cwd=project, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failed_in_one_line(done: subprocess.CompletedProcess[str], said: str) -> None:
    """Exit status 1 and one line on standard error that matches `said` in full after `error: `."""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.fullmatch(f"error: {said}\n", done.stderr), done.stderr
    assert done.returncode == 1


TINY_SAMPLE = {
    "data.sample.species": 2,
    "data.sample.train_images": 3,
    "data.sample.valid_images": 2,
    "data.sample.test_images": 1,
    "data.sample.image_px": 16,
}
