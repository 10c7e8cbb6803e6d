"""A team's servers, real ones on the loopback address: what is pushed is pulled by another, runs and models reach all."""

import http.client
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import psycopg
import pytest

from fieldguide.core.files import file_hash
from support import ROOT
from support.projects import BIN, TINY, copy_project, read, run

pytestmark = pytest.mark.slow
ENDED_WITHIN_S = 60


class Team:
    """docs/team.py at work, and what it says: `environment` to export, `remote` to add, `sql` to look into the database."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(ROOT / "docs" / "team.py")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        self.errors = folder / "errors"
        with self.errors.open("w") as stream:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stream, text=True)
        lines = []
        assert self.process.stdout
        for line in self.process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        else:
            raise AssertionError(self.errors.read_text())
        self.sql = next(line.split()[1] for line in lines if line.startswith("PostgreSQL"))
        self.environment = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        self.remote = shlex.split(next(line for line in lines if line.startswith("dvc ")))

    def stop(self) -> str:
        """Ctrl-C, and what it said then; none of its processes may be left."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        assert {process.name() for process in processes} >= {"postgres"}
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=ENDED_WITHIN_S)
        _, alive = psutil.wait_procs(processes, timeout=ENDED_WITHIN_S)
        assert not alive
        return said


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The servers, whose exports are in the environment."""
    servers = Team(tmp_path_factory.mktemp("team"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in servers.environment.items():
                patch.setenv(name, value)
            yield servers
        assert servers.stop().endswith("ended\n")
        assert (servers.process.returncode, servers.errors.read_text()) == (0, "")
    finally:
        servers.process.kill()
        servers.process.wait()


@pytest.fixture(scope="module")
def project(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project that is configured as the script says, run until its model is exported, committed and pushed."""
    target = tmp_path_factory.mktemp("first") / "project"
    copy_project(target, TINY)
    run(target, *team.remote)
    run(target, "dvc", "repro", "export_onnx")
    run(target, "git", "add", "--all")
    run(target, "git", "commit", "--quiet", "--message", "results")
    assert "files pushed" in run(target, "dvc", "push").stdout
    return target


@pytest.fixture(scope="module")
def clone(team: Team, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colleague's clone of it, without a cache."""
    target = tmp_path_factory.mktemp("second") / "project"
    subprocess.run(["git", "clone", "--quiet", str(project), str(target)], check=True)
    run(target, *team.remote)
    return target


def test_nothing_of_the_configuration_is_committed(team: Team, project: Path) -> None:
    assert run(project, "git", "status", "--porcelain").stdout == ""
    committed = run(
        project, "git", "grep", "-l", "-e", team.environment["AWS_SECRET_ACCESS_KEY"], "-e", "s3://dvc", check=False
    )
    assert set(committed.stdout.split()) <= {"docs/team.py", "docs/team.md"}


def test_what_was_pushed_is_pulled_and_reproduced_without_running_a_stage(project: Path, clone: Path) -> None:
    assert not (clone / "models" / "model.onnx").exists()
    assert not (clone / ".dvc" / "cache").exists()
    run(clone, "dvc", "pull", "--with-deps", "export_onnx")
    said = run(clone, "dvc", "repro", "export_onnx").stdout
    assert "Running stage" not in said
    assert said.count("didn't change, skipping") == 5
    for name in ("data/raw/images.zip", "data/manifest.csv", "models/model.safetensors", "models/model.onnx"):
        assert file_hash(clone / name) == file_hash(project / name)


def test_a_tagged_version_of_the_model_is_got_without_a_clone(team: Team, project: Path, clone: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    subprocess.run(["git", "clone", "--quiet", str(project), str(published)], check=True)
    run(published, "dvc", "remote", "add", "--default", "team", team.remote[-1])  # as a team would commit it
    run(published, "git", "commit", "--quiet", "--all", "--message", "remote")
    run(published, "git", "tag", "--annotate", "fieldguide@v1.0.0", "--message", "first")
    target = tmp_path / "elsewhere"
    target.mkdir()
    run(target, "dvc", "artifacts", "get", str(published), "fieldguide", "--out", "got.onnx")
    assert file_hash(target / "got.onnx") == file_hash(project / "models" / "model.onnx")


def test_a_run_is_in_postgresql_and_its_artifacts_in_s3(team: Team, project: Path) -> None:
    assert not (project / "mlflow.db").exists()
    digest = file_hash(project / "models" / "model.safetensors", "md5")
    with psycopg.connect(team.sql) as connection:
        query = "select run_uuid from tags where key = 'fieldguide.checkpoint_md5' and value = %s"
        [(run_id,)] = connection.execute(query, [digest]).fetchall()
        query = "select value from latest_metrics where run_uuid = %s and key = 'evaluate.test.accuracy'"
        [(accuracy,)] = connection.execute(query, [run_id]).fetchall()
    assert accuracy == pytest.approx(read(project, "evaluate")["test"]["accuracy"])
    listed = boto3.client("s3").list_objects_v2(Bucket="mlflow")["Contents"]
    sizes = {re.sub(r"^\d+/", "", entry["Key"]): entry["Size"] for entry in listed}
    predictions = project / "metrics" / "predictions.csv"
    assert sizes[f"{run_id}/artifacts/evaluate/predictions.csv"] == predictions.stat().st_size
    model = project / "models" / "model.onnx"
    assert [size for key, size in sizes.items() if key.endswith("/artifacts/model.onnx")] == [model.stat().st_size]


def test_the_champion_is_the_teams_and_needs_no_key_of_the_bucket(
    project: Path, clone: Path, monkeypatch: pytest.MonkeyPatch, make_jpeg
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    python = str(BIN / "python")
    said = run(project, python, "-m", "fieldguide", "champion").stdout
    assert said.splitlines()[-1] == "promoted: the first champion; models:/fieldguide@champion is version 1"
    (clone / "photo.jpg").write_bytes(make_jpeg())
    answers = [
        run(folder, python, "-m", "fieldguide", "predict", str(clone / "photo.jpg"), "--model", model, "--format", "csv").stdout
        for folder, model in ((project, "models/model.onnx"), (clone, "models:/fieldguide@champion"))
    ]
    assert answers[0] == answers[1]
    (fetched,) = (clone / ".fieldguide" / "models").iterdir()
    assert fetched.read_bytes() == (project / "models" / "model.onnx").read_bytes()


@pytest.mark.parametrize(("name", "status"), [("localhost", 200), ("elsewhere.example.org", 403)])
def test_the_server_answers_the_hosts_that_it_was_told_and_no_others(team: Team, name: str, status: int) -> None:
    port = urllib.parse.urlsplit(team.environment["MLFLOW_TRACKING_URI"]).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(
        "GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=fieldguide", headers={"Host": f"{name}:{port}"}
    )
    assert connection.getresponse().status == status
    connection.close()
