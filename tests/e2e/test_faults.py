"""What ends a training, and what is left afterwards; every row of docs/faults.md has a test."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from fieldguide.core.errors import UserError
from fieldguide.training.fit import out_of_memory_explained
from fieldguide.training.loop import Training
from stages import train
from support import ROOT
from support.disk import on_a_tiny_disk
from support.forked import python_folder
from support.kills import Project
from support.projects import BIN, TINY, copy_project, run, wait_for_queue
from support.settings import PARAMS

ROWS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "faults.md").read_text())
MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")  # in MLflow


@pytest.mark.parametrize(("file", "test"), ROWS)
def test_each_test_that_the_table_names_is_there(file: str, test: str) -> None:
    assert re.search(rf"(?m)^def {test}\(", (ROOT / file).read_text())


def test_each_row_of_the_table_names_a_test() -> None:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| fault", "| ---"))]
    assert len(rows) >= 20
    assert all(re.search(r"`tests/[\w/]+\.py::\w+`", row) for row in rows)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path, epochs="3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return made


def states(project: Project) -> list[Path]:
    return sorted((project.folder / ".fieldguide" / "unfinished").glob("*/state-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError(MEMORY), r"^out of memory with train.batch_size 8 at \d+ px; halve batch_size and set"
         r" train.accumulate=4, or lower model.image_px \(CUDA out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "^out of memory with train.batch_size 8"),
    ],
)  # fmt: skip
def test_out_of_memory_says_what_to_try_and_keeps_the_last_state(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    train.main()
    expected = project.hashes()
    learn, calls = Training.learn, []

    def learn_until_full(*given: object) -> object:
        calls.append(1)
        if len(calls) == 9:  # of six batches an epoch
            raise error
        return learn(*given)

    monkeypatch.setattr(Training, "learn", learn_until_full)
    with pytest.raises(UserError, match=message) as caught:
        train.main()
    assert "\n" not in str(caught.value)
    assert states(project)
    monkeypatch.setattr(Training, "learn", learn)
    train.main()
    assert "resuming after epoch 1" in capsys.readouterr().out
    assert project.hashes() == expected


@pytest.mark.parametrize(
    "words",
    ["CUDA error: an illegal memory access was encountered", "Pin memory thread exited unexpectedly", "expected a 4D tensor"],
)
def test_another_error_of_torch_is_not_explained_with_memory(words: str) -> None:
    error = RuntimeError(words)
    with pytest.raises(RuntimeError) as caught, out_of_memory_explained(PARAMS.train, 64):
        raise error
    assert caught.value is error


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, calls = Training.learn, []

    def learn_until_nan(*given: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        loss, scores = learn(*given)
        return (loss * float("nan") if len(calls) == 9 else loss), scores

    monkeypatch.setattr(Training, "learn", learn_until_nan)
    with pytest.raises(UserError, match=r"^epoch 2, batch 3: loss is nan; lower train.lr"):
        train.main()
    (state,) = states(project)
    assert state.name.startswith("state-000001-")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "kilobytes", "message"),
    [
        (
            ".fieldguide/unfinished",
            64,
            r"error: \S+: \S+ GB are needed for the state of the training, \S+ GB are free; free disk space",
        ),
        ("models", 64, r"error: models/model.safetensors: could not be written \(No space left on device\); free disk space"),
    ],
)
def test_a_disk_that_is_full_is_one_line_and_leaves_the_outputs(
    project: Project, where: str, kilobytes: int, message: str
) -> None:
    train.main()
    before = project.hashes()
    (project.folder / where).mkdir(parents=True, exist_ok=True)
    script = "import os, runpy, sys; os.chdir(sys.argv[1]); runpy.run_module('stages.train', run_name='__main__')"
    command = ["env", f"DVC_ROOT={project.folder}", f"PYTHONPATH={ROOT}", sys.executable, "-c", script, str(project.folder)]
    done = on_a_tiny_disk(project.folder / where, command, kilobytes)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    after = project.hashes()
    assert after["models/model.safetensors"] == before["models/model.safetensors"]
    assert after["metrics/train.json"] == before["metrics/train.json"]


@pytest.mark.slow
def test_of_two_trainings_in_one_workspace_the_second_is_refused_and_the_first_unharmed(project: Project) -> None:
    assert project.start("train").wait() == 0
    expected = project.hashes()
    first = project.start("train")
    while not project.begun():
        time.sleep(0.01)
    second = subprocess.run(
        [python_folder() / "python", "-m", "stages.train"],
        cwd=project.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if first.poll() is None or second.returncode:
        assert second.returncode == 1
        assert "another process is running this training; wait for it, or stop it first" in second.stderr
    assert first.wait() == 0
    assert project.hashes() == expected


EPOCHS = "20"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a tiny sample, checked, and a long training to come."""
    target = tmp_path_factory.mktemp("faults") / "a field guide"
    target.mkdir()
    copy_project(target, TINY)
    params = target / "params.yaml"
    params.write_text(re.sub(r"\n  epochs: \d+ ", f"\n  epochs: {EPOCHS} ", params.read_text()))
    run(target, "dvc", "repro", "split_check")
    run(target, "git", "add", "--all")
    run(target, "git", "commit", "--quiet", "--message", "data")
    return target


def wait_for_a_state(repository: Path, n_epochs: int) -> None:
    """Until a training in a temporary folder has come so far."""
    for _ in range(2400):
        numbers = [int(path.name.split("-")[1]) for path in repository.glob(".fieldguide/unfinished/*/state-*")]
        if max(numbers, default=0) >= n_epochs:
            return
        time.sleep(0.05)
    raise AssertionError("no state was saved")


def kill_stage(repository: Path) -> None:
    """Kills the processes of stage train that work for this repository, as a power cut would."""
    for folder in Path("/proc").iterdir():
        if (
            folder.name.isdigit()
            and "stages.train" in _read(folder / "cmdline")
            and str(repository) in _read(folder / "environ")
        ):
            os.kill(int(folder.name), signal.SIGKILL)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def model_md5(repository: Path, experiment: str = "") -> str:
    """The hash of the model that an experiment, or the workspace, ended with."""
    text = (repository / "dvc.lock").read_text()
    if experiment:
        references = run(repository, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
        (reference,) = [name for name in references if name.endswith(f"/{experiment}")]
        text = run(repository, "git", "show", f"{reference}:dvc.lock").stdout
    outs = yaml.safe_load(text)["stages"]["train"]["outs"]
    return next(out["md5"] for out in outs if out["path"] == "models/model.safetensors")


@pytest.mark.slow
def test_experiments_in_temporary_folders_go_on_after_a_kill(repository: Path) -> None:
    """`dvc exp run --temp`, then `--queue`: killed, started again, and in the bytes of an undisturbed `dvc repro`."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["dvc", "exp", "run", "--temp", "--name", "temporary", "train"]
    with (repository.parent / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=repository, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_for_a_state(repository, 5)
        os.killpg(first.pid, signal.SIGKILL)
        kill_stage(repository)
        first.wait()
    assert "resuming after epoch" in run(repository, *command).stdout
    digests = [model_md5(repository, "temporary")]

    for name in ("queued", "again"):
        run(repository, "dvc", "exp", "run", "--queue", "--name", name, "-S", "train.seed=7", "train")
        run(repository, "dvc", "queue", "start")
        if name == "queued":
            wait_for_a_state(repository, 5)
            kill_stage(repository)
        wait_for_queue(repository)
    assert "resuming after epoch" in run(repository, "dvc", "queue", "logs", "again").stdout
    digests.append(model_md5(repository, "again"))

    undisturbed = []
    for seed in ("1", "7"):
        params = repository / "params.yaml"
        params.write_text(re.sub(r"(?m)^(  compile: .*\n  seed: )\d+", rf"\g<1>{seed}", params.read_text()))
        output = run(repository, "dvc", "repro", "--force", "--single-item", "train").stdout
        assert "resuming after" not in output
        undisturbed.append(model_md5(repository))
    assert digests == undisturbed
