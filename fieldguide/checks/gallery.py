"""A page of photographs side by side: one HTML file with the pictures inside, for a person to judge what a table claims."""

import base64
import html
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fieldguide.core.images import encode_jpeg

PICTURE_PX = 160
STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .5rem 1rem;
  border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: 1rem 0; }
h2 { grid-column: 1 / -1; font-size: 1rem; margin: 0; font-weight: 600; }
figure { margin: 0; } img { width: 100%; height: auto; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
"""


class Picture(NamedTuple):
    """uint8 `[H, W, 3]`, RGB, and what is said below it."""

    pixels: np.ndarray
    caption: str


def page(title: str, introduction: str, groups: Iterable[tuple[str, list[Picture]]]) -> str:
    """HTML of groups of pictures, each under its heading; asks no other host for anything."""
    sections = "".join(
        f"<section><h2>{html.escape(heading)}</h2>{''.join(map(_figure, pictures))}</section>\n" for heading, pictures in groups
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>\n{sections}</body></html>\n"
    )


def _figure(picture: Picture) -> str:
    encoded = base64.b64encode(encode_jpeg(picture.pixels, PICTURE_PX)).decode()
    caption = html.escape(picture.caption)
    source = f"data:image/jpeg;base64,{encoded}"
    return f'<figure><img src="{source}" alt="{caption}" loading="lazy"><figcaption>{caption}</figcaption></figure>'
