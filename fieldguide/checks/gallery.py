"""An HTML page of near duplicates side by side, with embedded images, to be checked by a person."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fieldguide.checks.inspection import read_rgb
from fieldguide.core.images import encode_jpeg
from fieldguide.core.manifest import named_tuples
from fieldguide.core.paths import FINDINGS_CSV, NEAR_DUPLICATES_CSV

PICTURE_PX = 160
MAX_SHOWN = 5000  # pairs; the table has all
STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--column), 1fr)); gap: .5rem 1rem;
  border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: 1rem 0; }
h2 { grid-column: 1 / -1; font-size: 1rem; margin: 0; font-weight: 600; }
figure { margin: 0; } img { width: 100%; height: auto; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
"""


Picture = tuple[np.ndarray, str]  # uint8 [H, W, 3], RGB, and its caption


def pairs_page(frame: pd.DataFrame, pairs: pd.DataFrame, raw: Path) -> str:
    """The pairs of `pair_table` that are the same photograph, side by side, label conflicts and leaks first."""
    pairs = pairs[pairs["same"]]

    def picture(row: int) -> Picture:
        place = frame.iloc[row]
        pixels = read_rgb(raw, (place["file"], place["offset"], place["length"]))
        used = "" if place["use"] else ", not in use"
        return pixels, f"{place['split']}{used}: {place['class_name']}: {place['id']}"

    groups = []
    for pair in named_tuples(pairs.head(MAX_SHOWN)):
        kinds = ["two names"] * pair.conflict + ["two splits"] * pair.across + [pair.verdict]
        heading = f"{', '.join(kinds)}: distance {pair.distance} of 64 bits, similarity {pair.similarity:.2f}"
        groups.append((heading, [picture(pair.i), picture(pair.j)]))
    counted = f"{len(pairs)} pairs" + (f", of which the first {MAX_SHOWN} are shown" if len(pairs) > MAX_SHOWN else "")
    tables = f"What was done about each is in {FINDINGS_CSV}, all that was compared on pixels in {NEAR_DUPLICATES_CSV}."
    return page("The same photograph twice", f"{counted}. {tables}", groups)


def page(title: str, introduction: str, groups: Iterable[tuple[str, list[Picture]]], column: str = "15rem") -> str:
    """HTML of groups of pictures with headings, without external resources; a picture is at least as wide as `column`."""
    sections = "".join(
        f"<section><h2>{html.escape(heading)}</h2>{''.join(map(_figure, pictures))}</section>\n" for heading, pictures in groups
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>:root {{ --column: {column}; }}{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>\n{sections}</body></html>\n"
    )


def _figure(picture: Picture) -> str:
    encoded = base64.b64encode(encode_jpeg(picture[0], PICTURE_PX)).decode()
    caption = html.escape(picture[1])
    source = f"data:image/jpeg;base64,{encoded}"
    return f'<figure><img src="{source}" alt="{caption}" loading="lazy"><figcaption>{caption}</figcaption></figure>'
