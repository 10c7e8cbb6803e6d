"""Decoding and resizing of images, for training and inference alike, so that both see the same pixels.

Needs only Pillow and NumPy.
"""

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps

UPRIGHT = 1  # EXIF 2.3, 4.6.4
AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # a marker that is neither stuffing nor a restart
CAPTION_PX = 20  # height of letters
MAX_PIXELS = 80_000_000  # a file of 20 kB can declare more pixels than fit in memory
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # JPEG includes MPO, which some phones write
RESIZE_RULE = "centre square; JPEG decoded at the smallest n/8 scale that is large enough; Pillow bicubic, antialiased"
WIDE_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
REFUSALS = (OSError, EOFError, SyntaxError, ValueError, MemoryError, struct.error, zlib.error)  # of Pillow's decoders
DEFECTS = (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)  # theirs, on damaged files


class UnreadableImage(ValueError):
    """The image cannot be decoded completely; the text gives the reason."""


class TooManyPixels(UnreadableImage):
    """The image declares more pixels than allowed; nothing was decoded."""


def decode(encoded: bytes, image_px: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image's centre square, resized: uint8 `[image_px, image_px, 3]`, RGB.

    Raises `UnreadableImage`, or `TooManyPixels` if width times height exceeds `max_pixels`.
    """
    with _opened(encoded, max_pixels) as image:
        scaled = image.draft("RGB", (image_px, image_px))  # JPEG only: fewer coefficients, never smaller than image_px
        image.load()
        rgb = _rgb(image)
        width, height = scaled[1][2:] if scaled else rgb.size  # of a scaled JPEG a fraction: its last blocks are padded
        square = _centre_square(rgb, width, height, image_px)
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        if orientation != UPRIGHT:
            square = Image.fromarray(np.asarray(square))  # without other metadata, which may be damaged
            square.getexif()[ExifTags.Base.Orientation] = orientation
            square = ImageOps.exif_transpose(square)
        return np.asarray(square)


def resize(rgb: np.ndarray, image_px: int) -> np.ndarray:
    """The centre square of uint8 `[H, W, 3]`, resized: uint8 `[image_px, image_px, 3]`."""
    return np.asarray(_centre_square(Image.fromarray(rgb), rgb.shape[1], rgb.shape[0], image_px))


def _centre_square(rgb: Image.Image, width: float, height: float, image_px: int) -> Image.Image:
    if (width, height) == (image_px, image_px):
        return rgb
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return rgb.resize((image_px, image_px), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def inspect(encoded: bytes, at_least_px: int) -> tuple[tuple[int, int], np.ndarray]:
    """Decodes the image completely: width and height as displayed (EXIF orientation applied), and uint8 `[H, W, 3]`, RGB.

    A JPEG is decoded at the smallest n/8 scale at which both sides have `at_least_px`. Raises `UnreadableImage`, also for a
    truncated file that Pillow accepts.
    """
    with _opened(encoded) as image:
        if ends_early(encoded, image.format or ""):
            raise UnreadableImage("the data end early")
        full = image.size
        image.draft("RGB", (at_least_px, at_least_px))
        drafted = image.size
        image.load()
        upright = ImageOps.exif_transpose(image)
        return full if upright.size == drafted else full[::-1], np.asarray(_rgb(upright))


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


def ends_early(encoded: bytes, image_format: str) -> bool:
    """Whether the end marker of the format is missing; decoders accept some truncated files."""
    match image_format:
        case "JPEG" | "MPO":
            return not _jpeg_ends(encoded)
        case "PNG":
            return encoded.rfind(b"IEND") < encoded.rfind(b"IDAT")
        case "WEBP":
            return len(encoded) < int.from_bytes(encoded[4:8], "little") + 8
        case "BMP":
            return len(encoded) < int.from_bytes(encoded[2:6], "little")
    return False


def _jpeg_ends(encoded: bytes) -> bool:
    """Whether the end-of-image marker exists; ignores the data that phones append after it."""
    place = 2
    while place + 2 <= len(encoded):
        marker = encoded[place + 1]
        if marker == 0xD9:
            return True
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
        if marker == 0xDA:
            after = AFTER_SCAN.search(encoded, place)
            if after is None:
                return False
            place = after.start()
    return False


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
def _opened(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Pillow's image, not yet decoded; errors of Pillow in the block become `UnreadableImage`."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixels(f"{image.width}x{image.height} pixels, more than {max_pixels:,}")
            yield image
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"far more than {MAX_PIXELS:,} pixels") from error
    except (*REFUSALS, *DEFECTS) as error:
        raise UnreadableImage(str(error).split("<")[0].strip() or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: scales wide grey by its range, blends transparency with white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in WIDE_GREY_MODES:  # Pillow's conversion clips these to 255: almost all white
        levels = np.asarray(image).astype(np.float64)
        levels = np.where(np.isfinite(levels), levels, 0)
        full = 65535.0 if image.mode.startswith("I") else max(float(levels.max(initial=0)), 1.0)
        grey = np.clip(levels / full * 255 + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
