"""The saved state of an unfinished training: a killed training resumes from it and produces the same bytes.

States are below the project folder, outside the outputs, which DVC deletes before a stage runs. The name of their folder is a
hash of everything that the result depends on: another learning rate, data set or code has another folder. Every file is
written atomically and has the SHA-256 of its content in its name.
"""

import hashlib
import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash, write_bytes
from fieldguide.core.paths import unfinished
from fieldguide.network.loader import STOP_SIGNALS

KEPT = 2  # states; the older one replaces a damaged newer one
FACTS = "fieldguide"


class State(NamedTuple):
    """The tensors and facts from which a training resumes."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]  # JSON

    def pack(self) -> bytes:
        """The content of a file."""
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        return save(flat, metadata={FACTS: json.dumps(self.facts)})

    @classmethod
    def unpack(cls, content: bytes) -> "State":
        n_header = int.from_bytes(content[:8], "little")  # https://huggingface.co/docs/safetensors: size, then JSON
        return cls(load(content), json.loads(json.loads(content[8 : 8 + n_header])["__metadata__"][FACTS]))


class States:
    """The saved states of one training, written by a background thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._written: Future[None] | None = None  # of the last state
        self.kept = False  # whether they are kept after the training has ended

    def save(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any], files: tuple[Path, ...] = ()) -> None:
        """Saves a state with copies of the `files` that belong to it; keeps the last `KEPT` states.

        Everything is copied before this returns, and on the disk after `finish`. Raises the error of the previous save.
        """
        self.finish()
        copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        state = State(copied, deepcopy(facts))
        self._written = self._thread.submit(self._write, state, {file: file.read_bytes() for file in files})

    def finish(self) -> None:
        """Waits until the last state is on the disk; raises its error, once."""
        if self._written is not None:
            wait([self._written])
            written, self._written = self._written, None
            written.result()

    def _write(self, state: State, files: dict[Path, bytes]) -> None:
        copies = {}
        for file, content in files.items():
            copies[str(file)] = hashlib.sha256(content).hexdigest()
            copy = self._copy(copies[str(file)])
            if not copy.exists():
                write_bytes(copy, content)
        content = State(state.tensors, state.facts | {"files": copies}).pack()
        number = 1 + max((_number(state) for state in self._all()), default=0)
        write_bytes(self.folder / f"state-{number:06d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
        self._prune()

    def require_space(self, n_bytes: int) -> None:
        """Raises `UserError` if the disk has no room for the states of a training, of `n_bytes` each."""
        free, needed = shutil.disk_usage(self.folder).free, (KEPT + 1) * n_bytes
        if free < needed:
            raise UserError(
                f"{self.folder}: {free / 1e9:.1f} GB free, but the state of the training needs"
                f" {needed / 1e9:.1f} GB; free disk space"
            )

    def load(self) -> State | None:
        """The newest intact state, after restoring its files; None if there is none."""
        self.finish()
        for path in reversed(self._all()):
            state = self._read(path)
            if state is not None:
                return state
            print(f"warning: {path} is damaged; resuming from the state before it", file=sys.stderr)
            path.unlink()
        return None

    def remove(self) -> None:
        """Removes all states after the training has ended; ignores a state that could not be written."""
        self._thread.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path) -> State | None:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() not in path.name:
            return None
        facts = _facts(path)
        copies = {Path(target): self._copy(digest) for target, digest in facts["files"].items()}
        if not all(copy.is_file() and file_hash(copy) in copy.name for copy in copies.values()):
            return None
        for target, copy in copies.items():
            write_bytes(target, copy.read_bytes())
        return State.unpack(content)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.safetensors"), key=_number)

    def _copy(self, digest: str) -> Path:
        return self.folder / f"file-{digest}"

    def _files_of(self, state: Path) -> Collection[str]:
        try:
            return _facts(state)["files"].values()
        except SafetensorError:  # damaged
            return []

    def _prune(self) -> None:
        for old in self._all()[:-KEPT]:
            old.unlink()
        used = {digest for state in self._all() for digest in self._files_of(state)}
        for copy in self.folder.glob("file-*"):
            if copy.name.removeprefix("file-") not in used:
                copy.unlink()


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """A function that returns the first of `STOP_SIGNALS` received (0: none), to stop after a step with a saved state.

    A second SIGINT interrupts immediately. SIGHUP stays ignored under nohup. Does nothing outside the main thread.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    ignored = {number for number in STOP_SIGNALS if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN}
    before = {number: signal.signal(number, note) for number in STOP_SIGNALS if number not in ignored}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def states_of(depends_on: dict[str, Any]) -> Iterator[States]:
    """The states of the training that these values define (JSON); removes them after the block.

    Keeps them after an error, or if `kept` is set. Raises `UserError` while another process runs the same training.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    folder = unfinished() / key
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(unfinished() / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is running this training; wait for it, or stop it first") from error
    try:
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
            states.remove()
    finally:
        lock.release()


def forget(run_key: str) -> None:
    """Removes the states of the training that is tracked as this run."""
    for state in unfinished().glob("*/state-*.safetensors"):
        with suppress(FileNotFoundError, SafetensorError):  # removed by a running training; damaged
            if _facts(state)["run_key"] == run_key:
                shutil.rmtree(state.parent)


def _number(state: Path) -> int:
    return int(state.name.split("-")[1])


def _facts(state: Path) -> dict[str, Any]:
    """The facts in a state's header, without its tensors."""
    with safe_open(state, framework="pt") as file:
        return json.loads(file.metadata()[FACTS])
