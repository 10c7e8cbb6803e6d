"""Many devices: one process each, started by torchrun; what they must agree upon, and how the work is divided.

Each global batch is divided among the processes, so that order, augmentation, mixing and loss are those of one process
with the whole batch; a process alone does nothing of all this. Rank 0 alone writes. A process that dies ends the others,
torchrun starts all of them again, and they go on from the last state.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fieldguide.core.errors import UserError
from fieldguide.core.machine import n_cores
from fieldguide.core.params import Train
from fieldguide.network.device import pick_device

ENDED = "FIELDGUIDE_ENDED"  # names the file in which a process tells the launcher why no further attempt is of use
MAX_RESTARTS = 10  # of all processes, after one has died


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this is; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def number(self) -> tuple[int, ...]:
        """What a counter of this process's own random numbers takes in besides; nothing for the first."""
        return () if self.is_first else (self.rank,)

    def shares(self, lengths: Sequence[int]) -> list[torch.Tensor]:
        """The places of this process in batches of these lengths that follow one another: int64, ascending.

        With each place its mirror image in the batch is there too, as `augment.mix` joins an image with that. The
        processes' shares differ by two places at most.
        """
        places, start = [], 0
        for length in lengths:
            pairs = length // 2
            first, last = pairs * self.rank // self.size, pairs * (self.rank + 1) // self.size
            middle = [pairs] if length % 2 and self.is_first else []  # whose share is never the larger
            ahead = torch.arange(first, last)
            places.append(torch.cat([ahead, torch.tensor(middle, dtype=torch.int64), length - 1 - ahead.flip(0)]) + start)
            start += length
        return places

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in the tensor's place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def highest(self, number: int) -> int:
        """The highest number that a process gave."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives these tensors the values that they have in the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def bytes_of_first(self, content: bytes) -> bytes:
        """What the first process gave."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content)])
        dist.broadcast(length, src=0)
        sent = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first and content:
            sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(sent, src=0)
        return sent.numpy().tobytes()

    def gathered(self, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
        """The rows of all processes, of which process r gave those at r, r + size, ...: `[n_rows, ...]` on the CPU."""
        if self.size == 1:
            return rows
        whole = torch.zeros(n_rows, *rows.shape[1:], dtype=rows.dtype)
        whole[self.rank :: self.size] = rows
        return self.sum(whole)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The network whose backward pass also takes the mean of all processes' gradients.

        To be made anew whenever other weights learn. Norms gather statistics of the process's own share. With more than two
        processes the order in which gradients are summed depends on the buckets that they lie in, which DDP lays out anew
        after the first step unless it looks for unused parameters: a training that goes on would have other sums.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, forward_sync_buffers=False, find_unused_parameters=self.size > 2)

    def adding(self, network: nn.Module, more: bool) -> AbstractContextManager[None]:
        """Within it gradients stay in the process while `more` of the same step are to come."""
        return network.no_sync() if more and isinstance(network, DistributedDataParallel) else nullcontext()


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on any device (torch's own is for CUDA alone)."""

    momentum: float  # as all these, never None here: `synchronise_norms`
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[B, C, H, W]`; as `nn.BatchNorm2d` would see the whole batch."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)  # a copied tensor would wait
        dist.all_reduce(count)
        mean = _Sum.apply(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(_: object, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: object, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def synchronise_norms(model: nn.Module, name: str) -> None:
    """Turns each batch norm into one over all processes; raises `UserError` for a kind that cannot be."""
    for part in model.modules():
        if type(part) is nn.BatchNorm2d and part.momentum is not None and part.affine and part.track_running_stats:
            part.__class__ = SyncBatchNorm  # same weights, names and hooks
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"params.yaml: train.sync_batch_norm is true, but {name} has norms ({type(part).__name__}) that cannot be"
                " synchronised; set it to false"
            )


def n_devices(train: Train, device_choice: str) -> int:
    """How many processes train: those that torchrun started, else what `train.devices` says; auto: every GPU.

    Raises `UserError` when this machine has fewer.
    """
    if "WORLD_SIZE" in os.environ:
        started = int(os.environ["WORLD_SIZE"])
        if train.devices not in ("auto", started):
            raise UserError(f"params.yaml: train.devices is {train.devices}, but torchrun started {started}; set it to auto")
        return started
    device = pick_device(device_choice)
    available = torch.cuda.device_count() if device.type == "cuda" else 1
    if train.devices == "auto":
        return available
    if train.devices > available and device.type != "cpu":
        raise UserError(
            f"params.yaml: train.devices is {train.devices}, this machine has {available} of {device.type}; set it to auto"
        )
    return train.devices


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def per_process(n: int) -> int:
    """What each of the processes on this machine has of n (cores, workers); at least 1."""
    return max(1, n // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def launch(module: str, n: int) -> None:
    """Runs `module` in n processes under torchrun, which starts them again after one has died; returns when they have ended.

    Raises `UserError` with what ended them; ends this process too after SIGTERM or SIGINT, which each of them gets.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // n)))
    with tempfile.TemporaryDirectory(prefix="fieldguide-") as folder:
        ended = Path(folder, "ended.json")
        os.environ[ENDED] = str(ended)
        options = ["--standalone", f"--nproc-per-node={n}", f"--max-restarts={MAX_RESTARTS}", "--no-python"]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup, which torchrun would undo
            options.append("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT")
        failed: Exception | None = None
        signalled = 0
        try:
            torchrun([*options, sys.executable, "-m", module])
        except SignalException as error:
            signalled = int(error.sigval)
        except ChildFailedError as error:
            failed = error
        finally:
            del os.environ[ENDED]
        told = json.loads(ended.read_text()) if ended.exists() else {}
    if "error" in told:
        raise UserError(told["error"]) from failed
    if told.get("status") == 0:
        return
    if signalled:
        _leave_at_once(128 + signalled)
    if "status" in told:
        sys.exit(told["status"])
    if failed:
        raise UserError(f"{n} processes were started {1 + MAX_RESTARTS} times and died each time; see above") from failed


@contextmanager
def joined(device_choice: str) -> Iterator[World]:
    """This process among those that torchrun started, or alone.

    Standard output is the first one's. What a `UserError` or `SystemExit` says is left for the launcher.
    """
    if not is_launched():
        yield World()
        return
    ended = Path(os.environ[ENDED]) if ENDED in os.environ else None
    if ended and ended.exists():  # before this attempt; another one is of no use
        sys.exit(0)
    _end_with(os.getppid())
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    _join(world, pick_device(device_choice))
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if world.is_first else redirect_stdout(nowhere):
            yield world
    except UserError as error:
        if ended is None:
            raise
        _leave_word(ended, {"error": str(error)})
        sys.exit(1)
    except SystemExit as error:
        if ended is None:
            raise
        _leave_word(ended, {"status": error.code})
        _leave_at_once(error.code)  # type: ignore[arg-type]  # a number: our own exits give no other
    if ended and world.is_first:  # all is written: no signal and no other's death can undo it
        _leave_word(ended, {"status": 0})
    dist.destroy_process_group()


def _join(world: World, device: torch.device) -> None:
    """Meets the others in a store under this attempt's own prefix: those of an attempt before left their addresses there."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = world.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(address, port, world.size, is_master=serves)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    prefixed = dist.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group(backend, store=prefixed, rank=world.rank, world_size=world.size)


def _leave_word(ended: Path, word: dict[str, object]) -> None:
    """The first word stands."""
    try:
        with ended.open("x") as stream:
            json.dump(word, stream)
    except FileExistsError:
        pass


def _leave_at_once(status: int) -> NoReturn:
    """Without the interpreter's own end, which threads of torch that still run have been seen to abort (SIGABRT)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with(parent: int) -> None:
    """Ends this process when its parent does: torchrun that is killed leaves its processes behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan", daemon=True).start()
