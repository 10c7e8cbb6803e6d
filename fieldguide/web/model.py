"""The model in use: loaded from its file, replaced when the file changes, kept when the new one is broken.

A registered model (`models:/fieldguide@champion`) is a file too, another one when its alias has moved.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fieldguide.core.errors import UserError
from fieldguide.onnx.classifier import OnnxClassifier
from fieldguide.tracking.registry import model_file
from fieldguide.web import memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A classifier and what tells its file from others."""

    classifier: OnnxClassifier
    sha256: str
    modified: str  # of the file, UTC, ISO 8601


def load_model(source: Path) -> Model:
    """Reads the file once, so that hash and network are of the same bytes; raises `UserError`.

    The network computes in the calling thread: as many run at a time as there are callers, and none waits spinning.
    """
    try:
        content = source.read_bytes()
        modified = datetime.fromtimestamp(source.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; create it with: dvc repro") from error
    model = Model(OnnxClassifier(content, n_threads=1), hashlib.sha256(content).hexdigest(), modified)
    del content
    memory.give_back()
    return model


def file_stamp(source: Path) -> tuple[int, int, int] | None:
    """What differs between two files; None where there is none."""
    try:
        status = source.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


class Watched:
    """The model of a file; a thread looks at the file and takes up a new one. `on_change` hears whether that worked."""

    def __init__(self, source: Path, every_s: float, on_change: Callable[[bool], None]) -> None:
        """Loads the model of a file or of `models:/…`; raises `UserError`."""
        self.source = source
        self.on_change = on_change
        self.fault = ""  # why the registry did not say which file it is, at the last look
        file = model_file(source)
        self.stamp = file_stamp(file)
        self.current = load_model(file)
        self.stopped = threading.Event()
        threading.Thread(target=self._watch, args=(every_s,), name="model-watch", daemon=True).start()

    def _watch(self, every_s: float) -> None:
        while not self.stopped.wait(every_s):
            self.look()

    def look(self) -> None:
        """Takes up the file where it has changed since it was last looked at; a broken or missing one changes nothing."""
        try:
            file = model_file(self.source)
        except UserError as error:
            if str(error) != self.fault:  # once, however long the registry is away
                log.error("the model in use stays: %s", error)
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
            log.error("the model in use stays: %s", error)
            self.on_change(False)
        else:
            log.warning("took up the new %s, sha256 %s", self.source, self.current.sha256)
            self.on_change(True)

    def close(self) -> None:
        self.stopped.set()
