"""Kaggle as a source of raw data: a data set's archive or chosen files of a competition, in a cache whose downloads resume.

The `kaggle` client finds the credentials, builds each request and follows it to the file. It does not save the file, and
neither does `kagglehub`: when a resume is refused (403, 429, 503), both (2.2.4, 1.0.3) write the error page into the file
and the next run continues behind it. Importing the client signs in, so only `_sign_in` imports it.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from fieldguide.core.errors import UserError
from fieldguide.core.files import check_free_space
from fieldguide.sources import transfer
from fieldguide.sources.transfer import (
    MAX_WAIT_S,
    Ask,
    Download,
    download_part,
    install,
    is_complete,
    locked,
    part_of,
    retry_after,
    size_of,
)

PAGE_FILES = 200  # most that Kaggle lists at once
REMEDY = (
    "put a token from https://www.kaggle.com/settings into ~/.kaggle/access_token or KAGGLE_API_TOKEN, "
    "or download the files in a browser and use -S data.path=<archive>"
)


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
        if not is_complete(archive, version):
            client = _persist(_sign_in)
            version = version or _persist(partial(_newest_version, client, *slug.split("/")))
            archive = folder / f"{version or 'newest'}.zip"
            if not is_complete(archive, version):
                ask = _asking(headers, client, client.dataset_download_files, f"{slug}/{version}".rstrip("/"))
                _fetch(archive, version, ask)
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
        missing = [path for path, stated in wanted.items() if not is_complete(folder / path, stated)]
        n_bytes = sum(file.total_bytes for file in listed if file.name in missing)
        check_free_space(folder, n_bytes - sum(size_of(part_of(folder / path)) for path in missing))
        for path in missing:
            ask = _asking(headers, client, client.competition_download_file, name, path)
            _fetch(folder / path, wanted[path], ask)
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


def _asking(headers: dict[str, str], client: Any, download: Callable[..., None], *what: str) -> Ask:
    """A function that returns the response that the client's `download` would save, if it were told that this is needed.

    headers: those that `_working_in` adds to requests for a file.
    """

    def ask(wanted: Mapping[str, str]) -> requests.Response:
        responses: list[requests.Response] = []
        client.download_needed = lambda response, *_: responses.append(response)
        headers.update(wanted)
        try:
            download(*what, path="")
        finally:
            headers.clear()
        return responses[0]

    return ask


def _fetch(target: Path, stated: str, ask: Ask) -> None:
    """Downloads and verifies `target`, then gives it its name and a receipt beside it."""
    part = part_of(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    md5 = _persist(partial(download_part, part, ask), part)
    with part.open("rb") as stream:
        packed = stream.read(4) == b"PK\x03\x04" and target.suffix != ".zip"  # Kaggle packs some single files
    install(part, target, stated, md5, unpack=packed)


def _status(error: requests.RequestException) -> int:
    """The status of Kaggle's refusal; 0 for none, and if the file's own address (a GET) refuses: it has expired."""
    if error.response is None:
        return 0
    status = error.response.status_code
    if status == 200:  # the client raises on the code inside
        status = int(error.response.json()["code"])
    return 0 if error.response.request.method == "GET" and 400 <= status < 500 and status != 429 else status


_persist = partial(transfer.persist, who="Kaggle", status_of=_status)


@contextmanager
def _working_in(folder: Path, source: str, page: str) -> Iterator[dict[str, str]]:
    """Locks `folder`, silences the client and limits its waiting; errors become `UserError`.

    Yields the headers to add to requests for a file, none at first: the client has no parameter for them.
    """
    send, headers = HTTPAdapter.send, dict[str, str]()

    def limited(adapter: Any, request: Any, stream: Any = False, timeout: Any = None, **rest: Any) -> requests.Response:
        request.headers.update(headers if request.method == "GET" else {})
        return send(adapter, request, stream, timeout or transfer.TIMEOUT_S, **rest)

    with locked(folder):
        try:
            with redirect_stdout(io.StringIO()):
                HTTPAdapter.send = limited  # type: ignore[assignment, method-assign]
                yield headers
        except requests.RequestException as error:
            raise UserError(f"{source}: {_remedy(error, page)}") from None
        except json.JSONDecodeError:
            raise UserError(f"{source}: the answer is not Kaggle's; look for a proxy or a log-in page") from None
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
        429: f"too many requests (429); wait {retry_after(error) or MAX_WAIT_S:.0f} s and {kept}",
    }
    return lines.get(status, f"Kaggle answers with status {status}; wait a while and {kept}")
