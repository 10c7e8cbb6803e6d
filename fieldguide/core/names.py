"""Names that all packages share: the splits, classes as a person writes them, nested values under dotted names."""

import string
from typing import Any

SPLITS = ("train", "valid", "test")


def common_name(name: str) -> str:
    """A class's name for reading: one that is all capitals or all small, or joined by underscores, gets its words' capitals."""
    words = name.replace("_", " ").strip()
    return string.capwords(words) if words.isupper() or words.islower() else words


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
