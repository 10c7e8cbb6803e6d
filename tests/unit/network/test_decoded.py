"""Images decoded once on disk: the same bytes as decoded each time, resumed after a kill, bounded."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.core.errors import UserError
from fieldguide.core.params import Train
from fieldguide.core.paths import decoded_cache
from fieldguide.network import decoded, decoder
from fieldguide.network.decoded import Decoded, bound_decoded, decoded_file
from fieldguide.network.loader import Resident, Streaming, decode_all, open_images
from support.settings import PARAMS
from support.shards import noise_png, write_shard

CPU = torch.device("cpu")
PX = 24


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def rows_of(project: Path, n: int = 11) -> pd.DataFrame:
    return write_shard(project, [noise_png(seed) for seed in range(n)])


def batches(n: int) -> list[torch.Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return [*order.split(4)]


def test_pixels_are_those_of_decoding_each_time(project: Path) -> None:
    rows = rows_of(project)
    source = Decoded(rows, project, PX, 2, CPU)
    expected = list(Resident(decode_all(rows, project, PX, 1)).batches(batches(len(rows))))
    for _ in range(2):  # two epochs
        found = list(source.batches(batches(len(rows))))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert len(source) == len(rows)
    assert (source.image_px, source.n_bytes) == (PX, len(rows) * PX * PX * 3)
    assert source.digests.tolist() == [digest.encode() for digest in rows["sha256"]]


def test_a_second_training_decodes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(project)
    first = list(Decoded(rows, project, PX, 2, CPU).batches(batches(len(rows))))
    (project / "shard.bin").unlink()
    again = list(Decoded(rows, project, PX, 2, CPU).batches(batches(len(rows))))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert {path.suffix for path in decoded_cache().iterdir()} == {".pixels", ".lock"}


@pytest.mark.parametrize("change", ["content", "side", "order", "number"])
def test_other_images_are_another_file(project: Path, change: str) -> None:
    rows = rows_of(project)
    first = decoded_file(rows, project, PX, 1)
    if change == "content":
        (project / "other").mkdir()
        other = decoded_file(
            write_shard(project / "other", [noise_png(seed + 1) for seed in range(11)]), project / "other", PX, 1
        )
    elif change == "side":
        other = decoded_file(rows, project, PX + 1, 1)
    else:
        table = rows[::-1] if change == "order" else rows[:-1]
        other = decoded_file(table.reset_index(drop=True), project, PX, 1)
    assert first != other


def test_a_killed_process_leaves_a_part_with_which_the_next_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, filled = rows_of(project), list[int]()
    monkeypatch.setattr(decoded, "CHUNK_BYTES", 3 * PX * PX * 3)
    fill = decoder.Decoder.fill

    def dies_at(last: int) -> Callable[..., None]:
        def noted(self: decoder.Decoder, slot: np.ndarray, row: int, read: decoder.READ) -> None:
            if row == last:
                raise KeyboardInterrupt
            filled.append(row)
            fill(self, slot, row, read)

        return noted

    monkeypatch.setattr(decoder.Decoder, "fill", dies_at(7))
    with pytest.raises(KeyboardInterrupt):
        decoded_file(rows, project, PX, 1)
    assert {path.suffix for path in decoded_cache().iterdir()} == {".part", ".json", ".lock"}
    filled.clear()
    monkeypatch.setattr(decoder.Decoder, "fill", dies_at(-1))
    path = decoded_file(rows, project, PX, 1)
    assert filled == [6, 7, 8, 9, 10]  # of three chunks of three, two were safe
    expected = decode_all(rows, project, PX, 1).permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    assert path.read_bytes() == expected


@pytest.mark.parametrize("damage", [b"{", b"[]", b"99", b""])
def test_a_part_of_another_size_or_without_a_note_is_begun_again(project: Path, damage: bytes) -> None:
    rows = rows_of(project)
    path = decoded_file(rows, project, PX, 1)
    content = path.read_bytes()
    path.rename(path.with_suffix(".part"))
    path.with_suffix(".part").write_bytes(content[:-1] if damage == b"99" else b"x" * len(content))
    path.with_suffix(".json").write_bytes(damage)
    assert decoded_file(rows, project, PX, 1).read_bytes() == content


def test_an_image_that_cannot_be_read_is_named(project: Path) -> None:
    rows = write_shard(project, [noise_png(0), b"no image at all", noise_png(2)])
    with pytest.raises(UserError, match=r"shard\.bin at byte \d+ \(train/A/1\.jpg\): .+; check the data with: dvc repro"):
        Decoded(rows, project, PX, 2, CPU)


def test_processes_of_one_training_write_one_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "cache_key", lambda *parts: "key")  # Python 3.11 cannot parse code in several threads
    rows, found = rows_of(project, 40), list[Path]()
    threads = [threading.Thread(target=lambda: found.append(decoded_file(rows, project, PX, 1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].read_bytes() == decode_all(rows, project, PX, 1).permute(0, 2, 3, 1).contiguous().numpy().tobytes()


def test_the_files_that_were_longest_not_used_are_removed(project: Path) -> None:
    rows = rows_of(project)
    files = [decoded_file(rows, project, px, 1) for px in (10, 11, 12)]
    for age, path in enumerate(files):
        os.utime(path, (1e9 + age, 1e9 + age))
    decoded_file(rows, project, 10, 1)  # used again
    bound_decoded(sum(files[number].stat().st_size for number in (0, 2)))
    assert [path.exists() for path in files] == [True, False, True]
    bound_decoded(0)
    assert [path.exists() for path in files] == [True, False, False]  # the last one used stays


@pytest.mark.parametrize(
    ("loader", "gigabytes", "kind"),
    [("streaming", 1.0, Decoded), ("streaming", 0.0, Streaming), ("streaming", 1e-6, Streaming), ("auto", 1.0, Resident)],
)
def test_what_would_stream_is_decoded_once_where_the_disk_may_hold_it(
    project: Path, loader: str, gigabytes: float, kind: type
) -> None:
    train = Train(**(PARAMS.train.model_dump() | {"loader": loader}))
    source = open_images(rows_of(project), project, PX, 1, CPU, train, gigabytes)
    source.close()
    assert type(source) is kind


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(project: Path) -> None:
    (project / ".fieldguide").write_text("a file")
    with pytest.raises(UserError, match=r"\.fieldguide/decoded: .+ runtime\.decoded_gigabytes=0"):
        Decoded(rows_of(project), project, PX, 1, CPU)
