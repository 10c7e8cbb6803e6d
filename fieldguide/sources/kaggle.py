"""Kaggle as a source of raw data: a data set's archive, or the wanted files of a competition, in a cache that resumes.

The `kaggle` client finds the credentials, builds each request and follows it to the file. Its own `download_file` is
not used: it writes under the final name, tries again only at an address that expires, and when a resume is refused
(403, 429, 503) it overwrites what it had with the error page. Importing it signs in, so only `_sign_in` does that.
"""

import base64
import fcntl
import io
import json
import logging
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from fieldguide.core.errors import UserError
from fieldguide.core.files import CHUNK_BYTES, atomic_path, check_free_space, file_hash, write_json

TIMEOUT_S = 60.0  # without a byte from the server; the client itself would wait for ever
MAX_TRIES = 5  # in a row that brought nothing
MAX_WAIT_S = 600.0  # in all, for one answer or one file
PAGE_FILES = 200  # most that Kaggle lists at once
BLOCK_BYTES = 1 << 16  # most that a cut loses
REMEDY = (
    "put a token from https://www.kaggle.com/settings into ~/.kaggle/access_token or KAGGLE_API_TOKEN, "
    "or get the files in a browser and give them with -S data.path=<archive>"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """What was got; `files` maps each wanted file to its sha256 (a competition's folder may hold others too)."""

    path: Path  # the archive, or the folder of a competition's files
    source: str  # "kaggle:gpiosenka/butterfly-images40-species"
    version: str  # number of the data set's version; "" where Kaggle tells none, as for competitions
    files: dict[str, str] = field(default_factory=dict)


def download_dataset(slug: str, *, version: str, cache: Path) -> Download:
    """The archive of the data set `slug` ("owner/name") at `version` (a number as text; "" = the newest one).

    One `cache` may serve all downloads. What is there whole (by the receipt beside it and its size) is not fetched
    again; with a `version` Kaggle is then not even asked. Raises `UserError` with the remedy for what is in the way.
    """
    if version and not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise UserError(f"kaggle:{slug}: version must be a number such as 2, or empty for the newest, got {version!r}")
    folder, wanted = cache / "datasets" / slug, "/".join(filter(None, (slug, version)))
    with _working_in(folder, f"kaggle:{wanted}", f"https://www.kaggle.com/datasets/{slug}"):
        client = None
        if not version:
            client = _persist(_sign_in)
            version = _persist(partial(_newest_version, client, *slug.split("/")))
            wanted = "/".join(filter(None, (slug, version)))
        archive = folder / f"{version or 'newest'}.zip"
        receipt = _receipt(archive, version)
        if receipt is None:
            client = client or _persist(_sign_in)
            receipt = _fetch(archive, version, partial(_opened, client, client.dataset_download_files, wanted))
    return Download(archive, f"kaggle:{slug}", version, {archive.name: receipt["sha256"]})


def download_competition(name: str, *, keep: Callable[[str], bool], cache: Path) -> Download:
    """The files of the competition `name` whose path `keep` accepts, and sample_submission.csv, each fetched by itself.

    Kaggle is asked for its list each time; a file that is there whole and listed as it was is not fetched again.
    Raises `UserError` with the remedy for whatever is in the way.
    """
    folder, page = cache / "competitions" / name, f"https://www.kaggle.com/competitions/{name}/rules"
    with _working_in(folder, f"kaggle:{name}", page):
        client = _persist(_sign_in)
        listed = {file.name: file for file in _listed(client, name)}
        wanted = {path: listed[path] for path in sorted(listed) if keep(path) or path == "sample_submission.csv"}
        if not any(map(keep, wanted)):
            raise UserError(f"kaggle:{name}: none of its {len(listed)} files is wanted; see what it has at {page}")
        if unsafe := [path for path in wanted if not (folder / path).resolve().is_relative_to(folder.resolve())]:
            raise UserError(f"kaggle:{name}: lists {unsafe[0]!r}, outside its folder; do not use it")
        stated = {path: f"{file.total_bytes} bytes of {file.creation_date}" for path, file in wanted.items()}
        receipts = {path: _receipt(folder / path, stated[path]) for path in wanted}
        missing = [path for path, receipt in receipts.items() if receipt is None]
        check_free_space(folder, sum(wanted[path].total_bytes - _size(Path(f"{folder / path}.part")) for path in missing))
        for path in missing:
            ask = partial(_opened, client, client.competition_download_file, name, path)
            receipts[path] = _fetch(folder / path, stated[path], ask)
        files = {path: receipt["sha256"] for path, receipt in receipts.items() if receipt}
    return Download(folder, f"kaggle:{name}", "", files)


def _sign_in() -> Any:
    """The `kaggle` client, authenticated in the order that it prefers: token, kaggle.json, OAuth."""
    from kaggle.api.kaggle_api_extended import KaggleApi
    from kagglesdk import get_access_token_from_env

    client = KaggleApi()
    try:
        client.authenticate()
    except (requests.RequestException, json.JSONDecodeError):
        raise
    except (OSError, ValueError):  # their texts can hold the token: a line break in it, a path that is too long
        raise UserError(f"kaggle: the token cannot be read or sent; {REMEDY}") from None
    except SystemExit:  # with a token that Kaggle does not know as without one
        _, place = get_access_token_from_env()
        reason = f"Kaggle does not accept the token in {place}" if place else "no Kaggle account is set up"
        raise UserError(f"kaggle: {reason}; {REMEDY}") from None
    return client


def _newest_version(client: Any, owner: str, name: str) -> str:
    """The number of a data set's newest version, as text; "" if Kaggle tells none."""
    from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

    request = ApiGetDatasetRequest()
    request.owner_slug, request.dataset_slug = owner, name
    with client.build_kaggle_client() as kaggle:
        return str(kaggle.datasets.dataset_api_client.get_dataset(request).current_version_number or "")


def _listed(client: Any, name: str) -> Iterator[Any]:
    """All files of a competition (`name`, `total_bytes`, `creation_date`), page after page."""
    token = None
    while token != "":
        page = _persist(partial(client.competition_list_files, name, page_token=token, page_size=PAGE_FILES))
        yield from page.files
        token = page.next_page_token or ""


def _opened(client: Any, download: Callable[..., None], *what: str) -> requests.Response:
    """The response that the client's `download` opens, and would save if it were not told that this is not needed."""
    opened: list[requests.Response] = []
    client.download_needed = lambda response, *_: opened.append(response)
    download(*what, path="")
    return opened[0]


def _fetch(target: Path, stated: str, ask: Callable[[], requests.Response]) -> dict[str, Any]:
    """The receipt of `target`, which is downloaded, verified, and only then given its name."""
    part = Path(f"{target}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    md5 = _persist(partial(_transfer, part, ask), part)
    with part.open("rb") as stream:
        packed = stream.read(4) == b"PK\x03\x04" and target.suffix != ".zip"  # done to some single files
    try:
        if md5 and file_hash(part, "md5") != md5:
            raise zipfile.BadZipFile("not the md5 that the server states")
        if packed or target.suffix == ".zip":
            with zipfile.ZipFile(part) as archive:
                damaged, members = archive.testzip(), archive.namelist()
            if damaged or (packed and len(members) != 1):
                raise zipfile.BadZipFile(f"{damaged or members}: wrong checksum, or not one file")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        part.unlink()
        raise UserError(f"{target}: came damaged ({error}) and was removed; run again") from error
    with atomic_path(target) as temporary:
        if packed:
            with zipfile.ZipFile(part) as archive, temporary.open("wb") as out:
                shutil.copyfileobj(archive.open(members[0]), out, CHUNK_BYTES)
        else:
            part.replace(temporary)
    receipt = {"stated": stated, "bytes": _size(target), "sha256": file_hash(target)}
    write_json(Path(f"{target}.json"), receipt)
    part.unlink(missing_ok=True)
    Path(f"{part}.json").unlink(missing_ok=True)
    return receipt


def _transfer(part: Path, ask: Callable[[], requests.Response]) -> str:
    """Brings what is missing into `part`; returns the md5 that the server states, or "". A cut raises.

    Bytes at hand are kept only if the note beside them proves them to be of the same content (ETag, date and size).
    """
    note = Path(f"{part}.json")
    with ask() as response:
        identity = _identity(response)
        length, validator = identity["bytes"], identity["etag"] or identity["date"]
        at_hand = _size(part) if validator and _read(note) == identity else 0
        if not 0 < at_hand <= length:
            at_hand = 0
            part.unlink(missing_ok=True)
            write_json(note, identity)
        check_free_space(part.parent, length - at_hand)
        if at_hand == 0:
            _write(response, part, 0, length)
    if 0 < at_hand < length:
        again = response.request.copy()  # the client's own, where it ended
        again.headers.update({"Range": f"bytes={at_hand}-", "If-Range": validator, "Accept-Encoding": "identity"})
        with requests.Session() as session:
            settings = session.merge_environment_settings(again.url or "", {}, True, None, None)
            with session.send(again, **settings) as rest:
                rest.raise_for_status()
                expected = f"bytes {at_hand}-{length - 1}/{length}"
                if rest.status_code == 206 and rest.headers.get("Content-Range") != expected:
                    raise requests.ConnectionError("another range")
                _write(rest, part, at_hand if rest.status_code == 206 else 0, length)
    if length and _size(part) != length:
        raise requests.ConnectionError("ended early")
    md5 = re.search(r"md5=([\w+/]+=*)", response.headers.get("x-goog-hash", "")) if length else None
    return base64.b64decode(md5[1]).hex() if md5 else ""


def _identity(response: requests.Response) -> dict[str, Any]:
    """What tells one content from another: a strong ETag, the date, and the size (0 if compressed on the way)."""
    headers, etag = response.headers, response.headers.get("ETag", "")
    length = 0 if "Content-Encoding" in headers else int(headers.get("Content-Length", 0))
    return {"etag": "" if etag.startswith("W/") else etag, "date": headers.get("Last-Modified", ""), "bytes": length}


def _write(response: requests.Response, part: Path, offset: int, length: int) -> None:
    """Appends the body to the first `offset` bytes of `part`."""
    progress = {"total": length or None, "initial": offset, "unit": "B", "unit_scale": True}
    with part.open("ab") as out, tqdm(desc=part.stem, leave=False, disable=None, **progress) as bar:
        out.truncate(offset)
        for block in response.iter_content(BLOCK_BYTES):
            out.write(block)
            bar.update(len(block))


def _receipt(target: Path, stated: str) -> dict[str, Any] | None:
    """The receipt of `target` if that is there whole and is what Kaggle states; the hash is not computed again."""
    receipt = _read(Path(f"{target}.json"))
    if not (stated and target.is_file() and isinstance(receipt, dict)):
        return None
    return receipt if (receipt.get("stated"), receipt.get("bytes")) == (stated, _size(target)) else None


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _persist(attempt: Callable[[], Any], part: Path | None = None) -> Any:
    """What `attempt` returns; made again as Kaggle says (429) and, where it gathers bytes in `part`, after a cut."""
    tries, waited, reached = 0, 0.0, 0
    while True:
        try:
            return attempt()
        except requests.RequestException as error:
            status, at_hand = _status(error), _size(part) if part else 0
            tries, reached = (1, at_hand) if at_hand > reached else (tries + 1, reached)
            pause = _retry_after(error) or 2.0**tries
            waited += pause
            again = status == 429 or (part is not None and (status == 0 or status >= 500))
            if not again or tries >= MAX_TRIES or waited > MAX_WAIT_S:
                raise
            logger.warning("Kaggle: %s; going on in %.0f s", f"status {status}" if status else "cut", pause)
        sleep(pause)


def _status(error: requests.RequestException) -> int:
    """The status of Kaggle's refusal; 0 for none, and where the file's own address (a GET) refuses: it has expired."""
    if error.response is None:
        return 0
    status = error.response.status_code
    if status == 200:  # the client raises on the code inside
        status = int(error.response.json()["code"])
    return 0 if error.response.request.method == "GET" and 400 <= status < 500 and status != 429 else status


def _retry_after(error: requests.RequestException) -> float:
    """Seconds that the server asks to wait, told in seconds or as a date; 0 if it does not."""
    stated = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    with suppress(InvalidHeader):
        return float(Retry().parse_retry_after(stated))
    return 0.0


@contextmanager
def _working_in(folder: Path, source: str, page: str) -> Iterator[None]:
    """Alone in `folder`, the client without its prints and with the time limit that it lacks; faults get their line."""
    send = HTTPAdapter.send

    def limited(adapter: Any, request: Any, stream: Any = False, timeout: Any = None, **rest: Any) -> requests.Response:
        return send(adapter, request, stream, timeout or TIMEOUT_S, **rest)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock, redirect_stdout(io.StringIO()):
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, and then finds the download there
            HTTPAdapter.send = limited  # type: ignore[assignment, method-assign]
            yield
    except requests.RequestException as error:
        raise UserError(f"{source}: {_remedy(error, page)}") from None
    except json.JSONDecodeError:
        raise UserError(f"{source}: the answer is not Kaggle's; look for a proxy or a log-in page") from None
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; free space or permit it") from error
    finally:
        HTTPAdapter.send = send  # type: ignore[method-assign]


def _remedy(error: requests.RequestException, page: str) -> str:
    """The rest of the line for what Kaggle refuses; never the error's own text, which can hold a signed address."""
    status, kept = _status(error), "run again (what is there is kept)"
    lines = {
        0: f"no connection to Kaggle, or it broke off; check the network and {kept}",
        401: f"Kaggle does not accept the credentials (401, wrong or expired); {REMEDY}",
        403: f"Kaggle refuses access (403); open {page} signed in, accept what it asks, and {kept}",
        404: f"Kaggle knows no such data (404); check name and version at {page}",
        429: f"too many requests (429); wait {_retry_after(error) or MAX_WAIT_S:.0f} s and {kept}",
    }
    return lines.get(status, f"Kaggle answers with status {status}; wait a while and {kept}")
