"""The loops of `hash_search`, compiled by Numba when they are first called, which takes two seconds.

Not kept on the disk: Numba's cache can mix up versions of the code and processors if a process is killed or two write at once.
"""

import numpy as np
from numba import njit

from fieldguide.checks.hash_search import MAX_DISTANCE

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 over the golden ratio (Knuth, volume 3, 6.4)
BLOCK = 1024  # buckets that are read before any hash is compared, so that waits for memory overlap
ONE = np.uint64(1)


@njit(nogil=True)
def _n_bits(x: np.uint64) -> np.int64:
    """How many bits are set (Warren, Hacker's Delight, 5-1): one instruction where the processor has one."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(nogil=True)
def _code(n_images, i, probe, j, distance, is_mirrored):  # type: ignore[no-untyped-def]
    """A uint64 that sorts by the pair of images and whether mirrored, then by distance, probe and which image is probed."""
    pair = (min(i, j) * n_images + max(i, j)) * 2 + is_mirrored
    return np.uint64(pair << 11 | distance << 7 | probe << 1 | (i > j))


@njit(nogil=True)
def table(hashes, images, mask, shift, n_buckets):  # type: ignore[no-untyped-def]
    """A hash table by the bits under the mask: where each bucket starts, and hashes and images in the order of the buckets."""
    starts = np.zeros(n_buckets + 1, np.int32)
    for k in range(len(hashes)):
        starts[((hashes[k] & mask) * MULTIPLIER >> shift) + ONE] += 1
    for bucket in range(n_buckets):
        starts[bucket + 1] += starts[bucket]
    free = starts[:-1].copy()
    sorted_hashes, sorted_images = np.empty_like(hashes), np.empty_like(images)
    for k in range(len(hashes)):
        bucket = (hashes[k] & mask) * MULTIPLIER >> shift
        sorted_hashes[free[bucket]], sorted_images[free[bucket]] = hashes[k], images[k]
        free[bucket] += 1
    return starts, sorted_hashes, sorted_images


@njit(nogil=True)
def look_up(  # type: ignore[no-untyped-def]
    hashes, mirrored, images, is_new, asked, starts, sorted_hashes, sorted_images, mask, shift, codes
):
    """Writes the codes of the pairs of a version of `images` and an unchanged hash, equal under the mask; returns their number.

    asked: the hashes of `images`, uint64 [len(images) * P].
    """
    n_codes, n_probes, last = 0, hashes.shape[1], len(sorted_hashes) - 1
    first, end, nearest = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.uint64)
    for start in range(0, len(asked), BLOCK):
        n = min(BLOCK, len(asked) - start)
        for k in range(n):
            bucket = (asked[start + k] & mask) * MULTIPLIER >> shift
            first[k], end[k] = starts[bucket], starts[bucket + ONE]
        for k in range(n):
            nearest[k] = sorted_hashes[min(first[k], last)]
        for k in range(n):
            for at in range(first[k], end[k]):
                difference = asked[start + k] ^ (nearest[k] if at == first[k] else sorted_hashes[at])
                distance = _n_bits(difference)
                if distance > MAX_DISTANCE or difference & mask != 0:  # of another key in the same bucket
                    continue
                row = (start + k) // n_probes
                i, probe, j = images[row], start + k - row * n_probes, sorted_images[at]
                if i != j and (is_new[i] or is_new[j]):
                    if n_codes < len(codes):
                        codes[n_codes] = _code(len(hashes), i, probe, j, distance, mirrored[probe])
                    n_codes += 1
    return n_codes


@njit(nogil=True)
def compare_one(hashes, mirrored, images, one, by, codes):  # type: ignore[no-untyped-def]
    """As `look_up`, of the pairs with `one` that the masks `by` find, by comparing it with all."""
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
