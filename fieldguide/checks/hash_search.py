"""Pairs of images with similar perceptual hashes, without comparing all pairs.

Each image has P hashes of 64 bits, one for each version of it; a pair is near if a version of one is at most `MAX_DISTANCE`
bits from the unchanged other. Few images are compared with each other; of many, hashes are looked up under masks of a covering
design, in loops compiled by Numba.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

MAX_DISTANCE = 10  # bits of 64; planted copies and candidates per image by distance: benchmarks/near_duplicates.py
FEW_PAIRS = 5_000_000  # of images; comparing so few takes 1.4 s at most, compiling the loops 2 s
EXACT_UP_TO = 20_000  # images; beyond, the search takes fewer and longer keys
SHORT_KEYS = (  # 8 of 32 pairs of bits; turned, 288 masks of which 10 different bits leave at least one as it is
    (571212370, 3269984272, 673212434, 2149188145, 1073814154, 268637732, 29450372, 571540065, 2718183568)
)
LONG_KEYS = (  # 10 of 32 pairs of bits; turned, 224 masks of which 8 different bits leave at least one as it is
    (2286948713, 453051617, 2332170266, 1011353876, 2719482328, 1695219857, 19370370)
)
FEW_NEW = 1000  # images that are compared with all others one by one
CHUNK_IMAGES, CHUNK_CODES = 1000, 1 << 23  # limit the memory of the search
SOME_CODES = 1 << 16  # room for what a loop finds; more is made if it is too little

Candidate = tuple[int, int, int, int]  # (i, j, probe, distance): the version `probe` of i is near the unchanged j


def masks(n_images: int) -> np.ndarray:
    """The masks of the search, uint64: two hashes are compared if they agree under at least one of them.

    Bit sampling (Indyk and Motwani 1998), by masks of a covering design that a greedy search found. Up to `EXACT_UP_TO` images
    all hashes within 10 bits are found. Beyond, it is all within 8 bits, 99.7 % of those 9 bits and 97 % of those 10 bits
    apart: 425 of 425 copies in the butterflies, whose median is found by 6 versions.
    """
    return _turned(SHORT_KEYS if n_images <= EXACT_UP_TO else LONG_KEYS)


def _turned(keys: Sequence[int]) -> np.ndarray:
    """Masks of hashes, uint64: each key of pairs of neighbouring bits turned by 0 to 31 pairs."""
    turned = [(key << n | key >> (32 - n)) & 0xFFFFFFFF for key in keys for n in range(32)]
    return np.array([sum(3 << 2 * pair for pair in range(32) if key >> pair & 1) for key in turned], np.uint64)


def nearest_versions(hashes: np.ndarray, mirrored: np.ndarray, kept: np.ndarray, new: np.ndarray, n_workers: int) -> np.ndarray:
    """For each pair of images the nearest version, and the nearest mirrored one: int32 [M, 4], rows as in `Candidate`.

    hashes: uint64 [N, P], the first of an image that of the unchanged one; mirrored: bool [P]; kept: the images that are
    compared, ascending; new: those of them of which a pair must have one, all for a search without known results. Time is
    linear in N up to about 2 ** 20; then a bucket has several hashes. Independent of `n_workers`.
    """
    if not len(new):
        return np.empty((0, 4), np.int32)
    by = masks(len(kept))
    if len(new) * len(kept) <= FEW_PAIRS:
        chunks = [kept[start : start + CHUNK_IMAGES] for start in range(0, len(kept), CHUNK_IMAGES)]
        codes = [_codes_of_one(hashes, mirrored, chunk, one, by) for one in new for chunk in chunks]
        return decoded(best_codes(codes), len(hashes))
    from fieldguide.checks import hash_loops  # late: it imports Numba

    unchanged, is_new = np.ascontiguousarray(hashes[kept, 0]), np.isin(np.arange(len(hashes)), new)
    if len(new) <= FEW_NEW and len(new) < len(kept) / 10:
        work, search = new, lambda one: _all_codes(hash_loops.compare_one, hashes, mirrored, kept, one, by)
    else:
        work, search = by, lambda mask: _codes_under(mask, hashes, mirrored, kept, unchanged, is_new)
    codes = [np.empty(0, np.uint64)]
    with ThreadPoolExecutor(n_workers) as pool:
        for found in tqdm(pool.map(search, work), total=len(work), desc="search", disable=None, leave=False):
            codes = _with(codes, found)
    return decoded(best_codes(codes), len(hashes))


def _codes_of_one(hashes: np.ndarray, mirrored: np.ndarray, kept: np.ndarray, one: np.int64, by: np.ndarray) -> np.ndarray:
    """The codes of the near pairs of kept images and another that the masks find."""
    image, probe = np.nonzero(np.bitwise_count(hashes[kept] ^ hashes[one, 0]) <= MAX_DISTANCE)
    own_probe, other = np.nonzero(np.bitwise_count(hashes[one][:, None] ^ hashes[kept, 0]) <= MAX_DISTANCE)
    i = np.concatenate([kept[image], np.full(len(other), one)])
    j = np.concatenate([np.full(len(image), one), kept[other]])
    probe = np.concatenate([probe, own_probe])
    found = (((hashes[i, probe] ^ hashes[j, 0])[:, None] & by) == 0).any(axis=1)
    return codes_of(hashes, mirrored, i[found], probe[found], j[found])


def _with(codes: list[np.ndarray], found: np.ndarray) -> list[np.ndarray]:
    """The codes with further ones; the best of them alone where they become too many."""
    codes = [*codes, found]
    return codes if sum(map(len, codes)) <= CHUNK_CODES else [best_codes(codes)]


def _codes_under(
    mask: np.uint64, hashes: np.ndarray, mirrored: np.ndarray, kept: np.ndarray, unchanged: np.ndarray, is_new: np.ndarray
) -> np.ndarray:
    """The best codes of pairs of which a version and an unchanged hash are equal under a mask."""
    from fieldguide.checks import hash_loops

    n_bits = min(int(mask).bit_count(), max(len(kept) - 1, 1).bit_length())
    shift = np.uint64(64 - n_bits)
    table = hash_loops.table(unchanged, kept, mask, shift, 1 << n_bits)
    codes = [np.empty(0, np.uint64)]
    for start in range(0, len(kept), CHUNK_IMAGES):
        images = kept[start : start + CHUNK_IMAGES]
        asked = hashes[images].ravel()
        codes = _with(codes, _all_codes(hash_loops.look_up, hashes, mirrored, images, is_new, asked, *table, mask, shift))
    return best_codes(codes)


def _all_codes(kernel: Callable[..., int], *arguments: Any) -> np.ndarray:
    """What a kernel finds; it writes as many codes as there is room for and returns how many there are."""
    codes = np.empty(SOME_CODES, np.uint64)
    while (n_codes := kernel(*arguments, codes)) > len(codes):
        codes = np.empty(n_codes, np.uint64)
    return codes[:n_codes].copy()


def codes_of(hashes: np.ndarray, mirrored: np.ndarray, i: np.ndarray, probe: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The codes of pairs, int64 [M] each, without those of an image with itself."""
    pair = (np.minimum(i, j) * len(hashes) + np.maximum(i, j)) * 2 + mirrored[probe]
    distance = np.bitwise_count(hashes[i, probe] ^ hashes[j, 0]).astype(np.int64)
    return (pair << 11 | distance << 7 | probe << 1 | (i > j))[i != j].astype(np.uint64)


def best_codes(codes: Sequence[np.ndarray]) -> np.ndarray:
    """The smallest code of each pair and whether mirrored, ascending."""
    every = np.sort(np.concatenate([np.empty(0, np.uint64), *codes]))
    pairs = every >> np.uint64(11)
    return every[np.diff(pairs, prepend=~np.uint64(0)) != 0]


def decoded(codes: np.ndarray, n_images: int) -> np.ndarray:
    """Rows as in `Candidate`: int32 [M, 4]."""
    pairs, tail = np.divmod(codes.astype(np.int64), 1 << 11)
    low, high = np.divmod(pairs >> 1, max(n_images, 1))
    probe, turned = tail >> 1 & 63, tail & 1 > 0
    return np.stack([np.where(turned, high, low), np.where(turned, low, high), probe, tail >> 7], axis=1).astype(np.int32)
