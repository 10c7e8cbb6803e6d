"""Values as a person reads them, in the page and in the card."""

from typing import Any

import pandas as pd
from jinja2.filters import do_filesizeformat

from fieldguide.core.names import flat

UNKNOWN = "–"


def percent(value: float | None, digits: int = 1) -> str:
    return UNKNOWN if pd.isna(value) else f"{100 * value:.{digits}f}\u00a0%"


def number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if pd.isna(value) else f"{value:,.{digits}f}"


def count(value: int | None, unknown: str = UNKNOWN) -> str:
    return unknown if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    return UNKNOWN if value is None else do_filesizeformat(value)


def shown(value: Any) -> str:
    """Any value of a params or metrics file in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)


def table_rows(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Nested values under dotted names."""
    return [(name, shown(value)) for name, value in flat(tree).items()]


def interval(figures: object, key: str) -> str:
    """The 95 % interval of a figure, an accuracy in percent; empty for a figure without."""
    low, high = (getattr(figures, f"{key}_{end}", None) for end in ("low", "high"))
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f} to {100 * high:.1f}" if key == "accuracy" else f"{low:.3f} to {high:.3f}"


def markdown(text: object) -> str:
    """Text in which no sign of Markdown or HTML has a meaning."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in " ".join(str(text).split()))
