"""The cache of inspected images: the same results with and without it, whatever happened to its file."""

import hashlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fieldguide.checks import inspected, inspection
from fieldguide.checks.inspected import Inspected, InspectedCache, inspected_images
from fieldguide.checks.inspection import find_near_duplicates, inspect_images
from fieldguide.checks.near_duplicates import RESULT, Fingerprints, Known, NearDuplicate, ReadRgb
from fieldguide.core import caches
from fieldguide.core.paths import inspected_cache

N = 6


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_jpeg: Callable[..., bytes]) -> pd.DataFrame:
    """Images of train and test in a file, of which one is unreadable; the current folder is a project."""
    monkeypatch.chdir(tmp_path)
    images = [*(make_jpeg(seed, 60 + seed, 50) for seed in range(N)), b"no image"]
    Path("all.bin").write_bytes(b"".join(images))
    lengths = np.array([len(image) for image in images])
    split = ["train", "test"] * 3 + ["train"]
    return pd.DataFrame({"split": split, "file": "all.bin", "offset": np.cumsum(lengths) - lengths, "length": lengths})


def results(table: pd.DataFrame) -> list[object]:
    """Everything that the inspection returns, as bytes."""
    frame, prints, means = inspect_images(table, Path(), 10, 2)
    known = [(one.hashes.tobytes(), one.thumbnail.tobytes(), one.side_px) for one in prints]
    return [frame.to_csv(), known, {split: (mean.pixels.tobytes(), mean.n_images) for split, mean in means.items()}]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the images that were decoded."""
    lengths: list[int] = []
    inspect = inspection.inspect
    monkeypatch.setattr(inspection, "inspect", lambda encoded, *rest: lengths.append(len(encoded)) or inspect(encoded, *rest))
    return lengths


def database() -> Path:
    (file,) = inspected_cache().glob("*.db")
    return file


@pytest.mark.parametrize("large", [0, inspection.LARGE], ids=["large files", "small files"])
def test_an_unchanged_image_is_not_decoded_again_and_the_results_are_the_same(
    large: int, table: pd.DataFrame, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "LARGE", large)
    first = results(table)
    assert len(decoded) == N + 1
    assert results(table) == first
    assert results(table.iloc[::-1].reset_index(drop=True))[1] == first[1][::-1]
    assert len(decoded) == N + 3  # the unreadable one each time


def test_a_new_image_is_decoded_and_kept(table: pd.DataFrame, decoded: list[int]) -> None:
    results(table.head(4))
    results(table.head(6))
    assert len(decoded) == 6
    results(table.head(6))
    assert len(decoded) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no database" * 1000),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(file.read_bytes()[:4096] + bytes(file.stat().st_size - 4096)),
    ],
    ids=["other file", "empty", "cut off", "zeros"],
)
def test_a_damaged_file_is_computed_again(table: pd.DataFrame, decoded: list[int], damage: Callable[[Path], None]) -> None:
    expected = results(table)
    damage(database())
    for _ in range(3):
        assert results(table) == expected
    assert len(decoded) <= 3 * (N + 1) + 1  # at the third time at the latest it is whole again


@pytest.mark.parametrize("column", ["width", "side_px", "content"])
def test_a_changed_value_is_computed_again(table: pd.DataFrame, column: str) -> None:
    expected = results(table)
    value = "zeroblob(length(content))" if column == "content" else f"{column} + 1"
    connection = sqlite3.connect(database())
    with connection:
        connection.execute(f"update images set {column} = {value}")
    connection.close()
    assert results(table) == expected


def test_images_are_compared_once(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of images that an earlier search had are neither looked for nor judged, unless an image is gone or moved."""
    asked: list[int] = []
    compare = inspection.near_duplicates

    def compared(prints: Fingerprints, read: ReadRgb, n_workers: int, known: Known) -> tuple[list[NearDuplicate], np.ndarray]:
        asked.append(int((~known.searched).sum()))
        _, results = compare(prints, read, n_workers, known)
        planted = np.array([(0, len(prints) - 1, 3, 4, 0.912, 3)], RESULT)
        return [NearDuplicate(0, len(prints) - 1, 4, 0.912, "mirrored")], planted if not len(known.results) else results

    def pairs(rows: pd.DataFrame) -> list[NearDuplicate]:
        frame, prints, _ = inspect_images(rows.reset_index(drop=True), Path(), 10, 2)
        return find_near_duplicates(frame, prints, Path(), 10, 2)

    monkeypatch.setattr(inspection, "near_duplicates", compared)
    some = table.iloc[[0, 2, 3, 4]]
    assert pairs(some) == [NearDuplicate(0, 3, 4, 0.912, "mirrored")]
    pairs(some.assign(split="valid"))
    pairs(table)  # two more readable images
    pairs(table)
    pairs(table.iloc[::-1])  # moved
    pairs(table.tail(4))  # gone
    pairs(some)
    assert asked == [4, 0, 2, 0, N, 3, 0]
    with closing(sqlite3.connect(database())) as connection, connection:
        connection.execute("update comparisons set results = zeroblob(29)")
    pairs(some)
    assert asked[-1] == 4


def test_results_are_found_again_in_their_new_places(table: pd.DataFrame) -> None:
    names = [f"{k:064d}"[::-1] for k in range(6)]
    results = np.array([(0, 2, 5, 7, 0.25, 1), (2, 1, 0, 3, 0.9, 2)], RESULT)
    with inspected_images(10) as cache:
        assert len(cache.results(names).results) == 0
        cache.put_results([names[1], names[3], names[4]], results)
        more = cache.results(names)
        assert more.results.tolist() == [(1, 4, 5, 7, 0.25, 1), (4, 3, 0, 3, 0.9, 2)]
        assert more.searched.tolist() == [False, True, False, True, True, False]
        fewer = cache.results([names[4], names[3]])
        assert fewer.results.tolist() == [(0, 1, 0, 3, 0.9, 2)]
        assert not fewer.searched.any()


def test_without_fingerprints_none_is_computed_or_kept_and_the_rest_is_the_same(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    fingerprint = inspection.fingerprint
    monkeypatch.setattr(inspection, "fingerprint", lambda rgb: computed.append(1) or fingerprint(rgb))
    for kept in (0, N):  # with and without fingerprints in the cache
        frame, prints, means = inspect_images(table, Path(), 10, 2, with_fingerprints=False)
        assert (len(prints), len(computed)) == (0, kept)
        assert frame["phash"].eq("").all()
        full, prints, same_means = inspect_images(table, Path(), 10, 2)
        assert (len(prints), len(computed)) == (N + 1, N)
        assert full["phash"].ne("").sum() == N
        pd.testing.assert_frame_equal(frame.drop(columns="phash"), full.drop(columns="phash"))
        assert means.keys() == same_means.keys()
        assert all(np.array_equal(mean.pixels, same_means[split].pixels) for split, mean in means.items())


def test_a_folder_that_cannot_be_made_is_no_error(table: pd.DataFrame) -> None:
    expected = results(table)
    inspected_cache().rename("elsewhere")
    inspected_cache().write_text("a file")
    assert results(table) == expected


def test_a_file_that_another_process_holds_is_no_error(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(table.head(2))
    monkeypatch.setattr(inspected, "LOCK_SECONDS", 0.01)
    connection = sqlite3.connect(database(), isolation_level=None)
    connection.execute("begin exclusive")
    assert results(table.head(2)) == expected
    connection.close()


def test_other_code_limits_and_libraries_have_a_file_of_their_own(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def file(max_megapixels: int) -> Path:
        with inspected_images(max_megapixels) as cache:
            return cache.path

    files = {file(10), file(11)}
    assert file(10) in files
    monkeypatch.setattr(caches, "version", lambda package: "another")
    files.add(file(10))
    monkeypatch.setattr(caches, "import_closure", lambda script, root: {script})
    files.add(file(10))
    assert len(files) == 4


def test_the_files_together_are_bounded(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    inspected_cache().mkdir(parents=True)
    for name in ("old", "older"):
        (inspected_cache() / f"{name}.db").write_bytes(bytes(30_000))
    monkeypatch.setattr(inspected, "MAX_BYTES", 60_000)
    with inspected_images(10) as cache:
        pass
    assert len(list(inspected_cache().glob("*.db"))) == 2
    monkeypatch.setattr(inspected, "MAX_BYTES", 1000)
    for free_bytes, n_kept in ((100_000, 0), (10**12, N)):
        monkeypatch.setattr(inspected.shutil, "disk_usage", lambda _, free=free_bytes: SimpleNamespace(free=free))
        results(table)
        assert database() == cache.path
        with closing(sqlite3.connect(database())) as connection:
            assert connection.execute("select count(*) from images").fetchone() == (n_kept,)


def test_the_comparisons_of_the_newest_sets_of_images_are_kept(table: pd.DataFrame) -> None:
    results(table)
    names = [f"{number:064x}"[::-1] for number in range(20)]
    with closing(InspectedCache(database())) as cache:
        for n in range(10, 20):
            cache.put_results(names[:n], np.zeros(0, RESULT))
        assert cache.results(names[:19]).searched.all()
    with closing(sqlite3.connect(database())) as connection:
        assert connection.execute("select count(*) from comparisons").fetchone() == (inspected.SEARCHES,)


def test_threads_share_a_cache(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspected, "MAX_WAITING", 7)
    results(table)
    with closing(InspectedCache(database())) as first:
        image = first.get(hashlib.sha256(Path("all.bin").read_bytes()[: table["length"][0]]).hexdigest())
    assert image
    cache = InspectedCache(inspected_cache() / "threads.db")

    def use(number: int) -> Inspected | None:
        cache.put(image._replace(sha256=f"{number}"))
        return cache.get(f"{number - 20}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(200)))
    cache.close()
    again = InspectedCache(cache.path)
    found = [again.get(f"{number}") for number in range(200)]
    again.close()
    assert all(one and one.width == image.width for one in found)
