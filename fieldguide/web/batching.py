"""Dynamic batching of requests, with a bounded queue."""

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

BATCH_PIXELS = 150_000  # per run of the network: memory grows with them, and on a CPU a larger batch is not faster


class Slots:
    """Slots for images in the server; a request without a free slot is refused immediately.

    There are `n_slots`, or fewer if the network computes fewer images in two fifths of `within_s`: a slow network gets a short
    queue, so that accepted images are answered in time.
    """

    def __init__(self, n_slots: int, within_s: float) -> None:
        self.n_slots = n_slots
        self.limit = n_slots
        self.within_s = within_s
        self.n_taken = 0
        self.image_s = 0.0  # running mean of the seconds per image
        self.lock = threading.Lock()

    @contextmanager
    def taken(self, n_images: int) -> Iterator[None]:
        """Takes slots for the block; raises `Problem` if there are not enough.

        A request with more images than the network can compute in time is accepted if the server is otherwise empty.
        """
        with self.lock:
            limit = self.n_slots if self.n_taken <= 1 else self.limit
            if self.n_taken + n_images > limit:
                raise Problem("overloaded", "The server is overloaded; try again in a moment.")
            self.n_taken += n_images
        try:
            yield
        finally:
            with self.lock:
                self.n_taken -= n_images

    def learn(self, image_s: float) -> None:
        """Updates the limit from the seconds per image of a batch."""
        with self.lock:
            self.image_s += (image_s - self.image_s) * (0.1 if self.image_s else 1)
            self.limit = min(self.n_slots, max(2, int(0.4 * self.within_s / self.image_s)))


@dataclass(frozen=True)
class Waiting:
    """An encoded image in the queue, with its classifier, which a reload may have replaced."""

    classifier: OnnxClassifier
    encoded: bytes
    activation: bool
    result: Future[Prediction] = field(default_factory=Future)


class Batcher:
    """Threads that take the oldest images of the queue, at most `max_batch`, and decode and classify them.

    A batch never waits to be filled. One thread does all the work for an image, so that the order of images is kept.
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
        """`cores`: acquired for all computation; `decode`: to uint8 `[px, px, 3]`, or raises `Problem`."""
        self.max_batch = max_batch
        self.decode = decode
        self.cores = cores
        self.k = k
        self.on_batch = on_batch  # called with the number of images of a batch, and the seconds
        self.n_workers = n_workers
        self.waiting: deque[Waiting] = deque()
        self.changed = threading.Condition()
        self.closed = False
        for number in range(n_workers):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    def submit(self, classifier: OnnxClassifier, encoded: bytes, activation: bool = False) -> Future[Prediction]:
        """The future of an image's prediction, whose result may raise `Problem`."""
        item = Waiting(classifier, encoded, activation)
        with self.changed:
            self.waiting.append(item)
            self.changed.notify()
        return item.result

    def close(self) -> None:
        """Ends the threads when the queue is empty."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting:
                    return
            with self.cores:
                if batch := self._next():
                    self._answer(batch)

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
        except Exception as error:  # goes to the waiting requests; the thread continues
            for item in batch:
                if not item.result.done():
                    item.result.set_exception(error)
        else:
            for item, prediction in zip(read, predictions, strict=True):
                item.result.set_result(prediction)
            if read:
                self.on_batch(len(read), time.perf_counter() - start)

    def _next(self) -> list[Waiting]:
        """This thread's share of the queue, in order, with the same classifier and output; empty if other threads took all."""
        with self.changed:
            if not self.waiting:
                return []
            batch = [first := self.waiting.popleft()]
            alike = (first.classifier, first.activation)
            fits = BATCH_PIXELS // first.classifier.image_px**2
            share = min(self.max_batch, fits, -(-(1 + len(self.waiting)) // self.n_workers))
            while len(batch) < share and self.waiting and (self.waiting[0].classifier, self.waiting[0].activation) == alike:
                batch.append(self.waiting.popleft())
            return batch
