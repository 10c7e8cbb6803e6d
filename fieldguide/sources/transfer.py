"""Downloads over HTTP that resume after a cut: what Kaggle and an address in `data.path` share.

While `x.zip` is downloaded, `x.zip.part` and a note with the validator of its content (`x.zip.part.json`) lie beside it.
Afterwards `x.zip.json` records what the source states of the file, by which the next run recognises it.
"""

import base64
import fcntl
import json
import logging
import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import requests
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from fieldguide.core.errors import UserError
from fieldguide.core.files import CHUNK_BYTES, atomic_path, check_free_space, file_hash, write_json
from fieldguide.core.formats import HEAD_BYTES
from fieldguide.sources.members import NOT_READ, OPENERS, is_archive

TIMEOUT_S = 60.0  # without a byte from the server
MAX_TRIES = 5  # in a row that brought nothing
MAX_WAIT_S = 600.0  # in all, for one answer or one file
BLOCK_BYTES = 1 << 16  # most that a broken connection loses

DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)

logger = logging.getLogger(__name__)

Ask = Callable[[Mapping[str, str]], requests.Response]  # the response to a request with these headers


class Download(NamedTuple):
    path: Path  # a folder or an archive (zip, tar)
    source: str  # "kaggle:gpiosenka/butterfly-images40-species", "https://example.org/photographs.zip"
    version: str  # as the source states it: a number, an ETag or a date; "" if it does not, as for competitions
    files: frozenset[str] = frozenset()  # those that were asked for, if the folder may hold others


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` and lets one process at a time work in it; an `OSError` becomes a `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, and then finds the download there
            yield
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; free disk space or fix the permissions") from error


def file_name(name: str) -> str:
    """A safe file name that ends as `name` does."""
    return re.sub(r"[^\w.-]+", "_", name)[-80:].strip("._") or "archive"


def check_bound(n_bytes: int, source: str, max_bytes: int) -> None:
    """Raises `UserError` for more bytes than `data.max_gigabytes`."""
    if n_bytes > max_bytes:
        size, bound = f"{n_bytes / 1e9:.3g} GB", f"{max_bytes / 1e9:g}"
        raise UserError(f"data.path: {source}: {size} or more, above data.max_gigabytes ({bound}); increase it")


def check_archive(head: bytes, source: str) -> None:
    """Raises `UserError` unless a file begins as a zip or tar does, compressed or not."""
    if name := next((name for magic, name in NOT_READ.items() if head.startswith(magic)), ""):
        raise UserError(f"data.path: {source} is {name}, which is not read; use the address of a zip or tar")
    if not is_archive(head):
        raise UserError(
            f"data.path: {source} is neither a zip nor a tar (it begins with {head[:16]!r}); use the address of one"
        )


def part_of(target: Path) -> Path:
    return Path(f"{target}.part")


def download_part(part: Path, ask: Ask, check: Callable[[bytes, int], None] = lambda block, n_bytes: None) -> str:
    """Completes `part`; returns the md5 that the server states, or "". Raises if the connection breaks.

    Bytes of an earlier try are kept only if the note beside them proves that they are of the same content.
    check: called with each block and the number of bytes before it; raises `UserError` for what is not wanted, which removes
    `part`.
    """
    note, start = Path(f"{part}.json"), max(size_of(part) - 1, 0)  # the last byte again: a complete file has no other range
    known = read_note(note)
    headers: dict[str, str] = {}
    if start and known.get("validator"):
        headers = {"Range": f"bytes={start}-", "If-Range": known["validator"], "Accept-Encoding": "identity"}
    try:
        response = ask(headers)
    except requests.HTTPError as error:
        if error.response.status_code == requests.codes.requested_range_not_satisfiable:
            note.unlink(missing_ok=True)  # shorter than what is there: other content
        raise
    with response:
        content = _content(response)
        if response.status_code != requests.codes.partial_content:
            start, known = 0, content
            part.unlink(missing_ok=True)
            write_json(note, content)
        elif content["validator"] != known.get("validator"):
            note.unlink(missing_ok=True)
            raise requests.ConnectionError("other content")
        elif response.headers.get("Content-Range") != f"bytes {start}-{known['bytes'] - 1}/{known['bytes']}":
            raise requests.ConnectionError("another range")
        check_free_space(part.parent, known["bytes"] - start)
        try:
            _write(response, part, start, known["bytes"], check)
        except UserError:
            part.unlink()
            note.unlink()
            raise
    if known["bytes"] and size_of(part) != known["bytes"]:
        raise requests.ConnectionError("ended early")
    return str(known["md5"])


def _content(response: requests.Response) -> dict[str, Any]:
    """What identifies the content: a strong ETag or the date, its size (0 if compressed on the way) and its md5, or ""."""
    headers, etag = response.headers, response.headers.get("ETag", "W/")
    plain, length = "Content-Encoding" not in headers, headers.get("Content-Length", "")
    md5 = re.search(r"md5=([\w+/]+=*)", headers.get("x-goog-hash", ""))
    return {
        "validator": headers.get("Last-Modified", "") if etag.startswith("W/") else etag,
        "bytes": int(length) if plain and length.isdecimal() else 0,
        "md5": base64.b64decode(md5[1]).hex() if md5 and plain else "",
    }


def _write(response: requests.Response, part: Path, start: int, length: int, check: Callable[[bytes, int], None]) -> None:
    """Writes the body to `part` from byte `start` on."""
    progress = {"total": length or None, "initial": start, "unit": "B", "unit_scale": True}
    with part.open("r+b" if start else "wb") as out, tqdm(desc=part.stem, leave=False, disable=None, **progress) as bar:
        out.seek(start)
        for block in response.iter_content(BLOCK_BYTES):
            check(block, out.tell())
            out.write(block)
            bar.update(len(block))


def install(part: Path, target: Path, stated: str, md5: str = "", *, unpack: bool = False, whole: bool = False) -> None:
    """Verifies `part`, gives it the name `target` and writes a receipt beside it; raises `UserError` for damage.

    A zip is read whole. unpack: `part` is a zip of one member, which becomes the target. whole: `part` is a zip or tar,
    whatever its name.
    """
    try:
        if md5 and file_hash(part, "md5") != md5:
            raise zipfile.BadZipFile("not the md5 that the server states")
        if whole:
            _verify(part)
        with atomic_path(target) as temporary:
            if unpack or (target.suffix == ".zip" and not whole):
                with zipfile.ZipFile(part) as archive, temporary.open("wb") as out:
                    if damaged := archive.testzip():
                        raise zipfile.BadZipFile(f"{damaged}: wrong checksum")
                    if unpack:
                        (member,) = archive.infolist()
                        shutil.copyfileobj(archive.open(member), out, CHUNK_BYTES)
            if not unpack:
                part.replace(temporary)
    except DAMAGE as error:
        part.unlink()
        raise UserError(f"{target}: arrived damaged ({error}) and was removed; run again") from error
    write_json(Path(f"{target}.json"), {"stated": stated, "bytes": size_of(target)})
    part.unlink(missing_ok=True)
    Path(f"{part}.json").unlink(missing_ok=True)


def _verify(archive: Path) -> None:
    """Reads a zip or a compressed tar whole; raises one of `DAMAGE`. Other tars have no checksums of their files."""
    with archive.open("rb") as file:
        head = file.read(HEAD_BYTES)
    opener = next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)
    try:
        if opener:
            with opener(archive) as stream:
                while stream.read(CHUNK_BYTES):
                    pass
        elif head.startswith(b"PK"):
            with zipfile.ZipFile(archive) as zipped:
                if damaged := zipped.testzip():
                    raise zipfile.BadZipFile(f"{damaged}: wrong checksum")
        elif not is_archive(head):
            raise zipfile.BadZipFile("not an archive" if head else "empty")
    except OSError as error:  # of gzip and bz2
        raise zipfile.BadZipFile(error) from error


def is_complete(target: Path, stated: str) -> bool:
    """Whether the receipt of `target` fits its size and what its source states; the content is not read."""
    receipt = read_note(Path(f"{target}.json"))
    return bool(stated) and target.is_file() and (receipt.get("stated"), receipt.get("bytes")) == (stated, size_of(target))


def read_note(note: Path) -> dict[str, Any]:
    """The JSON object in `note`; empty if there is none."""
    with suppress(OSError, ValueError):
        content = json.loads(note.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def status_of(error: requests.RequestException) -> int:
    """The status of the server's answer; 0 for none."""
    return error.response.status_code if error.response is not None else 0


def persist(
    attempt: Callable[[], Any],
    part: Path | None = None,
    who: str = "download",
    status_of: Callable[[requests.RequestException], int] = status_of,
) -> Any:
    """What `attempt` returns; repeated after 429 and, with a `part`, after a broken connection or a 5xx status."""
    tries, waited, reached = 0, 0.0, 0
    while True:
        try:
            return attempt()
        except requests.RequestException as error:
            status, at_hand = status_of(error), size_of(part) if part else 0
            tries, reached = (1, at_hand) if at_hand > reached else (tries + 1, reached)
            pause = retry_after(error) or 2.0**tries
            waited += pause
            again = status == 429 or (part is not None and (status == 0 or status >= 500))
            if not again or tries >= MAX_TRIES or waited > MAX_WAIT_S:
                raise
            reason = f"status {status}" if status else "connection broken"
            logger.warning("%s: %s; trying again in %.0f s", who, reason, pause)
        sleep(pause)


def retry_after(error: requests.RequestException) -> float:
    """Seconds that the server asks to wait, stated in seconds or as a date; 0 if it does not."""
    stated = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    with suppress(InvalidHeader):
        return float(Retry().parse_retry_after(stated))
    return 0.0
