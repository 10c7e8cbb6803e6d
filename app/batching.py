"""Requests that arrive together go through the network together; how many may wait is bounded."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from app.problems import Problem
from fieldguide.classifier import OnnxClassifier, Prediction

BATCH_PIXELS = 150_000  # of one run of the network: its memory grows with them, and on a CPU a larger batch gains nothing


class Slots:
    """Places for images that are in the server; who finds none is refused at once.

    There are `n_slots`, or as many as the network lately computes in two fifths of `within_s`, if those are fewer: a slow
    network gets a short queue, so that what is accepted is answered in time.
    """

    def __init__(self, n_slots: int, within_s: float) -> None:
        self.n_slots = n_slots
        self.limit = n_slots
        self.within_s = within_s
        self.n_taken = 0
        self.image_s = 0.0  # that passes for each image while the network is busy, a running mean
        self.lock = threading.Lock()

    @contextmanager
    def taken(self, n_images: int) -> Iterator[None]:
        """Holds places for the block; raises `Problem` where there are not as many.

        A request with more images than the network can do in time is taken when the server is empty but for itself.
        """
        with self.lock:
            limit = self.n_slots if self.n_taken <= 1 else self.limit
            if self.n_taken + n_images > limit:
                raise Problem("overloaded", "All places are taken; try again in a moment.")
            self.n_taken += n_images
        try:
            yield
        finally:
            with self.lock:
                self.n_taken -= n_images

    def learn(self, image_s: float) -> None:
        """Hears from each batch how many seconds pass for an image, and sets the limit by it."""
        with self.lock:
            self.image_s += (image_s - self.image_s) * (0.1 if self.image_s else 1)
            self.limit = min(self.n_slots, max(2, int(0.4 * self.within_s / self.image_s)))


@dataclass(frozen=True)
class Waiting:
    """One decoded image on its way: uint8 `[px, px, 3]` at the size of its own classifier, which a reload may have replaced."""

    classifier: OnnxClassifier
    pixels: np.ndarray
    activation: bool
    result: Future[Prediction] = field(default_factory=Future)


class Batcher:
    """Threads that take what waits, at most `max_batch` images, and answer it; nothing is held back to fill a batch."""

    def __init__(
        self, n_workers: int, max_batch: int, k: int, cores: threading.Semaphore, on_batch: Callable[[int, float], None]
    ) -> None:
        """`cores`: who computes holds one of them, here as elsewhere."""
        self.max_batch = max_batch
        self.cores = cores
        self.k = k
        self.on_batch = on_batch  # is told the number of images of each, and the seconds
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
        while self._due():
            with self.cores:
                if batch := self._next():
                    self._answer(batch)

    def _due(self) -> bool:
        """Waits for something to do; false when closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            return bool(self.waiting)

    def _answer(self, batch: list[Waiting]) -> None:
        start = time.perf_counter()
        try:
            pixels = np.stack([item.pixels for item in batch])
            predictions = batch[0].classifier.predict_pixels(pixels, self.k, batch[0].activation)
        except Exception as error:  # whatever went wrong is told to those who wait, and the thread lives
            for item in batch:
                item.result.set_exception(error)
        else:
            for item, prediction in zip(batch, predictions, strict=True):
                item.result.set_result(prediction)
            self.on_batch(len(batch), time.perf_counter() - start)

    def _next(self) -> list[Waiting]:
        """This thread's share of what waits, in order, as far as it is of one kind; empty where another took it all."""
        with self.changed:
            if not self.waiting:
                return []
            batch = [self.waiting.popleft()]
            height, width, _ = batch[0].pixels.shape
            share = min(self.max_batch, BATCH_PIXELS // (height * width), -(-(1 + len(self.waiting)) // self.n_workers))
            while self.waiting and len(batch) < share and self._alike(self.waiting[0], batch[0]):
                batch.append(self.waiting.popleft())
            return batch

    @staticmethod
    def _alike(one: Waiting, other: Waiting) -> bool:
        return one.classifier is other.classifier and one.activation == other.activation
