"""Embeddings of made-up classes with planted wrong labels, and the rows of the manifest that go with them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fieldguide.core.manifest import COLUMNS, NUMBERS, as_given


def clusters(sizes: Sequence[int], noise: float = 0.5, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Float16 embeddings `[N, size]` around a random centre for each class, and the classes, int64 `[N]`."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = random.standard_normal((len(sizes), size))
    return (centres[truth] + noise * random.standard_normal((len(truth), size))).astype(np.float16), truth


def plant(truth: np.ndarray, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which that share is wrong, and the rows with a wrong one."""
    random = np.random.default_rng([seed, 1])
    n_classes = truth.max() + 1
    rows = np.sort(random.choice(len(truth), max(round(share * len(truth)), 1), replace=False))
    labels = truth.copy()
    labels[rows] = (truth[rows] + random.integers(1, n_classes, len(rows))) % n_classes
    return labels, rows


def manifest_rows(labels: np.ndarray, splits: Sequence[str] = ("train",), **columns: object) -> pd.DataFrame:
    """Rows in use, each a unit of its own; the splits take turns."""
    rows = range(len(labels))
    split = [splits[k % len(splits)] for k in rows]
    names = [f"class {label:04d}" for label in labels]
    frame = pd.DataFrame(
        {
            "split": pd.array(split, dtype="string"),
            "label": pd.array(labels, dtype="Int64"),
            "class_name": pd.array(names, dtype="string"),
            "id": [f"{where}/{name}/{k}.jpg" for k, (where, name) in enumerate(zip(split, names, strict=True))],
            "file": "images.bin",
            "offset": 0,
            "length": 0,
            "width": 8,
            "height": 8,
            "sha256": [hashlib.sha256(b"%d" % k).hexdigest() for k in rows],
            "phash": "",
            "unit": rows,
            "use": True,
            "reason": "",
        }
    )
    return as_given(frame).assign(**columns).astype(dict.fromkeys(NUMBERS, "Int64"))[list(COLUMNS)]
