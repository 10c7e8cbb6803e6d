"""The images of a request as bytes in memory, checked without decoding. Nothing is written to disk."""

from dataclasses import dataclass
from io import BytesIO
from typing import IO

from flask import Request

from fieldguide.core.formats import HEAD_BYTES, OTHER, TEXT, kind_of, readable
from fieldguide.web.problems import Problem

FIELD = "images"  # of a multipart form
RAW_TYPES = ("image/", "application/octet-stream")  # a body that is the image itself
MAX_NAME = 200  # characters of a file name in the response


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


def check_format(upload: Upload) -> None:
    """Raises `Problem` for data that are not an image of a supported format; the name only tells camera RAW from TIFF."""
    kind = kind_of(upload.encoded[:HEAD_BYTES], upload.name or "")
    if not upload.encoded:
        raise Problem("not_an_image", "The file is empty.")
    if kind in (TEXT, OTHER):
        raise Problem("not_an_image", f"The data are not an image; send {readable()}.")
    if not kind.is_readable:
        raise Problem("wrong_type", f"The data are {kind.phrase}, which is not supported; send {readable()}.")
