"""Names that all packages share: splits, readable class names, dotted names of nested values."""

import string
from typing import Any, Literal

SPLITS = ("train", "valid", "test")
MAX_NAMED_CLASSES = 150  # a chart of more classes than this shows how they are spread, and names the extremes
ClassFrom = Literal["last", "path", "first"]  # which of nested folders are the class


def common_name(name: str) -> str:
    """A readable class name: replaces underscores, and capitalises names that are all upper or all lower case."""
    words = name.replace("_", " ").strip()
    return string.capwords(words) if words.isupper() or words.islower() else words


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
