"""Requests that arrive together go through the network together; how many may wait is bounded."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from fieldguide.onnx.classifier import OnnxClassifier, Prediction
from fieldguide.web.problems import Problem

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
    """One encoded image on its way to its own classifier, which a reload may have replaced."""

    classifier: OnnxClassifier
    encoded: bytes
    activation: bool
    result: Future[Prediction] = field(default_factory=Future)


class Batcher:
    """Threads that take what has waited longest, at most `max_batch` images, decode and answer it.

    Nothing is held back to fill a batch. One thread does all of an image, so that an older one is never behind a younger.
    """

    def __init__(
        self,
        n_workers: int,
        max_batch: int,
        k: int,
        cores: threading.Semaphore,
        decode: Callable[[bytes, int], np.ndarray],
        on_batch: Callable[[int, float], None],
    ) -> None:
        """`cores`: who computes holds one of them, here as elsewhere; `decode`: to uint8 `[px, px, 3]`, or raises `Problem`."""
        self.max_batch = max_batch
        self.decode = decode
        self.cores = cores
        self.k = k
        self.on_batch = on_batch  # is told the number of images of each that went through the network, and the seconds
        self.n_workers = n_workers
        self.waiting: deque[Waiting] = deque()
        self.changed = threading.Condition()
        self.closed = False
        for number in range(n_workers):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    def submit(self, classifier: OnnxClassifier, encoded: bytes, activation: bool = False) -> Future[Prediction]:
        """An image's bytes to a prediction, or a `Problem`, to come."""
        item = Waiting(classifier, encoded, activation)
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
        read: list[Waiting] = []
        try:
            squares = []
            for item in batch:
                try:
                    squares.append(self.decode(item.encoded, item.classifier.image_px))
                    read.append(item)
                except Problem as problem:
                    item.result.set_exception(problem)
            predictions = batch[0].classifier.predict_pixels(np.stack(squares), self.k, batch[0].activation) if read else []
        except Exception as error:  # whatever went wrong is told to those who wait, and the thread lives
            for item in batch:
                if not item.result.done():
                    item.result.set_exception(error)
        else:
            for item, prediction in zip(read, predictions, strict=True):
                item.result.set_result(prediction)
            if read:
                self.on_batch(len(read), time.perf_counter() - start)

    def _next(self) -> list[Waiting]:
        """This thread's share of what waits, in order, as far as it is of one kind; empty where another took it all."""
        with self.changed:
            if not self.waiting:
                return []
            batch = [self.waiting.popleft()]
            fits = BATCH_PIXELS // batch[0].classifier.image_px ** 2
            share = min(self.max_batch, fits, -(-(1 + len(self.waiting)) // self.n_workers))
            while self.waiting and len(batch) < share and self._alike(self.waiting[0], batch[0]):
                batch.append(self.waiting.popleft())
            return batch

    @staticmethod
    def _alike(one: Waiting, other: Waiting) -> bool:
        return one.classifier is other.classifier and one.activation == other.activation
