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
from itertools import groupby
from math import cos, radians, sin
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from fieldguide.checks.hash_search import Candidate, best_codes, codes_of, decoded, masks, nearest_versions

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
CHUNK_IMAGES = 1000  # limits the memory
BLOCK_PAIRS = 2048  # candidates that are judged together: limits the images in memory
ECC_STEPS, ECC_SMALL_STEPS, ECC_EPSILON, ECC_BLUR_PX = 20, 6, 1e-3, 5
EDGE = cv2.BORDER_REPLICATE
LOOKUP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP  # maps go from pixels of the result to pixels of the source

Map = np.ndarray  # float64 [3, 3]: from points of the second image to points of the first; both span -1..1
ReadRgb = Callable[[int], np.ndarray]
Verdict = Literal["same", "mirrored", "different"]


RESULT = np.dtype([("i", "<i4"), ("j", "<i4"), ("probe", "<i4"), ("distance", "<i4"), ("similarity", "<f8"), ("verdict", "u1")])
VERDICTS: tuple[Verdict | None, ...] = (None, "different", "same", "mirrored")  # None: small thumbnails reject the candidate


class Fingerprint(NamedTuple):
    """1.4 KB that represent an image."""

    hashes: np.ndarray  # uint64 [P], one for each of `PROBES`; the first is that of the unchanged image
    thumbnail: np.ndarray  # uint8 [32, 32], grey, stretched to a square
    side_px: int  # the smaller side of the image


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of N images in arrays."""

    hashes: np.ndarray  # uint64 [N, P]
    thumbnails: np.ndarray  # uint8 [N, 32, 32]
    side_px: np.ndarray  # int32 [N]

    @classmethod
    def empty(cls, n: int) -> "Fingerprints":
        """Room for n images."""
        shape = (n, SMALL_PX, SMALL_PX)
        return cls(np.zeros((n, len(PROBES)), np.uint64), np.zeros(shape, np.uint8), np.zeros(n, np.int32))

    @classmethod
    def of(cls, images: Sequence[Fingerprint]) -> "Fingerprints":
        every = cls.empty(len(images))
        for row, image in enumerate(images):
            every.put(row, image)
        return every

    def take(self, rows: np.ndarray) -> "Fingerprints":
        """Those of some images, int64 [M]; the same arrays if it is all of them in their order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return Fingerprints(self.hashes[rows], self.thumbnails[rows], self.side_px[rows])

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, row: int) -> Fingerprint:
        return Fingerprint(self.hashes[row], self.thumbnails[row], int(self.side_px[row]))

    def put(self, row: int, image: Fingerprint) -> None:
        self.hashes[row], self.thumbnails[row], self.side_px[row] = image


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


class Known(NamedTuple):
    """The results of an earlier search, as positions among the images of this one."""

    results: np.ndarray  # of dtype `RESULT`
    searched: np.ndarray  # bool [N], whether it compared an image; all False if it also had images that are gone


def near_duplicates(
    fingerprints: Fingerprints, read_rgb: ReadRgb, n_workers: int, known: Known | None = None
) -> tuple[list[NearDuplicate], np.ndarray]:
    """Every pair that small thumbnails do not reject, with its verdict, by i and j; and all results, of dtype `RESULT`.

    Independent of `n_workers` and `known`. `read_rgb(i)` decodes an image again, uint8 [H, W, 3], in threads. Images almost
    without contrast are left out, because they differ only in noise; pass byte-identical files once. Two frames of a burst are
    different photographs unless nothing moved, and so are two specimens mounted alike.
    """
    known = known or Known(np.empty(0, RESULT), np.zeros(len(fingerprints), bool))
    candidates = _candidates(fingerprints, known, n_workers)
    results = _results(fingerprints, candidates, known.results, read_rgb, n_workers)
    return pairs_of(results), results


def pairs_of(results: np.ndarray) -> list[NearDuplicate]:
    """The pairs that are not rejected, by i and j, each with its best verdict."""
    rows = results[results["verdict"] > 0].tolist()
    pairs = [
        NearDuplicate(min(i, j), max(i, j), distance, similarity, VERDICTS[verdict] or "different")
        for i, j, _, distance, similarity, verdict in rows
    ]
    pairs.sort(key=lambda pair: (pair.i, pair.j, pair.verdict == "different", -pair.similarity, pair.distance))
    return [next(group) for _, group in groupby(pairs, key=lambda pair: pair[:2])]


def compare_pairs(fingerprints: Fingerprints, pairs: np.ndarray, read_rgb: ReadRgb, n_workers: int) -> list[NearDuplicate]:
    """As `near_duplicates`, of given pairs, int64 `[M, 2]`, however far apart their hashes are."""
    candidates = []
    for i, j in pairs.tolist():
        distances = np.bitwise_count(fingerprints[i].hashes ^ fingerprints[j].hashes[0])
        for mirrored in (False, True):
            probe = int(np.where(mirrored == MIRRORED, distances, 255).argmin())
            candidates.append((i, j, probe, int(distances[probe])))
    every = np.array(candidates, np.int32).reshape(-1, 4)
    return pairs_of(_results(fingerprints, every, np.empty(0, RESULT), read_rgb, n_workers))


def _results(
    fingerprints: Fingerprints, candidates: np.ndarray, known: np.ndarray, read_rgb: ReadRgb, n_workers: int
) -> np.ndarray:
    """The verdicts on candidates, rows as in `Candidate`: of dtype `RESULT` [M]; those in `known` are not judged again."""
    results = np.zeros(len(candidates), RESULT)
    for column, values in zip(("i", "j", "probe", "distance"), candidates.T, strict=True):
        results[column] = values
    codes, known_codes = (_version_codes(each, len(fingerprints)) for each in (results, known))
    known, known_codes = known[np.argsort(known_codes)], np.sort(known_codes)
    places = np.searchsorted(known_codes, codes)
    is_known = np.append(known_codes, -1)[places] == codes
    results[is_known] = known[places[is_known]]
    new = np.flatnonzero(~is_known)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # many small images: threads over images gain more
    try:
        with ThreadPoolExecutor(n_workers) as pool, tqdm(total=len(new), desc="compare", disable=None, leave=False) as progress:
            for start in range(0, len(new), BLOCK_PAIRS):
                block = new[start : start + BLOCK_PAIRS]
                parts = np.array_split(candidates[block], max(len(block) // 64, 1))
                possible = [row for part in pool.map(lambda part: _possible(fingerprints, part), parts) for row in part]
                images = sorted({image for row, _ in possible for image in row[:2]})
                greys = dict(zip(images, pool.map(lambda image: _grey(read_rgb(image), FINE_PX), images), strict=True))
                judged = list(pool.map(lambda pair, greys=greys: _judge(fingerprints, greys, *pair), possible))
                verdicts = {row: pair for (row, _), pair in zip(possible, judged, strict=True)}
                for place, row in zip(block.tolist(), map(tuple, candidates[block].tolist()), strict=True):
                    if pair := verdicts.get(row):
                        results["similarity"][place] = pair.similarity
                        results["verdict"][place] = VERDICTS.index(pair.verdict)
                progress.update(len(block))
    finally:
        cv2.setNumThreads(threads)
    return results


def _version_codes(results: np.ndarray, n_images: int) -> np.ndarray:
    """A number for the two images and the version that were compared: int64 [M]."""
    return (results["i"].astype(np.int64) * n_images + results["j"]) * len(PROBES) + results["probe"]


def _candidates(fingerprints: Fingerprints, known: Known, n_workers: int) -> np.ndarray:
    """Rows as in `Candidate`: int32 [M, 4], by pair.

    For each pair the nearest and the nearest mirrored version: subjects are symmetric, so hashes cannot detect mirroring.
    """
    hashes, textured = fingerprints.hashes, _textured(fingerprints.thumbnails)
    first, rank = _ranks(hashes[textured, 0])
    kept, crowd = textured[rank < CROWD], textured[rank >= CROWD]
    seen = textured[known.searched[textured]]  # the order within a crowd was that of now, without the new images
    seen = seen[_ranks(hashes[seen, 0])[1] < CROWD]
    if len(masks(len(seen))) != len(masks(len(kept))):
        seen = seen[:0]
    is_kept, is_seen = (np.isin(np.arange(len(hashes)), rows) for rows in (kept, seen))
    results = known.results
    i, j = results["i"], results["j"]
    results = results[is_seen[i] & is_seen[j] & is_kept[i] & is_kept[j]]
    before = np.stack([results[name] for name in ("i", "j", "probe", "distance")], axis=1).astype(np.int64)
    found = nearest_versions(hashes, MIRRORED, kept, kept[~is_seen[kept]], n_workers).astype(np.int64)
    of_crowd = np.stack([textured[first[rank >= CROWD]], crowd, np.zeros_like(crowd)], axis=1)
    rows = np.concatenate([before[:, [0, 1, 2]], found[:, [0, 1, 2]], of_crowd])
    return decoded(best_codes([codes_of(hashes, MIRRORED, rows[:, 0], rows[:, 2], rows[:, 1])]), len(hashes))


def _ranks(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first place with an equal hash, and how many equal ones lie before: two int64 [N]."""
    _, first, group, sizes = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(group), np.int64)
    rank[np.argsort(group, kind="stable")] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return first[group], rank


def _textured(thumbnails: np.ndarray) -> np.ndarray:
    """The images with enough contrast: int64 [M], ascending."""
    chunks = (thumbnails[start : start + CHUNK_IMAGES] for start in range(0, len(thumbnails), CHUNK_IMAGES))
    deviations = [chunk.reshape(len(chunk), -1).std(axis=1) for chunk in chunks]
    return np.flatnonzero(np.concatenate([np.empty(0), *deviations]) >= MIN_CONTRAST)


def _possible(fingerprints: Fingerprints, candidates: np.ndarray) -> list[tuple[Candidate, Map]]:
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


def _judge(fingerprints: Fingerprints, greys: dict[int, np.ndarray], row: Candidate, place: Map) -> NearDuplicate:
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
