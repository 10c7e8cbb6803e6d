"""Kaggle as a source of raw data: a data set's archive or chosen files of a competition, in a cache whose downloads resume.

The `kaggle` client finds the credentials, builds each request and follows it to the file. It does not save the file, and
neither does `kagglehub`: when a resume is refused (403, 429, 503), both (2.2.4, 1.0.3) write the error page into the file
and the next run continues behind it. Importing the client signs in, so only `_sign_in` imports it.
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
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from fieldguide.core.errors import UserError
from fieldguide.core.files import CHUNK_BYTES, atomic_path, check_free_space, file_hash, write_json

TIMEOUT_S = 60.0  # without a byte from the server; the client has no limit of its own
MAX_TRIES = 5  # in a row that brought nothing
MAX_WAIT_S = 600.0  # in all, for one answer or one file
PAGE_FILES = 200  # most that Kaggle lists at once
BLOCK_BYTES = 1 << 16  # most that a broken connection loses
REMEDY = (
    "put a token from https://www.kaggle.com/settings into ~/.kaggle/access_token or KAGGLE_API_TOKEN, "
    "or download the files in a browser and use -S data.path=<archive>"
)

logger = logging.getLogger(__name__)


class Download(NamedTuple):
    path: Path  # a zip, a folder or one shard
    source: str  # "kaggle:gpiosenka/butterfly-images40-species"
    version: str  # number of the data set's version; "" if Kaggle gives none, as for competitions
    files: frozenset[str] = frozenset()  # those that were asked for, if the folder may hold others


def download_dataset(slug: str, *, version: str, cache: Path) -> Download:
    """The archive of the data set `slug` ("owner/name") at `version` (a number as text; "" = the newest one).

    One `cache` serves all downloads. An archive that is complete there is not downloaded again; with a `version`, Kaggle
    is not asked. Raises `UserError`.
    """
    if version and not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise UserError(f"kaggle:{slug}: version must be a number such as 2, or empty for the newest, got {version!r}")
    folder, page = cache / "datasets" / slug, f"https://www.kaggle.com/datasets/{slug}"
    with _working_in(folder, f"kaggle:{slug}/{version}".rstrip("/"), page) as headers:
        archive = folder / f"{version}.zip"
        if not _is_complete(archive, version):
            client = _persist(_sign_in)
            version = version or _persist(partial(_newest_version, client, *slug.split("/")))
            archive = folder / f"{version or 'newest'}.zip"
            if not _is_complete(archive, version):
                ask = partial(_opened, client, client.dataset_download_files, f"{slug}/{version}".rstrip("/"))
                _fetch(archive, version, ask, headers)
    return Download(archive, f"kaggle:{slug}", version)


def download_competition(name: str, *, keep: Callable[[str], bool], cache: Path) -> Download:
    """The files of the competition `name` whose path `keep` accepts, downloaded one by one.

    Kaggle is asked for its list each time. A file is downloaded again only if its entry has changed. Raises `UserError`.
    """
    folder, page = cache / "competitions" / name, f"https://www.kaggle.com/competitions/{name}/rules"
    with _working_in(folder, f"kaggle:{name}", page) as headers:
        client = _persist(_sign_in)
        listed = sorted(_listed(client, name), key=lambda file: str(file.name))
        wanted = {file.name: f"{file.total_bytes} bytes of {file.creation_date}" for file in listed if keep(file.name)}
        if not wanted:
            raise UserError(f"kaggle:{name}: none of its {len(listed)} files is wanted; see what it has at {page}")
        if unsafe := [path for path in wanted if not (folder / path).resolve().is_relative_to(folder.resolve())]:
            raise UserError(f"kaggle:{name}: lists {unsafe[0]!r}, outside its folder; do not use it")
        missing = [path for path, stated in wanted.items() if not _is_complete(folder / path, stated)]
        n_bytes = sum(file.total_bytes for file in listed if file.name in missing)
        check_free_space(folder, n_bytes - sum(_size(Path(f"{folder / path}.part")) for path in missing))
        for path in missing:
            ask = partial(_opened, client, client.competition_download_file, name, path)
            _fetch(folder / path, wanted[path], ask, headers)
    return Download(folder, f"kaggle:{name}", "", frozenset(wanted))


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
    except SystemExit:  # the same for a token that Kaggle does not know as for none
        _, place = get_access_token_from_env()
        reason = f"Kaggle does not accept the token in {place}" if place else "no Kaggle account is set up"
        raise UserError(f"kaggle: {reason}; {REMEDY}") from None
    return client


def _newest_version(client: Any, owner: str, name: str) -> str:
    """The number of a data set's newest version, as text; "" if Kaggle gives none."""
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
    """The response that the client's `download` would save, if it were not told that this is not needed."""
    responses: list[requests.Response] = []
    client.download_needed = lambda response, *_: responses.append(response)
    download(*what, path="")
    return responses[0]


def _fetch(target: Path, stated: str, ask: Callable[[], requests.Response], headers: dict[str, str]) -> None:
    """Downloads and verifies `target`, then gives it its name and a receipt beside it."""
    part = Path(f"{target}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    md5 = _persist(partial(_transfer, part, ask, headers), part)
    with part.open("rb") as stream:
        packed = stream.read(4) == b"PK\x03\x04" and target.suffix != ".zip"  # Kaggle packs some single files
    try:
        if md5 and file_hash(part, "md5") != md5:
            raise zipfile.BadZipFile("not the md5 that the server states")
        with atomic_path(target) as temporary:
            if packed or target.suffix == ".zip":
                with zipfile.ZipFile(part) as archive, temporary.open("wb") as out:
                    if damaged := archive.testzip():
                        raise zipfile.BadZipFile(f"{damaged}: wrong checksum")
                    if packed:
                        (member,) = archive.infolist()
                        shutil.copyfileobj(archive.open(member), out, CHUNK_BYTES)
            if not packed:
                part.replace(temporary)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        part.unlink()
        raise UserError(f"{target}: arrived damaged ({error}) and was removed; run again") from error
    write_json(Path(f"{target}.json"), {"stated": stated, "bytes": _size(target)})
    part.unlink(missing_ok=True)
    Path(f"{part}.json").unlink(missing_ok=True)


def _transfer(part: Path, ask: Callable[[], requests.Response], headers: dict[str, str]) -> str:
    """Completes `part`; returns the md5 that the server states, or "". Raises if the connection breaks.

    Bytes of an earlier try are kept only if the note beside them proves that they are of the same content.
    """
    note, start = Path(f"{part}.json"), max(_size(part) - 1, 0)  # the last byte again: a complete file has no other range
    known = _read(note)
    if start and known.get("validator"):
        headers |= {"Range": f"bytes={start}-", "If-Range": known["validator"], "Accept-Encoding": "identity"}
    try:
        response = ask()
    except requests.HTTPError as error:
        if error.response.status_code == requests.codes.requested_range_not_satisfiable:
            note.unlink(missing_ok=True)  # shorter than what is there: other content
        raise
    finally:
        headers.clear()
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
        _write(response, part, start, known["bytes"])
    if known["bytes"] and _size(part) != known["bytes"]:
        raise requests.ConnectionError("ended early")
    return str(known["md5"])


def _content(response: requests.Response) -> dict[str, Any]:
    """What identifies the content: a strong ETag or the date, its size (0 if compressed on the way) and its md5, or ""."""
    headers, etag = response.headers, response.headers.get("ETag", "W/")
    plain = "Content-Encoding" not in headers
    md5 = re.search(r"md5=([\w+/]+=*)", headers.get("x-goog-hash", ""))
    return {
        "validator": headers.get("Last-Modified", "") if etag.startswith("W/") else etag,
        "bytes": int(headers.get("Content-Length", 0)) if plain else 0,
        "md5": base64.b64decode(md5[1]).hex() if md5 and plain else "",
    }


def _write(response: requests.Response, part: Path, start: int, length: int) -> None:
    """Writes the body to `part` from byte `start` on."""
    progress = {"total": length or None, "initial": start, "unit": "B", "unit_scale": True}
    with part.open("r+b" if start else "wb") as out, tqdm(desc=part.stem, leave=False, disable=None, **progress) as bar:
        out.seek(start)
        for block in response.iter_content(BLOCK_BYTES):
            out.write(block)
            bar.update(len(block))


def _is_complete(target: Path, stated: str) -> bool:
    """Whether the receipt of `target` fits its size and what Kaggle states; the content is not read."""
    receipt = _read(Path(f"{target}.json"))
    return bool(stated) and target.is_file() and (receipt.get("stated"), receipt.get("bytes")) == (stated, _size(target))


def _read(note: Path) -> dict[str, Any]:
    """The JSON object in `note`; empty if there is none."""
    with suppress(OSError, ValueError):
        content = json.loads(note.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _persist(attempt: Callable[[], Any], part: Path | None = None) -> Any:
    """What `attempt` returns; repeated as Kaggle asks (429) and, if it adds to `part`, after a broken connection."""
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
            logger.warning("Kaggle: %s; trying again in %.0f s", f"status {status}" if status else "connection broken", pause)
        sleep(pause)


def _status(error: requests.RequestException) -> int:
    """The status of Kaggle's refusal; 0 for none, and if the file's own address (a GET) refuses: it has expired."""
    if error.response is None:
        return 0
    status = error.response.status_code
    if status == 200:  # the client raises on the code inside
        status = int(error.response.json()["code"])
    return 0 if error.response.request.method == "GET" and 400 <= status < 500 and status != 429 else status


def _retry_after(error: requests.RequestException) -> float:
    """Seconds that the server asks to wait, stated in seconds or as a date; 0 if it does not."""
    stated = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    with suppress(InvalidHeader):
        return float(Retry().parse_retry_after(stated))
    return 0.0


@contextmanager
def _working_in(folder: Path, source: str, page: str) -> Iterator[dict[str, str]]:
    """Locks `folder`, silences the client and limits its waiting; errors become `UserError`.

    Yields the headers to add to requests for a file, none at first: the client has no parameter for them.
    """
    send, headers = HTTPAdapter.send, dict[str, str]()

    def limited(adapter: Any, request: Any, stream: Any = False, timeout: Any = None, **rest: Any) -> requests.Response:
        request.headers.update(headers if request.method == "GET" else {})
        return send(adapter, request, stream, timeout or TIMEOUT_S, **rest)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock, redirect_stdout(io.StringIO()):
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, and then finds the download there
            HTTPAdapter.send = limited  # type: ignore[assignment, method-assign]
            yield headers
    except requests.RequestException as error:
        raise UserError(f"{source}: {_remedy(error, page)}") from None
    except json.JSONDecodeError:
        raise UserError(f"{source}: the answer is not Kaggle's; look for a proxy or a log-in page") from None
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; free disk space or fix the permissions") from error
    finally:
        HTTPAdapter.send = send  # type: ignore[method-assign]


def _remedy(error: requests.RequestException, page: str) -> str:
    """The rest of the line for what Kaggle refuses; never the error's own text, which can hold a signed address."""
    status, kept = _status(error), "run again (finished parts are kept)"
    lines = {
        0: f"no connection to Kaggle, or it broke; check the network and {kept}",
        401: f"Kaggle does not accept the credentials (401, wrong or expired); {REMEDY}",
        403: f"Kaggle refuses access (403); open {page} signed in, accept the terms, and {kept}",
        404: f"Kaggle has no such data (404); check name and version at {page}",
        429: f"too many requests (429); wait {_retry_after(error) or MAX_WAIT_S:.0f} s and {kept}",
    }
    return lines.get(status, f"Kaggle answers with status {status}; wait a while and {kept}")
