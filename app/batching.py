"""Requests that arrive together go through the network together; how many may wait is bounded."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from app.problems import Problem
from fieldguide.classifier import OnnxClassifier, Prediction


class Slots:
    """Places for images that are in the server; who finds none is refused at once."""

    def __init__(self, n_slots: int) -> None:
        self.free = n_slots
        self.lock = threading.Lock()

    @contextmanager
    def taken(self, n_images: int) -> Iterator[None]:
        """Holds places for the block; raises `Problem` where there are not as many."""
        with self.lock:
            if self.free < n_images:
                raise Problem("overloaded", "All places are taken; try again in a moment.")
            self.free -= n_images
        try:
            yield
        finally:
            with self.lock:
                self.free += n_images


@dataclass(frozen=True)
class Waiting:
    """One decoded image on its way: uint8 `[px, px, 3]` at the size of its own classifier, which a reload may have replaced."""

    classifier: OnnxClassifier
    pixels: np.ndarray
    activation: bool
    result: Future[Prediction] = field(default_factory=Future)


class Batcher:
    """Threads that take what waits, at most `max_batch` images, and answer it; nothing is held back to fill a batch."""

    def __init__(self, n_workers: int, max_batch: int, k: int, on_batch: Callable[[int], None]) -> None:
        self.max_batch = max_batch
        self.k = k
        self.on_batch = on_batch
        self.n_workers = n_workers
        self.waiting: deque[Waiting] = deque()
        self.changed = threading.Condition()
        self.closed = False
        for number in range(n_workers):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    def submit(self, classifier: OnnxClassifier, pixels: np.ndarray, activation: bool = False) -> Future[Prediction]:
        """uint8 `[px, px, 3]` to a prediction to come."""
        item = Waiting(classifier, pixels, activation)
        with self.changed:
            self.waiting.append(item)
            self.changed.notify()
        return item.result

    def close(self) -> None:
        """Lets the threads end once nothing waits."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _work(self) -> None:
        while batch := self._next():
            self.on_batch(len(batch))
            try:
                pixels = np.stack([item.pixels for item in batch])
                predictions = batch[0].classifier.predict_pixels(pixels, self.k, batch[0].activation)
            except Exception as error:  # whatever went wrong is told to those who wait, and the thread lives
                for item in batch:
                    item.result.set_exception(error)
            else:
                for item, prediction in zip(batch, predictions, strict=True):
                    item.result.set_result(prediction)

    def _next(self) -> list[Waiting]:
        """This thread's share of what waits, in order, as far as it is of one kind; empty when closed."""
        with self.changed:
            while not self.waiting:
                if self.closed:
                    return []
                self.changed.wait()
            share = min(self.max_batch, -(-len(self.waiting) // self.n_workers))
            batch = [self.waiting.popleft()]
            while len(batch) < share and self._alike(self.waiting[0], batch[0]):
                batch.append(self.waiting.popleft())
            return batch

    @staticmethod
    def _alike(one: Waiting, other: Waiting) -> bool:
        return one.classifier is other.classifier and one.activation == other.activation
