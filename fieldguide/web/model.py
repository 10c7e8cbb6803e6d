"""The model in use: reloaded when its file changes, unless the new file is invalid.

A registered model (`models:/fieldguide@champion`) is reloaded when its alias moves.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fieldguide.core import memory
from fieldguide.core.errors import UserError
from fieldguide.onnx.classifier import OnnxClassifier
from fieldguide.tracking.registry import model_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and the identity of its file."""

    classifier: OnnxClassifier
    sha256: str
    modified: str  # of the file, UTC, ISO 8601


def load_model(source: Path) -> LoadedModel:
    """Loads a model and its hash from the same bytes; raises `UserError`.

    The network computes in the calling thread, without a thread pool of its own.
    """
    try:
        content = source.read_bytes()
        modified = datetime.fromtimestamp(source.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; create it with: dvc repro") from error
    model = LoadedModel(OnnxClassifier(content, n_threads=1), hashlib.sha256(content).hexdigest(), modified)
    del content
    memory.give_back()
    return model


def file_stamp(source: Path) -> tuple[int, int, int] | None:
    """Inode, modification time and size of a file; None if it does not exist."""
    try:
        status = source.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


class Watched:
    """The model of a file, reloaded by a thread when the file changes; calls `on_change` with whether that succeeded."""

    def __init__(self, source: Path, every_s: float, on_change: Callable[[bool], None]) -> None:
        """Loads the model of a file or of `models:/…`; raises `UserError`."""
        self.source = source
        self.on_change = on_change
        self.fault = ""  # the last error of the registry
        file = model_file(source)
        self.stamp = file_stamp(file)
        self.current = load_model(file)
        self.stopped = threading.Event()
        threading.Thread(target=self._watch, args=(every_s,), name="model-watch", daemon=True).start()

    def _watch(self, every_s: float) -> None:
        while not self.stopped.wait(every_s):
            self.look()

    def look(self) -> None:
        """Reloads the file if it has changed; keeps the present model if the file is invalid or missing."""
        try:
            file = model_file(self.source)
        except UserError as error:
            if str(error) != self.fault:  # log it once
                log.error("keeping the present model: %s", error)
            self.fault = str(error)
            return
        self.fault = ""
        stamp = file_stamp(file)
        if stamp is None or stamp == self.stamp:
            return
        self.stamp = stamp
        try:
            self.current = load_model(file)
        except UserError as error:
            log.error("keeping the present model: %s", error)
            self.on_change(False)
        else:
            log.warning("reloaded %s, sha256 %s", self.source, self.current.sha256)
            self.on_change(True)

    def close(self) -> None:
        self.stopped.set()
