"""Pairs of images with similar perceptual hashes, without comparing all pairs.

Each image has P hashes of 64 bits, one for each version of it; a pair is near if a version of one is at most `MAX_DISTANCE`
bits from the unchanged other. Hashes are looked up under masks of a covering design, in loops compiled by Numba.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from tqdm import tqdm

MAX_DISTANCE = 10  # bits of 64; planted copies and candidates per image by distance: benchmarks/near_duplicates.py
EXACT_UP_TO = 20_000  # images; beyond, the search takes fewer and longer keys
SHORT_KEYS = (  # 8 of 32 pairs of bits; turned, 288 masks of which 10 different bits leave at least one as it is
    (571212370, 3269984272, 673212434, 2149188145, 1073814154, 268637732, 29450372, 571540065, 2718183568)
)
LONG_KEYS = (  # 10 of 32 pairs of bits; turned, 224 masks of which 8 different bits leave at least one as it is
    (2286948713, 453051617, 2332170266, 1011353876, 2719482328, 1695219857, 19370370)
)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 over the golden ratio (Knuth, volume 3, 6.4)
FEW_NEW = 1000  # images that are compared with all others one by one
CHUNK_IMAGES, CHUNK_CODES = 1000, 1 << 23  # limit the memory of the search
BLOCK = 1024  # places of a table that are read before any is compared, so that the memory is not waited for one by one
ONE, SOME_CODES = np.uint64(1), 1 << 16

Candidate = tuple[int, int, int, int]  # (i, j, probe, distance): the version `probe` of i is near the unchanged j


def compiled(function: Callable[..., Any]) -> Any:
    """`function` by Numba, without the GIL; kept beside the module or in the user's cache where one can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither can
        return numba.njit(nogil=True)(function)


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
    linear in N up to about 2 ** 20; then a place of the table has several hashes. Independent of `n_workers`.
    """
    if not len(new):
        return np.empty((0, 4), np.int32)
    is_new = np.zeros(len(hashes), bool)
    is_new[new] = True
    unchanged, by = np.ascontiguousarray(hashes[kept, 0]), masks(len(kept))
    if len(new) <= FEW_NEW and len(new) < len(kept) / 10:
        work, search = new, lambda one: _all_codes(_compare_one, hashes, mirrored, kept, one, by)
    else:
        work, search = by, lambda mask: _codes_under(mask, hashes, mirrored, kept, unchanged, is_new)
    best = np.empty(0, np.uint64)
    with ThreadPoolExecutor(n_workers) as pool:
        for found in tqdm(pool.map(search, work), total=len(work), desc="search", disable=None, leave=False):
            best = best_codes([best, found]) if len(found) else best
    return decoded(best, len(hashes))


def _codes_under(
    mask: np.uint64, hashes: np.ndarray, mirrored: np.ndarray, kept: np.ndarray, unchanged: np.ndarray, is_new: np.ndarray
) -> np.ndarray:
    """The best codes of pairs of which a version and an unchanged hash are equal under a mask."""
    n_bits = min(int(mask).bit_count(), max(len(kept) - 1, 1).bit_length())
    shift = np.uint64(64 - n_bits)
    table = _table(unchanged, kept, mask, shift, 1 << n_bits)
    codes = [np.empty(0, np.uint64)]
    for start in range(0, len(kept), CHUNK_IMAGES):
        images = kept[start : start + CHUNK_IMAGES]
        codes.append(_all_codes(_look_up, hashes, mirrored, images, is_new, hashes[images].ravel(), *table, mask, shift))
        if sum(map(len, codes)) > CHUNK_CODES:
            codes = [best_codes(codes)]
    return best_codes(codes)


def _all_codes(kernel: Callable[..., int], *arguments: Any) -> np.ndarray:
    """What a kernel finds; it writes as many codes as there is room for and returns how many there are."""
    codes = np.empty(SOME_CODES, np.uint64)
    while (n_codes := kernel(*arguments, codes)) > len(codes):
        codes = np.empty(n_codes, np.uint64)
    return codes[:n_codes].copy()


@compiled
def _n_bits(x: np.uint64) -> np.int64:
    """How many bits are set (Warren, Hacker's Delight, 5-1): one instruction where the processor has one."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _code(n_images, i, probe, j, distance, is_mirrored):  # type: ignore[no-untyped-def]
    """A uint64 that sorts by the pair of images and whether mirrored, then by distance, probe and which image is probed."""
    pair = (min(i, j) * n_images + max(i, j)) * 2 + is_mirrored
    return np.uint64(pair << 11 | distance << 7 | probe << 1 | (i > j))


@compiled
def _table(hashes, images, mask, shift, n_places):  # type: ignore[no-untyped-def]
    """Hashes and their images, sorted by the hash under the mask, and where each place of it begins."""
    starts = np.zeros(n_places + 1, np.int32)
    for k in range(len(hashes)):
        starts[((hashes[k] & mask) * MULTIPLIER >> shift) + ONE] += 1
    for place in range(n_places):
        starts[place + 1] += starts[place]
    free = starts[:-1].copy()
    sorted_hashes, sorted_images = np.empty_like(hashes), np.empty_like(images)
    for k in range(len(hashes)):
        place = (hashes[k] & mask) * MULTIPLIER >> shift
        sorted_hashes[free[place]], sorted_images[free[place]] = hashes[k], images[k]
        free[place] += 1
    return starts, sorted_hashes, sorted_images


@compiled
def _look_up(  # type: ignore[no-untyped-def]
    hashes, mirrored, images, is_new, asked, starts, sorted_hashes, sorted_images, mask, shift, codes
):
    """Writes the codes of the pairs of a version of `images` and an unchanged hash in the same place; returns their number.

    asked: the hashes of `images`, uint64 [len(images) * P].
    """
    n_codes, n_probes, last = 0, hashes.shape[1], len(sorted_hashes) - 1
    first, end, nearest = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.uint64)
    for start in range(0, len(asked), BLOCK):
        n = min(BLOCK, len(asked) - start)
        for k in range(n):
            place = (asked[start + k] & mask) * MULTIPLIER >> shift
            first[k], end[k] = starts[place], starts[place + ONE]
        for k in range(n):
            nearest[k] = sorted_hashes[min(first[k], last)]
        for k in range(n):
            for at in range(first[k], end[k]):
                distance = _n_bits(asked[start + k] ^ (nearest[k] if at == first[k] else sorted_hashes[at]))
                if distance > MAX_DISTANCE:
                    continue
                row = (start + k) // n_probes
                i, probe, j = images[row], start + k - row * n_probes, sorted_images[at]
                if i != j and (is_new[i] or is_new[j]):
                    if n_codes < len(codes):
                        codes[n_codes] = _code(len(hashes), i, probe, j, distance, mirrored[probe])
                    n_codes += 1
    return n_codes


@compiled
def _compare_one(hashes, mirrored, images, one, by, codes):  # type: ignore[no-untyped-def]
    """As `_look_up`, of the pairs with `one` that the masks `by` find, by comparing it with all."""
    n_codes = 0
    for i in images:
        for probe in range(hashes.shape[1] if i != one else 0):
            for turn in range(2):
                a, b = (one, i) if turn else (i, one)
                difference = hashes[a, probe] ^ hashes[b, 0]
                distance = _n_bits(difference)
                if distance > MAX_DISTANCE:
                    continue
                for mask in by:
                    if difference & mask == 0:
                        if n_codes < len(codes):
                            codes[n_codes] = _code(len(hashes), a, probe, b, distance, mirrored[probe])
                        n_codes += 1
                        break
    return n_codes


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
