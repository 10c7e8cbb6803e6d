"""Near duplicates: the same photograph re-compressed, resized, slightly cropped or rotated, mirrored, relit or watermarked.

Candidates come from perceptual hashes: each image is hashed unchanged and in 41 mirrored, cropped and rotated versions, so that
a small Hamming distance suffices and not all pairs are compared. Candidates grow with the square of the number of images, so
most are rejected on small thumbnails, which takes a seventh of the time. The others are aligned and their fine detail is
correlated tile by tile, which separates two animals in the same pose on the same background. Needs only OpenCV (the hash is in
its contrib modules) and NumPy; does not read files.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, groupby
from math import cos, radians, sin
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

MAX_DISTANCE = 10  # bits of 64; planted copies and candidates per image by distance: benchmarks/near_duplicates.py
THUMBNAIL_PX, SMALL_PX, HASHED_PX, FINE_PX, TILE_PX = 64, 32, 32, 128, 8
FINE_SHARE = 4 / 7  # of the smaller side: at a finer scale, noise and JPEG blocks of a 224 px image exceed the detail
PROMISING, CLEAR = 0.35, 0.9  # similarity from which an alignment is refined, and from which it is not
POSSIBLE, PLAUSIBLE = 0.5, 0.65  # minimum correlation and similarity of small thumbnails;
# the lowest of 425 real copies were 0.57 and 0.70, of 6,321 planted ones 0.49 (a bar; the next 0.58) and 0.68
LIKELY = 0.5  # minimum similarity of thumbnails for the finest scale: the lowest of a planted crop was 0.61
SAME = {64: 0.90, FINE_PX: 0.79}  # similarity by scale; of inspected pairs, different <= 0.76, same >= 0.82
STRUCTURED, CONTRARY, AGREE = 0.5, 0.3, 0.5  # structure relative to the mean tile; correlations
MIN_CONTRAST = 3.0  # standard deviation in grey levels; the hash of a flatter image is noise
MAX_STRETCH = 1.5  # by an alignment; copies of the kinds above need less
CROWD = 64  # images with equal hashes that are compared with each other; further ones are compared with the first only
CHUNK_PAIRS = 1 << 20  # limits the memory of the search
CHUNK_QUERIES = 1 << 20  # likewise
N_BLOCKS, BLOCK_BITS = 4, 16  # of a hash; the fewest look-ups and comparisons for 10,000 to 1,000,000 images
BLOCK_PAIRS = 2048  # candidates that are judged together: limits the images in memory
ECC_STEPS, ECC_SMALL_STEPS, ECC_EPSILON, ECC_BLUR_PX = 20, 6, 1e-3, 5
EDGE = cv2.BORDER_REPLICATE
LOOKUP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP  # maps go from pixels of the result to pixels of the source

Map = np.ndarray  # float64 [3, 3]: from points of the second image to points of the first; both span -1..1
ReadRgb = Callable[[int], np.ndarray]
Verdict = Literal["same", "mirrored", "different"]


@dataclass(frozen=True)
class Fingerprint:
    """1.4 KB that represent an image."""

    hashes: np.ndarray  # uint64 [P], one for each of `PROBES`; the first is that of the unchanged image
    thumbnail: np.ndarray  # uint8 [32, 32], grey, stretched to a square
    side_px: int  # the smaller side of the image


class Alignment(NamedTuple):
    """An alignment of one image with the other."""

    similarity: float
    place: Map
    agree: np.ndarray  # uint8 [px, px], 1 in tiles that correlate
    n_contrary: int  # blocks of 2 x 2 tiles with different structure in the two images


class NearDuplicate(NamedTuple):
    """Two images with similar hashes, i < j, and whether they are the same photograph."""

    i: int
    j: int
    distance: int  # bits of 64, between one unchanged image and the nearest version of the other
    similarity: float  # mean correlation of fine detail after alignment, -1..1
    verdict: Verdict

    @property
    def is_same(self) -> bool:
        return self.verdict != "different"


def _view(degrees: float, scale: float, x: float, y: float, mirrored: bool) -> Map:
    """The window of that scale around (x, y), rotated, and mirrored if asked."""
    cosine, sine = scale * cos(radians(degrees)), scale * sin(radians(degrees))
    sign = -1 if mirrored else 1
    return np.array([[sign * cosine, -sine, x], [sign * sine, cosine, y], [0, 0, 1]])


def _probes() -> Iterator[tuple[Map, int | None]]:
    """The views to hash, and the grey level beyond the edge (None: that of the edge); first the unchanged image."""
    for mirrored in (False, True):
        yield from ((_view(0, scale, 0, 0, mirrored), None) for scale in (1, 0.95))
        yield from ((_view(0, 0.9, x, y, mirrored), None) for x in (-0.1, 0, 0.1) for y in (-0.1, 0, 0.1))
        for degrees in (2.5, 5, -2.5, -5) if mirrored else (2.5, 5):  # the other image of a pair probes the inverse
            without_corners = 1 / (cos(radians(degrees)) + abs(sin(radians(degrees))))
            yield from ((_view(degrees, scale, 0, 0, mirrored), None) for scale in (1, without_corners))
    yield from ((_view(degrees, 1, 0, 0, False), fill) for degrees in (2.5, 5, -2.5, -5) for fill in (0, 255))


def _pixels(px: int) -> np.ndarray:
    """The map from coordinates -1..1 to pixel centres of an image of `px` pixels: float64 [3, 3]."""
    return np.array([[px / 2, 0, (px - 1) / 2], [0, px / 2, (px - 1) / 2], [0, 0, 1]])


def _warp(place: Map, source_px: int, result_px: int) -> np.ndarray:
    """The map in pixels, for OpenCV: float32 [2, 3]."""
    return (_pixels(source_px) @ place @ np.linalg.inv(_pixels(result_px)))[:2].astype(np.float32)


PROBES = tuple(_probes())
MIRRORED = np.array([np.linalg.det(view) < 0 for view, _ in PROBES])
PROBE_WARPS = tuple(_warp(view, THUMBNAIL_PX, HASHED_PX) for view, _ in PROBES)


def fingerprint(rgb: np.ndarray) -> Fingerprint:
    """The fingerprint of uint8 [H, W, 3], the full image, not its centre square. Thread-safe."""
    thumbnail = _grey(rgb, THUMBNAIL_PX)
    hasher = cv2.img_hash.PHash.create()
    hashes = np.empty((len(PROBES), 8), np.uint8)
    for k, ((_, fill), warp) in enumerate(zip(PROBES, PROBE_WARPS, strict=True)):
        edge: dict[str, Any] = {"borderMode": EDGE} if fill is None else {"borderValue": fill}
        hashes[k] = hasher.compute(cv2.warpAffine(thumbnail, warp, (HASHED_PX, HASHED_PX), flags=LOOKUP, **edge))
    return Fingerprint(hashes.view(np.uint64)[:, 0], _shrunk(thumbnail, SMALL_PX), min(rgb.shape[:2]))


def _grey(rgb: np.ndarray, px: int) -> np.ndarray:
    """uint8 [px, px], the full image stretched to a square."""
    return _shrunk(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), px)


def _shrunk(grey: np.ndarray, px: int) -> np.ndarray:
    return cv2.resize(grey, (px, px), interpolation=cv2.INTER_AREA)


def candidate_pairs(hashes: np.ndarray, queries: np.ndarray, max_distance: int) -> np.ndarray:
    """All pairs (query, hash) at most `max_distance` bits apart: int64 [M, 2], sorted; both arguments are uint64.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): the bits are distributed over four blocks; of two similar hashes at
    least one block is nearly equal, so hashes are looked up by each block with a few bits flipped. Time is linear in N until N
    is about 2 ** 16. All pairs are listed, which is slow for a hash that occurs thousands of times.
    """
    near, spare = divmod(max_distance, N_BLOCKS)
    hits = [np.empty(0, np.int64)]
    for block, (keys, asked_keys) in enumerate(zip(_block_keys(hashes), _block_keys(queries), strict=True)):
        order, asked_order = np.argsort(keys, kind="stable"), np.argsort(asked_keys, kind="stable")
        sizes = np.bincount(keys, minlength=1 << BLOCK_BITS)
        starts = np.cumsum(sizes) - sizes
        bucketed, asked_sorted, asked_keys = hashes[order], queries[asked_order], asked_keys[asked_order]
        for n_flips in range(near + (block <= spare)):  # pigeonhole: only the first `spare + 1` blocks need `near`
            for flips in combinations(range(BLOCK_BITS), n_flips):
                keys = asked_keys ^ sum(1 << flip for flip in flips)
                for rows, columns in _expanded(starts[keys], sizes[keys]):
                    hit = np.bitwise_count(asked_sorted[rows] ^ bucketed[columns]) <= max_distance
                    hits.append(asked_order[rows[hit]] * len(hashes) + order[columns[hit]])
    return np.stack(np.divmod(np.unique(np.concatenate(hits)), max(len(hashes), 1)), axis=1)


def _block_keys(hashes: np.ndarray) -> np.ndarray:
    """The bits of each block: uint16 [4, N]; interleaved, because neighbouring bits of a perceptual hash are correlated."""
    bits = np.unpackbits(hashes.view(np.uint8), bitorder="little").reshape(-1, BLOCK_BITS, N_BLOCKS)
    return np.packbits(bits, axis=1, bitorder="little").transpose(2, 0, 1).copy().view(np.uint16)[..., 0]


def _expanded(starts: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every (row, starts[row] + 0 .. lengths[row] - 1), as arrays of about `CHUNK_PAIRS`."""
    ends = np.cumsum(lengths)
    first = done = 0
    while done < (ends[-1] if len(ends) else 0):
        last = max(int(np.searchsorted(ends, done + CHUNK_PAIRS, side="right")), first + 1)
        rows = np.repeat(np.arange(first, last), lengths[first:last])
        shifts = np.repeat((starts - ends + lengths)[first:last], lengths[first:last])
        yield rows, np.arange(done, ends[last - 1]) + shifts
        first, done = last, int(ends[last - 1])


def near_duplicates(fingerprints: Sequence[Fingerprint], read_rgb: ReadRgb, n_workers: int) -> list[NearDuplicate]:
    """Every pair that small thumbnails do not reject, with its verdict, by i and j; independent of `n_workers`.

    `read_rgb(i)` decodes an image again, uint8 [H, W, 3], in threads. Images almost without contrast are left out, because they
    differ only in noise; pass byte-identical files once. Two frames of a burst are different photographs unless nothing moved,
    and so are two specimens mounted alike.
    """
    return _judged(fingerprints, _candidates(fingerprints), read_rgb, n_workers)


def compare_pairs(
    fingerprints: Sequence[Fingerprint], pairs: np.ndarray, read_rgb: ReadRgb, n_workers: int
) -> list[NearDuplicate]:
    """As `near_duplicates`, of given pairs, int64 `[M, 2]`, however far apart their hashes are."""
    candidates = []
    for i, j in pairs.tolist():
        distances = np.bitwise_count(fingerprints[i].hashes ^ fingerprints[j].hashes[0])
        for mirrored in (False, True):
            probe = int(np.where(mirrored == MIRRORED, distances, 255).argmin())
            candidates.append((i, j, probe, int(distances[probe])))
    return _judged(fingerprints, np.array(candidates, np.int32).reshape(-1, 4), read_rgb, n_workers)


def _judged(
    fingerprints: Sequence[Fingerprint], candidates: np.ndarray, read_rgb: ReadRgb, n_workers: int
) -> list[NearDuplicate]:
    """The verdicts on candidates, rows as in `Candidate`, that small thumbnails do not reject."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # many small images: threads over images gain more
    try:
        with ThreadPoolExecutor(n_workers) as pool:
            starts = range(0, len(candidates), BLOCK_PAIRS)
            blocks = (candidates[start : start + BLOCK_PAIRS] for start in starts)
            possible = [pair for part in pool.map(lambda block: _possible(fingerprints, block), blocks) for pair in part]
            pairs: list[NearDuplicate] = []
            for start in range(0, len(possible), BLOCK_PAIRS):
                block = possible[start : start + BLOCK_PAIRS]
                images = sorted({image for row, _ in block for image in row[:2]})
                greys = dict(zip(images, pool.map(lambda image: _grey(read_rgb(image), FINE_PX), images), strict=True))
                pairs += pool.map(lambda pair, greys=greys: _judge(fingerprints, greys, *pair), block)
        pairs.sort(key=lambda pair: (pair.i, pair.j, pair.verdict == "different", -pair.similarity, pair.distance))
        return [next(group) for _, group in groupby(pairs, key=lambda pair: pair[:2])]
    finally:
        cv2.setNumThreads(threads)


Candidate = tuple[int, int, int, int]  # (i, j, probe, distance): the version `probe` of i is near the unchanged j


def _candidates(fingerprints: Sequence[Fingerprint]) -> np.ndarray:
    """Rows as in `Candidate`: int32 [M, 4].

    For each pair the nearest and the nearest mirrored version: subjects are symmetric, so hashes cannot detect mirroring.
    """
    textured = np.array([k for k, each in enumerate(fingerprints) if each.thumbnail.std() >= MIN_CONTRAST], np.int32)
    hashes = np.array([fingerprints[k].hashes for k in textured], np.uint64).reshape(-1, len(PROBES))
    _, first, group, sizes = np.unique(hashes[:, 0], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(group), np.int64)
    rank[np.argsort(group, kind="stable")] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept, crowd = np.flatnonzero(rank < CROWD), np.flatnonzero(rank >= CROWD)

    triples = [np.stack([first[group[crowd]], crowd, np.zeros_like(crowd)], axis=1).astype(np.int32)]
    for start in range(0, len(kept), CHUNK_QUERIES // len(PROBES)):
        asking = kept[start : start + CHUNK_QUERIES // len(PROBES)]
        asked, near = candidate_pairs(hashes[kept, 0], hashes[asking].ravel(), MAX_DISTANCE).T
        rows = np.stack([asking[asked // len(PROBES)], kept[near], asked % len(PROBES)], axis=1).astype(np.int32)
        triples.append(rows[rows[:, 0] != rows[:, 1]])
    i, j, probe = np.concatenate(triples).T
    distance = np.bitwise_count(hashes[i, probe] ^ hashes[j, 0])
    pair = (np.minimum(i, j) * np.int64(len(hashes)) + np.maximum(i, j)) * 2 + MIRRORED[probe]
    order = np.lexsort((i, probe, distance, pair))
    best = order[np.unique(pair[order], return_index=True)[1]]
    return np.stack([textured[i[best]], textured[j[best]], probe[best], distance[best].astype(np.int32)], axis=1)


def _possible(fingerprints: Sequence[Fingerprint], candidates: np.ndarray) -> list[tuple[Candidate, Map]]:
    """The candidates whose small thumbnails correlate, with their alignments."""
    possible = []
    for i, j, probe, distance in candidates.tolist():
        one, other, view = fingerprints[i].thumbnail, fingerprints[j].thumbnail, PROBES[probe][0]
        places = view, _aligned(one, other, view, steps=ECC_SMALL_STEPS)
        correlation, place = max(((_correlation(one, other, place), place) for place in places), key=itemgetter(0))
        if correlation >= POSSIBLE and _similarity(_detail(one), _detail(other), place).similarity >= PLAUSIBLE:
            possible.append(((i, j, probe, distance), place))
    return possible


def _correlation(one: np.ndarray, other: np.ndarray, place: Map) -> float:
    """The correlation of two high-pass filtered thumbnails, uint8 [32, 32], without their edges."""
    moved = cv2.warpAffine(one, _warp(place, SMALL_PX, SMALL_PX), (SMALL_PX, SMALL_PX), flags=LOOKUP, borderMode=EDGE)
    levels = (grey.astype(np.float32) for grey in (moved, other))
    inner = ((grey - cv2.GaussianBlur(grey, (0, 0), 2))[2:-2, 2:-2] for grey in levels)
    one, other = (grey - grey.mean() for grey in inner)
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum() + 1e-9))


def _judge(fingerprints: Sequence[Fingerprint], greys: dict[int, np.ndarray], row: Candidate, place: Map) -> NearDuplicate:
    """Compares a candidate at the scale of thumbnails and, if it may be the same, at the finest scale; `greys` [128, 128]."""
    i, j, probe, distance = row
    fit = _fit(_shrunk(greys[i], THUMBNAIL_PX), _shrunk(greys[j], THUMBNAIL_PX), (PROBES[probe][0], place))
    verdict: Verdict = "different"
    if fit.similarity >= LIKELY:
        side_px = min(fingerprints[i].side_px, fingerprints[j].side_px)
        px = int(np.clip(side_px * FINE_SHARE, min(SAME), max(SAME))) // TILE_PX * TILE_PX  # the finest for the smaller image
        fit = _fit(_shrunk(greys[i], px), _shrunk(greys[j], px), (fit.place,))
        if not fit.n_contrary and fit.similarity >= np.interp(px, list(SAME), list(SAME.values())):
            verdict = "mirrored" if np.linalg.det(fit.place) < 0 else "same"
    return NearDuplicate(min(i, j), max(i, j), distance, round(fit.similarity, 3), verdict)


def _fit(one: np.ndarray, other: np.ndarray, starts: Sequence[Map]) -> Alignment:
    """The best of the starts, refined; then again only where the images agree, because corners or a bar bias the alignment."""
    details = _detail(one), _detail(other)
    best = max((_similarity(*details, start) for start in starts), key=itemgetter(0))
    if best.similarity >= PROMISING:
        best = max(best, _similarity(*details, _aligned(one, other, best.place)), key=itemgetter(0))
    if PROMISING <= best.similarity < CLEAR:
        best = max(best, _similarity(*details, _aligned(one, other, best.place, best.agree)), key=itemgetter(0))
    return best


def _detail(grey: np.ndarray) -> np.ndarray:
    """Structures of about 2 to 8 pixels, without illumination: float32 [px, px]."""
    levels = grey.astype(np.float32)
    return cv2.GaussianBlur(levels, (0, 0), 0.7) - cv2.GaussianBlur(levels, (0, 0), 3)


def _aligned(one: np.ndarray, other: np.ndarray, start: Map, mask: np.ndarray | None = None, steps: int = ECC_STEPS) -> Map:
    """The affine map of highest correlation near `start` (Evangelidis and Psarakis 2008); `start` if there is none."""
    px = len(one)
    seen: Any = mask  # None is allowed, contrary to OpenCV's types
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, ECC_EPSILON)
    try:
        _, warp = cv2.findTransformECC(other, one, _warp(start, px, px), cv2.MOTION_AFFINE, criteria, seen, ECC_BLUR_PX)
    except cv2.error:  # the iteration diverges
        return start
    place = np.linalg.inv(_pixels(px)) @ np.vstack([warp, [0, 0, 1]]) @ _pixels(px)
    stretch = np.linalg.svd(place[:2, :2], compute_uv=False) if np.isfinite(place).all() else np.zeros(2)
    return place if stretch[1] >= 1 / MAX_STRETCH and stretch[0] <= MAX_STRETCH else start


def _similarity(one: np.ndarray, other: np.ndarray, place: Map) -> Alignment:
    """Mean over the tiles of the correlation of details.

    A tile is weighted by the structure that both images have there, at most as the mean tile: plain background counts little,
    and no single edge decides. A watermark adds structure to one image; another animal replaces structure.
    """
    px = len(one)
    warp = _warp(place, px, px)
    moved = cv2.warpAffine(one, warp, (px, px), flags=LOOKUP, borderMode=EDGE)
    seen = cv2.warpAffine(np.ones_like(one), warp, (px, px), flags=LOOKUP)
    seen = (cv2.erode(seen, np.ones((3, 3), np.uint8)) > 0.99).astype(np.float32)

    layers = (np.ones_like(one), moved, other, moved * moved, other * other, moved * other)
    n_tiles = (px // TILE_PX, px // TILE_PX)
    means = np.stack([cv2.resize(layer * seen, n_tiles, interpolation=cv2.INTER_AREA) for layer in layers])
    _, mean_one, mean_other, square_one, square_other, product = means / np.maximum(means[0], 1e-6)
    valid = means[0] > 0.5
    if valid.mean() < 0.5:
        return Alignment(-1.0, place, np.zeros((px, px), np.uint8), 0)
    power_one, power_other = (np.maximum(x, 0) + 0.01 for x in (square_one - mean_one**2, square_other - mean_other**2))
    correlation = (product - mean_one * mean_other) / np.sqrt(power_one * power_other)
    structure = np.sqrt(power_one / power_one[valid].mean()), np.sqrt(power_other / power_other[valid].mean())
    weight = np.minimum(np.sqrt(structure[0] * structure[1]), 1) * valid
    contrary = valid & (np.minimum(*structure) > STRUCTURED) & (correlation < CONTRARY)
    blocks = contrary[1:, 1:] & contrary[1:, :-1] & contrary[:-1, 1:] & contrary[:-1, :-1]
    agree = cv2.resize((valid & (correlation > AGREE)).astype(np.uint8), (px, px), interpolation=cv2.INTER_NEAREST)
    return Alignment(float((weight * correlation).sum() / weight.sum()), place, agree, int(blocks.sum()))
