"""The images of a request as bytes in memory, checked without decoding. Nothing is written to disk."""

import re
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from flask import Request

from fieldguide.web.problems import Problem

FIELD = "images"  # of a multipart form
RAW_TYPES = ("image/", "application/octet-stream")  # a body that is the image itself
MAX_NAME = 200  # characters of a file name in the response
READ = {  # signatures of the supported formats, by Pillow's name
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II\*\0|MM\0\*",
}
OTHER = {  # unsupported image formats
    "HEIC or AVIF": rb"....ftyp(?:hei|hev|mif1|msf1|avi)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "SVG": rb"\s*<(?:\?xml|svg)",
    "icon": rb"\0\0[\1\2]\0",
    "Photoshop": rb"8BPS",
}
READABLE = "JPEG, PNG, WebP, BMP, GIF and TIFF"


class MemoryRequest(Request):
    """A request whose uploads stay in memory; the server limits their size."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        return BytesIO()


@dataclass(frozen=True)
class Upload:
    """An uploaded image; `name` is the client's file name, None for a raw body."""

    name: str | None
    encoded: bytes


def read_uploads(request: Request, max_files: int) -> list[Upload]:
    """The images of a request; raises `Problem` for another content type, no image, or too many."""
    if request.mimetype == "multipart/form-data":
        files = [file for file in request.files.getlist(FIELD) if file.filename or file.mimetype.startswith(RAW_TYPES)]
        if not files:
            raise Problem("no_image", f"The form has no file in a field named {FIELD!r}.")
        if len(files) > max_files:
            raise Problem("too_large", f"The form has {len(files)} files, more than {max_files}.")
        return [Upload((file.filename or "")[:MAX_NAME] or None, file.stream.read()) for file in files]
    if request.mimetype.startswith(RAW_TYPES):
        return [Upload(None, request.get_data(cache=False))]
    raise Problem("wrong_type", f"Send multipart/form-data with files in {FIELD!r}, or an image as the body with its type.")


def format_of(encoded: bytes) -> str:
    """Pillow's name of the format, by the signature; raises `Problem` for other data."""
    for name, pattern in READ.items():
        if re.match(pattern, encoded, re.DOTALL):
            return name
    for name, pattern in OTHER.items():
        if re.match(pattern, encoded[:64], re.DOTALL):
            raise Problem("wrong_type", f"{name} images are not supported; send {READABLE}.")
    raise Problem("not_an_image", f"The data are not an image; send {READABLE}." if encoded else "The file is empty.")
