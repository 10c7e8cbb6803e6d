"""The Dockerfiles, held to what a builder would need of them; tests/e2e/test_wheel.py runs the steps of one."""

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from fieldguide.__main__ import parser
from support import ROOT
from support.docker import instructions, stages, words

FILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.pipeline"]
KNOWN = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path of the checkout into the build; the last pattern that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        around = [str(parent) for parent in (Path(path), *Path(path).parents)]
        if line and not line.startswith("#") and any(fnmatch(each, pattern.replace("**/", "*")) for each in around):
            kept = line.startswith("!")
    return kept


@each_file
def test_it_is_slim_and_of_a_python_that_the_project_supports(file: Path) -> None:
    assert {word for word, _ in instructions(file)} <= KNOWN
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", wanted).groups())
    for stage in stages(file):
        minor = re.fullmatch(r"python:3\.(\d+)-slim( AS \w+)?", stage[0][1])[1]
        assert low <= int(minor) < high


@each_file
def test_what_is_copied_is_there_and_in_the_context(file: Path) -> None:
    sources = [path for word, rest in instructions(file) if word == "COPY" for path in rest.split()[:-1] if "--" not in rest]
    assert sources
    for path in sources:
        assert (ROOT / path).exists() and in_context(path), path


@pytest.mark.parametrize(
    "path", [".git/config", ".dvc/config.local", ".env", "data/raw/images.zip", "models/model.onnx", "mlflow.db", "tests/x.py"]
)
def test_data_models_and_keys_stay_out_of_the_context(path: str) -> None:
    assert not in_context(path)
    assert in_context("fieldguide/web/app.py") and not in_context("fieldguide/web/__pycache__/app.pyc")


@each_file
def test_it_does_not_run_as_root_nor_write_as_one_later(file: Path) -> None:
    final = [word for word, _ in stages(file)[-1]]
    assert final.count("USER") == 1 and "RUN" not in final[final.index("USER") :]
    (user,) = [rest for word, rest in stages(file)[-1] if word == "USER"]
    assert int(user.split(":")[0]) > 0


@each_file
def test_every_step_is_valid_shell(file: Path) -> None:
    for word, rest in instructions(file):
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)


def test_the_page_of_the_image_listens_where_its_port_and_health_check_say() -> None:
    final = stages(FILES[0])[-1]
    program, *options = words(final, "ENTRYPOINT")
    args = parser().parse_args(options)
    assert (program, args.command, args.host) == ("fieldguide", "serve", "0.0.0.0")
    assert [rest for word, rest in final if word == "EXPOSE"] == [str(args.port)]
    assert f"http://127.0.0.1:{args.port}/healthz" in words(final, "HEALTHCHECK")[-1]


def test_the_image_of_the_pipeline_runs_dvc_and_knows_itself_to_git() -> None:
    (stage,) = stages(FILES[1])
    assert (words(stage, "ENTRYPOINT"), words(stage, "CMD")) == (["dvc"], ["repro"])
    assert "git config --system user.email" in " ".join(rest for word, rest in stage if word == "RUN")
