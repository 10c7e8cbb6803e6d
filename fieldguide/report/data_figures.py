"""Pictures of the data, from what the split check wrote: images per class, photographs of each split, sizes and mean images."""

import string
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fieldguide.core.images import decode, read_encoded
from fieldguide.core.manifest import named_tuples, read_manifest
from fieldguide.core.names import MAX_NAMED_CLASSES, SPLITS
from fieldguide.core.paths import CLASSES_CSV, CLASSES_PNG, MANIFEST, MEAN_IMAGES, RAW, SAMPLES_PNG, SIZES_PNG
from fieldguide.report import plots

N_SAMPLES, SAMPLE_PX = 10, 96  # pictures of each split in samples.png
N_SIZES = 20  # of many classes those whose size `dvc plots` shows, in a chart of 300 px


def data_figures() -> dict[Path, Figure]:
    """The charts of the data, by the path of the PNG."""
    frame = read_manifest(MANIFEST)
    counts = pd.read_csv(CLASSES_CSV, dtype={"class_name": str}, keep_default_na=False)
    with np.load(MEAN_IMAGES) as archive:
        means = dict(archive)
    sized = frame[frame["width"].notna()]
    widths, heights = (sized[side].to_numpy(dtype=np.int64) for side in ("width", "height"))
    by_split = {split: counts[split].to_numpy() for split in SPLITS if counts[split].any()}
    many = len(counts) > MAX_NAMED_CLASSES
    return {
        CLASSES_PNG: plots.class_size_histograms(by_split)
        if many
        else plots.class_distribution(by_split, counts["class_name"].tolist()),
        SAMPLES_PNG: samples(frame[frame["use"]]),
        SIZES_PNG: plots.sizes_and_mean(widths, heights, means),
    }


def class_sizes(counts: pd.DataFrame) -> pd.DataFrame:
    """metrics/class_sizes.csv, which `dvc plots` shows: the rows of metrics/classes.csv.

    Of more than `MAX_NAMED_CLASSES` the rows of `N_SIZES`, from the largest in train to the smallest at equal steps of rank.
    """
    if len(counts) <= MAX_NAMED_CLASSES:
        return counts
    ranks = np.linspace(0, len(counts) - 1, N_SIZES).round().astype(int)
    chosen = counts.sort_values("train", ascending=False, kind="stable").iloc[ranks]
    width = len(str(len(counts)))  # DVC's template sorts by name
    names = [f"{k + 1:0{width}d} of {len(counts)}: {name}" for k, name in zip(ranks, chosen["class_name"], strict=True)]
    return chosen.assign(class_name=names)


def samples(rows: pd.DataFrame) -> Figure:
    """Photographs of each split among the rows of the manifest, with their class names."""
    splits = [split for split in (*SPLITS, "unlabelled") if split in set(rows["split"])]
    chosen = [choose_samples(rows[rows["split"] == split]) for split in splits]
    pictures = [
        [decode(read_encoded(RAW / row.file, row.offset, row.length), SAMPLE_PX) for row in named_tuples(samples)]
        for samples in chosen
    ]
    captions = [[string.capwords(name) for name in samples["class_name"]] for samples in chosen]
    return plots.image_grid(pictures, splits, "Samples of each split", captions)


def choose_samples(rows: pd.DataFrame) -> pd.DataFrame:
    """`N_SAMPLES` rows of classes spread over the list; a small split repeats."""
    by_class = rows.sort_values(["label", "id"]).drop_duplicates("label") if rows["label"].notna().any() else rows
    return by_class.iloc[np.linspace(0, len(by_class) - 1, N_SAMPLES).round().astype(int)]
