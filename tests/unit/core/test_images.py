"""Bytes to pixels: as Pillow decodes them, whatever the mode, and damaged bytes are one kind of error."""

import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from pillow_heif import register_heif_opener

from fieldguide.core import images
from fieldguide.core.images import TooManyPixels, UnreadableImage, add_caption, decode, read_encoded, resize
from support import ROOT

register_heif_opener(thumbnails=False)  # to write them
NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def encoded(image: Image.Image | np.ndarray, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def inspect(content: bytes) -> tuple[int, int]:
    return images.inspect(content, 256)[0]


def flat(mode: str, colour: Any, side: int = 4) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def quadrants(width: int = 32, height: int = 32) -> np.ndarray:
    """Red, green / blue, white: each turn and mirror image of it is another."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 255)
    return pixels


@pytest.mark.parametrize("form", LOSSLESS)
def test_an_image_of_the_size_asked_for_is_unchanged(form: str) -> None:
    pixels = decode(encoded(NOISE, form, **LOSSLESS[form]), 24)
    assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)
    np.testing.assert_array_equal(pixels, NOISE)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_the_size_asked_for_is_what_pillow_decodes(subsampling: str, progressive: bool) -> None:
    jpeg = encoded(smooth(40, 40), "JPEG", subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode(jpeg, 40), np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "undo"),  # how the stored picture was made from the upright one: exif specification 2.3, tag 274
    [
        (1, lambda upright: upright),
        (2, lambda upright: upright[:, ::-1]),
        (3, lambda upright: upright[::-1, ::-1]),
        (4, lambda upright: upright[::-1]),
        (5, lambda upright: upright.swapaxes(0, 1)),
        (6, lambda upright: np.rot90(upright, 1)),
        (7, lambda upright: upright[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda upright: np.rot90(upright, -1)),
    ],
)
def test_every_exif_orientation_is_turned_upright(
    form: str, orientation: int, undo: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = LOSSLESS.get(form, {"quality": 95, "subsampling": "4:4:4"})
    stored = encoded(np.ascontiguousarray(undo(quadrants(48, 32))), form, exif=exif, **options)
    assert inspect(stored) == (48, 32)
    expected = quadrants(48, 32)[:, 8:40]  # the centre square
    np.testing.assert_allclose(decode(stored, 32)[::31, ::31], expected[::31, ::31], atol=3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("1", 0), (0, 0, 0)),
        (flat("LA", (77, 255)), (77, 77, 77)),
        (flat("LA", (77, 0)), (255, 255, 255)),
        (flat("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (flat("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (flat("RGBA", (0, 100, 200, 51)), (204, 224, 244)),  # a fifth of the colour, four fifths of white
        (flat("I;16", 0), (0, 0, 0)),
        (flat("I;16", 65535), (255, 255, 255)),
        (flat("I;16", 0x4000), (64, 64, 64)),
        (flat("I;16", 77 * 257), (77, 77, 77)),
    ],
    ids=lambda value: f"{value.mode}" if isinstance(value, Image.Image) else str(value),
)
def test_other_modes_of_png_become_8_bit_rgb_over_white(image: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = decode(encoded(image, "PNG"), 4)
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8(expected), (4, 4, 3)))


@pytest.mark.parametrize(
    ("mode", "colour", "key"), [("L", 9, 9), ("RGB", (10, 20, 30), (10, 20, 30)), ("1", 0, 0), ("P", 0, 0)]
)
def test_the_colour_that_a_png_declares_transparent_is_white(mode: str, colour: Any, key: Any) -> None:
    assert np.all(decode(encoded(flat(mode, colour), "PNG", transparency=key), 4) == 255)


def test_a_palette_image_has_the_colours_of_its_palette() -> None:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    for form in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(decode(encoded(image, form), 4)[0, 0], (10, 200, 30))


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_transparent_parts_are_white(form: str) -> None:
    image = flat("RGBA", (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 4))
    pixels = decode(encoded(image, form, **LOSSLESS.get(form, {})), 4)
    np.testing.assert_array_equal(pixels[:, :2], np.full((4, 2, 3), 255))
    np.testing.assert_array_equal(pixels[:, 2:], np.broadcast_to([255, 0, 0], (4, 2, 3)))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_what_pillow_converts(form: str) -> None:
    stored = encoded(smooth(24, 24).convert("CMYK"), form)
    np.testing.assert_array_equal(decode(stored, 24), np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")))


def test_grey_jpegs_have_three_equal_channels() -> None:
    pixels = decode(encoded(smooth(64, 48).convert("L"), "JPEG"), 16)
    assert pixels.shape == (16, 16, 3)
    assert np.all(pixels == pixels[..., :1])
    assert pixels.std() > 10


@pytest.mark.parametrize("wide", [np.dtype("<u2"), np.dtype(">u2"), np.dtype("int32")])
def test_wide_grey_keeps_its_brightness(wide: np.dtype) -> None:
    levels = np.arange(0, 65536, 4369).reshape(4, 4)  # 17 * 257 apart: exact in 8 bits
    pixels = decode(encoded(levels.astype(wide), "TIFF"), 4)
    np.testing.assert_array_equal(pixels[..., 0], (levels // 257).astype(np.uint8))


@pytest.mark.parametrize("top", [1.0, 255.0, 4000.0])
def test_grey_of_real_numbers_is_scaled_by_its_range(top: float) -> None:
    levels = (np.arange(16, dtype=np.float32) / 15).reshape(4, 4)
    pixels = decode(encoded((levels * top).astype(np.float32), "TIFF"), 4)
    np.testing.assert_array_equal(pixels[..., 1], np.round(levels * 255).astype(np.uint8))


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, -3.0])
def test_grey_with_holes_keeps_the_brightness_of_the_rest(hole: float) -> None:
    levels = np.ones((4, 4), np.float32)
    levels[0, 0] = hole
    levels[3] = 0.2
    pixels = decode(encoded(levels, "TIFF"), 4)
    np.testing.assert_array_equal(pixels[1:, :, 0], [[255] * 4, [255] * 4, [51] * 4])


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_of_several_frames_the_first_is_taken(form: str) -> None:
    frames = [flat("RGB", colour, 16) for colour in ("red", "blue", "lime")]
    stored = encoded(frames[0], form, save_all=True, append_images=frames[1:], **LOSSLESS.get(form, {}))
    with Image.open(io.BytesIO(stored)) as image:
        assert image.n_frames == 3
    np.testing.assert_allclose(decode(stored, 16), np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=2)
    assert inspect(stored) == (16, 16)


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (96, 32), (33, 97), (200, 31)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_centre_square_is_what_is_left_of_an_oblong(form: str, width: int, height: int) -> None:
    image = smooth(width, height)
    side, options = min(width, height), {"quality": 95} if form == "JPEG" else {}
    stored = encoded(image, form, **options)
    whole = Image.open(io.BytesIO(stored))
    left, top = (width - side) // 2, (height - side) // 2
    cropped = whole.crop((left, top, left + side, top + side))
    for image_px in (16, 31):
        reference = np.asarray(cropped.resize((image_px, image_px), Image.Resampling.BICUBIC)).astype(int)
        odd = (width - side) % 2  # the centre then lies half a pixel off
        assert np.abs(decode(stored, image_px) - reference).mean() < (8 if odd or form == "JPEG" else 1)


def test_an_even_crop_is_pillows_bicubic_of_the_cut_out_square() -> None:
    image = smooth(64, 32)
    reference = np.asarray(image.crop((16, 0, 48, 32)).resize((20, 20), Image.Resampling.BICUBIC))
    pixels = decode(encoded(image, "PNG"), 20)
    np.testing.assert_array_equal(pixels[:, 2:-2], reference[:, 2:-2])
    np.testing.assert_allclose(pixels.astype(int), reference, atol=2)  # at the cut the filter sees what lies beyond


def test_small_images_are_enlarged() -> None:
    image = smooth(10, 10)
    reference = image.resize((50, 50), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), 50), np.asarray(reference))


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_one_pixel_fills_the_square(form: str) -> None:
    stored = encoded(flat("RGB", (0, 0, 255), 1), form, **LOSSLESS.get(form, {}))
    np.testing.assert_array_equal(decode(stored, 16), np.broadcast_to([0, 0, 255], (16, 16, 3)))
    assert inspect(stored) == (1, 1)


def test_a_line_of_pixels_is_cut_to_one() -> None:
    pixels = np.zeros((1, 1001, 3), np.uint8)
    pixels[0, 490:511] = (1, 2, 3)
    np.testing.assert_array_equal(decode(encoded(pixels, "PNG"), 16), np.broadcast_to([1, 2, 3], (16, 16, 3)))


@pytest.mark.parametrize(("width", "height"), [(600, 400), (511, 513), (256, 1000), (128, 128), (127, 130), (231, 300)])
@pytest.mark.parametrize("image_px", [16, 32, 64, 128])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_scaled_jpeg_decode_is_close_to_a_full_one(width: int, height: int, image_px: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    jpeg = encoded(smooth(width, height), "JPEG", quality=90, exif=exif)
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    full = Image.open(io.BytesIO(jpeg)).resize((image_px, image_px), Image.Resampling.BICUBIC, box=box)
    upright = np.rot90(np.asarray(full), {1: 0, 3: 2, 6: -1}[orientation])
    difference = np.abs(decode(jpeg, image_px).astype(int) - upright)
    assert difference.mean() < 1.5
    assert difference.max() < 10


def test_a_scaled_jpeg_decode_keeps_the_detail_that_the_size_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    resize, seen = Image.Image.resize, []

    def spy(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        seen.append(image.size)
        return resize(image, *arguments, **options)

    jpegs = {width: encoded(smooth(width, width + 40), "JPEG") for width in range(100, 420, 20)}
    monkeypatch.setattr(Image.Image, "resize", spy)
    for jpeg in jpegs.values():
        decode(jpeg, 100)
    assert all(min(size) >= 100 for size in seen)
    assert max(min(size) for size in seen) < 200  # and large ones were scaled while they were decoded


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"hello, no image",
        b"<svg/>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\0\0\0\x14ftypheic",
        b"BM",
    ],
)
def test_what_is_no_image_is_unreadable(content: bytes) -> None:
    for read in (inspect, lambda content: decode(content, 16)):
        with pytest.raises(UnreadableImage, match=r"^[^<\n]+$"):
            read(content)


@pytest.mark.parametrize("form", ["PPM", "ICO", "TGA", "PCX"])
def test_formats_that_are_not_listed_are_unreadable(form: str) -> None:
    with pytest.raises(UnreadableImage, match=r"^(a PPM; convert to JPEG|not an image but an (icon|other file))$"):
        inspect(encoded(flat("RGB", "red", 16), form))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_image_is_unreadable(form: str, kept: float) -> None:
    stored = encoded(np.tile(NOISE, (3, 3, 1)), form)
    for read in (inspect, lambda content: decode(content, 16)):
        with pytest.raises(UnreadableImage, match=r"\S"):
            read(stored[: int(len(stored) * kept)])


TRUNCATED = {
    "JPEG": {},
    "progressive": {"progressive": True},
    "restart": {"restart_marker_blocks": 2},
    "PNG": {},
    "WEBP": {},
    "lossless": {"lossless": True},
    "AVIF": {},
    "HEIF": {},
    "BMP": {},
    "GIF": {},
    "TIFF": {"compression": "tiff_lzw"},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", TRUNCATED)
def test_an_image_cut_anywhere_is_unreadable_or_has_all_its_pixels(kind: str) -> None:
    form = {"progressive": "JPEG", "restart": "JPEG", "lossless": "WEBP"}.get(kind, kind)
    whole = encoded(smooth(40, 30), form, **TRUNCATED[kind])
    pixels, small, n_unreadable = images.inspect(whole, 256)[1], decode(whole, 12), 0
    cuts = random.Random(1).sample(range(len(whole)), min(150, len(whole)))
    for cut in [*cuts, *range(len(whole) - 16, len(whole))]:
        try:
            assert (images.inspect(whole[:cut], 256)[1] == pixels).all(), cut
            assert (decode(whole[:cut], 12) == small).all(), cut
        except UnreadableImage:
            n_unreadable += 1
            with pytest.raises(UnreadableImage):
                decode(whole[:cut], 12)
    assert n_unreadable > 100


def between_segments(jpeg: bytes, stray: bytes) -> bytes:
    place = 4 + int.from_bytes(jpeg[4:6], "big")  # the end of the first segment
    return jpeg[:place] + stray + jpeg[place:]


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("JPEG", lambda content: between_segments(content, b"\0\0")),
        ("JPEG", lambda content: between_segments(content, b"\xff\xff\xff")),  # fill bytes
        ("JPEG", lambda content: content + b"\xff\xd8\xff\xe1cut off"),  # the thumbnail of another
        ("WEBP", lambda content: content[:4] + (len(content) + 100).to_bytes(4, "little") + content[8:]),
        ("BMP", lambda content: content[:2] + (len(content) + 100).to_bytes(4, "little") + content[6:]),
        ("PNG", lambda content: content + bytes(1000)),
        ("GIF", lambda content: content[:-1]),  # its trailer
    ],
)
def test_what_decoders_accept_is_accepted_by_all_readers(form: str, change: Callable[[bytes], bytes]) -> None:
    whole = encoded(smooth(40, 30), form)
    changed = change(whole)
    try:
        with Image.open(io.BytesIO(changed)) as image:
            image.load()
    except OSError:  # libwebp refuses a wrong size, as browsers do
        for read in (inspect, lambda content: decode(content, 12)):
            with pytest.raises(UnreadableImage):
                read(changed)
        assert form == "WEBP"
    else:
        assert (decode(changed, 12) == decode(whole, 12)).all()
        assert (images.inspect(changed, 256)[1] == images.inspect(whole, 256)[1]).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_cameras_append_to_a_whole_image_does_no_harm(form: str) -> None:
    movie = b"\0\0\0\x18ftypmp42" + random.Random(1).randbytes(20_000) + b"\xff\xda" + bytes(6000)  # a motion photo's
    assert inspect(encoded(smooth(40, 30), form) + movie) == (40, 30)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_inspection_gives_all_pixels(form: str) -> None:
    size, rgb = images.inspect(encoded(quadrants(40, 30), form), 16)
    assert size == (40, 30)
    np.testing.assert_array_equal(rgb, quadrants(40, 30))


@pytest.mark.parametrize(("width", "height", "at_least"), [(600, 400, 100), (400, 600, 64), (90, 300, 100), (1000, 1001, 120)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_inspection_gives_a_jpeg_at_a_scale_that_is_large_enough(
    width: int, height: int, at_least: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    size, rgb = images.inspect(encoded(smooth(width, height), "JPEG", exif=exif), at_least)
    if orientation == 6:
        width, height = height, width
    assert size == (width, height)
    assert rgb.shape[0] / rgb.shape[1] == pytest.approx(height / width, rel=0.02)
    assert min(rgb.shape[:2]) >= min(at_least, width, height)
    assert min(rgb.shape[:2]) < 2 * at_least or rgb.shape[:2] == (height, width)


def test_pixels_are_resized_as_decoding_does() -> None:
    for width, height in ((64, 32), (33, 97), (24, 24)):
        image = smooth(width, height)
        np.testing.assert_array_equal(resize(np.asarray(image), 24), decode(encoded(image, "PNG"), 24))


def claiming(width: int, height: int) -> bytes:
    """A PNG of 100 bytes that says it is large."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("width", "height"), [(20_000_001, 1), (9000, 9000), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ImageFile.ImageFile, "load")
    for read in (images.inspect, decode):
        with pytest.raises(TooManyPixels, match=r"^[0-9]+x[0-9]+ pixels, more than 20 million$"):
            read(claiming(width, height), 16, 20_000_000)


@pytest.mark.parametrize("form", ["JPEG", pytest.param("PNG", marks=pytest.mark.slow)])
def test_a_photograph_of_200_megapixels_is_read_under_a_limit_that_allows_it(form: str) -> None:
    code = f"""if True:
        import io, resource
        from PIL import Image, PngImagePlugin
        from fieldguide.core.images import TooManyPixels, decode, inspect
        stream = io.BytesIO()
        Image.new("L", (16_320, 12_240), 120).save(stream, "{form}")
        content = stream.getvalue()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (decode(content, 16, 199_756_800) == 120).all()
        size, pixels = inspect(content, 64, 199_756_800)
        print(size, min(pixels.shape[:2]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
        for read in (decode, inspect):
            try: read(content, 16, 199_756_799)
            except TooManyPixels as error: print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    shape, *refusals = done.stdout.splitlines()
    assert shape.startswith("(16320, 12240) ") and int(shape.split()[-2]) in range(256, 1540)
    assert int(shape.split()[-1]) < (100 if form == "JPEG" else 1000)  # MiB; a JPEG is never decoded at full size
    assert refusals == ["16320x12240 pixels, more than 199.757 million"] * 2


def test_an_image_that_claims_too_many_pixels_prints_nothing_of_its_own() -> None:
    code = (
        "import sys; from fieldguide.core.images import UnreadableImage, inspect\n"
        "try: inspect(sys.stdin.buffer.read(), 256)\n"
        "except UnreadableImage as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=claiming(40_000, 40_000), cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout == b"40000x40000 pixels, more than 1000 million\n"
    assert done.stderr == b""


def with_damaged_exif() -> bytes:
    exif = Image.Exif()
    exif[270], exif[282] = "a description", 72.0
    stored = bytearray(encoded(smooth(40, 30), "JPEG", exif=exif))
    place = stored.index(b"Exif\0\0") + 6 + 8
    stored[place : place + 2] = b"\xff\xff"  # so many entries
    return bytes(stored)


def test_damaged_exif_does_not_cost_the_picture() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (inspect(with_damaged_exif())[0], decode(with_damaged_exif(), 16).shape) == (40, (16, 16, 3))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "HEIF"])
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", [b"\xff\xff*\0\x08\0\0\0\1\0", b"II", b"MM\0*\0\0\0\x08\0\1\1\x12"])
def test_damaged_exif_costs_the_picture_in_no_format(form: str, damage: bytes) -> None:
    stored = encoded(smooth(40, 30), form, exif=b"Exif\0\0" + damage)
    size, pixels = images.inspect(stored, 256)
    assert (size, pixels.shape) == ((40, 30), (30, 40, 3))
    assert decode(stored, 16).shape == (16, 16, 3)


def test_a_png_with_a_long_history_of_edits_is_read() -> None:
    history = PngImagePlugin.PngInfo()
    history.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    stored = encoded(smooth(40, 30), "PNG", pnginfo=history, icc_profile=bytes(3_000_000))
    assert (images.inspect(stored, 256)[1] == np.asarray(smooth(40, 30))).all()


def test_damaged_exif_prints_nothing() -> None:
    code = "import sys; from fieldguide.core.images import inspect; print(inspect(sys.stdin.buffer.read(), 256)[0][0])"
    done = subprocess.run([sys.executable, "-c", code], input=with_damaged_exif(), cwd=ROOT, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"40\n", b"")


def specimens() -> dict[str, bytes]:
    """A small image of each kind; EXIF in some."""
    image, exif = smooth(40, 30), Image.Exif()
    exif[274], exif[270] = 6, "a description"
    return {
        "jpeg": encoded(image, "JPEG"),
        "jpeg with exif": encoded(image, "JPEG", exif=exif),
        "progressive jpeg": encoded(image, "JPEG", progressive=True),
        "cmyk jpeg": encoded(image.convert("CMYK"), "JPEG"),
        "mpo": encoded(image, "MPO", save_all=True, append_images=[image]),
        "png": encoded(image, "PNG"),
        "palette png": encoded(image.convert("P"), "PNG", transparency=3),
        "wide png": encoded(np.asarray(image.convert("L")).astype(np.uint16) * 257, "PNG"),
        "webp": encoded(image, "WEBP", exif=exif),
        "avif": encoded(image, "AVIF", exif=exif),
        "heic": encoded(image, "HEIF", exif=exif),
        "gif": encoded(image, "GIF", save_all=True, append_images=[image.rotate(9)]),
        "bmp": encoded(image, "BMP"),
        "tiff": encoded(image, "TIFF"),
        "float tiff": encoded(np.asarray(image.convert("L")).astype(np.float32), "TIFF"),
    }


@pytest.mark.parametrize("kind", specimens())
def test_changed_bytes_decode_to_the_right_shape_or_are_unreadable(kind: str) -> None:
    whole, rng, outcomes = specimens()[kind], random.Random(1), []
    assert outcome(whole) == "decoded"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # Pillow's on damaged EXIF; a test above is about them
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        for _ in range(150):
            changed = bytearray(whole)
            for _ in range(rng.choice([1, 1, 2, 4])):
                changed[rng.randrange(min(len(changed), rng.choice([40, 400, 10**6])))] = rng.randrange(256)
            if rng.random() < 0.1:
                del changed[rng.randrange(len(changed)) :]
            outcomes.append(outcome(bytes(changed)))
    assert outcomes.count("unreadable") > 5


def outcome(content: bytes) -> str:
    try:
        width, height = inspect(content)
    except UnreadableImage as error:
        assert "\n" not in str(error)
        with suppress(UnreadableImage):
            assert decode(content, 16).shape == (16, 16, 3)  # which forgives an end that is missing
        return "unreadable"
    assert width * height > 0
    assert decode(content, 16).shape == (16, 16, 3)
    return "decoded"


def test_encoded_bytes_are_read_from_their_place(tmp_path: Path) -> None:
    file = tmp_path / "images.zip"
    file.write_bytes(b"head" + b"image" + b"tail")
    assert read_encoded(file, 4, 5) == b"image"
    assert read_encoded(file, 13, 0) == b""


def test_bytes_beyond_the_first_4_gb_are_read(tmp_path: Path) -> None:
    file = tmp_path / "sparse.bin"
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), 5 << 30)
        stream.seek((5 << 30) - 5)
        stream.write(b"image")
    assert read_encoded(file, (5 << 30) - 5, 5) == b"image"


def test_decoding_needs_pillow_and_numpy_only() -> None:
    code = (
        "import sys, fieldguide.core.images; print(sorted({'torch', 'pandas', 'mlflow', 'dvc', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("shape", [(60, 90), (300, 200), (10, 10)])
def test_a_caption_stands_below_the_photograph_which_keeps_its_shape(shape: tuple[int, int]) -> None:
    grey = np.full((*shape, 3), 128, np.uint8)
    empty, short, two = (add_caption(grey, lines, 100) for lines in (["", ""], ["iris"], ["iris", "a much longer second line"]))
    height, width = (round(side * min(1, 100 / max(shape))) for side in shape)
    left = (short.shape[1] - width) // 2
    assert (short[:height, left : left + width] == 128).all()
    assert short.shape[0] > height + 20
    assert two.shape[0] > short.shape[0] + 20
    assert two.shape[1] >= short.shape[1]  # no letter is cut off
    assert empty[height:].max() < 100 < short[height:].max()
