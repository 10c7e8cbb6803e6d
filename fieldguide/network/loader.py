"""Manifest rows to pixels: all of them decoded once into memory (resident), again and again by workers (streaming), or
once, a few batches ahead of what is in use (ahead).

All give the same bytes in the same order. Pillow releases the interpreter's lock, so that threads decode side by side;
streaming uses processes, which also keep the Python of the training step free.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from tqdm import tqdm

from fieldguide.core.errors import UserError
from fieldguide.core.images import UnreadableImage, decode, encoded_reader
from fieldguide.core.params import Train

CHANNELS = 3
PREFETCHED = 4  # batches that each worker decodes ahead
STUCK_SECONDS = 5.0  # that a worker has for what it is about when all end
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")  # the last: a terminal that was closed
STOP_SIGNALS = [signal.Signals[name] for name in SIGNALS if hasattr(signal, name)]  # what asks a training to end


class Source(Protocol):
    """Images in the order of their rows, on a device."""

    def __len__(self) -> int: ...

    def batches(self, chosen: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each of `chosen`, int64 `[B]` on the CPU, these images: uint8 `[B, 3, H, W]` on the device, channels last."""
        ...


class Resident:
    """Images that lie in the device's memory: uint8 `[N, 3, H, W]`."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def close(self) -> None:
        """Nothing is open."""

    def batches(self, chosen: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        by_row = self.images.permute(0, 2, 3, 1)
        for rows in chosen:
            yield by_row.index_select(0, rows.to(by_row.device, non_blocking=True)).permute(0, 3, 1, 2)


class Streaming:
    """Images that worker processes decode when they are asked for; workers live until `close`."""

    def __init__(self, rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, device: torch.device) -> None:
        self.device = device
        self._decoder = _Decoder(rows, raw, image_px)
        self._order = _Order()
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"  # a fork copies held locks
        if method == "forkserver":
            _start_forkserver()
        self._loader = DataLoader(
            self._decoder,
            sampler=self._order,
            batch_size=None,
            num_workers=n_workers,
            prefetch_factor=PREFETCHED,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            worker_init_fn=_die_with_training,
            multiprocessing_context=method,
        )

    def __len__(self) -> int:
        return len(self._decoder)

    def batches(self, chosen: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        self._order.chosen = [rows.tolist() for rows in chosen]
        try:
            for pixels in self._begun():
                if isinstance(pixels, UserError):  # sent, not raised: torch would wrap it in the worker's traceback
                    raise pixels
                yield pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        except (RuntimeError, EOFError, ConnectionError) as error:  # the last two: it died while it sent a batch
            if isinstance(error, RuntimeError) and "worker" not in str(error):
                raise
            raise UserError(
                f"a worker that decodes images died ({str(error).split(chr(10))[0] or type(error).__name__}); mostly memory"
                " ran out: lower runtime.workers or train.batch_size"
            ) from error

    def _begun(self) -> Iterator[Any]:
        """The loader's iterator; workers that an interruption of their start leaves behind are ended."""
        before = set(multiprocessing.active_children())
        try:
            return iter(self._loader)
        except BaseException:
            _kill(set(multiprocessing.active_children()) - before)
            raise

    def close(self) -> None:
        """Ends the workers; those that are stuck in a read are killed."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            stuck = threading.Timer(
                STUCK_SECONDS, _kill, [iterator._workers]
            )  # torch waits ten seconds for one after the other
            stuck.start()
            try:
                iterator._shutdown_workers()
            finally:
                stuck.cancel()
                _kill(iterator._workers)


class Prefetching:
    """Images that threads decode while the batches before them are in use: `PREFETCHED` batches and no more are ever held."""

    def __init__(self, rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, device: torch.device) -> None:
        self.device, self.n_workers = device, n_workers
        self._decoder = _Decoder(rows, raw, image_px)

    def __len__(self) -> int:
        return len(self._decoder)

    def batches(self, chosen: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        decoder, waiting = self._decoder, deque[tuple[np.ndarray, list[Future[None]]]]()
        try:
            with encoded_reader(decoder.raw, decoder.files) as read, ThreadPoolExecutor(self.n_workers) as pool:
                try:
                    for rows in chosen:
                        pixels = np.empty((len(rows), decoder.image_px, decoder.image_px, CHANNELS), np.uint8)
                        slots = zip(pixels, rows.tolist(), strict=True)
                        waiting.append((pixels, [pool.submit(decoder.fill, slot, row, read) for slot, row in slots]))
                        if len(waiting) == PREFETCHED:
                            yield self._decoded(*waiting.popleft())
                    while waiting:
                        yield self._decoded(*waiting.popleft())
                finally:  # left early: what has not begun is not decoded
                    pool.shutdown(cancel_futures=True)
        except OSError as error:
            raise _lost(error) from error

    def _decoded(self, pixels: np.ndarray, filled: list[Future[None]]) -> torch.Tensor:
        for future in filled:
            future.result()
        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)


def _start_forkserver() -> None:
    """The process that workers are forked from; all inherit that the signals `STOP_SIGNALS` are blocked.

    One that goes to the whole group, from torchrun or a terminal, is the training's affair: it ends its step, which may need
    more images, and then its workers. Torch's workers leave as soon as the process that they were forked from is gone.
    """
    from multiprocessing import forkserver, resource_tracker  # not on Windows

    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # torch is in memory once for all workers
    resource_tracker.ensure_running()  # else the server starts it, which unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(workers: Iterable[BaseProcess]) -> None:
    """Python waits at its end for each worker, and SIGTERM, which it and torch try, is blocked in them."""
    for worker in workers:
        worker.kill()


def _die_with_training(_: int) -> None:
    """In a worker: a training that is killed would leave it behind; workers hold each other's server of processes alive."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="orphan", daemon=True).start()


class _Order:
    """What is asked for next; a DataLoader whose workers live on takes it anew in each epoch."""

    def __init__(self) -> None:
        self.chosen: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)


class _Decoder(Dataset[torch.Tensor | UserError]):
    """What runs in a worker: a list of row numbers to uint8 `[B, px, px, 3]`."""

    def __init__(self, rows: pd.DataFrame, raw: Path, image_px: int) -> None:
        self.files = sorted(set(rows["file"]))
        numbers = {file: number for number, file in enumerate(self.files)}
        columns = rows["file"].map(numbers), rows["offset"], rows["length"]
        self.places = np.stack([column.to_numpy(dtype=np.int64) for column in columns], axis=1)
        self.names = rows["id"].to_numpy(dtype=str)
        self.digests = rows["sha256"].to_numpy(dtype="S64")
        self.raw, self.image_px = raw, image_px

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, chosen: list[int]) -> torch.Tensor | UserError:
        pixels = np.empty((len(chosen), self.image_px, self.image_px, CHANNELS), np.uint8)
        try:
            with encoded_reader(self.raw, [self.files[number] for number in set(self.places[chosen, 0])]) as read:
                for slot, row in zip(pixels, chosen, strict=True):
                    self.fill(slot, row, read)
        except OSError as error:
            return _lost(error)
        except UserError as error:
            return error
        return torch.from_numpy(pixels)

    def fill(self, slot: np.ndarray, row: int, read: Callable[[str, int, int], bytes]) -> None:
        """One image into uint8 `[px, px, 3]`; raises `UserError` naming the image."""
        number, offset, length = self.places[row].tolist()
        try:
            encoded = read(self.files[number], offset, length)
            if hashlib.sha256(encoded).hexdigest().encode() != self.digests[row]:
                raise UserError(
                    f"{self._name(row)}: not the bytes that the split check saw; bring them back with: dvc checkout data/raw"
                )
            slot[:] = decode(encoded, self.image_px)
        except (UnreadableImage, OSError) as error:
            raise UserError(f"{self._name(row)}: {error}; check the data again with: dvc repro -f split_check") from error

    def _name(self, row: int) -> str:
        number, offset, _ = self.places[row].tolist()
        return f"{self.raw / self.files[number]} at byte {offset} ({self.names[row]})"


def _lost(error: OSError) -> UserError:
    return UserError(f"{error.filename}: {error.strerror}; bring the data back with: dvc repro download")


def decode_all(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int) -> torch.Tensor:
    """The images of `rows` in their order: uint8 `[N, 3, image_px, image_px]`, RGB, channels last in memory.

    Raises `UserError` naming the first image that cannot be decoded.
    """
    pixels = np.empty((len(rows), image_px, image_px, CHANNELS), np.uint8)
    decoder = _Decoder(rows, raw, image_px)
    try:
        with encoded_reader(raw, rows["file"]) as read, ThreadPoolExecutor(n_workers) as pool:
            filled = pool.map(lambda row: decoder.fill(pixels[row], row, read), range(len(rows)))
            for _ in tqdm(filled, total=len(rows), unit="image", desc="decode", disable=None):
                pass
    except OSError as error:
        raise _lost(error) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def decode_pixels(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int) -> np.ndarray:
    """The same images as an exported model takes them: uint8 `[N, image_px, image_px, 3]`, RGB."""
    return decode_all(rows, raw, image_px, n_workers).permute(0, 2, 3, 1).numpy()


def open_images(
    rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int, device: torch.device, train: Train
) -> Resident | Streaming:
    """The images of `rows` as `train.loader` says; auto is resident where they fit `train.memory_share` of what is free."""
    n_bytes = len(rows) * image_px * image_px * CHANNELS
    fits = n_bytes <= train.memory_share * free_memory(device)
    if train.loader == "resident" or (train.loader == "auto" and fits):
        try:
            return Resident(decode_all(rows, raw, image_px, n_workers).to(device))
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise UserError(
                f"out of memory with {len(rows)} images at {image_px} px, {n_bytes / 2**30:.1f} GiB;"
                " set train.loader=streaming, or lower train.decode_px"
            ) from error
    print(f"streaming {len(rows)} images at {image_px} px ({n_bytes / 2**30:.1f} GiB decoded)")
    return Streaming(rows, raw, image_px, n_workers, device)


def free_memory(device: torch.device) -> int:
    """Bytes of this process's share of the machine; with CUDA of the device, where that is less.

    Images are decoded in the machine's memory, also those that go to a device.
    """
    of_machine = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(of_machine, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else of_machine
