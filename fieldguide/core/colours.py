"""Images of any mode and colour space to 8-bit sRGB, with Pillow and littleCMS, which Pillow has."""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

RULE = "an embedded ICC profile is converted to sRGB (littleCMS, perceptual); an invalid one is ignored"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}  # of Pillow, by the colour space of a profile
WIDE_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
GREY_MODES = ("1", "L", "LA", "La", *WIDE_GREY_MODES)
MAX_PROFILE_BYTES = 10_000_000  # of a profile that is used; those of presses have 3 million
SAME_LEVELS = 2  # of 255; a profile that changes no colour by more is sRGB

Conversion = Callable[[Image.Image], Image.Image]


class _Profile(NamedTuple):
    mode: str
    transform: ImageCms.ImageCmsTransform  # from that mode to RGB


def to_rgb(image: Image.Image) -> tuple[Image.Image, Conversion]:
    """The image in 8-bit RGB, and the conversion of its colours to sRGB, which costs less after resizing.

    Wide grey is scaled by its range, transparency blended with white.
    """
    encoded = image.info.get("icc_profile")
    profile = _profile(encoded) if encoded and len(encoded) <= MAX_PROFILE_BYTES else None
    if profile is None:
        return _plain_rgb(image), _unchanged
    if profile.mode in ("CMYK", "LAB"):  # neither RGB nor grey: converted before resizing
        return (profile.transform.apply(image) if image.mode == profile.mode else _plain_rgb(image)), _unchanged
    if (profile.mode == "L") != (image.mode in GREY_MODES) or image.mode in ("CMYK", "LAB"):  # the profile of another image
        return _plain_rgb(image), _unchanged
    if profile.mode == "L":
        return _plain_rgb(image), lambda grey: profile.transform.apply(grey.getchannel(0))
    return _plain_rgb(image), profile.transform.apply


def _unchanged(image: Image.Image) -> Image.Image:
    return image


@lru_cache(maxsize=16)  # a camera writes the same profile into all its photographs
def _profile(encoded: bytes) -> _Profile | None:
    """The conversion of an ICC profile; None if it is invalid, or sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(encoded))
        mode = MODES[source.profile.xcolor_space]
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, LookupError, ValueError, TypeError):
        return None
    if mode == "RGB":
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        before = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3))
    elif mode == "L":
        before = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        return _Profile(mode, transform)
    after = np.asarray(transform.apply(before), dtype=int)
    same = np.abs(after - np.asarray(before.convert("RGB"), dtype=int)).max() <= SAME_LEVELS
    return None if same else _Profile(mode, transform)


def _plain_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in WIDE_GREY_MODES:  # Pillow's conversion clips these to 255: almost all white
        levels = np.array(image, np.float32)  # scaled in place: an image may have 250 million pixels
        if isinstance(transparent := image.info.get("transparency"), int):  # one level of a PNG
            levels[levels == transparent] = 65535
        levels[~np.isfinite(levels)] = 0
        levels *= 255 / (65535.0 if image.mode.startswith("I") else max(float(levels.max(initial=0)), 1.0))
        levels += 0.5
        return Image.fromarray(np.clip(levels, 0, 255, out=levels).astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        return ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB").apply(image)
    if image.has_transparency_data:
        colour = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:  # of a PNG with 16 bits
            image = image.copy()
            image.info["transparency"] = tuple(level >> 8 for level in colour)
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
