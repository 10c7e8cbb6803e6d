"""Near duplicates: planted copies of every kind are found, different photographs are not, and the search is exact.

The planted set of tests/support/planted.py is also what benchmarks/near_duplicates.py measures.
"""

import resource
import zipfile

import cv2
import numpy as np
import pytest
from numpy.random import default_rng

from fieldguide.checks import near_duplicates as module
from fieldguide.checks.near_duplicates import NearDuplicate, candidate_pairs, compare_pairs, fingerprint
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
    monkeypatch.setattr(module, "CHUNK_QUERIES", 2 * len(module.PROBES))
    monkeypatch.setattr(module, "CHUNK_PAIRS", 5)
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
    assert compare_pairs([], np.empty((0, 2), np.int64), lambda k: np.empty(0), 1) == []


def test_a_fingerprint_is_small() -> None:
    marks = fingerprint(textured(1)[0])
    assert marks.hashes.nbytes + marks.thumbnail.nbytes <= 1_400
    assert (marks.hashes.dtype, marks.thumbnail.shape, marks.side_px) == (np.uint64, (32, 32), 224)


def clustered_hashes(n_hashes: int) -> np.ndarray:
    """Random ones, near and equal ones, the extremes."""
    rng = default_rng(n_hashes)
    hashes = rng.integers(0, 2**64, n_hashes, dtype=np.uint64)
    for k in range(0, n_hashes // 2, 2):
        for bit in rng.integers(0, 64, k % 25):
            hashes[k + 1] = hashes[k + 1] if k % 3 else hashes[k] ^ np.uint64(1) << np.uint64(bit)
    hashes[-2:] = 0, 2**64 - 1
    hashes[-8:-4] = hashes[0]
    return hashes


@pytest.mark.parametrize("n_hashes", [8, 100, 1500])
@pytest.mark.parametrize("max_distance", [0, 1, 3, 4, 7, 10, 13, 16])
def test_the_search_finds_exactly_what_comparing_all_pairs_finds(n_hashes: int, max_distance: int) -> None:
    hashes = clustered_hashes(n_hashes)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= max_distance
    assert np.array_equal(candidate_pairs(hashes, hashes, max_distance), np.argwhere(near))
    assert np.array_equal(candidate_pairs(hashes, hashes[5:60], max_distance), np.argwhere(near[5:60]))


def test_the_search_in_small_chunks_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = clustered_hashes(300)
    whole = candidate_pairs(hashes, hashes, 12)
    monkeypatch.setattr(module, "CHUNK_PAIRS", 5)
    assert np.array_equal(candidate_pairs(hashes, hashes, 12), whole)


def test_the_search_of_nothing_finds_nothing() -> None:
    hashes, empty = clustered_hashes(9), np.empty(0, np.uint64)
    assert candidate_pairs(empty, hashes, 10).shape == candidate_pairs(hashes, empty, 10).shape == (0, 2)


@pytest.mark.slow
def test_a_million_hashes_are_searched_in_four_gibibytes() -> None:
    rng = default_rng(0)
    hashes = rng.integers(0, 2**64, 1_000_000, dtype=np.uint64)
    for k in range(1000):
        flips = np.uint64(1) << rng.choice(64, k % 11, replace=False).astype(np.uint64)
        hashes[k + 1000] = hashes[k] ^ np.bitwise_or.reduce(flips)
    pairs = candidate_pairs(hashes, hashes[:100_000], module.MAX_DISTANCE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= 4 << 20  # KiB
    assert {(k, k + 1000) for k in range(1000)} <= set(map(tuple, pairs.tolist()))


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
