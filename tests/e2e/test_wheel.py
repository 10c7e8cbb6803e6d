"""The wheel: what it holds, and that its commands work outside the checkout where only what they need is installed."""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

from fieldguide.commands.version import __version__
from fieldguide.core.errors import UserError, needs_extra
from fieldguide.core.imports import import_closure
from support import ROOT
from support.app_server import png, write_model
from support.docker import carry_out, stages, words
from support.projects import TINY, copy_project
from support.structure import third_party

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UV = Path(sys.executable).with_name("uv")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONWARNINGS": "error"}
OF_DOCKER = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONWARNINGS"}  # pip warns
ASK_S = 30


def files_of_the_library() -> set[str]:
    files = (file for file in (ROOT / "fieldguide").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(ROOT).as_posix() for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, by the backend that requirements.txt pins, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    project = folder / "project"
    for name in ("fieldguide", "stages", "tests"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, project)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, project], check=True)
    return folder / f"fieldguide-{__version__}-py3-none-any.whl"


class Installed:
    """A new virtual environment, and a folder outside the checkout from which its command is called."""

    def __init__(self, folder: Path, *packages: str) -> None:
        self.python = folder / "venv" / "bin" / "python"
        self.folder = folder / "elsewhere"
        self.folder.mkdir()
        write_model(self.folder)
        (self.folder / "red.png").write_bytes(png())
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
        self.uv("install", "--quiet", *packages)
        self.uv("check", "--quiet")  # what is installed is all that it says it needs

    def uv(self, command: str, *arguments: str) -> str:
        called = [UV, "pip", command, "--python", self.python, *arguments]
        return subprocess.run(called, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout

    def fieldguide(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.python.with_name("fieldguide"), *arguments]
        return subprocess.run(command, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)

    def refusal(self, *arguments: str) -> str:
        """The one line of a command that stops with status 1."""
        ended = self.fieldguide(*arguments)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
        return ended.stderr.strip().removeprefix("error: ")


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What requirements-predict.txt pins, its hashes checked, and the wheel."""
    installed = Installed(
        tmp_path_factory.mktemp("base"), "--require-hashes", "--requirements", str(ROOT / "requirements-predict.txt")
    )
    installed.uv("install", "--quiet", "--no-deps", str(wheel))
    installed.uv("check", "--quiet")
    return installed


@pytest.fixture(scope="module")
def serving(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with its extra `serve`, in the versions that requirements.txt pins."""
    pins = str(ROOT / "requirements.txt")
    return Installed(tmp_path_factory.mktemp("serve"), "--constraints", pins, f"fieldguide[serve] @ {wheel.as_uri()}")


@pytest.mark.slow
def test_the_wheel_holds_the_library_with_its_templates_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"fieldguide-{__version__}.dist-info"
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert {name for name in names if not name.startswith(f"{info}/")} == files_of_the_library()
    assert {"fieldguide/report/templates/report.html", "fieldguide/web/templates/base.html"} <= names
    assert "fieldguide/web/static/guide.js" in names
    assert f"{info}/licenses/LICENSE" in names
    assert "fieldguide = fieldguide.__main__:console" in entry_points
    needed = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert [re.match(r"[\w-]+", text)[0] for text in needed] == ["numpy", "onnxruntime", "pillow"]
    assert set(metadata.get_all("Provides-Extra")) == {"heic", "serve", "train", "search", "team"}


@pytest.mark.slow
def test_prediction_needs_three_packages_and_what_these_bring(base: Installed) -> None:
    installed = {line.split("==")[0] for line in base.uv("freeze", "--quiet").splitlines() if "==" in line}
    assert installed == {"numpy", "onnxruntime", "pillow", "flatbuffers", "packaging", "protobuf"}
    ended = base.fieldguide("predict", "--model", "model.onnx", "red.png", "--format", "json", "--annotate", "out", "--heatmap")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)[0]["answers"][0]["name"] == "RED"
    assert (base.folder / "out" / "red.png.jpg").is_file()
    (base.folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    ended = base.fieldguide("predict", "--model", "model.onnx", "IMG_1.HEIC", "red.png")
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (3, "IMG_1.HEIC: a HEIC; install fieldguide[heic]")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["serve"], "fieldguide serve needs PACKAGE; install it with: pip install 'fieldguide[serve]'"),
        (["review"], "fieldguide review needs PACKAGE; install it with: pip install 'fieldguide[serve]'"),
        (["runs"], "fieldguide runs needs PACKAGE; install it with: pip install 'fieldguide[train]'"),
        (["sync"], "fieldguide sync needs PACKAGE; install it with: pip install 'fieldguide[train]'"),
        (["champion"], "fieldguide champion needs PACKAGE; install it with: pip install 'fieldguide[train]'"),
        (["search"], "fieldguide search needs PACKAGE; install it with: pip install 'fieldguide[search]'"),
        (
            ["predict", "red.png", "--model", "models:/fieldguide@champion"],
            "models:/fieldguide@champion: the model registry needs PACKAGE; install it with: pip install 'fieldguide[train]'",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_without_its_extra_says_what_to_install(base: Installed, command: list[str], line: str) -> None:
    assert re.sub(r"needs \w+;", "needs PACKAGE;", base.refusal(*command)) == line
    assert base.fieldguide(command[0], "--help").returncode == 0


@pytest.mark.slow
def test_the_page_needs_its_extra_alone(serving: Installed) -> None:
    """The page, what it links to, and the answer of the API."""
    command = [serving.python.with_name("fieldguide"), "serve", "--port", "0", "--model", "model.onnx"]
    with subprocess.Popen(command, cwd=serving.folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = [process.stdout.readline(), process.stdout.readline()]
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", said[1])[1])
            page = ask(port, "GET", "/").decode()
            linked = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page))
            assert {Path(path.partition("?")[0]).suffix for path in linked} >= {".css", ".js", ".svg"}
            assert all(ask(port, "GET", path) for path in linked)
            content = (serving.folder / "red.png").read_bytes()
            assert b'"RED"' in ask(port, "POST", "/api/predict", content)
        finally:
            process.terminate()
        assert process.wait() == 0
    line = "the model registry needs mlflow; install it with: pip install 'fieldguide[train]'"
    assert serving.refusal("serve", "--model", "models:/fieldguide@champion") == f"models:/fieldguide@champion: {line}"


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_a_page_that_answers_and_is_healthy(tmp_path: Path) -> None:
    """In a folder instead of an image: what is at / there lies below it."""
    build, final = stages(ROOT / "Dockerfile")
    carry_out(build, tmp_path, ("/src", "/opt"), OF_DOCKER)
    guide = tmp_path / "guide"
    (guide / "models").mkdir(parents=True)
    write_model(guide / "models")
    environment = ENVIRONMENT | {"PATH": f"{tmp_path / 'opt' / 'fieldguide' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [*words(final, "ENTRYPOINT"), "--port", "0", "--allowed-host", "guide.example.org"]
    with subprocess.Popen(command, cwd=guide, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = [process.stdout.readline(), process.stdout.readline()]
            port = re.search(r"http://0\.0\.0\.0:(\d+)", said[1])[1]
            check = [word.replace(":8000/", f":{port}/") for word in words(final, "HEALTHCHECK")]
            assert subprocess.run(check, env=environment, check=False).returncode == 0
        finally:
            process.terminate()
        assert process.wait() == 0
    assert subprocess.run(check, env=environment, stderr=subprocess.DEVNULL, check=False).returncode == 1


@pytest.mark.slow
def test_the_steps_of_the_pipelines_dockerfile_make_an_environment_that_runs_it(tmp_path: Path) -> None:
    """In a folder instead of an image, with the packages that `make setup` left in uv's cache."""
    (stage,) = stages(ROOT / "Dockerfile.pipeline")
    cache = subprocess.run([UV, "cache", "dir"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    install = [UV, "pip", "install", "--quiet", "--offline", "--dry-run", "--reinstall", "--python", sys.executable]
    pinned = ["--require-hashes", "--build-constraints", ROOT / "requirements.txt", "-r", ROOT / "requirements.txt"]
    if subprocess.run([*install, *pinned], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("not all packages are in uv's cache")
    if os.stat(cache).st_dev != os.stat(tmp_path).st_dev:
        pytest.skip("uv's cache is on another disk: installing would copy gigabytes")
    copy_project(tmp_path / "project", TINY)
    own = {"GIT_CONFIG_SYSTEM": str(tmp_path / "gitconfig"), "HOME": str(tmp_path / "home")}
    cached = {"UV_CACHE_DIR": cache, "UV_OFFLINE": "1"}
    carry_out(stage, tmp_path, ("/src", "/opt", "/project"), OF_DOCKER | own | cached)
    environment = OF_DOCKER | own | {"PATH": f"{tmp_path / 'opt' / 'fieldguide' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    assert (tmp_path / "opt" / "fieldguide" / "bin" / "python").exists()
    command = [*words(stage, "ENTRYPOINT"), *words(stage, "CMD"), "split_check"]
    ran = subprocess.run(command, cwd=tmp_path / "project", env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 classes; 48 train, 12 valid, 12 test" in ran.stdout
    name = subprocess.run(["git", "config", "user.name"], cwd=tmp_path / "project", env=environment, capture_output=True)
    assert name.stdout.decode().strip()  # for the commits of DVC's experiments


def ask(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    """The body of an answer with status 200."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_S)) as connection:
        connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        assert answer.status == 200, (path, answer.status)
        return answer.read()


@pytest.mark.parametrize("module", ["onnx/classifier.py", "core/images.py", "commands/predict.py"])
def test_prediction_imports_three_packages(module: str) -> None:
    files = import_closure(ROOT / "fieldguide" / module, ROOT)
    found = set().union(*map(third_party, files)) - set(sys.stdlib_module_names) - {"fieldguide"}
    assert found <= {"numpy", "PIL", "onnxruntime", "pillow_heif"}  # the last is an extra, imported to decode HEIC


@pytest.mark.parametrize("name", ["fieldguide.core.nothing", "_sqlite3", None])
def test_a_missing_module_that_no_extra_brings_stays_a_traceback(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), needs_extra("fieldguide serve", "serve"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_in_a_checkout_a_missing_package_is_a_matter_of_make_setup() -> None:
    with (
        pytest.raises(UserError, match=r"^fieldguide serve needs flask; install it with: make setup$"),
        needs_extra("fieldguide serve", "serve"),
    ):
        raise ModuleNotFoundError("No module named 'flask.views'", name="flask.views")


def pins(file: str) -> Iterator[str]:
    """`numpy==2.4.6 ; python_full_version < '3.12'`, …"""
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if re.match(r"[\w.-]+==", line):
            yield line.removesuffix(" \\")


def test_the_requirements_of_prediction_are_pins_of_the_whole() -> None:
    assert set(pins("requirements-predict.txt")) < set(pins("requirements.txt"))
