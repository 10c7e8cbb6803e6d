"""What a file is follows from its content: which are photographs, which of them are read, and the words for the others."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from fieldguide.core import formats
from fieldguide.core.formats import (
    EMPTY,
    HEAD_BYTES,
    HEIC,
    OTHER,
    TEXT,
    claims_photograph,
    counted,
    is_candidate,
    kind_of,
    readable,
)
from fieldguide.core.images import UnreadableImage, decode, inspect

register_heif_opener(thumbnails=False)  # to write them
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def encoded(form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    PHOTO.save(stream, form, **options)
    return stream.getvalue()


READ = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WebP": "WEBP",
    "AVIF": "AVIF",
    "HEIC": "HEIF",
    "BMP": "BMP",
    "GIF": "GIF",
    "TIFF": "TIFF",
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("file", ["a.jpg", "a.jfif", "a.jpe", "A.PNG", "a", "a.txt", "a.dat", "IMG_1.HEIC"])
def test_a_photograph_is_told_by_its_content_whatever_its_name(name: str, file: str) -> None:
    content = encoded(READ[name])
    kind = kind_of(content[:HEAD_BYTES], file)
    assert (kind.name, kind.pillow, kind.is_readable, kind.is_left_out) == (name, READ[name], True, False)
    assert is_candidate(content[:HEAD_BYTES], file)
    assert decode(content, 16).shape == (16, 16, 3)


def iso(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(body) + 4) + body + bytes(100)


def tiff(order: str, *entries: tuple[int, int]) -> bytes:
    """The head of a TIFF whose first directory has these tags and values."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries) + bytes(100)


@pytest.mark.parametrize(
    ("head", "file", "name"),
    [
        (iso(b"heic", b"mif1", b"heic"), "a.jpg", "HEIC"),
        (iso(b"mif1", b"mif1", b"heic"), "a", "HEIC"),
        (iso(b"msf1", b"hevc"), "a", "HEIC"),
        (iso(b"mif1", b"mif1", b"avif", b"miaf"), "a.heic", "AVIF"),
        (iso(b"avis", b"avif"), "a", "AVIF"),
        (iso(b"msf1", b"avis"), "a", "AVIF"),
        (iso(b"avio", b"mif1", b"avif"), "a", "AVIF"),
        (iso(b"mif2", b"mif1", b"heic"), "a", "HEIC"),
        (iso(b"avci", b"mif1"), "a.avci", "HEIC"),
        (iso(b"1pic", b"mif1", b"heic", b"miaf"), "a", "HEIC"),
        (iso(b"crx ", b"isom"), "IMG.CR3", "RAW (.CR3)"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "IMG_1.cr2", "RAW (.CR2)"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "IMG_1.tif", "RAW"),
        (tiff("<", (0xFE, 1), (0x100, 160)), "DSC.NEF", "RAW (.NEF)"),
        (tiff(">", (0xFE, 1), (0x100, 160)), "DSC", "RAW"),
        (tiff("<", (0x100, 160), (0xC612, 1)), "renamed.tif", "RAW"),
        (tiff(">", (0xFE, 0), (0x100, 4000)), "DSC.ARW", "RAW (.ARW)"),
        (tiff(">", (0xFE, 0), (0x100, 4000)), "scan.tif", "TIFF"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(50), "a.raf", "RAW (.RAF)"),
        (b"IIU\0" + bytes(50), "a.rw2", "RAW (.RW2)"),
        (b"\xff\x0a" + bytes(50), "a.jxl", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a.jpg", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a.jp2", "JPEG 2000"),
        (b"8BPS\0\1" + bytes(50), "a.psd", "Photoshop"),
        (b"P6\n# made by\n40 30\n255\n", "a.ppm", "PPM"),
    ],
)
def test_other_photographs_are_named(head: bytes, file: str, name: str) -> None:
    kind = kind_of(head, file)
    assert (kind.name, kind.is_photograph) == (name, True)
    assert kind.is_left_out == (name not in READ)
    assert is_candidate(head, file) != kind.is_left_out  # not even if its name ends in .jpg
    alone = kind_of(head)
    with pytest.raises(
        UnreadableImage, match=r"^a (RAW|J|Ph|PPM).*; (convert to|export as) JPEG$" if alone.is_left_out else "."
    ):
        inspect(head, 16)


@pytest.mark.parametrize(
    ("head", "file", "name"),
    [
        (b"", "a.jpg", "empty file"),
        (b"file,label\r\na,b\r\n", "labels.csv", "text file"),
        ("größe".encode(), "a", "text file"),
        ("größe".encode("utf-16"), "a.txt", "text file"),
        (("x" * (HEAD_BYTES - 1) + "ß").encode()[:HEAD_BYTES], "a", "text file"),
        (b"P1 is the first plot", "notes", "text file"),
        (b"BMW is a maker of cars", "notes", "text file"),
        (iso(b"qt  "), "IMG_1.MOV", "video"),
        (iso(b"isom", b"mp42"), "a.mp4", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "a.avi", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a.wav", "audio file"),
        (iso(b"M4A "), "a.m4a", "audio file"),
        (b"PK\3\4" + bytes(50), "a.zip", "archive"),
        (b"7z\xbc\xaf\x27\x1c", "a.7z", "archive"),
        (bytes(257) + b"ustar\0", "a.tar", "archive"),
        (b"%PDF-1.7", "a.pdf", "PDF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Thumbs.db", "database"),
        (b"\0\0\1\0\1\0" + bytes(30), "favicon.ico", "icon"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns=""/>', "a.svg", "SVG"),
        (b'<x:xmpmeta xmlns:x="adobe:ns:meta/">', "a.jpg.xmp", "XMP sidecar"),
        (b'\xef\xbb\xbf<?xpacket begin="" id="W5M0"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">', "a.xmp", "XMP sidecar"),
        (b'<?xml version="1.0"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">', "a.xmp", "XMP sidecar"),
        (b'<?xml version="1.0"?><!-- by hand -->\n<x:xmpmeta>', "a.xmp", "XMP sidecar"),
        (b'<?xpacket begin=""?><rdf:RDF>', "a.xmp", "XMP sidecar"),
        (b"<annotation><folder>x</folder></annotation>", "a.xml", "text file"),
        (bytes(range(256)), "a.bin", "other file"),
        (bytes(100), "a.jpg", "other file"),
    ],
)
def test_what_is_no_photograph_is_named_too(head: bytes, file: str, name: str) -> None:
    kind = kind_of(head, file)
    assert (kind.name, kind.is_photograph, kind.is_left_out) == (name, False, False)
    assert is_candidate(head, file) == claims_photograph(file)  # damage to a photograph is a fault that is told
    with pytest.raises(UnreadableImage, match=f"^not an image but an? {name}$"):
        decode(head, 16)


def test_heic_without_its_extra_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded("HEIF")
    monkeypatch.setattr(formats, "has_heif", lambda: False)
    assert HEIC.is_left_out and not is_candidate(content, "a.jpg") and "HEIC" not in readable()
    for read in (inspect, decode):
        with pytest.raises(UnreadableImage, match=r"^a HEIC; install fieldguide\[heic\]$"):
            read(content, 16)


def test_kinds_are_counted_by_kind_photographs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "has_heif", lambda: False)
    raw, movie, pdf = kind_of(b"IIRO", "a.orf"), kind_of(iso(b"qt  ")), kind_of(b"%PDF-")
    text = counted([movie, TEXT, raw, HEIC, raw, movie, HEIC, HEIC, pdf, pdf, EMPTY, EMPTY, OTHER])
    assert text == (
        "3 HEIC (install fieldguide[heic]), 2 RAW (.ORF; export as JPEG), 2 PDF, 2 empty files, 2 videos,"
        " 1 other file, 1 text file"
    )
    assert counted([]) == ""


@pytest.mark.parametrize(
    "head",
    [
        b"P1 " + b"# " * 2000,
        b"P1 " + b"#\n" * 2000,
        b"P1 #" + b" " * 4000,
        b"P1 " + b"1 " * 2000,
        b"<?xml?>" + b"<!-- a comment -->\n" * 200,
        b"<?xml?>" + b"<!--" * 1000,
        b"<?xml?>" + b"<!DOCTYPE a>\n" * 300,
        b" " * 4096,
    ],
    ids=lambda head: head[:12].decode().strip(),
)
def test_no_content_takes_long_to_be_known(head: bytes) -> None:
    began = time.process_time()
    kind_of(head[:HEAD_BYTES])
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"P6\n# by a program\n# and another\n 640 480\n255\n\0", "PPM"),
        (b"P1 12 is the price\n", "text file"),
        (b'<?xml version="1.0"?>\n<!-- a --> <!-- b -->\n<!DOCTYPE svg>\n<svg>', "SVG"),
    ],
)
def test_comments_do_not_hide_a_kind(head: bytes, name: str) -> None:
    assert kind_of(head).name == name
