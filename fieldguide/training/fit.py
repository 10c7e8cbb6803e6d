"""The epochs of a training: validates, keeps the best network, saves the state, and logs each epoch (also to MLflow)."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import pandas as pd
import torch
import torch.nn.functional as F

from fieldguide.core import memory
from fieldguide.core.artifacts import SplitScore, TrainMetrics
from fieldguide.core.errors import UserError
from fieldguide.core.files import check_free_space
from fieldguide.core.manifest import write_table
from fieldguide.core.params import Train
from fieldguide.core.paths import CHECKPOINT, HISTORY_CSV
from fieldguide.network.calibration import fit_temperature, sample_of
from fieldguide.network.checkpoint import Checkpoint, save_checkpoint
from fieldguide.network.device import autocast
from fieldguide.network.inference import batches_of, embed, predict, score, scores
from fieldguide.network.loader import Source
from fieldguide.tracking.run import Run
from fieldguide.training.loop import Progress, Training
from fieldguide.training.resume import KEPT, States

N_FITTED = 5000  # images; enough for one number
BATCH_OF_HEAD = 4096  # embeddings: few steps, little memory
OOM_PATTERN = "out of memory|can't allocate memory|not enough memory|ALLOC_FAILED"  # messages of torch's allocators


@dataclass
class Fit:
    """A training with its validation split, its run and its saved states; only rank 0 writes.

    valid: images of this process; targets: of all images of the split, int64 `[N]` on the CPU.
    """

    training: Training
    valid: Source
    targets: torch.Tensor
    run: Run
    facts: Checkpoint
    states: States | None  # None except on rank 0
    stop: Callable[[], int]  # the signal received, or 0
    history: list[dict[str, float]] = field(default_factory=list)  # one line per epoch
    best: int = 0  # epoch, from 1
    embeddings: torch.Tensor | None = None  # of the validation images of this process, while the backbone is frozen

    def all_epochs(self, state: dict[str, Any] | None) -> TrainMetrics:
        """Trains from a saved state, if any, to the last epoch or until early stopping.

        Writes the best network to models/model.safetensors. After SIGTERM, SIGINT or SIGHUP it finishes the
        step, saves the state and exits with 128 + the signal's number.
        """
        train, world = self.training.train, self.training.world
        if self.states:
            n_bytes = sum(tensor.nbytes for tensor in self.training.model.state_dict().values())
            n_networks = 5  # of that size: the model, its average, Adam's two numbers per weight, and the checkpoint
            check_free_space(self.states.folder, (KEPT + 1) * n_networks * n_bytes, " for the state of the training")
        begun = self._resume(state) if state else None
        for epoch in range(len(self.history), train.epochs):
            if train.patience and self.best and epoch - self.best >= train.patience:
                print(f"early stopping: no improvement for {train.patience} epochs")
                break
            start = time.perf_counter()
            with out_of_memory_explained(train, self.training.image_px):
                trained = self.training.epoch(epoch, begun, self.stop)
            if isinstance(trained, Progress):
                self._save(trained)
                self._exit(f"after epoch {epoch} and {trained.n_batches} batches")
            begun = None
            self._end_epoch(trained, time.perf_counter() - start)
            if world.all_reduce_max(self.stop()) and epoch + 1 < train.epochs:
                self._exit(f"after epoch {epoch + 1}")
        self._write_history()
        return self._metrics()

    def _resume(self, state: dict[str, Any]) -> Progress | None:
        """Restores a state; returns the progress of an unfinished epoch."""
        self.training.restore(state)
        self.history, self.best = state["history"], state["best"]
        progress = Progress(*state["progress"]) if state["progress"] else None
        batches = f" and {progress.n_batches} batches" if progress else ""
        print(f"resuming after epoch {len(self.history)}{batches}", flush=True)
        return progress

    def _exit(self, where: str) -> NoReturn:
        if self.states:
            self.states.finish()
        number = self.training.world.all_reduce_max(self.stop())
        if self.training.world.is_first:
            with suppress(OSError):  # the terminal is closed
                print(f"{signal.Signals(number).name}: stopped {where}; resume with the same command", file=sys.stderr)
        sys.exit(128 + number)

    def _save(self, progress: Progress | None = None) -> None:
        if self.states:
            own = {"history": self.history, "best": self.best, "run_key": self.run.key}
            state = self.training.state() | own | {"progress": progress and tuple(progress)}
            self.states.save(state, files=(CHECKPOINT,) if self.best else ())

    def _end_epoch(self, trained: SplitScore, seconds: float) -> None:
        """Validates, keeps the network if it is the best, saves the state, and logs."""
        training, train, number = self.training, self.training.train, len(self.history) + 1
        with out_of_memory_explained(train, training.image_px):
            if training.is_cached(number - 1):
                batches = self._head_logits()
            else:
                batches = predict(training.result, self.valid, train.batch_size, training.device, training.dtype)
            validated, calibrated = self._validate(batches)
        line = {
            "epoch": number,
            "image_px": training.image_px_at(number - 1),
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "valid_loss": validated.loss,
            "valid_accuracy": validated.accuracy,
            "valid_calibrated_loss": calibrated,
            "lr": training.lr((number - 1) * training.steps_per_epoch),
        }
        if self.best == 0 or rank(line, train.best_by) > rank(self.history[self.best - 1], train.best_by):
            self.best = number
            if training.world.is_first:
                save_checkpoint(CHECKPOINT, training.result, replace(self.facts, epoch=number))
        self.history.append(line)
        self._write_history()
        images_per_second = len(training.source) / seconds
        metrics = {"train": trained.as_dict(), "valid": validated.as_dict(), "lr": line["lr"], "image_px": line["image_px"]}
        self.run.log_metrics(metrics | {"images_per_second": images_per_second, "seconds": seconds}, step=number)
        self._save()  # after log_metrics: a resumed training does not log this epoch again
        print(
            f"epoch {number:4d}/{train.epochs}  {line['image_px']:4d} px  loss {trained.loss:7.4f}  acc {trained.accuracy:6.2%}"
            f"  valid loss {validated.loss:7.4f}  acc {validated.accuracy:6.2%}  lr {line['lr']:.2e}"
            f"  {images_per_second:6.0f} images/s  {seconds:6.1f} s{'  *' if self.best == number else ''}",
            flush=True,
        )
        memory.give_back()

    def _validate(self, batches: Iterable[torch.Tensor]) -> tuple[SplitScore, float]:
        """Score of the validation split, and its loss after calibration, from the logits `[B, K]` of this process's images.

        Logits are kept of the images on which the loss is calibrated only.
        """
        world, n_images, n_classes = self.training.world, len(self.targets), self.training.model.head.out_features
        step, own = calibration_step(n_images, n_classes), torch.arange(world.rank, n_images, world.size)
        each, some = torch.empty(len(own), 2), torch.zeros(-(-n_images // step), n_classes)
        start = 0
        for logits in batches:
            rows = own[start : start + len(logits)]
            each[start : start + len(logits)] = scores(logits, self.targets[rows].to(logits.device)).cpu()
            chosen = rows % step == 0
            some[rows[chosen] // step] = logits[chosen.to(logits.device)].cpu()
            start += len(logits)
        validated = score(world.gather_rows(each, n_images))
        return validated, calibrated_loss(world.sum(some), self.targets[::step])

    @torch.inference_mode()
    def _head_logits(self) -> Iterator[torch.Tensor]:
        """Logits of the validation split, float32 `[B, K]`, from embeddings that are computed once."""
        training = self.training
        if self.embeddings is None:
            rows, batch_size = torch.arange(len(self.valid)), training.train.batch_size
            self.embeddings = embed(training.model, self.valid, rows, batch_size, training.dtype, training.image_px)
        for rows in batches_of(len(self.valid), BATCH_OF_HEAD):
            with autocast(training.device, training.dtype):
                logits = training.result.head(self.embeddings[rows]).float()
            yield logits

    def _write_history(self) -> None:
        if self.training.world.is_first:
            write_table(pd.DataFrame(self.history), HISTORY_CSV)

    def _metrics(self) -> TrainMetrics:
        """Both splits at the best epoch, train with augmentation."""
        line = self.history[self.best - 1]
        return TrainMetrics(
            epochs=len(self.history),
            best_epoch=self.best,
            train=SplitScore(loss=line["train_loss"], accuracy=line["train_accuracy"]),
            valid=SplitScore(loss=line["valid_loss"], accuracy=line["valid_accuracy"]),
            parameters=sum(parameter.numel() for parameter in self.training.model.parameters()),
        )


def rank(line: dict[str, float], best_by: str) -> tuple[float, float]:
    """Sort key of an epoch: greater is better; the other metric breaks ties.

    The loss is that after calibration: label smoothing and mixed images make a network less and less confident, so that its
    own loss may rise while its order of the images improves.
    """
    accuracy, loss = line["valid_accuracy"], -line["valid_calibrated_loss"]
    return (loss, accuracy) if best_by == "loss" else (accuracy, loss)


def calibrated_loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean cross-entropy of logits `[N, K]` at the temperature that fits them best."""
    return F.cross_entropy(logits / fit_temperature(logits.numpy(), targets.numpy()), targets).item()


def calibration_step(n_images: int, n_classes: int) -> int:
    """Step between the images on which the loss is calibrated; 1 below `N_FITTED` images unless the classes are many."""
    return max(1 + n_images // N_FITTED, sample_of(n_images, n_classes).step)


@contextmanager
def out_of_memory_explained(train: Train, image_px: int) -> Iterator[None]:
    """Turns an out-of-memory error into a `UserError` with advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not re.search(OOM_PATTERN, str(error)):
            raise
        raise UserError(
            f"out of memory with train.batch_size {train.batch_size} at {image_px} px; halve batch_size and set"
            f" train.accumulate={2 * train.accumulate}, or lower model.image_px ({str(error).splitlines()[0][:120]})"
        ) from error
