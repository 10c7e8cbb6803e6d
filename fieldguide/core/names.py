"""Names that all packages share: splits, readable class names, dotted names of nested values."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

SPLITS = ("train", "valid", "test")
MAX_NAMED_CLASSES = 150  # a chart of more classes than this shows how they are spread, and names the extremes
MAX_BLOCKS = 40  # of a confusion of many classes: names that can be read along an axis, one of them for all others
ClassFrom = Literal["last", "path", "first"]  # which of nested folders are the class


def common_name(name: str) -> str:
    """A readable class name: replaces underscores, and capitalises names that are all upper or all lower case."""
    words = name.replace("_", " ").strip()
    return string.capwords(words) if words.isupper() or words.islower() else words


def name_groups(names: Sequence[str]) -> list[str] | None:
    """The group of each class: the first words of its name, such as the genus of a scientific name.

    More words are taken as long as they give no more than `MAX_BLOCKS` groups, and half as many as there are classes. A number
    in front (00042_Animalia_…) is not among them. None where fewer than half of the classes share their first word with
    another, or all share it.
    """
    words = [re.sub(r"^[\d\s.-]+(?=\D)", "", common_name(name)).split() or [name] for name in names]
    groups = [each[0] for each in words]
    for n_words in range(2, 1 + max(map(len, words), default=0)):
        deeper = [" ".join(each[:n_words]) for each in words]
        if len(set(deeper)) > min(MAX_BLOCKS, len(names) // 2):
            break
        groups = deeper
    sizes = Counter(groups)
    return groups if len(sizes) > 1 and 2 * sum(n for n in sizes.values() if n > 1) >= len(names) else None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
