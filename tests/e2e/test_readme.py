"""The README: settings are accepted, and each command that needs no account, desktop or other run of tests works as pasted."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from fieldguide.core.params import read_params
from support import ROOT
from support.forked import python_folder
from support.projects import BIN, TINY, copy_project

LEFT = {  # commands of the README that are not run here, and why
    r"python -m fieldguide recipe butterflies-original ": "fetches from Kaggle",
    r"python -m fieldguide recipe flowers-original ": "fetches from Kaggle",
    r"kaggle competitions submit ": "sends to Kaggle",
    r"xdg-open ": "needs a desktop",
    r"make test$": "is this run",
    r"make lint$": "is a step of its own",
}
SERVERS = {"make serve": "http://127.0.0.1:8000/healthz", "mlflow ui": "http://127.0.0.1:5000/health"}
STAGE = {  # the last stage of an experiment; without a name the report
    "recipe quick": "evaluate",
    "recipe transfer &&": "train",
    "recipe transfer data": "split_check",
    "dvc exp run ": "train",
}
STARTS_S = 120


def commands(page: Path) -> list[str]:
    """The lines of a document's blocks of commands, without comments, continued lines joined."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    stripped = [re.sub(r"\s+", " ", line.partition(" # ")[0]).strip() for line in lines]
    return [line for line in stripped if re.match(r"(dvc|python|make|mlflow|kaggle|curl|xdg-open|git) ", line)]


def settings(command: str) -> list[tuple[str, str]]:
    """The pairs `section.key`, value that a command sets for a run, but for lists of values."""
    words = shlex.split(command)
    pairs = [word.partition("=") for flag, word in pairwise(words) if flag == "-S" and words[0] == "dvc"]
    return [(key, value) for key, _, value in pairs if "," not in value and "(" not in value]


def left(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in LEFT)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_settings_of_every_command_pass_the_check_of_the_parameters(page: Path, tmp_path: Path) -> None:
    for command in commands(page):
        content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        for key, value in settings(command):
            *sections, name = key.split(".")
            section = content
            for part in sections:
                section = section[part]
            assert name in section, (command, key)
            section[name] = yaml.safe_load(os.path.expandvars(value))
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
        read_params(tmp_path / "params.yaml")


def test_the_commands_that_are_left_out_are_in_the_readme_once() -> None:
    present = commands(ROOT / "README.md")
    assert len(present) > 15
    for pattern in LEFT:
        assert len([command for command in present if re.match(pattern, command)]) == 1, pattern


def test_every_link_to_a_file_leads_to_one() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


@pytest.fixture
def visitor(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> tuple[Path, dict[str, str]]:
    """A tiny copy of the project, and the environment of someone with photographs at home and no account."""
    home, project = tmp_path / "home", tmp_path / "fieldguide"
    copy_project(project, TINY)
    photographs = {
        f"{species} FRITILLARY/{number}.jpg": make_jpeg(100 * place + number, 48, 48)
        for place, species in enumerate(("RED", "GREEN", "BLUE"))
        for number in range(24)
    }
    for name, content in photographs.items():
        (home / "photographs" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "photographs" / name).write_bytes(content)
    (home / "Downloads").mkdir()
    with zipfile.ZipFile(home / "Downloads" / "butterflies.zip", "w") as archive:
        for number, (name, content) in enumerate(photographs.items()):
            archive.writestr(f"{('train', 'train', 'valid', 'test')[number % 4]}/{name}", content)
    (home / "new.jpg").write_bytes(make_jpeg(7))
    (project / "photo.jpg").write_bytes(make_jpeg(8))
    identity = {f"GIT_{role}_{key}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = (
        os.environ
        | identity
        | {
            "HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
    )
    return project, environment


@contextmanager
def serving(command: str, address: str, project: Path, environment: dict[str, str], log: Path) -> Iterator[None]:
    """A server of the README, from when it answers until the block ends."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=project, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        last = time.monotonic() + STARTS_S
        while not answers(address):
            assert process.poll() is None and time.monotonic() < last, (command, log.read_text())
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_pasted(visitor: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    project, environment = visitor
    if busy := [address for address in SERVERS.values() if answers(address)]:
        pytest.skip(f"another server answers at {busy[0]}")
    log = tmp_path / "output.txt"
    with ExitStack() as stack:
        for number, command in enumerate(commands(ROOT / "README.md")):
            if left(command):
                continue
            typed = command.replace("make ", "make -o .venv/installed ")  # the packages are those of this test
            if command in SERVERS:
                server_log = tmp_path / f"server-{number}.txt"
                stack.enter_context(serving(typed, SERVERS[command], project, environment, server_log))
                continue
            if "dvc exp run" in command:
                typed += f" {next(stage for part, stage in STAGE.items() if part in command)}"
            own_python = command.startswith("make")  # elsewhere stages are forked
            path = environment["PATH"] if own_python else f"{python_folder()}{os.pathsep}{environment['PATH']}"
            with log.open("w") as stream:
                ended = subprocess.run(
                    ["bash", "-c", typed], cwd=project, env=environment | {"PATH": path}, stdout=stream, stderr=stream
                )
            assert ended.returncode == 0, (command, log.read_text())
            if command.startswith("curl"):
                assert '"verdict"' in log.read_text()
    assert (project / "metrics" / "report.html").stat().st_size > 100_000
    assert len(list((project / "named").rglob("*.jpg"))) == 72
    shutil.rmtree(project)
