"""All epochs of a training: validated, the best network kept, the state saved, each epoch in the log and in MLflow."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import NoReturn

import pandas as pd
import torch

from fieldguide.core.errors import UserError
from fieldguide.core.manifest import write_table
from fieldguide.core.params import Train
from fieldguide.core.paths import CHECKPOINT, HISTORY_CSV
from fieldguide.network.checkpoint import Checkpoint, save_checkpoint
from fieldguide.network.inference import Score, predict, score
from fieldguide.network.loader import Source
from fieldguide.tracking.run import Run
from fieldguide.training.loop import Progress, Stopped, Training, image_px_at
from fieldguide.training.resume import State, States

OOM_PATTERN = (
    "out of memory|can't allocate memory|not enough memory|ALLOC_FAILED"  # in the words of torch's allocators and libraries
)


@dataclass(frozen=True)
class Valid:
    """The validation split: int64 `[N]` on the CPU, the targets of all images; the images of this process's own rows."""

    source: Source
    targets: torch.Tensor


@dataclass
class Fit:
    """A training in its surroundings, and how far it has come; of several processes the first alone writes."""

    training: Training
    valid: Valid
    run: Run
    facts: Checkpoint
    states: States | None  # of the process that writes
    stop: Callable[[], int]  # the signal that has come, or 0
    history: list[dict[str, float]] = field(default_factory=list)  # a line for each epoch
    best: int = 0  # epoch, from 1

    def all_epochs(self, found: State | None) -> pd.DataFrame:
        """Trains from the state that was found to the last epoch, or until `patience` ends; returns the history.

        The best network is in models/model.safetensors. After SIGTERM or SIGINT the step ends, its state is saved, and the
        process exits with 128 + the signal's number.
        """
        train, world = self.training.train, self.training.world
        if self.states:
            weights = sum(tensor.nbytes for tensor in self.training.state().values())
            self.states.require_space(3 * weights)  # Adam remembers two numbers a weight
        begun = self._go_on(found) if found else None
        for epoch in range(len(self.history), train.epochs):
            if train.patience and self.best and epoch - self.best >= train.patience:
                print(f"stopped: no better epoch for {train.patience}")
                break
            start = time.perf_counter()
            try:
                with out_of_memory_explained(train, self.training.image_px):
                    trained = self.training.epoch(epoch, begun, self.stop)
            except Stopped as stopped:
                self._save(stopped.progress)
                self._leave(f"after epoch {epoch} and {stopped.progress.n_batches} batches")
            begun = None
            self._end_epoch(trained, time.perf_counter() - start)
            if world.all_reduce_max(self.stop()) and epoch + 1 < train.epochs:
                self._leave(f"after epoch {epoch + 1}")
        return self._written_history()

    def _go_on(self, found: State) -> Progress | None:
        """Takes up a state; what it had of an epoch that was not at its end."""
        progress = {name: tensor for name, tensor in found.tensors.items() if name.startswith("progress.")}
        self.training.restore({name: tensor for name, tensor in found.tensors.items() if name not in progress})
        self.history, self.best = found.facts["history"], found.facts["best"]
        n_batches = found.facts["n_batches"]
        print(f"goes on after epoch {len(self.history)}" + (f" and {n_batches} batches" if progress else ""), flush=True)
        return Progress(n_batches, progress["progress.sums"], progress["progress.losses"]) if progress else None

    def _leave(self, where: str) -> NoReturn:
        """Ends the process, whose state is saved."""
        if self.states:
            self.states.finish()
        number = self.training.world.all_reduce_max(self.stop())
        if self.training.world.is_first:
            with suppress(OSError):  # the terminal is closed
                print(f"{signal.Signals(number).name}: stopped {where}; the same command goes on from there", file=sys.stderr)
        sys.exit(128 + number)

    def _save(self, progress: Progress | None = None) -> None:
        if not self.states:
            return
        tensors = self.training.state()
        if progress:
            tensors |= {"progress.sums": progress.sums, "progress.losses": progress.losses}
        n_batches = progress.n_batches if progress else 0
        facts = {"history": self.history, "best": self.best, "n_batches": n_batches, "run_key": self.run.key}
        self.states.save(tensors, facts, files=(CHECKPOINT,) if self.best else ())

    def _end_epoch(self, trained: Score, seconds: float) -> None:
        """Validates, keeps the network if it is the best, saves the state, and reports."""
        training, train, number = self.training, self.training.train, len(self.history) + 1
        with out_of_memory_explained(train, training.image_px):
            logits = predict(training.result, self.valid.source, train.batch_size, training.device, training.dtype)
        validated = score(training.world.gather_rows(logits, len(self.valid.targets)), self.valid.targets)
        line = {
            "epoch": number,
            "image_px": image_px_at(number - 1, train, training.image_px),
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "valid_loss": validated.loss,
            "valid_accuracy": validated.accuracy,
            "lr": training.lr((number - 1) * training.steps_per_epoch),
        }
        if self.best == 0 or rank(line, train.best_by) > rank(self.history[self.best - 1], train.best_by):
            self.best = number
            if training.world.is_first:
                save_checkpoint(CHECKPOINT, training.result, replace(self.facts, epoch=number))
        self.history.append(line)
        self._written_history()
        images_per_second = len(training.source) / seconds
        self.run.log_metrics(
            {
                "train": asdict(trained),
                "valid": asdict(validated),
                "lr": line["lr"],
                "image_px": line["image_px"],
                "images_per_second": images_per_second,
                "seconds": seconds,
            },
            step=number,
        )
        self._save()  # after the metrics, which would be lost between the two
        print(
            f"epoch {number:4d}/{train.epochs}  {line['image_px']:4d} px  loss {trained.loss:7.4f}  acc {trained.accuracy:6.2%}"
            f"  valid loss {validated.loss:7.4f}  acc {validated.accuracy:6.2%}  lr {line['lr']:.2e}"
            f"  {images_per_second:6.0f} images/s  {seconds:6.1f} s{'  *' if self.best == number else ''}",
            flush=True,
        )

    def _written_history(self) -> pd.DataFrame:
        table = pd.DataFrame(self.history)
        if self.training.world.is_first:
            write_table(table, HISTORY_CSV)
        return table


def rank(line: dict[str, float], best_by: str) -> tuple[float, float]:
    """Greater is better; the other figure decides between equals."""
    accuracy, loss = line["valid_accuracy"], -line["valid_loss"]
    return (loss, accuracy) if best_by == "loss" else (accuracy, loss)


@contextmanager
def out_of_memory_explained(train: Train, image_px: int) -> Iterator[None]:
    """What a device says when its memory is full becomes one line with what to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not re.search(OOM_PATTERN, str(error)):
            raise
        raise UserError(
            f"out of memory with train.batch_size {train.batch_size} at {image_px} px; halve batch_size and set"
            f" train.accumulate={2 * train.accumulate}, or lower model.image_px ({str(error).splitlines()[0][:120]})"
        ) from error
