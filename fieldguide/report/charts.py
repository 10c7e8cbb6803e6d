"""Charts as SVG for a page: text that scales and colours that follow the page's own, light or dark.

Elements carry classes (`axis`, `grid`, `bar`, a split's name, …) and no colours; the style sheet of the page has them.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 28, 42  # margins


class Line(NamedTuple):
    """A line with its name, which is also its class."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Scale(NamedTuple):
    """Values to places along an axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def ticks(low: float, high: float, n_most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, their distance 1, 2 or 5 times a power of ten."""
    rough = (high - low) / n_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Line],
    x_label: str,
    y_label: str,
    text: str,
    mark: float | None = None,
    percent: bool = False,
) -> str:
    """Lines over one x axis; `mark` is an upright at that x; `text` says what is seen to who does not see it."""
    xs = [x for line in series for x in line.x]
    ys = [y for line in series for y in line.y if math.isfinite(y)] or [0.0]
    low, high = min(ys), max(ys)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    top = min(high + room, 1.0) if percent and high <= 1 else high + room
    bottom = max(low - room, 0.0) if low >= 0 else low - room
    across = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    up = Scale(bottom, top, HEIGHT - BOTTOM, TOP)
    parts = [_frame(across, up, x_label, y_label, percent, whole=x_label == "epoch")]
    if mark is not None:
        parts.append(f'<path class="mark" d="M{across(mark)} {TOP}V{HEIGHT - BOTTOM}"/>')
    for number, line in enumerate(series):
        points = [(across(x), up(y)) if math.isfinite(y) else None for x, y in zip(line.x, line.y, strict=True)]
        parts.append(f'<path class="line {escape(line.name)}" d="{_path(points)}"/>')
        if sum(point is not None for point in points) == 1:
            x, y = next(point for point in points if point)
            parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>')
        if len(series) > 1:
            left = LEFT + 90 * number
            parts.append(f'<path class="line {escape(line.name)}" d="M{left} 12h22"/>')
            parts.append(f'<text x="{left + 28}" y="16">{escape(line.name)}</text>')
    return _svg(parts, WIDTH, HEIGHT, text)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """A path through the points; `None` breaks it."""
    steps, pen = [], "M"
    for point in points:
        steps += [] if point is None else [f"{pen}{point[0]:g} {point[1]:g}"]
        pen = "M" if point is None else "L"
    return "".join(steps)


def reliability(
    counts: Sequence[int],
    confidence: Sequence[float],
    accuracy: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    text: str,
) -> str:
    """For equal bins of the confidence: the share right with its interval, the diagonal, and a histogram of the answers.

    Each value `[B]`; those of an empty bin are not looked at.
    """
    across, up = Scale(0, 1, LEFT, WIDTH - RIGHT), Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [_frame(across, up, "confidence (largest probability)", "share right", percent=True)]
    n_bins, most = len(counts), max(*counts, 1)
    wide = round((across(1) - across(0)) / n_bins, 2)
    for place, n in enumerate(counts):
        if n:
            x, tall = across(place / n_bins), round(60 * n / most, 1)
            hint = f"<title>{n} answers, {confidence[place]:.1%} sure, {accuracy[place]:.1%} right</title>"
            parts.append(f'<rect class="bar" x="{x}" y="{up(0) - tall}" width="{wide}" height="{tall}">{hint}</rect>')
    parts.append(f'<path class="mark" d="M{across(0)} {up(0)}L{across(1)} {up(1)}"/>')
    for place, n in enumerate(counts):
        if n:
            x = across(confidence[place])
            parts.append(f'<path class="interval" d="M{x} {up(low[place])}V{up(high[place])}"/>')
            parts.append(f'<circle class="dot" cx="{x}" cy="{up(accuracy[place])}" r="3.5"/>')
    return _svg(parts, WIDTH, HEIGHT, text)


def strip(values: Sequence[int], text: str) -> str:
    """Upright bars by falling size, without names: the shape of a distribution."""
    high, wide = 90, 100 / len(values)
    tallest = max(*values, 1)
    bars = "".join(
        f'<rect class="bar" x="{place * wide:.2f}" y="{high * (1 - value / tallest):.1f}" width="{0.86 * wide:.2f}"'
        f' height="{high * value / tallest:.1f}"/>'
        for place, value in enumerate(sorted(values, reverse=True))
    )
    return (
        f'<svg class="strip" viewBox="0 0 100 {high}" preserveAspectRatio="none" role="img" aria-label="{escape(text)}">'
        f"{bars}</svg>"
    )


def confusion(counts: np.ndarray, names: Sequence[str], text: str) -> str:
    """Counts `[K, K]`, truth down and prediction across, the darker the larger the share of the truth; as large as needed."""
    n_classes = len(names)
    cell = 32 if n_classes <= 16 else 19 if n_classes <= 60 else 10
    size = 13 if n_classes <= 16 else 12 if n_classes <= 60 else 9.5
    margin = 12 + round(0.56 * size * max(map(len, names)))
    side = margin + n_classes * cell
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = [f'<rect class="field" x="{margin}" y="{margin}" width="{n_classes * cell}" height="{n_classes * cell}"/>']
    for k, name in enumerate(names):
        place, shown = margin + (k + 0.5) * cell, escape(name)
        parts.append(f'<path class="grid" d="M{margin} {place}H{side}M{place} {margin}V{side}"/>')
        parts.append(f'<text x="{margin - 5}" y="{place + 0.35 * size:.1f}" text-anchor="end">{shown}</text>')
        turned = f"rotate(-90 {place} {margin - 5})"
        parts.append(f'<text transform="{turned}" x="{place}" y="{margin - 5 + 0.35 * size:.1f}">{shown}</text>')
    for truth, taken in zip(*np.nonzero(counts), strict=True):
        n, share = int(counts[truth, taken]), shares[truth, taken]
        x, y = margin + taken * cell, margin + truth * cell
        verdict = "right" if truth == taken else "wrong"
        hint = f"<title>{escape(names[truth])} taken for {escape(names[taken])}: {n} ({share:.1%})</title>"
        parts.append(
            f'<rect class="cell {verdict}" x="{x}" y="{y}" width="{cell}" height="{cell}"'
            f' fill-opacity="{0.15 + 0.85 * math.sqrt(share):.2f}">{hint}</rect>'
        )
        if verdict == "wrong" or n_classes <= 16:
            dark = " on-dark" if share > 0.3 else ""
            centre = f'x="{x + cell / 2}" y="{y + cell / 2 + 0.32 * min(size, cell - 3):.1f}"'
            parts.append(f'<text class="n{dark}" {centre} text-anchor="middle">{n}</text>')
    return _svg(parts, side + 4, side + 4, text, f'class="confusion" width="{side + 4}" font-size="{size}"')


def _frame(across: Scale, up: Scale, x_label: str, y_label: str, percent: bool, whole: bool = False) -> str:
    """Grid, ticks and labels."""
    parts = []
    for value in ticks(up.low, up.high):
        y = up(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        shown = f"{100 * value:g} %" if percent else f"{value:g}"
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{shown}</text>')
    for value in ticks(across.low, across.high, 5):
        if not whole or value == int(value):
            shown = f"{100 * value:g} %" if across.high <= 1 else f"{value:g}"
            parts.append(f'<text x="{across(value)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{shown}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="label" transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _svg(parts: Sequence[str], width: float, height: float, text: str, attributes: str = 'class="chart"') -> str:
    return f'<svg {attributes} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text)}">{"".join(parts)}</svg>'
