"""Values as a person reads them, in the page and in the card."""

import math
from typing import Any, TypeGuard

from fieldguide.core.names import flat


def is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def percent(value: float | None, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u00a0%" if is_known(value) else "–"


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:,.{digits}f}" if is_known(value) else "–"


def count(value: float | None) -> str:
    return f"{int(value):,}" if is_known(value) else "–"


def size(value: int | None) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    if not is_known(value):
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value} bytes"


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


def interval(figures: object, key: str, write: str) -> str:
    """The 95 % interval of a figure, or nothing."""
    low, high = (getattr(figures, f"{key}_{end}", None) for end in ("low", "high"))
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f} to {100 * high:.1f}" if write == "percent" else f"{low:.3f} to {high:.3f}"


def markdown(text: object) -> str:
    """Text in which no sign of Markdown or HTML has a meaning."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in " ".join(str(text).split()))
