"""Decodes every image of unknown content once, for size, hashes, fingerprint and mean image, and finds near duplicates."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from fieldguide.checks.inspected import MEAN_PX, Inspected, InspectedCache, inspected_images
from fieldguide.checks.near_duplicates import Fingerprint, NearDuplicate, fingerprint, near_duplicates
from fieldguide.core.files import write_bytes
from fieldguide.core.images import TooManyPixels, UnreadableImage, inspect, read_encoded, resize
from fieldguide.core.names import SPLITS

INSPECTED_PX = 256  # a larger JPEG is decoded at a smaller scale with at least this side; enough for all comparisons

Place = tuple[str, int, int]  # file under data/raw, offset and length of the encoded bytes


def inspect_images(
    frame: pd.DataFrame, raw: Path, max_megapixels: int, n_workers: int
) -> tuple[pd.DataFrame, list[Fingerprint | None], dict[str, np.ndarray]]:
    """The table with `width`, `height`, `sha256`, `phash` and `reason`; fingerprints; the mean image of each split.

    The mean images are uint8 `[MEAN_PX, MEAN_PX, 3]`; the key of images without a split is `all`.
    """
    places = _places(frame)
    rows, fingerprints = [], []
    sums = {split: np.zeros((MEAN_PX, MEAN_PX, 3)) for split in dict.fromkeys(frame["split"])}
    counts = dict.fromkeys(sums, 0)
    with inspected_images(max_megapixels) as cache, ThreadPoolExecutor(n_workers) as pool:
        results = pool.map(lambda place: _inspect_one(raw, place, max_megapixels, cache), places)
        progress = tqdm(results, total=len(places), unit="image", disable=None)
        for split, image in zip(frame["split"], progress, strict=True):
            rows.append(image[:5])
            fingerprints.append(image.fingerprint)
            if image.small is not None:
                sums[split] += image.small
                counts[split] += 1
    columns = pd.DataFrame(rows, columns=["width", "height", "sha256", "phash", "reason"])
    order = ["", *SPLITS, "unlabelled"]
    means = {
        split or "all": (sums[split] / counts[split]).round().astype(np.uint8)
        for split in sorted(sums, key=order.index)
        if counts[split]
    }
    return frame.join(columns.astype({"width": "Int64", "height": "Int64"})), fingerprints, means


def save_mean_images(target: Path, means: dict[str, np.ndarray]) -> None:
    with io.BytesIO() as stream:
        np.savez(stream, allow_pickle=False, **means)
        write_bytes(target, stream.getvalue())


def _places(frame: pd.DataFrame) -> list[Place]:
    return list(zip(frame["file"], frame["offset"], frame["length"], strict=True))


def _inspect_one(raw: Path, place: Place, max_megapixels: int, cache: InspectedCache) -> Inspected:
    file, offset, length = place
    encoded = read_encoded(raw / file, offset, length)
    digest = hashlib.sha256(encoded).hexdigest()
    if known := cache.get(digest):
        return known
    try:
        (width, height), rgb = inspect(encoded, INSPECTED_PX, max_megapixels * 1_000_000)
    except UnreadableImage as error:
        remedy = "; raise split_check.max_megapixels" if isinstance(error, TooManyPixels) else ""
        return Inspected(None, None, digest, "", f"unreadable: {error}{remedy}", None, None)
    prints = fingerprint(rgb)
    image = Inspected(width, height, digest, f"{prints.hashes[0]:016x}", "", prints, resize(rgb, MEAN_PX))
    cache.put(image)
    return image


def read_rgb(raw: Path, place: Place) -> np.ndarray:
    """The image as it was inspected: uint8 `[H, W, 3]`."""
    file, offset, length = place
    return inspect(read_encoded(raw / file, offset, length), INSPECTED_PX)[1]


def find_near_duplicates(
    frame: pd.DataFrame, fingerprints: list[Fingerprint | None], raw: Path, max_megapixels: int, n_workers: int
) -> list[NearDuplicate]:
    """Near duplicates among readable images that are not byte-identical, as positions of the table's rows.

    Compares nothing if the same images were compared before: neither splits nor labels matter.
    """
    rows = np.flatnonzero(frame["reason"].eq("") & ~frame.duplicated("sha256"))
    places = _places(frame)
    readable = [one for row in rows if (one := fingerprints[row]) is not None]
    sha256 = frame["sha256"].iloc[rows].to_list()
    with inspected_images(max_megapixels) as cache:
        if (pairs := cache.pairs(sha256)) is None:
            pairs = near_duplicates(readable, lambda k: read_rgb(raw, places[rows[k]]), n_workers)
            cache.put_pairs(sha256, pairs)
    return [pair._replace(i=int(rows[pair.i]), j=int(rows[pair.j])) for pair in pairs]
