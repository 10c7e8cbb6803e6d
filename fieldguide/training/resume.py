"""The state of a training that has not ended: one that was killed goes on from it and ends in the same bytes.

It lies at the project's root, outside the outputs, which DVC deletes before a stage runs, in a folder named after all that
the result depends on: another learning rate, other data or other code never find it. Every file is written atomically and
carries the SHA-256 of its content in its name.
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

KEPT = 2  # states; the older one is for the case that the newest is damaged
FACTS = "fieldguide"


class State(NamedTuple):
    """What a training needs to go on."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]  # as JSON holds it

    def packed(self) -> bytes:
        """Both as the content of a file."""
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        return save(flat, metadata={FACTS: json.dumps(self.facts)})

    @classmethod
    def unpacked(cls, content: bytes) -> "State":
        """What was `packed`."""
        n_header = int.from_bytes(content[:8], "little")  # https://huggingface.co/docs/safetensors: size, then JSON
        return cls(load(content), json.loads(json.loads(content[8 : 8 + n_header])["__metadata__"][FACTS]))


class States:
    """The saved states of one training. A thread writes them while the training goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._written: Future[None] | None = None  # the last one, when it is
        self.kept = False  # though the training has ended

    def save(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any], files: tuple[Path, ...] = ()) -> None:
        """A new state, and copies of `files` that it rests on; older ones but for `KEPT` are removed afterwards.

        All is copied before this returns and on the disk after `finish`. Raises what the state before it met.
        """
        self.finish()
        copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        state = State(copied, deepcopy(facts))
        self._written = self._thread.submit(self._write, state, {file: file.read_bytes() for file in files})

    def finish(self) -> None:
        """Waits until the last state is on the disk; raises what it met, once."""
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
        content = State(state.tensors, state.facts | {"files": copies}).packed()
        number = 1 + max((_number(state) for state in self._all()), default=0)
        write_bytes(self.folder / f"state-{number:06d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
        self._prune()

    def require_space(self, n_bytes: int) -> None:
        """Raises `UserError` unless the disk can take the states of a training, each of that size, before it has begun."""
        free, needed = shutil.disk_usage(self.folder).free, (KEPT + 1) * n_bytes
        if free < needed:
            raise UserError(
                f"{self.folder}: {free / 1e9:.1f} GB free, the training's state needs {needed / 1e9:.1f} GB; free space there"
            )

    def load(self) -> State | None:
        """The newest state that is whole, with its files put in their places; None where there is none."""
        self.finish()
        for path in reversed(self._all()):
            state = self._read(path)
            if state is not None:
                return state
            print(f"warning: {path} is damaged; going on from the state before it", file=sys.stderr)
            path.unlink()
        return None

    def remove(self) -> None:
        """Everything, once the training has ended; a state that cannot be written does not matter then."""
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
        return State.unpacked(content)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.safetensors"), key=_number)

    def _copy(self, digest: str) -> Path:
        return self.folder / f"file-{digest}"

    def _files_of(self, state: Path) -> Collection[str]:
        try:
            return _facts(state)["files"].values()
        except SafetensorError:  # damaged: what it rested on is of no use
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
    """A function that tells which of `STOP_SIGNALS` has come (0: none), so that a step can end and its state be saved.

    A second SIGINT interrupts at once. SIGHUP stays ignored under nohup. Outside the main thread signals stay as they are.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    ignored = {number for number in STOP_SIGNALS if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN}
    before = {number: signal.signal(number, note) for number in STOP_SIGNALS if number not in ignored}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def states_of(depends_on: dict[str, Any]) -> Iterator[States]:
    """The states of the training that these values define (JSON), for one process at a time; removed after the block.

    They stay when the block is left by an error, or where they are `kept`. Raises `UserError` while another process is at work
    on the same training.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    folder = unfinished() / key
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(unfinished() / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is at work on this very training; wait for it, or end it first") from error
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
            with suppress(OSError):  # of a training that has not come to its first state
                folder.rmdir()
            raise
        if not states.kept:
            states.remove()
    finally:
        lock.release()


def forget(run_key: str) -> None:
    """Removes the states of the training that is tracked as this run, which is not to go on."""
    for state in unfinished().glob("*/state-*.safetensors"):
        with suppress(FileNotFoundError, SafetensorError):  # of a training at work, which has a newer one; a damaged one
            if _facts(state)["run_key"] == run_key:
                shutil.rmtree(state.parent)


def _number(state: Path) -> int:
    return int(state.name.split("-")[1])


def _facts(state: Path) -> dict[str, Any]:
    """The facts in a state's header, without its tensors."""
    with safe_open(state, framework="pt") as file:
        return json.loads(file.metadata()[FACTS])
