"""Colours reach the network as a person sees them: embedded profiles are converted to sRGB, by every reader alike."""

import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener

from fieldguide.core import colours
from fieldguide.core.images import decode, inspect

register_heif_opener(thumbnails=False)  # to write them
SEEN = np.zeros((96, 96, 3), np.uint8)
SEEN[:, :32], SEEN[:, 32:64], SEEN[:, 64:] = (214, 120, 40), (70, 130, 50), (90, 150, 210)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_s15, values))


def icc(space: bytes, gamma: float, **colorants: tuple[float, float, float]) -> bytes:
    """A matrix (RGB) or tone curve (GRAY) profile, version 2.4 (ICC.1:2001-04)."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + b"\0" * 78,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(0.9642, 1, 0.8249),
        **{f"{name}XYZ".encode(): _xyz(*values) for name, values in colorants.items()},
        **dict.fromkeys([f"{name}TRC".encode() for name in colorants] or [b"kTRC"], curve),
    }
    start, table, data = 132 + 12 * len(tags), b"", b""
    for tag, content in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + _s15(0.9642) + _s15(1) + _s15(0.8249)
    return head + b"\0" * (128 - len(head)) + struct.pack(">I", len(tags)) + table + data


WIDE = {
    "Adobe RGB": icc(b"RGB ", 2.2, r=(0.60974, 0.31111, 0.01947), g=(0.20528, 0.62567, 0.06087), b=(0.14919, 0.06322, 0.74457)),
    "Display P3": icc(b"RGB ", 2.2, r=(0.51512, 0.2412, -0.00105), g=(0.29198, 0.69225, 0.04189), b=(0.1571, 0.06657, 0.78407)),
    "ProPhoto": icc(b"RGB ", 1.8, r=(0.79767, 0.28804, 0), g=(0.13519, 0.71188, 0), b=(0.03134, 0.00009, 0.82491)),
}
GREY = icc(b"GRAY", 1.0)


def encoded(image: Image.Image, form: str, profile: bytes, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, icc_profile=profile, **options)
    return stream.getvalue()


FORMS = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 98, "subsampling": 0},
    "AVIF": {"quality": 98, "subsampling": "4:4:4"},
    "HEIF": {"quality": 98, "chroma": 444},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WIDE)
def test_a_wide_profile_is_converted_to_srgb(name: str, form: str) -> None:
    own = ImageCms.ImageCmsProfile(io.BytesIO(WIDE[name]))
    wide = ImageCms.profileToProfile(Image.fromarray(SEEN), ImageCms.createProfile("sRGB"), own)
    assert isinstance(wide, Image.Image)
    assert np.abs(np.asarray(wide).astype(int) - SEEN).max() > 15
    stored = encoded(wide, form, WIDE[name], **FORMS[form])
    inner = np.s_[4:92, [8, 16, 24, 40, 48, 56, 72, 80, 88]]  # away from the edges of the colours, which JPEG blurs
    for pixels in (decode(stored, 96), inspect(stored, 96)[1]):
        assert np.abs(pixels[inner].astype(int) - SEEN[inner]).max() <= (6 if form == "AVIF" else 4)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_a_profile_counts_in_other_modes_too(mode: str) -> None:
    image, profile = Image.fromarray(SEEN).convert(mode), GREY if mode == "LA" else WIDE["ProPhoto"]
    plain = image.convert("L" if mode == "LA" else "RGB")
    expected = ImageCms.profileToProfile(
        plain, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert (decode(encoded(image, "PNG", profile), 96) == np.asarray(expected)).all()
    assert np.abs(np.asarray(expected).astype(int) - np.asarray(plain.convert("RGB"))).max() > 15


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", SRGB),
        ("RGB", b"no profile"),
        ("RGB", WIDE["ProPhoto"][:200]),
        ("RGB", WIDE["ProPhoto"].replace(b"acsp", b"oops")),
        ("RGB", GREY),
        ("L", WIDE["ProPhoto"]),
        ("L", icc(b"GRAY", 2.2)),
        ("CMYK", WIDE["ProPhoto"]),
    ],
)
def test_srgb_and_a_profile_that_is_none_or_of_another_image_change_nothing(mode: str, profile: bytes) -> None:
    image = Image.fromarray(SEEN).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF")
    plain = decode(stream.getvalue(), 96)
    for read in (decode(encoded(image, "TIFF", profile), 96), inspect(encoded(image, "TIFF", profile), 96)[1]):
        assert np.abs(read.astype(int) - plain).max() <= (2 if mode == "L" else 0)


def test_lab_is_converted() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(SEEN), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert isinstance(lab, Image.Image)
    stream = io.BytesIO()
    lab.save(stream, "TIFF")
    assert np.abs(decode(stream.getvalue(), 96).astype(int) - SEEN).max() <= 3


def test_threads_share_a_profile() -> None:
    stored = encoded(Image.fromarray(SEEN), "PNG", WIDE["ProPhoto"])
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: decode(stored, 96).tobytes(), range(64)))
    assert len(set(results)) == 1


def png(depth: int, kind: int, raw: bytes, width: int, height: int, transparent: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("depth", "kind", "row", "transparent"),
    [
        (16, 0, struct.pack(">3H", 1000, 30000, 65535), struct.pack(">H", 1000)),
        (8, 0, bytes([4, 117, 255]), struct.pack(">H", 4)),
        (16, 2, struct.pack(">9H", *([1000] * 3), *([30000] * 3), *([65535] * 3)), struct.pack(">3H", 1000, 1000, 1000)),
    ],
)
def test_a_transparent_level_of_a_png_is_white(depth: int, kind: int, row: bytes, transparent: bytes) -> None:
    stored = png(depth, kind, (b"\0" + row) * 3, 3, 3, transparent)
    pixels = decode(stored, 3)
    assert pixels[0, 0].tolist() == [255] * 3 and pixels[0, 2].tolist() == [255] * 3
    assert np.abs(pixels[0, 1].astype(int) - 117).max() <= 1
    assert (inspect(stored, 3)[1] == pixels).all()


def test_a_profile_of_absurd_size_is_not_kept() -> None:
    profile = WIDE["ProPhoto"]
    image = Image.new("RGB", (4, 4), (90, 160, 40))
    small = decode(encoded(image, "TIFF", profile + bytes(1000)), 4)
    colours._profile.cache_clear()
    assert (decode(encoded(image, "TIFF", profile + bytes(colours.MAX_PROFILE_BYTES)), 4) == (90, 160, 40)).all()
    assert (small != (90, 160, 40)).any()
    assert colours._profile.cache_info().currsize == 0


def test_wide_grey_is_scaled_in_little_memory() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = Image.fromarray(np.tile(levels, (8, 8)))
    tracemalloc.start()
    try:
        grey = np.asarray(colours.to_rgb(image)[0])[:256, :256, 0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (grey == np.floor(levels / 65535 * 255 + 0.5)).all()
    assert peak < 10 * image.width * image.height  # bytes of NumPy
