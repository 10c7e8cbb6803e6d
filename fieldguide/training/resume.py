"""The saved state of an unfinished training: a killed training resumes from it and produces the same bytes.

States are below the project folder, outside the outputs, which DVC deletes before a stage runs. The name of their folder is a
hash of everything that the result depends on: another learning rate, data set or code has another folder. Every file is
written atomically and has the SHA-256 of its content in its name, whose ending tells it from files of earlier releases.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout

from fieldguide.core.errors import UserError
from fieldguide.core.files import write_bytes
from fieldguide.core.paths import unfinished
from fieldguide.network.loader import STOP_SIGNALS

STUCK_SECONDS = 60.0  # after a signal, for a step to end
KEPT = 2  # states; the older one replaces a damaged newer one
FILES = "state-*.pt"


class States:
    """The saved states of one training, written by a background thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._written: Future[None] | None = None  # of the last state
        self.kept = False  # whether they are kept after the training has ended

    def save(self, state: dict[str, Any], files: tuple[Path, ...] = ()) -> None:
        """Saves a state of plain values and tensors, with the content of `files`; keeps the last `KEPT` states.

        Everything is copied before this returns, and on the disk after `finish`. Raises the error of the previous save.
        """
        self.finish()
        copies = {str(file): torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files}
        stream = io.BytesIO()
        torch.save(state | {"files": copies}, stream)
        self._written = self.thread.submit(self._write, stream.getvalue())

    def finish(self) -> None:
        """Waits until the last state is on the disk; raises its error, once."""
        if self._written is not None:
            wait([self._written])
            written, self._written = self._written, None
            written.result()

    def _write(self, content: bytes) -> None:
        number = 1 + max((int(path.name.split("-")[1]) for path in self._all()), default=0)
        write_bytes(self.folder / f"state-{number:06d}-{hashlib.sha256(content).hexdigest()}.pt", content)
        for old in self._all()[:-KEPT]:
            old.unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest intact state, on the CPU, after restoring its files; None if there is none."""
        self.finish()
        for path in reversed(self._all()):
            state = _read(path)
            if state is not None:
                for file, copy in state.pop("files").items():
                    write_bytes(Path(file), copy.numpy().tobytes())
                return state
            print(f"warning: {path} is damaged; resuming from the state before it", file=sys.stderr)
            path.unlink()
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob(FILES))


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """A function that returns the first of `STOP_SIGNALS` received (0: none), to stop after a step with a saved state.

    A second SIGINT interrupts immediately, and the process is ended if the function is not called within `STUCK_SECONDS` of the
    signal: the step waits for an image that cannot be read. SIGHUP stays ignored under nohup.
    """
    received: list[int] = []
    stuck = threading.Timer(STUCK_SECONDS, lambda: _end_now(received[0]))
    stuck.daemon = True

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if len(received) == 1:
            stuck.start()

    def stop() -> int:
        if received:
            stuck.cancel()
        return received[0] if received else 0

    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    before = {number: signal.signal(number, note) for number in STOP_SIGNALS if number != signal.SIGHUP or not is_nohup}
    try:
        yield stop
    finally:
        stuck.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_now(number: int) -> None:
    """Ends this process and those that it started; the state of the last epoch is on the disk."""
    name, waited = signal.Signals(number).name, f"no step ended within {STUCK_SECONDS:.0f} s"
    with suppress(OSError):  # the terminal is closed
        print(f"{name}: {waited}; ending without it, resume with the same command", file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(128 + number)


@contextmanager
def states_of(depends_on: dict[str, Any]) -> Iterator[States]:
    """The states of the training that these values define (JSON); removes them after the block.

    Keeps them after an error, or if `kept` is set. Raises `UserError` while another process runs the same training.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    folder = unfinished() / key
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(unfinished() / f"{key}.lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is running this training; wait for it, or stop it first") from error
    with lock:
        states = States(folder)
        try:
            yield states
        except BaseException:
            try:
                states.finish()
            except (UserError, OSError) as error:
                with suppress(OSError):  # the terminal is closed
                    print(f"warning: {error}", file=sys.stderr)
            with suppress(OSError):  # empty if there is no state yet
                folder.rmdir()
            raise
        if not states.kept:
            states.thread.shutdown()  # without the error of a state that could not be written
            shutil.rmtree(folder, ignore_errors=True)


def forget(run_key: str) -> None:
    """Removes the states of the training that is tracked as this run."""
    for path in unfinished().glob(f"*/{FILES}"):
        with suppress(FileNotFoundError):  # removed by a running training
            state = _read(path)
            if state is not None and state["run_key"] == run_key:
                shutil.rmtree(path.parent)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a state's file; None if it is damaged."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() not in path.name:
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
