"""Training on several devices, with one process per device started by torchrun.

The processes divide each global batch, so that order, augmentation, mixing and loss are those of one process with the global
batch. Only rank 0 writes. When a process dies, torchrun restarts all of them and they resume from the last saved state.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fieldguide.core.errors import UserError
from fieldguide.core.machine import n_cores
from fieldguide.core.params import Train
from fieldguide.network.device import pick_device

OUTCOME = "FIELDGUIDE_OUTCOME"  # environment variable: path of the file by which a process prevents a restart
MAX_RESTARTS = 10  # a guess


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes; by default a single process, for which all operations do nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def shares(self, lengths: Sequence[int]) -> list[torch.Tensor]:
        """This rank's positions in consecutive batches of these lengths: int64, ascending.

        A position and its mirror image in the batch belong to the same rank, because `augment.mix` combines the two. The
        shares of two ranks differ by at most two positions.
        """
        places, start = [], 0
        for length in lengths:
            own, n_pairs = torch.arange(length), length // 2
            pair = torch.minimum(own, own.flip(0))
            first, last = n_pairs * self.rank // self.size, n_pairs * (self.rank + 1) // self.size
            is_middle = (pair == n_pairs) & self.is_first  # rank 0 never has the larger share of pairs
            places.append(own[(pair >= first) & (pair < last) | is_middle] + start)
            start += length
        return places

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """The largest number that any process passed."""
        numbers = torch.tensor([number])
        if self.size > 1:
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copies the values of rank 0 into these tensors on all ranks."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def broadcast_object(self, own: Any) -> Any:
        """What rank 0 passed, on all ranks."""
        objects = [own]
        if self.size > 1:
            dist.broadcast_object_list(objects, src=0)
        return objects[0]

    def gather_rows(self, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
        """The rows of all processes, of which rank r passes r, r + size, …: `[n_rows, ...]` on the CPU."""
        gathered = torch.zeros(n_rows, *rows.shape[1:], dtype=rows.dtype)
        gathered[self.rank :: self.size] = rows
        return self.sum(gathered)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as DDP, which averages gradients over all processes; wrap it again after freezing or unfreezing weights.

        With more than two processes the order of summation depends on DDP's gradient buckets. DDP rebuilds them after the
        first step unless it looks for unused parameters, so that a resumed training would get different sums.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, forward_sync_buffers=False, find_unused_parameters=self.size > 2)

    def accumulate(self, network: nn.Module, more: bool) -> AbstractContextManager[None]:
        """A context that postpones the averaging of gradients if `more` batches of the same step follow."""
        return network.no_sync() if more and isinstance(network, DistributedDataParallel) else nullcontext()


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Converts batch norms, in place; raises `UserError` if the device does not support it."""
    if device.type != "cuda":
        raise UserError(f"params.yaml: train.sync_batch_norm is true, but needs CUDA and not {device.type}; set it to false")
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, because the model itself is not a norm


def n_devices(train: Train, device_choice: str) -> int:
    """Number of processes: torchrun's if it started this one, otherwise `train.devices`; auto means every GPU.

    Raises `UserError` if this machine has fewer devices.
    """
    if is_launched():
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
            f"params.yaml: train.devices is {train.devices}, but this machine has {available} {device.type}; set it to auto"
        )
    return train.devices


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def launch(module: str, n: int) -> None:
    """Runs `module` in n processes under torchrun, which restarts all of them when one dies.

    Raises `UserError` with the error of a process; exits after a signal, which torchrun forwards to each process.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // n)))
    options = ["--standalone", f"--nproc-per-node={n}", f"--max-restarts={MAX_RESTARTS}", "--no-python"]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # keeps nohup
        options.append("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT")
    failure: SignalException | ChildFailedError | None = None
    with tempfile.TemporaryDirectory(prefix="fieldguide-") as folder:
        file = Path(folder, "outcome.json")
        os.environ[OUTCOME] = str(file)
        try:
            torchrun([*options, sys.executable, "-m", module])
        except (SignalException, ChildFailedError) as error:
            failure = error
        finally:
            del os.environ[OUTCOME]
        outcome = json.loads(file.read_text()) if file.exists() else {}
    if "error" in outcome:
        raise UserError(outcome["error"]) from failure
    if outcome.get("status") == 0:
        return
    if isinstance(failure, SignalException):
        _exit_now(128 + int(failure.sigval))
    if "status" in outcome:
        sys.exit(outcome["status"])
    if failure:
        raise UserError(f"{n} processes were started {1 + MAX_RESTARTS} times and failed each time; see above") from failure


@contextmanager
def process_group(device_choice: str) -> Iterator[World]:
    """Joins the process group of torchrun; yields a world of one process without torchrun.

    Only rank 0 prints to standard output. Reports a `UserError` or `SystemExit` to the launcher.
    """
    if not is_launched():
        yield World()
        return
    outcome = Path(os.environ[OUTCOME]) if OUTCOME in os.environ else None
    if outcome and outcome.exists():  # the restart is unnecessary
        sys.exit(0)
    _exit_with_parent(os.getppid())
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    _join(world, pick_device(device_choice))
    try:
        with open(os.devnull, "w") as devnull, nullcontext() if world.is_first else redirect_stdout(devnull):
            yield world
    except UserError as error:
        if outcome is None:
            raise
        _write_outcome(outcome, {"error": str(error)})
        sys.exit(1)
    except SystemExit as error:
        if outcome is None:
            raise
        _write_outcome(outcome, {"status": error.code})
        _exit_now(error.code)  # type: ignore[arg-type]  # our own exits use integers only
    if outcome and world.is_first:  # all files are written: a signal or failure after this point has no effect
        _write_outcome(outcome, {"status": 0})
    dist.destroy_process_group()


def _join(world: World, device: torch.device) -> None:
    """Starts the process group, with a prefix per restart, because torchrun's store keeps addresses of dead processes."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = world.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(address, port, world.size, is_master=serves)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    prefixed = dist.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group(backend, store=prefixed, rank=world.rank, world_size=world.size)


def _write_outcome(file: Path, outcome: dict[str, object]) -> None:
    """Writes the outcome unless another process has written it."""
    with suppress(FileExistsError), file.open("x") as stream:
        json.dump(outcome, stream)


def _exit_now(status: int) -> NoReturn:
    """Exits without the interpreter's shutdown, during which threads of torch can abort (SIGABRT)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_with_parent(parent: int) -> None:
    """Kills this process when its parent exits: a killed torchrun leaves its processes behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan", daemon=True).start()
