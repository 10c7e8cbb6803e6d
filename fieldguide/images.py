"""Bytes to pixels: the sole owner of decoding and resizing.

Training, evaluation, benchmark, command line and web page all call `decode`, so that a network never sees other pixels
in use than it learned from. Needs Pillow and NumPy only.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 80_000_000  # refused above: a file of 20 kB can claim more than memory holds
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # MPO is how phones write some JPEGs
RESIZE_RULE = "centre square; JPEG decoded at the smallest n/8 scale that is large enough; Pillow bicubic, antialiased"
WIDE_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
PILLOW_ERRORS = (  # what Pillow's decoders raise on damaged bytes
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class UnreadableImage(ValueError):
    """The bytes are no image that can be decoded in full; the text says why."""


@dataclass(frozen=True)
class ImageFacts:
    """Size as displayed (EXIF orientation applied), pixels."""

    width: int
    height: int


def decode(encoded: bytes, image_px: int) -> np.ndarray:
    """The image's centre square, resized: uint8 `[image_px, image_px, 3]`, RGB. Raises `UnreadableImage`."""
    with _opened(encoded) as image:
        image.draft("RGB", (image_px, image_px))  # JPEG only: fewer coefficients decoded, never below the size asked for
        rgb = _rgb(_upright(image))
        if rgb.size == (image_px, image_px):
            return np.asarray(rgb)
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(rgb.resize((image_px, image_px), Image.Resampling.BICUBIC, box=box))


def inspect(encoded: bytes) -> ImageFacts:
    """Decodes every pixel to prove that it can be done. Raises `UnreadableImage`."""
    with _opened(encoded) as image:
        upright = _upright(image)
        return ImageFacts(*upright.size)


def read_encoded(file: Path, offset: int, length: int) -> bytes:
    """The encoded bytes of one image, wherever the manifest says they lie."""
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """Pillow's image, not yet decoded; whatever Pillow raises in the block becomes `UnreadableImage`."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
            yield image
    except PILLOW_ERRORS as error:
        raise UnreadableImage(str(error).split("<")[0].strip() or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    """The first frame, turned as its EXIF orientation says; decodes every pixel."""
    image.load()
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: wide grey scaled by its range, transparency laid over white."""
    if image.mode == "RGB":
        return image
    if image.mode in WIDE_GREY_MODES:  # Pillow's own conversion clips these to 255, almost all white
        levels = np.asarray(image).astype(np.float64)
        full = 65535.0 if image.mode.startswith("I") else max(float(levels.max(initial=0)), 1.0)
        grey = np.clip(levels / full * 255 + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
