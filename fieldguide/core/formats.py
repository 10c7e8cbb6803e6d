"""Kinds of files by their content: which are photographs, which of them can be decoded here, and what to do about the others.

The one owner of that question: download, `fieldguide predict` and the page ask it. Needs only the standard library.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import PurePosixPath

HEAD_BYTES = 4096  # of a file, to know its kind
MAX_PIXELS = 1_000_000_000  # for photographs that split check has accepted; a file of 20 kB can declare more than fit in memory
MAX_MEGAPIXELS = 250  # default limit for others: phones take 200 million pixels
NO_HEIF = "install fieldguide[heic]"
CONVERT = "convert to JPEG"


@dataclass(frozen=True, order=True)
class Kind:
    """A kind of file; `name` is what a person calls it."""

    name: str
    pillow: str = ""  # Pillow's name of the format, if it is decoded here
    is_photograph: bool = False
    remedy: str = ""  # for a photograph that is not decoded

    @property
    def is_readable(self) -> bool:
        """Whether files of this kind are decoded here and now."""
        return bool(self.pillow) and (self.pillow != "HEIF" or has_heif())

    @property
    def phrase(self) -> str:
        """`a HEIC`, `an archive`."""
        return f"an {self.name}" if self.name[0].lower() in "aeio" or self.name in ("SVG", "XMP sidecar") else f"a {self.name}"

    @property
    def is_left_out(self) -> bool:
        """Whether it is a photograph that is not decoded."""
        return self.is_photograph and not self.is_readable


def _read(name: str, pillow: str) -> Kind:
    return Kind(name, pillow, is_photograph=True)


def _photograph(name: str, remedy: str = CONVERT) -> Kind:
    return Kind(name, is_photograph=True, remedy=remedy)


JPEG, AVIF, TIFF = _read("JPEG", "JPEG"), _read("AVIF", "AVIF"), _read("TIFF", "TIFF")
HEIC = Kind("HEIC", "HEIF", is_photograph=True, remedy=NO_HEIF)
VIDEO, AUDIO, ARCHIVE, TEXT = Kind("video"), Kind("audio file"), Kind("archive"), Kind("text file")
EMPTY, OTHER = Kind("empty file"), Kind("other file")
SIGNATURES = [  # of any bytes: a repetition must match in one way only (`*+`, `(?>`), or it may take for ever
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb"\xff\xd8\xff", JPEG),
        (rb"\x89PNG\r\n\x1a\n", _read("PNG", "PNG")),
        (rb"RIFF....WEBP", _read("WebP", "WEBP")),
        (rb"GIF8[79]a", _read("GIF", "GIF")),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", _read("BMP", "BMP")),
        (rb"II\x2a\0.{4}CR", _photograph("RAW")),  # Canon CR2
        (rb"IIU\0|IIR[OS]|MMOR|FUJIFILMCCD-RAW|\0MRM|FOVb", _photograph("RAW")),  # Panasonic, Olympus, Fuji, Minolta, Sigma
        (rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]|MM\x2a\0|II\0\x2a", TIFF),
        (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", _photograph("JPEG XL")),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _photograph("JPEG 2000")),
        (rb"8BPS\0[\x01\x02]", _photograph("Photoshop")),
        (rb"P[1-6]\s(?:\s|#[^\n]*\n)*+\d+\s+\d+\s", _photograph("PPM")),
        (rb"\x76\x2f\x31\x01", _photograph("OpenEXR")),
        (rb"RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01", VIDEO),
        (rb"RIFF....WAVE|ID3|OggS|fLaC", AUDIO),
        (rb"PK[\3\5\7][\4\6\x08]|\x1f\x8b|BZh|\xfd7zXZ\0|7z\xbc\xaf\x27\x1c|Rar!|\x28\xb5\x2f\xfd", ARCHIVE),
        (rb".{257}ustar", ARCHIVE),
        (rb"%PDF-", Kind("PDF")),
        (rb"SQLite format 3\0|\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("database")),  # and Thumbs.db
        (rb"\0\0[\x01\x02]\0[^\0]", Kind("icon")),
        (rb"\s*<(?:\?xml[^>]*>(?:\s|<!--(?>.*?-->)|<!DOCTYPE[^>]*>)*+<svg|svg)", Kind("SVG")),
        (rb"(?:\xef\xbb\xbf)?\s*+(?:(?:<\?[^>]*>|<!--(?>.*?-->))\s*+)*+<(?:x:xmpmeta|rdf:RDF)", Kind("XMP sidecar")),
    )
]
RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf"
    " .srw .x3f".split()
)
IMAGE_SUFFIXES = frozenset(  # files that claim to be photographs; content that is none is a fault of the file
    ".jpg .jpeg .jpe .jfif .jif .png .webp .bmp .dib .gif .tif .tiff .avif .heic .heif .hif".split()
)
DNG_VERSION, SUBFILE_TYPE = 0xC612, 0x00FE  # TIFF tags: Adobe DNG; the first picture is a preview of raw data


@cache
def has_heif() -> bool:
    return find_spec("pillow_heif") is not None


def readable() -> str:
    """The formats that are decoded here and now, as a sentence lists them."""
    return f"JPEG, PNG, WebP, AVIF, {'HEIC, ' if has_heif() else ''}BMP, GIF and TIFF"


def kind_of(head: bytes, name: str = "") -> Kind:
    """The kind of a file, from its first `HEAD_BYTES` bytes (or all of them).

    The suffix of `name` only matters for camera RAW: most is TIFF with a preview, some has no known signature.
    """
    if not head:
        return EMPTY
    if head[4:8] == b"ftyp":
        return _iso_media(head, name)
    kind = next((kind for pattern, kind in SIGNATURES if pattern.match(head)), None)
    if kind is None:
        return TEXT if _is_text(head) else _raw(name) if _suffix(name) in RAW_SUFFIXES else OTHER
    if kind.name == "RAW" or (kind is TIFF and (_suffix(name) in RAW_SUFFIXES or _is_raw(head))):
        return _raw(name)
    return kind


def claims_photograph(name: str) -> bool:
    """Whether the suffix says that the file is a photograph."""
    return _suffix(name) in IMAGE_SUFFIXES


def is_candidate(head: bytes, name: str) -> bool:
    """Whether a file is to be read as a photograph: by its content, or else by its suffix, so that a damaged one is told."""
    kind = kind_of(head, name)
    return kind.is_readable or (not kind.is_left_out and claims_photograph(name))


def counted(kinds: Iterable[Kind]) -> str:
    """`40 HEIC (install fieldguide[heic]), 3 RAW (.CR2; convert to JPEG), 2 videos`: photographs first, then by number."""
    counts = Counter(kinds)
    order = sorted(counts, key=lambda kind: (not kind.is_photograph, -counts[kind], kind))
    return ", ".join(_counted_kind(kind, counts[kind]) for kind in order)


def _counted_kind(kind: Kind, n: int) -> str:
    if kind.is_left_out:
        own, _, inner = kind.name.partition(" (")
        return f"{n} {own} ({'; '.join(filter(None, (inner.rstrip(')'), kind.remedy)))})"
    return f"{n} {kind.name}{'' if n == 1 or kind.is_photograph or kind.name.isupper() else 's'}"


def _suffix(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).suffix.lower()


def _raw(name: str) -> Kind:
    suffix = PurePosixPath(name).suffix
    return _photograph(f"RAW ({suffix.upper()})" if suffix.lower() in RAW_SUFFIXES else "RAW", "export as JPEG")


def _iso_media(head: bytes, name: str) -> Kind:
    """By the brands of the first box (ISO/IEC 14496-12, 4.3): HEIC and AVIF share their structure with videos."""
    end = min(max(int.from_bytes(head[:4], "big"), 16), len(head))
    brands = [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]
    if brands[0] == b"crx ":
        return _raw(name)
    if brands[0] in (b"avif", b"avis") or (brands[0][:3] not in (b"hei", b"hev") and {b"avif", b"avis"} & {*brands}):
        return AVIF
    if brands[0][:3] in (b"hei", b"hev") or {b"mif1", b"msf1", b"miaf"} & {*brands}:  # HEIF, whatever the codec
        return HEIC
    return AUDIO if brands[0][:3] == b"M4A" else VIDEO


def _is_raw(head: bytes) -> bool:
    """Whether the first directory of a TIFF says that the file is DNG, or that its first picture is a preview."""

    def number(place: int, size: int) -> int:
        return int.from_bytes(head[place : place + size], "little" if head[:2] == b"II" else "big")

    first = number(4, 4)
    for entry in range(first + 2, first + 2 + 12 * min(number(first, 2), 200), 12):
        tag = number(entry, 2)
        if tag == DNG_VERSION or (tag == SUBFILE_TYPE and number(entry + 8, 4) & 1):
            return True
    return False


def _is_text(head: bytes) -> bool:
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    try:
        head[: HEAD_BYTES - 4].decode() if len(head) >= HEAD_BYTES else head.decode()
    except UnicodeDecodeError as error:
        return head.startswith((b"\xff\xfe", b"\xfe\xff")) or error.start >= len(head) - 8
    return not any(byte < 9 or 13 < byte < 27 for byte in head)
