"""A training that was killed goes on from its state, in the same bytes; nothing damaged or foreign is taken for it."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from fieldguide.core.errors import UserError
from fieldguide.core.files import write_bytes
from fieldguide.core.paths import unfinished
from fieldguide.training import resume
from fieldguide.training.resume import KEPT, States, forget, states_of, stop_signals
from support import ROOT
from support.kills import OUTPUTS, Project, kill_and_compare

FACTS = {"history": [{"epoch": 1, "loss": 0.1 + 0.2}], "best": 1}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(value: float) -> dict[str, object]:
    tensors = {"weight": torch.full((3, 2), value), "count": torch.tensor(7), "half": torch.ones(2).bfloat16()}
    return {"model": tensors} | FACTS


def filled(folder: Path, n_states: int) -> States:
    """States 1 to n, each with a checkpoint of its own number."""
    folder.mkdir(exist_ok=True)
    states = States(folder)
    for number in range(1, n_states + 1):
        Path("model.bin").write_bytes(bytes([number]) * 100)
        states.save(state(number) | {"number": number}, files=(Path("model.bin"),))
    states.finish()
    return states


def test_a_state_comes_back_to_the_bit_with_its_files(root: Path) -> None:
    states = filled(root / "states", 1)
    Path("model.bin").unlink()
    found = states.load()
    assert found.keys() == state(1).keys() | {"number"}
    assert found["history"] == FACTS["history"]
    assert found["model"].keys() == state(1)["model"].keys()
    assert all(found["model"][name].equal(tensor) for name, tensor in state(1)["model"].items())
    assert found["model"]["half"].dtype == torch.bfloat16
    assert Path("model.bin").read_bytes() == b"\1" * 100


def test_a_state_is_what_it_was_when_it_was_saved_though_it_is_written_later(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "states").mkdir()
    goes_on, saved, history = threading.Event(), state(1), list(FACTS["history"])
    monkeypatch.setattr(resume, "write_bytes", lambda *given: goes_on.wait(60) and write_bytes(*given))
    states = States(root / "states")
    Path("model.bin").write_bytes(b"first")
    states.save(saved | {"history": history}, files=(Path("model.bin"),))  # returns, though nothing can be written yet
    assert not any((root / "states").iterdir())
    saved["model"]["weight"].fill_(2)  # as the next step does
    history.append({"epoch": 2})
    Path("model.bin").write_bytes(b"next")
    goes_on.set()
    found = states.load()
    assert found["model"]["weight"].equal(state(1)["model"]["weight"])
    assert found["history"] == FACTS["history"]
    assert Path("model.bin").read_bytes() == b"first"


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "state")


def test_a_training_that_has_ended_needs_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "write_bytes", full)
    with states_of({}) as states:
        states.save(state(1))
    assert not states.folder.exists()


def test_an_error_is_not_hidden_by_a_state_that_could_not_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resume, "write_bytes", full)
    with pytest.raises(RuntimeError, match=r"^loss is nan$"), states_of({}) as states:
        states.save(state(1))
        raise RuntimeError("loss is nan")
    assert capsys.readouterr().err == "warning: [Errno 28] No space left on device: 'state'\n"


def test_a_state_that_could_not_be_written_is_told_by_the_next_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = filled(root / "states", 1)
    with monkeypatch.context() as patched:
        patched.setattr(resume, "write_bytes", full)
        states.save(state(2))
        with pytest.raises(OSError, match="No space left"):
            states.save(state(3))
    assert States(root / "states").load()["number"] == 1


def test_no_state_is_none(root: Path) -> None:
    assert States(root).load() is None


def test_the_newest_is_taken_and_only_the_last_are_kept(root: Path) -> None:
    states = filled(root / "states", 12)
    assert states.load()["number"] == 12
    assert len(list((root / "states").glob("state-*"))) == KEPT
    assert len(list((root / "states").iterdir())) == KEPT


def test_any_flipped_bit_sends_back_to_the_state_before(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in range(0, 100, 7):
        states = filled(root / f"states {place}", 3)
        damaged = max((root / f"states {place}").glob("state-*"))
        content = bytearray(damaged.read_bytes())
        content[place * len(content) // 100] ^= 1 << place % 8
        damaged.write_bytes(content)
        assert states.load()["number"] == 2
        assert Path("model.bin").read_bytes() == b"\2" * 100
        assert "is damaged; resuming from the state before it" in capsys.readouterr().err


def test_with_all_states_damaged_it_begins_anew(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = filled(root / "states", 3)
    for path in (root / "states").glob("state-*"):
        path.write_bytes(path.read_bytes()[:-1])
    assert states.load() is None
    assert capsys.readouterr().err.count("is damaged") == KEPT
    states.save(state(4) | {"number": 4})
    assert states.load()["number"] == 4


def test_a_state_of_an_earlier_release_is_left_alone(root: Path) -> None:
    folder = unfinished() / "of before"
    folder.mkdir(parents=True)
    content = b"tensors in another form"
    old = folder / f"state-000001-{hashlib.sha256(content).hexdigest()}.safetensors"
    old.write_bytes(content)
    assert States(folder).load() is None
    forget("some run")
    assert old.exists()


def test_a_half_written_state_is_never_seen(root: Path) -> None:
    states = filled(root / "states", 1)
    (root / "states" / ".state-000002-ab.safetensors.x.tmp").write_bytes(b"half")
    assert states.load()["number"] == 1


def test_other_values_have_other_states() -> None:
    with pytest.raises(RuntimeError), states_of({"train": {"lr": 0.1}}) as states:
        states.save(state(1))
        raise RuntimeError
    with pytest.raises(RuntimeError), states_of({"train": {"lr": 0.2}}) as states:
        assert states.load() is None
        raise RuntimeError
    with states_of({"train": {"lr": 0.1}}) as states:
        assert states.load() is not None
    with states_of({"train": {"lr": 0.1}}) as states:  # that one has ended
        assert states.load() is None


def test_a_second_process_on_the_same_training_is_refused() -> None:
    hold = "from fieldguide.training.resume import states_of\nwith states_of({'a': 1}): print('held', flush=True); input()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", hold], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is running this training"), states_of({"a": 1}):
            pass
        with states_of({"a": 2}):
            pass
        other.communicate("\n")
    with states_of({"a": 1}):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted_and_the_handlers_come_back(number: int) -> None:
    def own(*_: object) -> None:
        raise AssertionError

    before = signal.signal(number, own)  # whatever it is: SIGHUP is ignored where the tests run under nohup
    try:
        with stop_signals() as stop:
            assert stop() == 0
            os.kill(os.getpid(), number)
            assert stop() == number
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)


def test_a_terminal_that_is_closed_ends_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_ends_a_step_that_never_ends(number: signal.Signals) -> None:
    code = f"""if True:
        import multiprocessing, os, signal, threading, time
        from fieldguide.training import resume
        resume.STUCK_SECONDS = 0.5
        signal.signal({int(number)}, signal.SIG_DFL)  # SIGHUP may be ignored here, as under nohup
        with resume.stop_signals():
            worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            worker.start()
            print(worker.pid, flush=True)
            os.kill(os.getpid(), {int(number)})
            threading.Event().wait()  # for an image that cannot be read
    """
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 128 + number
    assert ended.stderr == f"{number.name}: no step ended within 0 s; ending without it, resume with the same command\n"
    with suppress(psutil.NoSuchProcess):
        worker = psutil.Process(int(ended.stdout))
        for _ in range(100):
            if worker.status() == psutil.STATUS_ZOMBIE:  # nobody has asked for its status
                break
            time.sleep(0.1)
        else:
            pytest.fail("the worker lives")


def test_a_step_that_ends_in_time_is_not_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "STUCK_SECONDS", 0.3)
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM
        time.sleep(0.6)  # writing the state may take longer


@pytest.mark.parametrize("loader", ["resident", pytest.param("streaming", marks=pytest.mark.slow)])
def test_a_training_that_was_killed_goes_on_in_the_same_bytes(root: Path, loader: str) -> None:
    project = Project(root, loader=loader, epochs="5")
    assert project.start("train").wait() == 0, project.whole_log
    expected = project.hashes()
    process = project.start("train")
    while project.n_states() < 2:
        assert process.poll() is None, project.whole_log
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert project.start("train").wait() == 0, project.whole_log
    assert "resuming after epoch" in project.whole_log
    assert project.hashes() == expected


@pytest.mark.slow
def test_killed_trainings_end_in_the_bytes_of_an_undisturbed_one(root: Path) -> None:
    """Three kills at random, one of each kind; `python tests/support/kills.py` makes two hundred."""
    signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
    assert kill_and_compare(root, 3, seed=1, signals=signals) >= 1
    assert "resuming after" in (root / "output.log").read_text()


@pytest.mark.slow
def test_a_training_told_to_end_says_so_and_a_changed_rate_begins_anew(root: Path) -> None:
    project = Project(root, epochs="200")
    process = project.start("train")
    while not (root / "metrics" / "history.csv").exists():
        assert process.poll() is None, project.whole_log
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert "SIGTERM: stopped after epoch" in project.whole_log
    assert len(list(unfinished().glob("*/state-*"))) >= 1
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 200", "epochs: 2"))
    assert project.start("train").wait() == 0
    assert "resuming after" not in project.whole_log
    assert json.loads((root / "metrics" / "train.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_a_training_told_to_end_after_its_last_step_is_there_for_the_next_start(root: Path) -> None:
    """DVC may be gone by then: it takes no output of a stage that it has not seen end, and starts it again."""
    project = Project(root, epochs="2")
    process = project.start("train")
    while not (root / "metrics" / "train.json").exists():  # the first of what is written at the end
        assert process.poll() is None, project.whole_log
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, -signal.SIGTERM)
    assert list(unfinished().glob("*/state-*"))
    assert project.start("train").wait() == 0
    assert "resuming after epoch 2\n" in project.whole_log
    assert all((root / output).exists() for output in OUTPUTS)
    assert not any(unfinished().glob("*/*"))
