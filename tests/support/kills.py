"""Trainings that are killed at random moments end in the bytes of one that was not.

    python tests/support/kills.py [--kills 200] [--loader resident]
    python tests/support/kills.py --ranks 10 [--kills 2]

Makes a tiny sample in a temporary folder and trains on it with averaged weights, mixup, cutmix, growing pictures and
gradient accumulation on. Every third kill, a SIGKILL, waits for a file that is just being
written. tests/e2e/test_resume.py is the quick
lane. With --ranks so many trainings by two processes under torchrun are run, in each of which that many times one of the
processes is killed; tests/e2e/test_distributed.py is the quick lane.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import ROOT
from support.forked import AVAILABLE, ForkedStage
from support.settings import TEXT

OUTPUTS = ("models/model.safetensors", "metrics/train.json", "metrics/history.csv", "metrics/batch.png")
SETTINGS = {
    "species": "3",
    "train_images": "16",
    "valid_images": "4",
    "test_images": "2",
    "near_duplicates": "false",
    "epochs": "8",
    "name": "cnn",
    "optimizer": "sgd",
    "weight_decay": "0.0005",
    "lr": "0.01",
    "batch_size": "8",
    "decode_px": "32",
    "size_start": "0.5",
    "accumulate": "2",
    "ema": "0.9",
    "mixup": "0.3",
    "cutmix": "0.3",
}


class Project:
    """A folder in which stages run as DVC would run them."""

    def __init__(self, folder: Path, **changes: str) -> None:
        self.folder = folder
        text = TEXT
        text = re.sub(r"(?m)^(    image_px: )\S+", r"\g<1>32", text)  # of the sample
        text = re.sub(r"(?m)^(  image_px: )\S+", r"\g<1>32", text)
        for key, value in (SETTINGS | changes).items():
            text, n_changed = re.subn(rf"(?m)^( +{key}: )\S+", rf"\g<1>{value}", text)
            assert n_changed >= 1, key
        (folder / "params.yaml").write_text(text)
        for stage in ("download", "split_check"):
            assert self.start(stage).wait() == 0

    def start(self, stage: str, forked: bool = AVAILABLE) -> "subprocess.Popen | ForkedStage":
        """A stage in a process group of its own, without the outputs of an earlier run, as DVC does it.

        forked: from a process that has imported its libraries, as are then the processes that train together.
        """
        if stage == "train":
            self.remove_outputs()
        self.log_starts = len(self.whole_log)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(self.folder), "OMP_NUM_THREADS": "1"}
        if forked:
            return ForkedStage(f"stages.{stage}", self.folder, self.folder / "output.log", environment)
        command = [sys.executable, "-m", f"stages.{stage}"]
        with (self.folder / "output.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True)

    @property
    def whole_log(self) -> str:
        """What all stages have printed."""
        log = self.folder / "output.log"
        return log.read_text() if log.exists() else ""

    @property
    def log(self) -> str:
        """What the last stage has printed."""
        return self.whole_log[self.log_starts :]

    def remove_outputs(self) -> None:
        for output in OUTPUTS:
            (self.folder / output).unlink(missing_ok=True)

    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in OUTPUTS}

    def writing(self) -> bool:
        """Whether a file of the training's state is just being written."""
        return any((self.folder / ".fieldguide" / "unfinished").glob("*/.*.tmp"))

    def killed(self, chance: random.Random, seconds: float, number: signal.Signals, in_write: bool) -> bool:
        """One run that is killed after up to that many seconds of training; False where it ended before."""
        process = self.start("train")
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until and not self.begun():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, seconds))
        while in_write and process.poll() is None and not self.writing():
            time.sleep(0.0005)
        if process.poll() is None:
            (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
        code = process.wait()
        assert code in (0, -number, 128 + number), self.whole_log
        return code != 0

    def ranks(self, launcher: "subprocess.Popen | ForkedStage") -> list[psutil.Process]:
        """The processes that train together."""
        try:
            return [child for child in psutil.Process(launcher.pid).children() if "stages.train" in child.cmdline()]
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return []

    def n_states(self) -> int:
        """How many states the training has saved."""
        states = self.folder.glob(".fieldguide/unfinished/*/state-*")
        return max((int(state.name.split("-")[1]) for state in states), default=0)

    def kill_a_rank(
        self, launcher: "subprocess.Popen | ForkedStage", chance: random.Random, seconds: float, known: set[int]
    ) -> None:
        """Kills one of the processes that are not `known`, up to that many seconds after they have saved a state."""
        before = self.n_states()
        while launcher.poll() is None:
            ranks = [rank for rank in self.ranks(launcher) if rank.pid not in known]
            if ranks and self.n_states() > before:
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, seconds))
        assert launcher.poll() is None, "the training ended before it could be killed: " + self.whole_log
        known |= {rank.pid for rank in ranks}
        chance.choice(ranks).kill()

    def begun(self) -> bool:
        """Whether the run that was started last writes outputs: its picture of a batch comes first."""
        return (self.folder / "metrics" / "batch.png").exists()


def kill_and_compare(folder: Path, n_kills: int, seed: int, signals: tuple[signal.Signals, ...], **changes: str) -> int:
    """Number of trainings that were killed at least once and then ended; all in the bytes of an undisturbed one."""
    chance, n_killed, n_ended = random.Random(seed), 0, 0
    project = Project(folder, **changes)
    start = time.monotonic()
    assert project.start("train").wait() == 0, project.whole_log
    expected, was_killed = project.hashes(), False
    seconds = 0.4 * (time.monotonic() - start)
    assert not any((folder / ".fieldguide" / "unfinished").glob("*/*"))
    while n_killed < n_kills or was_killed:
        if n_killed < n_kills:
            killed = project.killed(chance, seconds, signals[n_killed % len(signals)], in_write=n_killed % 3 == 1)
        else:
            assert project.start("train").wait() == 0, project.whole_log
            killed = False
        n_killed += killed
        if not killed:
            assert project.hashes() == expected
            n_ended += was_killed
        was_killed = killed
    return n_ended


def kill_ranks_and_compare(folder: Path, n_runs: int, n_kills: int, seed: int, **changes: str) -> None:
    """Trainings by two processes, one of which dies that many times in each: all end in an undisturbed one's bytes."""
    chance, project = random.Random(seed), Project(folder, devices="2", **changes)
    assert project.start("train").wait() == 0, project.whole_log
    expected = project.hashes()
    for _ in range(n_runs):
        launcher, known = project.start("train"), set()
        for _ in range(n_kills):
            project.kill_a_rank(launcher, chance, seconds=0.5, known=known)
        assert launcher.wait() == 0, project.whole_log
        assert project.hashes() == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--ranks", type=int, default=0, help="trainings by two processes of which one is killed")
    parser.add_argument("--loader", choices=["resident", "streaming"], default="resident")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        if arguments.ranks:
            n_kills = arguments.kills or 2
            kill_ranks_and_compare(folder, arguments.ranks, n_kills, arguments.seed, loader=arguments.loader)
            n_went_on = (folder / "output.log").read_text().count("resuming after")
            print(f"{arguments.ranks} trainings by two processes, one killed {n_kills} times in each, all in the same bytes;")
            print(f"{n_went_on} times a training resumed from a saved state")
            return
        n_kills = arguments.kills or 200
        signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
        n_ended = kill_and_compare(folder, n_kills, arguments.seed, signals, loader=arguments.loader)
        log = (folder / "output.log").read_text()
        print(f"{n_kills} kills, {n_ended} trainings ended after them, all in the same bytes;")
        print(f"{log.count('resuming after')} times a training resumed from a saved state")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
