"""Manifest rows become pixels: in order, whole, the same from memory as from workers, and what cannot be read is named."""

import io
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fieldguide.core.errors import UserError
from fieldguide.core.images import decode
from fieldguide.core.params import Train
from fieldguide.network import decoder, loader
from fieldguide.network.decoder import Decoder
from fieldguide.network.loader import PREFETCHED, STOP_SIGNALS, Prefetching, Resident, Streaming, decode_all, open_images
from support.disk import on_a_tiny_disk
from support.settings import PARAMS
from support.shards import SHARD, noise_png, write_shard

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on a machine of one core
CPU = torch.device("cpu")
TRAIN = PARAMS.train


@pytest.mark.parametrize("n_workers", [1, 4])
def test_images_come_in_the_order_of_the_rows(tmp_path: Path, make_jpeg: Callable[..., bytes], n_workers: int) -> None:
    images = [make_jpeg(seed, width=200 - 8 * seed) for seed in range(20)]  # the first take longest to decode
    rows = write_shard(tmp_path, images).iloc[::-1].reset_index(drop=True)
    pixels = decode_all(rows, tmp_path, 24, n_workers)
    expected = [torch.from_numpy(decode(image, 24).copy()).permute(2, 0, 1) for image in reversed(images)]
    assert torch.equal(pixels, torch.stack(expected))


def test_pixels_are_bytes_with_channels_last_in_memory(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    pixels = decode_all(write_shard(tmp_path, [make_jpeg(1), make_jpeg(2)]), tmp_path, 17, 2)
    assert pixels.shape == (2, 3, 17, 17)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    colour = np.broadcast_to(np.array([250, 128, 3], np.uint8), (16, 16, 3))
    stream = io.BytesIO()
    Image.fromarray(colour.copy()).save(stream, "PNG")
    pixels = decode_all(write_shard(tmp_path, [stream.getvalue()]), tmp_path, 16, 1)
    assert torch.equal(pixels.permute(0, 2, 3, 1), torch.from_numpy(colour.copy())[None])


def test_an_image_of_the_size_asked_for_keeps_its_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    pixels = decode_all(write_shard(tmp_path, [stream.getvalue()]), tmp_path, 16, 1)
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy()[0], noise)


def test_no_rows_give_no_images(tmp_path: Path) -> None:
    assert decode_all(write_shard(tmp_path, []), tmp_path, 16, 2).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("n_workers", [1, 4])
def test_the_first_unreadable_image_is_named(tmp_path: Path, make_jpeg: Callable[..., bytes], n_workers: int) -> None:
    good = make_jpeg(0)
    rows = write_shard(tmp_path, [good, good[: len(good) // 2], good, b"no image at all"])
    where = f"{tmp_path / SHARD} at byte {rows['offset'][1]} (train/A/1.jpg): "
    expected = f"^{re.escape(where)}.+; check the data with: dvc repro -f split_check$"
    with pytest.raises(UserError, match=expected):
        decode_all(rows, tmp_path, 16, n_workers)


def test_a_row_beyond_the_end_of_its_file_is_named(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    rows = write_shard(tmp_path, [make_jpeg(0)]).assign(offset=10_000_000)
    with pytest.raises(UserError, match=r"shard\.bin at byte 10000000 \(train/A/0\.jpg\): "):
        decode_all(rows, tmp_path, 16, 1)


def test_a_missing_file_is_named(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    rows = write_shard(tmp_path, [make_jpeg(0)]).assign(file="gone.zip")
    with pytest.raises(UserError, match=r"gone\.zip: No such file or directory; restore the data with: dvc repro download"):
        decode_all(rows, tmp_path, 16, 1)


N_GOOD, CUT, NO_IMAGE, GONE = 30, 30, 31, 32  # rows of `streamed`


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Streaming, pd.DataFrame, Path]]:
    """Two workers (their start costs seconds) on good images and on three rows that cannot be read."""
    raw = tmp_path_factory.mktemp("raw")
    images = [noise_png(seed) for seed in range(N_GOOD)]
    rows = write_shard(raw, [*images, images[0][: len(images[0]) // 2], b"no image at all", images[0]])
    rows.loc[GONE, "file"] = "gone.zip"
    source = Streaming(rows, raw, 16, 2, CPU)
    yield source, rows, raw
    source.close()


def lists(seed: int) -> list[torch.Tensor]:
    """Rows in any order, some twice, of differing numbers; more batches than two workers decode ahead."""
    random = np.random.default_rng(seed)
    lengths = [1, 7, 2, *random.integers(1, 9, 4 * PREFETCHED)]
    return [torch.from_numpy(random.integers(0, N_GOOD, length)) for length in lengths]


def same_batches(source: Prefetching | Streaming, resident: Resident, chosen: list[torch.Tensor]) -> None:
    n_seen = 0
    for found, expected in zip(source.batches(chosen), resident.batches(chosen), strict=True):
        assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert expected.is_contiguous(memory_format=torch.channels_last)
        n_seen += 1
    assert n_seen == len(chosen)


def resident(rows: pd.DataFrame, raw: Path) -> Resident:
    return Resident(decode_all(rows[:N_GOOD], raw, 16, 1))


def test_resident_images_are_those_of_the_rows_asked_for() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)
    source = Resident(images)
    chosen = [torch.tensor([3, 1, 1]), torch.tensor([9]), torch.tensor([0, 2])]
    found = list(source.batches(chosen))
    assert len(source) == 10
    assert [batch[:, 0, 0, 0].tolist() for batch in found] == [[3, 1, 1], [9], [0, 2]]
    assert [tuple(batch.shape) for batch in found] == [(3, 3, 4, 5), (1, 3, 4, 5), (2, 3, 4, 5)]


@pytest.mark.slow
def test_streamed_batches_are_the_resident_ones_again_and_again(streamed: tuple[Streaming, pd.DataFrame, Path]) -> None:
    source, rows, raw = streamed
    assert len(source) == len(rows)
    for seed in range(3):
        same_batches(source, resident(rows, raw), lists(seed))
    assert list(source.batches([])) == []
    same_batches(source, resident(rows, raw), lists(3)[:1])


@pytest.mark.slow
def test_workers_live_from_one_epoch_to_the_next(streamed: tuple[Streaming, pd.DataFrame, Path]) -> None:
    source, *_ = streamed
    list(source.batches(lists(0)))
    before = {process.pid for process in multiprocessing.active_children()}
    list(source.batches(lists(1)))
    assert {process.pid for process in multiprocessing.active_children()} == before
    assert len(before) == 2


def test_an_epoch_that_was_broken_off_leaves_nothing_for_the_next(streamed: tuple[Streaming, pd.DataFrame, Path]) -> None:
    source, rows, raw = streamed
    begun = source.batches(lists(4))
    next(begun)
    begun.close()
    same_batches(source, resident(rows, raw), lists(5))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_the_whole_group_leaves_the_images_coming(
    streamed: tuple[Streaming, pd.DataFrame, Path], number: signal.Signals
) -> None:
    source, rows, raw = streamed
    next(source.batches(lists(0)))  # the workers are there
    family = [
        child for child in psutil.Process().children(recursive=True) if any("forkserver" in word for word in child.cmdline())
    ]
    assert len(family) >= 3  # the process that they are forked from, and two of them
    for process in family:
        process.send_signal(number)
    same_batches(source, resident(rows, raw), lists(7))
    assert all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


@pytest.mark.parametrize("row", [CUT, NO_IMAGE, GONE], ids=["cut", "no image", "no file"])
def test_what_cannot_be_read_is_named_as_if_all_were_decoded_at_once(
    streamed: tuple[Streaming, pd.DataFrame, Path], row: int
) -> None:
    source, rows, raw = streamed
    with pytest.raises(UserError) as whole:
        decode_all(rows[row : row + 1], raw, 16, 1)
    good = [torch.tensor([1, 2]), torch.tensor([3])]
    batches = source.batches([*good, torch.tensor([4, row, 5]), *good])
    assert [len(next(batches)) for _ in good] == [2, 1]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == str(whole.value)
    assert "\n" not in str(caught.value)
    same_batches(source, resident(rows, raw), lists(6))  # the workers outlive it


def gone(pids: set[int], seconds: float = 10.0) -> bool:
    """Whether these children have ended, at the latest after `seconds`."""
    end = time.monotonic() + seconds
    while (alive := pids & {process.pid for process in multiprocessing.active_children()}) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive


def test_a_worker_that_is_killed_is_an_error_of_one_line_and_closing_ends_the_others(tmp_path: Path) -> None:
    rows = write_shard(tmp_path, [noise_png(0)])
    source = Streaming(rows, tmp_path, 16, 2, CPU)
    before = {process.pid for process in multiprocessing.active_children()}
    batches = source.batches([torch.tensor([0])] * 50 * PREFETCHED)
    next(batches)
    workers = {process.pid for process in multiprocessing.active_children()} - before
    assert len(workers) == 2
    os.kill(min(workers), signal.SIGKILL)
    said = r"^a worker that decodes images died \(.*\), usually out of memory; lower runtime\.workers or train\.batch_size$"
    with pytest.raises(UserError, match=said):
        list(batches)
    source.close()
    assert gone(workers)


def test_closing_ends_a_worker_that_is_stuck_in_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would wait for it at its end, for ever."""
    monkeypatch.setattr(loader, "STUCK_SECONDS", 0.2)
    rows = write_shard(tmp_path, [noise_png(0)] * 2)
    rows.loc[1, "file"] = "never"
    os.mkfifo(tmp_path / "never")
    source = Streaming(rows, tmp_path, 16, 1, CPU)
    before = {process.pid for process in multiprocessing.active_children()}
    next(source.batches([torch.tensor([0]), torch.tensor([1])]))
    workers = {process.pid for process in multiprocessing.active_children()} - before
    assert len(workers) == 1
    source.close()
    assert gone(workers)


@pytest.mark.parametrize(
    ("free_batches", "n_processes"), [(2 * PREFETCHED + 1, "1"), (2 * PREFETCHED, "1"), (17, "2"), (0, "1")]
)
def test_threads_decode_the_same_where_shared_memory_is_too_small_for_processes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free_batches: int,
    n_processes: str,
) -> None:
    rows = write_shard(tmp_path, [noise_png(seed) for seed in range(N_GOOD)])
    fits = free_batches // int(n_processes) > 2 * PREFETCHED
    monkeypatch.setattr(loader, "free_shared_memory", lambda: free_batches * max(map(len, lists(1))) * 16 * 16 * 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", n_processes)
    source = Streaming(rows, tmp_path, 16, 2, CPU)
    monkeypatch.setattr(source, "_start_iterator", lambda: pytest.fail("a process was started") if not fits else iter(()))
    assert source._fits([torch.tensor([0])]) == (free_batches > 0)  # as for the first picture: settles nothing for the epochs
    capsys.readouterr()
    if fits:
        assert list(source.batches(lists(1))) == []
        assert capsys.readouterr().out == ""
        return
    for _ in range(2):
        same_batches(source, resident(rows, tmp_path), lists(1))
    assert re.fullmatch(r"/dev/shm has \d+ MiB free, but .+ threads decode, .+ --shm-size=1g.+\n", capsys.readouterr().out)
    source.close()


@pytest.mark.parametrize(
    "error", [RuntimeError("unable to write to file </torch_1>: (28)\nat x"), OSError(24, "Too many open files")]
)
def test_a_batch_that_a_worker_cannot_share_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(torch.Tensor, "share_memory_", lambda self: (_ for _ in ()).throw(error))
    found = Decoder(write_shard(tmp_path, [noise_png(0)]), tmp_path, 16)[[0, 0]]
    assert isinstance(found, UserError)
    assert str(found).startswith("a batch of 2 images does not get from its worker to the training (") and "\n" not in str(
        found
    )
    assert "--shm-size=1g" in str(found)


@pytest.mark.parametrize("unsendable", [lambda: 0, multiprocessing.Lock(), (number for number in ())], ids=type)
def test_a_worker_whose_sending_thread_fails_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unsendable: object
) -> None:
    """Python's thread would drop the batch, and the training would wait for ever."""
    ended: list[int] = []
    monkeypatch.setattr(loader.Queue, "_on_queue_feeder_error", loader.Queue._on_queue_feeder_error)
    monkeypatch.setattr(loader.os, "_exit", ended.append)
    parent = SimpleNamespace(join=threading.Event().wait)
    monkeypatch.setattr(loader.multiprocessing, "parent_process", lambda: parent)
    loader._start_worker(0)
    queue = multiprocessing.Queue()
    queue.put(unsendable)
    queue.close()
    queue.join_thread()
    assert ended == [1]
    assert capsys.readouterr().err.startswith("a worker cannot send a batch: ")


FULL = """
import sys; from pathlib import Path; import pandas as pd; import torch
from fieldguide.core.errors import run_command
from fieldguide.network import decoder, loader
from fieldguide.network.decoder import Decoder
def main():
    loader.free_shared_memory = lambda: 2**40  # another program fills it later
    source = loader.Streaming(pd.read_csv(sys.argv[1]), Path(sys.argv[1]).parent, 400, 2, torch.device("cpu"))
    try:
        for _ in source.batches([torch.zeros(8, dtype=torch.int64)] * 40): pass
    finally:
        source.close()
run_command(main)
"""


@pytest.mark.slow
def test_a_training_whose_shared_memory_fills_up_ends_with_the_reason(tmp_path: Path) -> None:
    write_shard(tmp_path, [noise_png(0)]).to_csv(tmp_path / "rows.csv")
    begun = time.monotonic()
    done = on_a_tiny_disk(Path("/dev/shm"), [sys.executable, "-c", FULL, str(tmp_path / "rows.csv")], kilobytes=6000)
    assert done.returncode == 1
    assert re.fullmatch(
        "error: a batch of 8 images does not get .+; run the container .+", done.stderr.strip().splitlines()[-1]
    )
    assert time.monotonic() - begun < 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of torch's iterator, half made
def test_an_interruption_while_workers_are_started_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[BaseProcess] = []

    def start(worker: BaseProcess) -> None:
        if started:
            raise KeyboardInterrupt
        BaseProcess.start(worker)
        started.append(worker)

    monkeypatch.setattr(ForkServerProcess, "start", start)
    source = Streaming(write_shard(tmp_path, [noise_png(0)]), tmp_path, 16, 2, CPU)
    with pytest.raises(KeyboardInterrupt):
        next(source.batches([torch.tensor([0])]))
    source.close()
    assert gone({started[0].pid})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly\n"),
            "DataLoader worker (pid(s) 7) exited unexpectedly",
        ),
        (EOFError(), "EOFError"),
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_torch_says_when_a_worker_dies_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """The last three come when it dies while it hands a batch over: 3 of 10 kills here."""

    def dies(loader: DataLoader) -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
        raise error

    monkeypatch.setattr(DataLoader, "__iter__", dies)
    batches = Streaming(write_shard(tmp_path, [noise_png(0)]), tmp_path, 16, 2, CPU).batches([torch.tensor([0])] * 2)
    assert next(batches).shape == (1, 3, 16, 16)
    with pytest.raises(
        UserError, match=f"^a worker that decodes images died {re.escape(f'({said})')}, usually out of memory; "
    ):
        next(batches)


def test_another_error_of_torch_is_not_taken_for_a_workers_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(loader: DataLoader) -> Iterator[torch.Tensor]:
        raise RuntimeError("CUDA error: out of memory")
        yield

    monkeypatch.setattr(DataLoader, "__iter__", fails)
    with pytest.raises(RuntimeError, match=r"^CUDA error: out of memory$"):
        list(Streaming(write_shard(tmp_path, [noise_png(0)]), tmp_path, 16, 2, CPU).batches([torch.tensor([0])]))


def test_an_error_of_the_one_who_uses_the_batches_is_not_taken_for_a_workers(
    streamed: tuple[Streaming, pd.DataFrame, Path],
) -> None:
    source, *_ = streamed
    with pytest.raises(RuntimeError, match=r"^a co-worker's fault$"):
        for _ in source.batches(lists(0)):
            raise RuntimeError("a co-worker's fault")


def test_closing_before_the_first_batch_or_twice_is_no_error(tmp_path: Path) -> None:
    source = Streaming(write_shard(tmp_path, [noise_png(0)]), tmp_path, 16, 2, CPU)
    source.close()
    source.close()
    Resident(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).close()


@pytest.mark.parametrize(
    ("choice", "free", "kind"),
    [
        ("auto", 2 * 5 * 16 * 16 * 3, Resident),
        ("auto", 2 * 5 * 16 * 16 * 3 - 1, Streaming),
        ("resident", 0, Resident),
        ("streaming", 2**60, Streaming),
    ],
)
def test_images_are_resident_where_their_share_of_the_memory_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, free: int, kind: type
) -> None:
    rows = write_shard(tmp_path, [noise_png(seed) for seed in range(5)])
    monkeypatch.setattr(loader, "free_memory", lambda device: free)
    train = Train(**(TRAIN.model_dump() | {"loader": choice, "memory_share": 0.5}))
    source = open_images(rows, tmp_path, 16, 2, CPU, train)
    assert type(source) is kind
    assert len(source) == 5
    source.close()


def test_a_resident_source_holds_the_decoded_images(tmp_path: Path) -> None:
    rows = write_shard(tmp_path, [noise_png(seed) for seed in range(5)])
    train = Train(**(TRAIN.model_dump() | {"loader": "resident"}))
    source = open_images(rows, tmp_path, 16, 2, CPU, train)
    (found,) = source.batches([torch.tensor([4, 0])])
    assert torch.equal(found, decode_all(rows, tmp_path, 16, 1)[[4, 0]])


def test_free_memory_of_the_machine_is_between_nothing_and_all_of_it() -> None:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < loader.free_memory(CPU) <= pages


def test_of_a_gpu_and_its_machine_the_smaller_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    of_machine = SimpleNamespace(available=8)
    monkeypatch.setattr(loader.psutil, "virtual_memory", lambda: of_machine)
    for of_gpu, expected in ((24, 8), (5, 5)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=of_gpu: (free, 80))
        assert loader.free_memory(torch.device("cuda", 0)) == expected
    assert loader.free_memory(CPU) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader.free_memory(CPU) == 2


@pytest.mark.parametrize("error", [MemoryError("no 11 GiB"), torch.OutOfMemoryError("CUDA out of memory")])
def test_images_that_do_not_fit_after_all_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def decode_all(*_: object) -> torch.Tensor:
        raise error

    rows = write_shard(tmp_path, [noise_png(seed) for seed in range(5)])
    monkeypatch.setattr(loader, "decode_all", decode_all)
    train = Train(**(TRAIN.model_dump() | {"loader": "resident"}))
    with pytest.raises(UserError, match=r"^out of memory with 5 images at 16 px, 0\.0 GiB; set train\.loader=streaming"):
        open_images(rows, tmp_path, 16, 2, CPU, train)


def test_an_image_with_a_flipped_bit_is_refused_though_it_can_be_decoded(
    tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    rows = write_shard(tmp_path, [make_jpeg(1), make_jpeg(2)])
    content = bytearray((tmp_path / SHARD).read_bytes())
    start, length = rows.loc[1, ["offset", "length"]]
    for place in np.random.default_rng(0).integers(start, start + length, 200):
        content[place] ^= 1 << int(place) % 8
        (tmp_path / SHARD).write_bytes(content)
        with pytest.raises(UserError, match=r"\(train/A/1\.jpg\): changed since the split check"):
            decode_all(rows, tmp_path, 16, 1)
        content[place] ^= 1 << int(place) % 8


@pytest.mark.parametrize("n_workers", [1, 4])
def test_batches_decoded_ahead_are_the_resident_ones_again_and_again(
    tmp_path: Path, make_jpeg: Callable[..., bytes], n_workers: int
) -> None:
    images = [make_jpeg(seed, width=200 - 4 * seed) for seed in range(N_GOOD)]  # the first take longest to decode
    rows = write_shard(tmp_path, images)
    source = Prefetching(rows, tmp_path, 16, n_workers, CPU)
    assert len(source) == N_GOOD
    for seed in range(3):
        same_batches(source, resident(rows, tmp_path), lists(seed))


@pytest.mark.parametrize("n_batches", [0, 1, PREFETCHED - 1, PREFETCHED, 2 * PREFETCHED + 1])
def test_any_number_of_batches_comes_ahead(tmp_path: Path, n_batches: int) -> None:
    rows = write_shard(tmp_path, [noise_png(seed) for seed in range(3)])
    chosen = [torch.tensor([k % 3]) for k in range(n_batches)]
    expected = decode_all(rows, tmp_path, 16, 1)
    found = list(Prefetching(rows, tmp_path, 16, 2, CPU).batches(chosen))
    assert [batch.tolist() for batch in found] == [expected[[k % 3]].tolist() for k in range(n_batches)]


def test_no_more_is_decoded_than_some_batches_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(decoder, "decode", lambda encoded, px: decoded.append(1) or decode(encoded, px))
    rows = write_shard(tmp_path, [noise_png(seed) for seed in range(N_GOOD)])
    batches = Prefetching(rows, tmp_path, 16, 2, CPU).batches(torch.arange(N_GOOD).split(2))
    for n_taken in range(1, 4):
        next(batches)
        time.sleep(0.2)
        assert len(decoded) == 2 * (PREFETCHED + n_taken - 1)
    batches.close()
    assert len(decoded) == 2 * (PREFETCHED + 2)


def test_an_image_ahead_that_cannot_be_read_is_named_in_its_turn(tmp_path: Path) -> None:
    good = noise_png(0)
    rows = write_shard(tmp_path, [good, good, good, good, good[: len(good) // 2], b"no image at all"])
    batches = Prefetching(rows, tmp_path, 16, 2, CPU).batches(torch.arange(6).split(2))
    assert [len(next(batches)) for _ in range(2)] == [2, 2]
    with pytest.raises(UserError, match=r"at byte \d+ \(train/A/4\.jpg\): .+; check the data with: dvc repro"):
        next(batches)


def test_a_file_that_is_gone_or_changed_is_named_ahead_too(tmp_path: Path) -> None:
    rows = write_shard(tmp_path, [noise_png(0)])
    with pytest.raises(UserError, match=r"gone\.zip: No such file or directory; restore the data with: dvc repro download"):
        list(Prefetching(rows.assign(file="gone.zip"), tmp_path, 16, 2, CPU).batches([torch.tensor([0])]))
    with pytest.raises(UserError, match=r"changed since the split check"):
        list(Prefetching(rows.assign(sha256="0" * 64), tmp_path, 16, 2, CPU).batches([torch.tensor([0])]))
