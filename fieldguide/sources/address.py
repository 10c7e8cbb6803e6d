"""An address in `data.path`: an archive over HTTP, or an archive or folder in a bucket (S3, Google Cloud Storage).

It is copied into the download cache, in which an interrupted copy resumes, and is then treated like a local archive or
folder. An address is printed and recorded without its password and signature.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import requests
from urllib3.exceptions import LocationParseError, NameResolutionError

from fieldguide.core.addresses import has_secrets, identity_of, scheme_of, without_secrets
from fieldguide.core.errors import UserError
from fieldguide.sources import transfer
from fieldguide.sources.bucket import copy_from_bucket
from fieldguide.sources.transfer import (
    Download,
    check_archive,
    check_bound,
    download_part,
    file_name,
    install,
    is_complete,
    locked,
    part_of,
    persist,
    read_note,
    status_of,
)

SCHEMES = ("https", "http", "s3", "gs")
WEB_PAGES = ("text/html", "application/xhtml+xml")
KEPT = "run again (finished parts are kept)"
CONNECT_TIMEOUT_S = 20.0


class _Unchanged(Exception):
    """The server has the content that is in the cache."""


def fetch(address: str, *, max_bytes: int, cache: Path) -> Download:
    """The archive or folder at `address`, in `cache`; what is there and unchanged is not copied again.

    Raises `UserError` for a scheme that is not supported, a fault of address, server, network, disk or content, and for more
    than `max_bytes`.
    """
    scheme, source = scheme_of(address), without_secrets(address)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"data.path: {source} begins with {scheme}://; use {known}, an archive or a folder")
    if has_secrets(address):
        print(
            f"data.path: the address of {source} contains a password or signature; DVC writes it to dvc.lock, so do not"
            " commit it to git (a password can be in ~/.netrc instead)"
        )
    folder = cache / "addresses" / hashlib.sha256(identity_of(address).encode()).hexdigest()[:16]
    with locked(folder):
        if scheme in ("https", "http"):
            path, version = _archive_over_http(address, folder, max_bytes)
        else:
            path, version = copy_from_bucket(address, folder, max_bytes)
    return Download(path, source, version)


def _archive_over_http(address: str, folder: Path, max_bytes: int) -> tuple[Path, str]:
    """The archive at `address` and its version: ETag, else the date of its last change, else ""."""
    source = without_secrets(address)
    target = folder / "archive" / file_name(unquote(PurePosixPath(source.partition("?")[0]).name))
    part, stated = part_of(target), str(read_note(Path(f"{target}.json")).get("stated", ""))
    known = stated if is_complete(target, stated) else ""
    versions: list[str] = []
    target.parent.mkdir(exist_ok=True)

    def ask(wanted: Mapping[str, str]) -> requests.Response:
        response = _ask(address, {"Accept-Encoding": "identity", **_unless(known), **wanted})
        version = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
        if response.status_code == requests.codes.not_modified or (known and version == known):
            response.close()
            raise _Unchanged
        try:
            response.raise_for_status()
            _check_answer(response, source, max_bytes)
        except (requests.HTTPError, UserError):
            response.close()
            raise
        versions.append(version)
        return response

    def check(block: bytes, n_before: int) -> None:
        if not n_before:
            check_archive(block, source)
        check_bound(n_before + len(block), source, max_bytes)

    try:
        md5 = persist(partial(download_part, part, ask, check), part, "data.path", _status)
        install(part, target, versions[-1], md5, whole=True)
    except _Unchanged:
        return target, known.removeprefix("W/").strip('"')
    except requests.RequestException as error:
        raise UserError(f"data.path: {source}: {_remedy(error)}") from None
    return target, versions[-1].removeprefix("W/").strip('"')


def _unless(known: str) -> dict[str, str]:
    """The header that asks for nothing if the content is still `known`."""
    return {} if not known else {"If-None-Match" if known.startswith(('"', "W/")) else "If-Modified-Since": known}


def _ask(address: str, headers: Mapping[str, str]) -> requests.Response:
    """The answer to a GET, of any status; raises `UserError` for faults that asking again does not mend.

    `requests` takes proxies and, from ~/.netrc, passwords from the user's settings.
    """
    source = without_secrets(address)
    timeouts = (min(transfer.TIMEOUT_S, CONNECT_TIMEOUT_S), transfer.TIMEOUT_S)
    try:
        return requests.get(address, headers=dict(headers), stream=True, timeout=timeouts)
    except requests.TooManyRedirects:
        raise UserError(f"data.path: {source} redirects without end; correct the address") from None
    except requests.exceptions.SSLError:
        raise UserError(
            f"data.path: {source}: the certificate of the server is not trusted; correct the address, or name the file of your"
            " certificate authority in REQUESTS_CA_BUNDLE"
        ) from None
    except requests.exceptions.ProxyError:
        raise UserError(f"data.path: {source}: the proxy does not answer; correct HTTP_PROXY and HTTPS_PROXY") from None
    except requests.ConnectionError as error:
        if isinstance(getattr(error.args[0] if error.args else None, "reason", None), NameResolutionError):
            raise UserError(f"data.path: {source}: no such host; correct the address or check the network") from None
        raise
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationParseError, UnicodeError, ValueError):
        raise UserError(f"data.path: {source} is not a valid address, or redirects to none; correct it") from None


def _check_answer(response: requests.Response, source: str, max_bytes: int) -> None:
    """Raises `UserError` for a web page and for a declared size above the bound."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in WEB_PAGES:
        raise UserError(
            f"data.path: {source} is a web page ({kind}), perhaps a log-in or error page, not an archive; open it in a browser"
            " and use the address of the file itself"
        )
    length = response.headers.get("Content-Range", response.headers.get("Content-Length", "")).rpartition("/")[2]
    if length.isdecimal():
        check_bound(int(length), source, max_bytes)


def _status(error: requests.RequestException) -> int:
    """The status of a refusal; 0 for none and for a range that is not there, after which all is asked for again."""
    status = status_of(error)
    return 0 if status == requests.codes.requested_range_not_satisfiable else status


def _remedy(error: requests.RequestException) -> str:
    """The rest of the line for what a server refuses; never the error's own text, which can hold a signed address."""
    status = status_of(error)
    lines = {
        0: f"no connection, or it broke or was silent for {transfer.TIMEOUT_S:.0f} s; check the network and {KEPT}",
        401: "a password is needed (401); write it to ~/.netrc, or download the file and use its path",
        403: "access is refused (403), or the signature has expired; renew it, or download the file and use its path",
        404: "not found (404); correct the address",
        410: "no longer there (410); correct the address",
        429: f"too many requests (429); wait a while and {KEPT}",
    }
    return lines.get(status, f"the server answers with status {status}; wait a while and {KEPT}")
