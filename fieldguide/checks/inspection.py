"""Decodes every image of unknown content once, for size, hashes, fingerprint and mean image, and finds near duplicates."""

import hashlib
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from fieldguide.checks.inspected import MEAN_PX, Inspected, InspectedCache, inspected_images
from fieldguide.checks.near_duplicates import Fingerprints, NearDuplicate, fingerprint, near_duplicates
from fieldguide.core.files import write_bytes
from fieldguide.core.images import Place, TooManyPixels, UnreadableImage, encoded_reader, inspect, read_encoded, resize
from fieldguide.core.names import SPLITS

INSPECTED_PX = 256  # a larger JPEG is decoded at a smaller scale with at least this side; enough for all comparisons
BLOCK, TOGETHER = 1024, 8  # images that are inspected ahead, and one after the other by a thread
LARGE = 1 << 16  # bytes of a file on average; smaller ones are first looked up by one thread, since several hinder each other


class MeanImage(NamedTuple):
    """The mean, uint8 `[MEAN_PX, MEAN_PX, 3]`, of `n_images` images."""

    pixels: np.ndarray
    n_images: int


def inspect_images(
    frame: pd.DataFrame, raw: Path, max_megapixels: int, n_workers: int, with_fingerprints: bool = True
) -> tuple[pd.DataFrame, Fingerprints, dict[str, MeanImage]]:
    """The table with `width`, `height`, `sha256`, `phash` and `reason`; fingerprints; the mean image of each split.

    The key of images without a split is `all`. Without fingerprints `phash` is empty, and there are none.
    """
    places, splits = _places(frame), frame["split"].to_list()
    facts: dict[str, list[object]] = {name: [] for name in ("width", "height", "sha256", "phash", "reason")}
    fingerprints = Fingerprints.empty(len(frame) if with_fingerprints else 0)
    sums = {split: np.zeros((MEAN_PX, MEAN_PX, 3)) for split in dict.fromkeys(splits)}
    counts = dict.fromkeys(sums, 0)
    with (
        inspected_images(max_megapixels) as cache,
        encoded_reader(raw, frame["file"]) as read,
        ThreadPoolExecutor(n_workers) as pool,
        tqdm(total=len(places), desc="inspect", unit="image", disable=None) as progress,
    ):

        def look_up(place: Place) -> Inspected | None:
            return cache.get(hashlib.sha256(read(*place)).hexdigest(), with_fingerprints)

        def inspect_part(part: list[Place]) -> list[Inspected]:
            return [_inspect_one(read(*place), max_megapixels, cache, with_fingerprints) for place in part]

        for start in range(0, len(places), BLOCK):  # bounds the images in memory
            block = places[start : start + BLOCK]
            is_large = sum(length for _, _, length in block) > LARGE * len(block)
            known = [None if is_large else look_up(place) for place in block]  # a large one is read once only
            new = [place for place, image in zip(block, known, strict=True) if image is None]
            parts = [new[first : first + TOGETHER] for first in range(0, len(new), TOGETHER)]
            inspected = chain.from_iterable(pool.map(inspect_part, parts))
            for row, image in enumerate((each or next(inspected) for each in known), start):
                for name, values in facts.items():
                    values.append(getattr(image, name))
                if image.fingerprint is not None:
                    fingerprints.put(row, image.fingerprint)
                if image.small is not None:
                    sums[splits[row]] += image.small
                    counts[splits[row]] += 1
                progress.update()
    columns = pd.DataFrame(facts).astype({"width": "Int64", "height": "Int64"})
    order = ["", *SPLITS, "unlabelled"]
    means = {
        split or "all": MeanImage((sums[split] / counts[split]).round().astype(np.uint8), counts[split])
        for split in sorted(sums, key=order.index)
        if counts[split]
    }
    return frame.join(columns), fingerprints, means


def save_mean_images(target: Path, means: Mapping[str, MeanImage], by_split: bool) -> None:
    """Writes the mean image of each split or, where the inspected images were split anew, that of all, as `all`."""
    images = {split: mean.pixels for split, mean in means.items()}
    if not by_split and means:
        weights = [mean.n_images for mean in means.values()]
        images = {"all": np.average(list(images.values()), axis=0, weights=weights).round().astype(np.uint8)}
    with io.BytesIO() as stream:
        np.savez(stream, allow_pickle=False, **images)
        write_bytes(target, stream.getvalue())


def _places(frame: pd.DataFrame) -> list[Place]:
    return list(zip(frame["file"], frame["offset"], frame["length"], strict=True))


def _inspect_one(encoded: bytes, max_megapixels: int, cache: InspectedCache, with_fingerprint: bool) -> Inspected:
    digest = hashlib.sha256(encoded).hexdigest()
    if known := cache.get(digest, with_fingerprint):
        return known
    try:
        (width, height), rgb = inspect(encoded, INSPECTED_PX, max_megapixels * 1_000_000)
    except UnreadableImage as error:
        remedy = "; raise split_check.max_megapixels" if isinstance(error, TooManyPixels) else ""
        return Inspected(None, None, digest, "", f"unreadable: {error}{remedy}", None, None)
    prints = fingerprint(rgb) if with_fingerprint else None
    phash = f"{prints.hashes[0]:016x}" if prints else ""
    image = Inspected(width, height, digest, phash, "", prints, resize(rgb, MEAN_PX))
    cache.put(image)
    return image


def read_rgb(raw: Path, place: Place) -> np.ndarray:
    """The image as it was inspected: uint8 `[H, W, 3]`."""
    file, offset, length = place
    return inspect(read_encoded(raw / file, offset, length), INSPECTED_PX)[1]


def find_near_duplicates(
    frame: pd.DataFrame, fingerprints: Fingerprints, raw: Path, max_megapixels: int, n_workers: int
) -> list[NearDuplicate]:
    """Near duplicates among readable images that are not byte-identical, as positions of the table's rows.

    Compares only what was not compared before: neither splits nor labels matter.
    """
    rows = np.flatnonzero(frame["reason"].eq("") & ~frame.duplicated("sha256"))
    places = _places(frame)
    sha256 = frame["sha256"].iloc[rows].to_list()
    with inspected_images(max_megapixels) as cache:
        known = cache.results(sha256)
        pairs, results = near_duplicates(fingerprints.take(rows), lambda k: read_rgb(raw, places[rows[k]]), n_workers, known)
        if not known.searched.all() or len(results) != len(known.results):
            cache.put_results(sha256, results)
    return [pair._replace(i=int(rows[pair.i]), j=int(rows[pair.j])) for pair in pairs]
