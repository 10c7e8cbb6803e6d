"""Decoding and resizing of images, for training and inference alike, so that both see the same pixels.

Needs only Pillow and NumPy, and pillow-heif for HEIC.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageDraw,
    ImageFont,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fieldguide.core.colours import to_rgb
from fieldguide.core.formats import HEAD_BYTES, MAX_PIXELS, kind_of

UPRIGHT, QUARTER_TURNS = 1, (5, 6, 7, 8)  # EXIF 2.3, 4.6.4
CAPTION_PX = 20  # height of letters
STORED_QUALITY = 92  # of a JPEG that is trained on
RESIZE_RULE = "centre square; JPEG decoded at the smallest n/8 scale that is large enough; Pillow bicubic, antialiased"
PLUGINS = (  # register their openers in `Image.OPEN`
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # bytes of a profile or a text; above 1 MB, as editors write, Pillow refuses the image
REFUSALS = (OSError, EOFError, SyntaxError, ValueError, MemoryError, struct.error, zlib.error)  # of Pillow's decoders
DEFECTS = (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)  # theirs, on damaged files
BOMB = Image.DecompressionBombError  # of frames within an image


class UnreadableImage(ValueError):
    """The image cannot be decoded completely; the text gives the reason."""


class TooManyPixels(UnreadableImage):
    """The image declares more pixels than allowed; nothing was decoded."""


def decode(encoded: bytes, image_px: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image's centre square, resized: uint8 `[image_px, image_px, 3]`, sRGB.

    Raises `UnreadableImage`, or `TooManyPixels` if width times height exceeds `max_pixels`.
    """
    with _opened(encoded, max_pixels) as image:
        scaled = image.draft("RGB", (image_px, image_px))  # JPEG only: fewer coefficients, never smaller than image_px
        image.load()
        rgb, to_srgb = to_rgb(image)
        width, height = scaled[1][2:] if scaled else rgb.size  # of a scaled JPEG a fraction: its last blocks are padded
        square = to_srgb(_centre_square(rgb, width, height, image_px))
        return np.asarray(_upright(square, _orientation(image)))


def resize(rgb: np.ndarray, image_px: int) -> np.ndarray:
    """The centre square of uint8 `[H, W, 3]`, resized: uint8 `[image_px, image_px, 3]`."""
    return np.asarray(_centre_square(Image.fromarray(rgb), rgb.shape[1], rgb.shape[0], image_px))


def _centre_square(rgb: Image.Image, width: float, height: float, image_px: int) -> Image.Image:
    if (width, height) == (image_px, image_px):
        return rgb
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return rgb.resize((image_px, image_px), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def inspect(encoded: bytes, at_least_px: int, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], np.ndarray]:
    """Decodes the image completely: width and height as displayed (EXIF orientation applied), and uint8 `[H, W, 3]`, sRGB.

    A JPEG is decoded at the smallest n/8 scale at which both sides have `at_least_px`; what is still large is reduced by a
    whole factor, to at least four times that. Raises as `decode` does.
    """
    with _opened(encoded, max_pixels) as image:
        width, height = image.size
        image.draft("RGB", (at_least_px, at_least_px))
        image.load()
        rgb, to_srgb = to_rgb(image)
        factor = min(rgb.size) // (4 * at_least_px)
        orientation = _orientation(image)
        upright = _upright(to_srgb(rgb.reduce(factor) if factor > 1 else rgb), orientation)
        return (height, width) if orientation in QUARTER_TURNS else (width, height), np.asarray(upright)


def _upright(rgb: Image.Image, orientation: int) -> Image.Image:
    """`rgb` turned as this value of EXIF says."""
    if orientation == UPRIGHT:
        return rgb
    plain = Image.fromarray(np.asarray(rgb))  # without other metadata, which may be damaged
    plain.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(plain)


def _orientation(image: Image.Image) -> int:
    """As EXIF says; upright if it is damaged, which costs no pixels."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except (*REFUSALS, *DEFECTS):
        return UPRIGHT


def bounded(encoded: bytes, max_side_px: int) -> bytes:
    """The image as a JPEG, upright and in sRGB, whose larger side is `max_side_px`.

    `encoded` itself if no side is larger, or if it cannot be decoded, which `inspect` reports. Metadata are lost, such as the
    place where a photograph was taken.
    """
    try:
        with _opened(encoded, MAX_PIXELS) as image:
            if max(image.size) <= max_side_px:
                return encoded
            image.draft("RGB", (max_side_px, max_side_px))
            image.load()
            rgb, to_srgb = to_rgb(image)
            share = max_side_px / max(rgb.size)
            size = max(round(share * rgb.width), 1), max(round(share * rgb.height), 1)
            upright = _upright(to_srgb(rgb.resize(size, Image.Resampling.LANCZOS)), _orientation(image))
    except UnreadableImage:
        return encoded
    stream = io.BytesIO()
    Image.fromarray(np.asarray(upright)).save(stream, "JPEG", quality=STORED_QUALITY)
    return stream.getvalue()


def encode_jpeg(pixels: np.ndarray, max_px: int) -> bytes:
    """uint8 `[H, W, 3]`, RGB, as a JPEG whose larger side has at most `max_px`."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((max_px, max_px))
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 `[H, W, 3]`, RGB, as a PNG; equal pixels give equal bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def add_caption(pixels: np.ndarray, lines: Sequence[str], max_px: int) -> np.ndarray:
    """uint8 `[H, W, 3]`, RGB, its larger side at most `max_px`, above a caption of `lines`."""
    photo = Image.fromarray(pixels)
    photo.thumbnail((max_px, max_px))
    font = ImageFont.load_default(CAPTION_PX)
    line_px = round(1.4 * CAPTION_PX)
    width = max(photo.width, *(round(font.getlength(line)) + line_px for line in lines))
    canvas = Image.new("RGB", (width, photo.height + line_px * len(lines) + line_px // 2), (24, 24, 24))
    canvas.paste(photo, ((width - photo.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((line_px // 2, photo.height + line_px // 4 + number * line_px), line, (255, 255, 255), font)
    return np.asarray(canvas)


def upscale(plane: np.ndarray, side: int) -> np.ndarray:
    """Float `[h, w]` to float32 `[side, side]`, bicubic; may exceed the range of the input."""
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


Place = tuple[str, int, int]  # file under data/raw, offset and length of the encoded bytes


def read_encoded(file: Path, offset: int, length: int) -> bytes:
    """The encoded bytes of one image; `file`, `offset` and `length` are those of the manifest."""
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


@contextmanager
def encoded_reader(folder: Path, files: Iterable[str]) -> Iterator[Callable[[str, int, int], bytes]]:
    """`read(file, offset, length)` for many images in few files, which stay open; thread-safe."""
    with ExitStack() as stack:
        handles = {file: stack.enter_context((folder / file).open("rb")).fileno() for file in set(files)}
        yield lambda file, offset, length: os.pread(handles[file], length, offset)


@contextmanager
def _opened(encoded: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Pillow's image, not yet decoded; errors of Pillow in the block become `UnreadableImage`."""
    kind = kind_of(encoded[:HEAD_BYTES])
    if not kind.is_readable:
        said = f"{kind.phrase}; {kind.remedy}" if kind.is_photograph else f"not an image but {kind.phrase}"
        raise UnreadableImage(said)
    if kind.pillow == "HEIF":
        _register_heif()
    opener = Image.OPEN[kind.pillow][0]  # without the limit of `Image.open`, which belongs to the program that imports this
    try:
        with opener(io.BytesIO(encoded), "") as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixels(f"{image.width}x{image.height} pixels, more than {max_pixels / 1e6:g} million")
            yield image
    except UnreadableImage:
        raise
    except (*REFUSALS, *DEFECTS, BOMB) as error:
        raise UnreadableImage(str(error).split("<")[0].strip() or type(error).__name__) from error


@cache
def _register_heif() -> None:
    import pillow_heif  # an extra

    pillow_heif.register_heif_opener(thumbnails=False)
