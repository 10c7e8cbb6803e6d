"""Blocks of classes, so that a confusion of thousands of classes stays a table and a picture of bounded size."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fieldguide.core.names import MAX_BLOCKS

OTHERS = "… {:,} others"  # sorts behind every name, also in Vega


def confused_blocks(groups: Sequence[str], targets: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Images (`n`) by the blocks of `truth` and `predicted`, at most `MAX_BLOCKS` squared rows; targets, predicted: int `[N]`.

    groups: the block of each class (`class_groups`), or its name where there are none. If there are more blocks than
    `MAX_BLOCKS`, those of the most confused pairs are shown and the others are one. Memory grows with images and classes.
    """
    blocks, block_of = np.unique(np.array(groups, dtype=str), return_inverse=True)
    truth, answer = block_of[targets], block_of[predicted]
    if len(blocks) > MAX_BLOCKS:
        shown = most_confused(truth, answer, len(blocks))[: MAX_BLOCKS - 1]
        place = np.full(len(blocks), len(shown))
        place[np.sort(shown)] = np.arange(len(shown))
        blocks = np.append(blocks[np.sort(shown)].astype(object), OTHERS.format(len(blocks) - len(shown)))
        truth, answer = place[truth], place[answer]
    pairs, counts = np.unique(truth * len(blocks) + answer, return_counts=True)
    return pd.DataFrame({"truth": blocks[pairs // len(blocks)], "predicted": blocks[pairs % len(blocks)], "n": counts})


def most_confused(truth: np.ndarray, predicted: np.ndarray, n_blocks: int) -> np.ndarray:
    """All block numbers, int `[n_blocks]`: those of the pair that is most often confused, either way, come first."""
    wrong = truth != predicted
    low, high = (side(truth[wrong], predicted[wrong]) for side in (np.minimum, np.maximum))
    pairs, counts = np.unique(low * n_blocks + high, return_counts=True)
    ordered = pairs[np.argsort(-counts, kind="stable")]
    both = np.stack([ordered // n_blocks, ordered % n_blocks], axis=1).ravel()
    return np.array(list(dict.fromkeys([*both.tolist(), *range(n_blocks)])))
