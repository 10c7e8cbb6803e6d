"""Manifest rows to pixels: decoded once into memory (resident) or on disk (decoded), by worker processes in every epoch
(streaming), or by threads a few batches ahead (prefetching).

All return the same bytes in the same order. Pillow releases the GIL, so that threads decode in parallel; the processes of
streaming also leave the GIL to the training step.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from tqdm import tqdm

from fieldguide.core.errors import UserError
from fieldguide.core.params import Train
from fieldguide.network.decoded import Decoded
from fieldguide.network.decoder import CHANNELS, REMEDY, Decoder, faults_named

PREFETCHED = 4  # batches in advance: of each worker process, or of all threads together
STUCK_SECONDS = 5.0  # grace period for workers to exit
SHARED_MEMORY = Path("/dev/shm")  # Linux's; through it workers send batches
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # stop a training; SIGHUP: the terminal was closed


class Source(Protocol):
    """Images in the order of their rows, on a device."""

    def __len__(self) -> int: ...

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Images by batches of row numbers, int64 `[B]` on the CPU: uint8 `[B, 3, H, W]` on the device, channels last."""
        ...


def digests_of(source: Source, image_px: int) -> np.ndarray | None:
    """SHA-256 of the file of each image, `S64 [N]`; None if the source does not know it or has pixels of another size."""
    return getattr(source, "digests", None) if getattr(source, "image_px", 0) == image_px else None


class Resident:
    """Images in the memory of the device: uint8 `[N, 3, H, W]`; digests: SHA-256 of their files, `S64 [N]`."""

    def __init__(self, images: torch.Tensor, digests: np.ndarray | None = None) -> None:
        self.images, self.digests, self.image_px = images, digests, images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def close(self) -> None:
        """Nothing to close."""

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        by_row = self.images.permute(0, 2, 3, 1)
        for rows in batches:
            yield by_row.index_select(0, rows.to(by_row.device, non_blocking=True)).permute(0, 3, 1, 2)


class Streaming:
    """Images decoded on demand by worker processes, which live until `close`."""

    def __init__(self, rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, device: torch.device) -> None:
        self.device, self.n_workers, self.image_px = device, n_workers, image_px
        self._decoder, self._ids = Decoder(rows, raw, image_px), rows["id"]
        self.digests = rows["sha256"].to_numpy(dtype="S64")
        self._use_threads = partial(Prefetching, rows, raw, image_px, n_workers, device)
        self._threads: Prefetching | None = None  # decode instead of processes where /dev/shm is too small
        self._fitting_bytes = 0  # for which it was found large enough
        self._order: list[list[int]] = []  # batches of row numbers, which each epoch replaces
        _start_forkserver()
        self._loader = DataLoader(
            self._decoder,
            sampler=self._order,
            batch_size=None,
            num_workers=n_workers,
            prefetch_factor=PREFETCHED,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context="forkserver",  # fork would copy held locks
        )

    def __len__(self) -> int:
        return len(self._decoder)

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        if not (self._threads or self._fits(batches)):
            self._threads = self._use_threads()
        if self._threads:
            yield from self._threads.batches(batches)
            return
        self._order[:] = [rows.tolist() for rows in batches]
        try:
            for pixels in self._start_iterator():
                if isinstance(pixels, Exception):  # returned, because torch wraps an exception in the worker's traceback
                    with faults_named(self._ids):
                        raise pixels
                yield pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        except (RuntimeError, EOFError, ConnectionError) as error:  # the last two: it died while sending a batch
            if isinstance(error, RuntimeError) and "worker" not in str(error):
                raise
            raise UserError(
                f"a worker that decodes images died ({str(error).split(chr(10))[0] or type(error).__name__}), usually out of"
                " memory; lower runtime.workers or train.batch_size"
            ) from error

    def _fits(self, batches: Sequence[torch.Tensor]) -> bool:
        """Whether /dev/shm, a container's 64 MB by default, has space for the batches that workers send; says so if not."""
        n_images = min(len(batches), PREFETCHED * self.n_workers + 1) * max(map(len, batches), default=0)
        needed = n_images * self._decoder.image_px**2 * CHANNELS
        if needed <= self._fitting_bytes:  # the other processes of a training may use it by now
            return True
        self._fitting_bytes = needed
        free = free_shared_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if needed > free:
            print(
                f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but decoding by processes needs {needed / 2**20:.0f}:"
                f" threads decode, which is slower; {REMEDY}",
                flush=True,
            )
        return needed <= free

    def _start_iterator(self) -> Iterator[Any]:
        """The loader's iterator; kills workers that an interrupted start leaves behind."""
        before = set(multiprocessing.active_children())
        try:
            return iter(self._loader)
        except BaseException:
            _kill(set(multiprocessing.active_children()) - before)
            raise

    def close(self) -> None:
        """Ends the workers; kills those that hang."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            stuck = threading.Timer(STUCK_SECONDS, _kill, [iterator._workers])  # torch waits ten seconds per worker
            stuck.start()
            try:
                iterator._shutdown_workers()
            finally:
                stuck.cancel()
                _kill(iterator._workers)


class Prefetching:
    """Images that threads decode in advance: at most `PREFETCHED` batches are in memory."""

    def __init__(self, rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, device: torch.device) -> None:
        self.device, self.n_workers, self.image_px = device, n_workers, image_px
        self._decoder, self._ids = Decoder(rows, raw, image_px), rows["id"]
        self.digests = rows["sha256"].to_numpy(dtype="S64")

    def __len__(self) -> int:
        return len(self._decoder)

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        decoder, waiting = self._decoder, deque[tuple[np.ndarray, Iterator[None]]]()
        with decoder.reader(decoder.files) as read, ThreadPoolExecutor(self.n_workers) as pool:
            try:
                for rows in batches:
                    pixels = decoder.empty(len(rows))
                    waiting.append((pixels, pool.map(decoder.fill, pixels, rows.tolist(), repeat(read))))
                    if len(waiting) == PREFETCHED:
                        yield self._decoded(*waiting.popleft())
                while waiting:
                    yield self._decoded(*waiting.popleft())
            finally:  # if the consumer stops early
                pool.shutdown(cancel_futures=True)

    def _decoded(self, pixels: np.ndarray, filled: Iterator[None]) -> torch.Tensor:
        with faults_named(self._ids):
            deque(filled, maxlen=0)  # waits, and raises the first error
        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)


def _start_forkserver() -> None:
    """Starts the process that workers are forked from, with `STOP_SIGNALS` blocked.

    The training handles a signal to the process group, from torchrun or a terminal: it finishes its step, which may need more
    images, and then ends the workers. Torch's workers exit as soon as the process that they were forked from has exited.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # workers share torch's memory
    resource_tracker.ensure_running()  # otherwise the fork server starts it and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(workers: Iterable[BaseProcess]) -> None:
    """Sends SIGKILL: the workers block SIGTERM, and Python waits for them at exit."""
    for worker in workers:
        worker.kill()


def _start_worker(_: int) -> None:
    """In a worker: exits when the training is killed, and when the thread that sends batches fails.

    The fork server stays alive as long as any worker does. Python's thread prints a traceback, drops the batch and goes on, and
    the training would wait for ever.
    """

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    def end(error: Exception, _: object) -> None:
        print(f"a worker cannot send a batch: {error}", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="orphan", daemon=True).start()
    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def decode_all(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, progress: bool = True) -> torch.Tensor:
    """The images of `rows` in their order: uint8 `[N, 3, image_px, image_px]`, RGB, channels last in memory.

    Raises `UserError` naming the first image that cannot be decoded.
    """
    decoder = Decoder(rows, raw, image_px)
    pixels = decoder.empty(len(rows))
    with faults_named(rows["id"]), decoder.reader(decoder.files) as read, ThreadPoolExecutor(n_workers) as pool:
        filled = pool.map(decoder.fill, pixels, range(len(rows)), repeat(read))
        deque(tqdm(filled, total=len(rows), unit="image", desc="decode", disable=None if progress else True), maxlen=0)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def decode_pixels(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, progress: bool = True) -> np.ndarray:
    """The images of `rows` in the input format of an ONNX file: uint8 `[N, image_px, image_px, 3]`, RGB."""
    return decode_all(rows, raw, image_px, n_workers, progress).permute(0, 2, 3, 1).numpy()


def open_images(
    rows: pd.DataFrame,
    raw: Path,
    image_px: int,
    n_workers: int,
    device: torch.device,
    train: Train,
    decoded_gigabytes: float = 0.0,
) -> Resident | Decoded | Streaming:
    """The images of `rows` by `train.loader`; auto is resident if they fit in `train.memory_share` of the free memory.

    What would stream is decoded once if it takes at most `decoded_gigabytes` on the disk.
    """
    n_bytes = len(rows) * image_px * image_px * CHANNELS
    fits = n_bytes <= train.memory_share * free_memory(device)
    if train.loader == "resident" or (train.loader == "auto" and fits):
        try:
            return Resident(decode_all(rows, raw, image_px, n_workers).to(device), rows["sha256"].to_numpy(dtype="S64"))
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise UserError(
                f"out of memory with {len(rows)} images at {image_px} px, {n_bytes / 2**30:.1f} GiB;"
                " set train.loader=streaming, or lower train.decode_px"
            ) from error
    if n_bytes <= decoded_gigabytes * 1e9:
        return Decoded(rows, raw, image_px, n_workers, device)
    print(f"streaming {len(rows)} images at {image_px} px ({n_bytes / 2**30:.1f} GiB decoded)")
    return Streaming(rows, raw, image_px, n_workers, device)


def free_shared_memory() -> int:
    """Bytes of free memory for batches of workers."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else sys.maxsize


def free_memory(device: torch.device) -> int:
    """Bytes of free memory for this process: of the machine, in which images are decoded, or of a GPU if it has less."""
    of_machine = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(of_machine, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else of_machine
