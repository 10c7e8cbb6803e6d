"""Near duplicates: planted copies of every kind are found, different photographs are not, and the search is exact.

The planted set of tests/support/planted.py is also what benchmarks/near_duplicates.py measures.
"""

import zipfile

import cv2
import numpy as np
import pytest
from numpy.random import default_rng

from fieldguide.checks import hash_search
from fieldguide.checks import near_duplicates as module
from fieldguide.checks.hash_search import MAX_DISTANCE, masks, nearest_versions
from fieldguide.checks.near_duplicates import (
    MIRRORED,
    PROBES,
    RESULT,
    Fingerprints,
    Known,
    NearDuplicate,
    compare_pairs,
    fingerprint,
    near_duplicates,
)
from fieldguide.sources.sample import photographs
from support import REAL_DATA
from support.planted import (
    CHANGES,
    cropped,
    drawn,
    found,
    jpeg,
    mirrored,
    pairs_of,
    relit,
    reported,
    resized,
    rgb_of,
    textured,
)

LEAST_RECALL = {
    **dict.fromkeys(("re-compression", "resizing", "mirror", "brightness"), 0.95),
    **dict.fromkeys(("crop", "turn", "several"), 0.90),
    "watermark": 0.75,
}


@pytest.fixture(scope="module")
def originals() -> dict[str, list[np.ndarray]]:
    return {"drawn": drawn(16), "textured": textured(16)}


@pytest.mark.parametrize(
    "kind", [kind if kind in ("mirror", "crop") else pytest.param(kind, marks=pytest.mark.slow) for kind in CHANGES]
)
def test_planted_copies_are_found_and_nothing_else(kind: str, originals: dict[str, list[np.ndarray]]) -> None:
    counts = np.array([found(images, change) for images in originals.values() for change in CHANGES[kind].values()])
    n_planted = len(CHANGES[kind]) * sum(map(len, originals.values()))
    n_found, n_wrong = counts.sum(axis=0)
    assert n_found >= LEAST_RECALL[kind] * n_planted
    assert n_wrong <= 0.02 * (n_found + n_wrong)


def test_different_individuals_of_one_species_are_different_photographs() -> None:
    images = [
        rgb_of(jpeg)
        for _, jpeg in photographs(n_species=2, train_images=40, valid_images=0, test_images=0, image_px=128, seed=3)
    ]
    assert reported(images) == set()


def specimen(seed: int, ground: np.ndarray | None = None) -> np.ndarray:
    """An animal of its own pattern in the pose of all others."""
    rng = default_rng(seed)
    rgb = np.full((224, 224, 3), 255, np.uint8) if ground is None else ground.copy()
    cv2.ellipse(rgb, (112, 112), (85, 60), 0, 0, 360, (60, 50, 40), -1, cv2.LINE_AA)
    for _ in range(40):
        centre = (112 + 75 * rng.uniform(-0.7, 0.7, 2) * (1, 0.7)).astype(int).tolist()
        cv2.circle(rgb, centre, int(rng.integers(3, 9)), rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    return rgb


def test_two_animals_in_one_pose_on_white_are_different_and_a_copy_is_not() -> None:
    images = [specimen(seed) for seed in range(12)]
    assert reported([*images, jpeg(40)(images[5], default_rng(0))]) == {(5, 12)}
    assert len(pairs_of(images)) > 0  # their hashes alone are near


def test_two_animals_on_one_background_are_different() -> None:
    ground = textured(1)[0]
    assert reported([specimen(seed, ground) for seed in range(6)]) == set()


def test_a_mirrored_copy_is_called_mirrored_and_the_distance_is_that_of_the_mirrored_hash() -> None:
    image = textured(1)[0]
    assert pairs_of([image, image[:, ::-1].copy()]) == [NearDuplicate(0, 1, 0, 1.0, "mirrored")]
    assert pairs_of([image, image.copy()])[0][2:] == (0, 1.0, "same")


def test_landscape_and_portrait_photographs_are_compared_whole() -> None:
    wide = textured(1, 300)[0][:170]
    copies = [change(wide, default_rng(0)) for change in (resized(0.5), cropped(0.1))]
    assert reported([wide, *copies]) == {(0, 1), (0, 2), (1, 2)}


def test_images_without_contrast_are_never_reported() -> None:
    rng = default_rng(0)
    flat = [np.full((96, 96, 3), level, np.uint8) for level in (0, 128, 255, 255)]
    noisy = [(250 + rng.normal(0, 2, (96, 96, 3))).clip(0, 255).astype(np.uint8) for _ in range(200)]
    assert pairs_of(flat + noisy) == []


def test_a_crowd_of_equal_images_is_linked_to_its_first_without_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CROWD", 4)
    image, other = textured(2)
    pairs = {(pair.i, pair.j) for pair in pairs_of([other] + [image] * 30)}
    assert {(1, k) for k in range(2, 31)} <= pairs
    assert len(pairs) == 4 * 3 // 2 + 26


def test_the_result_does_not_depend_on_the_number_of_workers() -> None:
    images = textured(6)
    images += [cropped(0.05)(rgb, default_rng(1)) for rgb in images]
    threads = cv2.getNumThreads()
    assert pairs_of(images, 1) == pairs_of(images, 3) == sorted(pairs_of(images, 2))
    assert cv2.getNumThreads() == threads


def test_the_result_does_not_depend_on_what_is_held_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = textured(6)
    images += [cropped(0.05)(rgb, default_rng(1)) for rgb in images]
    pairs = pairs_of(images)
    monkeypatch.setattr(module, "BLOCK_PAIRS", 2)
    monkeypatch.setattr(module, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(hash_search, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(hash_search, "CHUNK_CODES", 7)
    assert pairs_of(images) == pairs
    assert len(pairs) >= 6


@pytest.mark.parametrize("n_images", [0, 1])
def test_no_pairs_of_fewer_than_two_images(n_images: int) -> None:
    assert pairs_of(textured(n_images)) == []


def test_given_pairs_are_compared_however_far_apart_their_hashes_are() -> None:
    """Each with its verdict once, in the order of the images; only these pairs."""
    images = textured(4)
    prints = [fingerprint(rgb) for rgb in images]
    changed = cropped(0.1)(relit(0.6, 0, 1.6)(mirrored(images[0], default_rng(0)), default_rng(0)), default_rng(3))
    images, prints = [*images, changed, images[1].copy()], [*prints, fingerprint(changed), prints[1]]
    prints = Fingerprints.of(prints)
    given = np.array([(5, 1), (0, 4), (2, 3), (4, 0)])
    pairs = compare_pairs(prints, given, images.__getitem__, 1)
    assert [(pair.i, pair.j, pair.verdict) for pair in pairs if pair.is_same] == [(0, 4, "mirrored"), (1, 5, "same")]
    assert {(pair.i, pair.j) for pair in pairs} <= {(0, 4), (1, 5), (2, 3)}
    assert pairs == compare_pairs(prints, given, images.__getitem__, 3)
    found = {pair[:2]: pair for pair in pairs_of(images)}
    assert all(found[pair[:2]].verdict == pair.verdict for pair in pairs if pair[:2] in found)
    far = [(pair.i, pair.j) for pair in compare_pairs(prints, np.array([(0, 4)]), images.__getitem__, 1)]
    assert far == [(0, 4)]


def test_no_given_pairs_compare_nothing() -> None:
    assert compare_pairs(Fingerprints.of([]), np.empty((0, 2), np.int64), lambda k: np.empty(0), 1) == []


def test_a_fingerprint_is_small() -> None:
    marks = fingerprint(textured(1)[0])
    assert marks.hashes.nbytes + marks.thumbnail.nbytes <= 1_400
    assert (marks.hashes.dtype, marks.thumbnail.shape, marks.side_px) == (np.uint64, (32, 32), 224)


def clustered_hashes(n_images: int) -> np.ndarray:
    """Random ones, near and equal ones, the extremes: uint64 [N, P]."""
    rng = default_rng(n_images)
    hashes = rng.integers(0, 2**64, (n_images, len(PROBES)), dtype=np.uint64)
    for k in range(0, n_images // 2, 2):
        for bit in rng.integers(0, 64, k % 25):
            hashes[k, k % len(PROBES)] = hashes[k + 1, 0] ^ np.uint64(1) << np.uint64(bit)
            hashes[k + 1, 1:4] ^= np.uint64(1) << np.uint64(bit)
    hashes[k + 1] = hashes[k, 0]
    hashes[-2:] = np.array([[0], [2**64 - 1]], np.uint64)
    hashes[-8:-4] = hashes[0]
    return hashes


def all_nearest(hashes: np.ndarray, images: np.ndarray, by: np.ndarray) -> list[tuple[int, ...]]:
    """By comparing all pairs, of which at least one mask is equal: the nearest version, then the first, of the first image."""
    best: dict[tuple[int, int, bool], tuple[int, ...]] = {}
    for i in images.tolist():
        for j in images.tolist():
            differences = hashes[i] ^ hashes[j, 0]
            near = (np.bitwise_count(differences) <= MAX_DISTANCE) & ((differences[:, None] & by) == 0).any(axis=1)
            for probe in np.flatnonzero(near).tolist() if i != j else []:
                pair = (min(i, j), max(i, j), bool(MIRRORED[probe]))
                row = (int(np.bitwise_count(differences[probe])), probe, i, j)
                best[pair] = min(best.get(pair, row), row)
    return [(i, j, probe, distance) for _, (distance, probe, i, j) in sorted(best.items())]


@pytest.mark.parametrize("n_images", [8, 60, 150])
@pytest.mark.parametrize("exact_up_to", [1000, 5], ids=["short keys", "long keys"])
@pytest.mark.parametrize("few_pairs", [hash_search.FEW_PAIRS, 0], ids=["without loops", "in loops"])
def test_the_search_finds_what_comparing_all_pairs_finds(
    n_images: int, exact_up_to: int, few_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_search, "EXACT_UP_TO", exact_up_to)
    monkeypatch.setattr(hash_search, "FEW_PAIRS", few_pairs)
    monkeypatch.setattr(hash_search, "CHUNK_IMAGES", 40)
    hashes = clustered_hashes(n_images)
    kept = np.delete(np.arange(n_images), [2, 5])
    every = all_nearest(hashes, kept, np.zeros(1, np.uint64) if exact_up_to > n_images else masks(len(kept)))
    assert list(map(tuple, nearest_versions(hashes, MIRRORED, kept, kept, 2).tolist())) == every
    assert len(every) >= 3
    for new in (kept[::3], kept[3:4], kept[:0]):
        some = [row for row in every if np.isin(row[:2], new).any()]
        assert list(map(tuple, nearest_versions(hashes, MIRRORED, kept, new, 1).tolist())) == some


@pytest.mark.parametrize("name", ["SOME_CODES", "CHUNK_CODES", "CHUNK_IMAGES"])
def test_neither_the_room_for_codes_nor_the_chunks_change_what_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = clustered_hashes(150)
    every = np.arange(150)
    few = nearest_versions(hashes, MIRRORED, every, every, 1)
    monkeypatch.setattr(hash_search, "FEW_PAIRS", 0)
    expected = [nearest_versions(hashes, MIRRORED, every, new, 1) for new in (every, every[:3])]
    assert np.array_equal(few, expected[0])  # compared with each other
    monkeypatch.setattr(hash_search, name, 7)
    found = [nearest_versions(hashes, MIRRORED, every, new, 2) for new in (every, every[:3])]
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert len(expected[0]) > len(expected[1]) > 0


@pytest.mark.parametrize("few_pairs", [hash_search.FEW_PAIRS, 0], ids=["without loops", "in loops"])
def test_a_pair_that_no_mask_finds_is_found_neither_by_chance_nor_as_a_new_one(
    few_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places of a table hold several keys; results must not depend on which, nor on earlier searches."""
    monkeypatch.setattr(hash_search, "EXACT_UP_TO", 0)
    monkeypatch.setattr(hash_search, "FEW_PAIRS", few_pairs)
    rng, by = default_rng(0), masks(1)
    differences = np.bitwise_or.reduce(
        np.uint64(1) << rng.random((40_000, 64)).argsort(axis=1)[:, :10].astype(np.uint64), axis=1
    )
    uncovered = differences[((differences[:, None] & by) != 0).all(axis=1)][:200]
    assert len(uncovered) == 200
    first = rng.integers(0, 2**64, 200, dtype=np.uint64)
    hashes = np.concatenate([first, first ^ uncovered])[:, None]
    every = np.arange(400)
    assert len(nearest_versions(hashes, MIRRORED[:1], every, every, 1)) == 0
    assert len(nearest_versions(hashes, MIRRORED[:1], every, every[-20:], 1)) == 0


def patterns(n_bits: int) -> np.ndarray:
    """All ways in which that many of 32 pairs of bits differ: uint32."""
    low = np.arange(1 << 16, dtype=np.uint32)
    by_count = [low[np.bitwise_count(low) == k] for k in range(n_bits + 1)]
    halves = [(by_count[k][:, None] << np.uint32(16) | by_count[n_bits - k]).ravel() for k in range(n_bits + 1)]
    return np.concatenate(halves)


def not_found(differences: np.ndarray, n_images: int) -> float:
    """The share of differences, in pairs of bits, that no mask avoids."""
    n_all = len(differences)
    for mask in masks(n_images):
        pairs = np.uint32(sum(1 << pair for pair in range(32) if int(mask) >> 2 * pair & 3))
        differences = differences[differences & pairs != 0]
    return len(differences) / n_all


@pytest.mark.slow
def test_short_keys_miss_no_difference_of_ten_bits() -> None:
    """Of fewer bits, or two bits of one pair, neither: they are part of such a difference."""
    assert not_found(patterns(MAX_DISTANCE), 1000) == 0


def test_long_keys_miss_no_difference_of_eight_bits_and_few_of_ten() -> None:
    assert not_found(patterns(8), hash_search.EXACT_UP_TO + 1) == 0
    rng = default_rng(0)
    by = masks(hash_search.EXACT_UP_TO + 1)
    missed = []
    for n_bits in (9, 10):
        bits = rng.random((20_000, 64)).argsort(axis=1)[:, :n_bits].astype(np.uint64)
        differences = np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
        missed.append(1 - ((differences[:, None] & by) == 0).any(axis=1).mean())
    assert missed[0] < 0.004
    assert missed[1] < 0.04


@pytest.mark.parametrize("crowd", [3, pytest.param(64, marks=pytest.mark.slow)])
def test_results_of_an_earlier_search_change_nothing(crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """New images among, before and after the others, also of a crowd; nothing that is known is judged again."""
    monkeypatch.setattr(module, "CROWD", crowd)
    images = textured(8)
    images += [cropped(0.05)(rgb, default_rng(1)) for rgb in images] + [images[2]] * 5
    prints = Fingerprints.of([fingerprint(rgb) for rgb in images])
    judged: list[int] = []
    possible = module._possible
    monkeypatch.setattr(module, "_possible", lambda every, rows: judged.append(len(rows)) or possible(every, rows))
    expected, results = near_duplicates(prints, images.__getitem__, 2)
    for old in (np.arange(3, 19), np.arange(0, 21, 2), np.array([1]), np.arange(21)):
        _, before = near_duplicates(prints.take(old), lambda k, old=old: images[old[k]], 2)
        places = before.copy()
        for side in ("i", "j"):
            places[side] = old[before[side]]
        judged.clear()
        pairs, again = near_duplicates(prints, images.__getitem__, 2, Known(places, np.isin(np.arange(21), old)))
        assert pairs == expected
        assert np.array_equal(again, results)
        assert sum(judged) == len(set(results.tolist()) - set(places.tolist()))
        gone = Known(places, np.zeros(21, bool))
        assert near_duplicates(prints, images.__getitem__, 2, gone)[0] == expected
    assert len(results) >= 8
    assert results.dtype == RESULT


@pytest.mark.slow
@pytest.mark.real
def test_known_leaks_of_the_butterflies_are_found_and_the_known_lookalikes_are_not() -> None:
    with zipfile.ZipFile(REAL_DATA / "butterflies.zip") as archive:
        species = ("ULYSES", "PAPER KITE", "CLODIUS PARNASSIAN", "PINE WHITE")
        names = [name for name in archive.namelist() if name.endswith(".jpg") and name.split("/")[1] in species]
        names += ["test/CABBAGE WHITE/2.jpg", "train/ORANGE TIP/130.jpg"]
        images = [rgb_of(archive.read(name)) for name in names]
    pairs = {frozenset((names[i], names[j])) for i, j in reported(images)}
    for test, train in (
        ("test/ULYSES/5.jpg", "train/ULYSES/005.jpg"),
        ("test/PAPER KITE/2.jpg", "train/PAPER KITE/002.jpg"),
        ("test/CLODIUS PARNASSIAN/3.jpg", "train/CLODIUS PARNASSIAN/098.jpg"),
        ("test/PINE WHITE/3.jpg", "train/PINE WHITE/001.jpg"),
    ):
        assert frozenset((test, train)) in pairs
    assert frozenset(("test/CABBAGE WHITE/2.jpg", "train/ORANGE TIP/130.jpg")) not in pairs
