"""Zips fetched from a server on loopback: whole, resumed, unchanged, refused; no secret in any output."""

import io
import json
import os
import re
import ssl
import tarfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from fieldguide.core.errors import UserError
from fieldguide.sources import address, transfer
from support.kaggle_server import HOLD_S, Fault, KaggleServer, packed

pytestmark = pytest.mark.usefixtures("naps")
NAME = "my photos.zip"
PHOTOS = packed({f"train/ADONIS/{n}.jpg": bytes([n]) * 100_000 for n in range(8)})
OTHER = packed({"train/ADONIS/1.jpg": b"other"})
SECRETS = ("secret-password", "secret-signature", "secret-token")
QUERY = "?id=7&token=secret-token&X-Amz-Signature=secret-signature"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KaggleServer]:
    """Serves `PHOTOS` at `place(server)`."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    server = KaggleServer()
    server.files = {"my%20photos.zip": PHOTOS}
    server.md5 = False
    with server.running():
        yield server


def place(server: KaggleServer, query: str = "") -> str:
    return f"{server.endpoint}/store/competition/my%20photos.zip{query}"


def fetched(where: str, cache: Path, max_bytes: int = 10**9) -> transfer.Download:
    return address.fetch(where, max_bytes=max_bytes, cache=cache)


def refused(where: str, cache: Path, max_bytes: int = 10**9) -> str:
    """The one line of the `UserError` after the address, which tells no secret in its traceback either."""
    with pytest.raises(UserError) as raised:
        fetched(where, cache, max_bytes)
    shown = "".join(traceback.format_exception(raised.value))
    assert not any(secret in shown for secret in SECRETS)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def left_over(cache: Path) -> list[str]:
    """The names of the files under `cache`, but for the locks."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


def ranges(server: KaggleServer) -> list[str | None]:
    return [request.headers.get("Range") for request in server.requests]


def test_a_zip_arrives_whole_with_its_version(server, cache):
    got = fetched(place(server), cache)
    assert got.path.read_bytes() == PHOTOS
    assert (got.path.name, got.source) == ("my_photos.zip", place(server))
    assert re.fullmatch("[0-9a-f]{32}", got.version)
    assert left_over(cache) == ["my_photos.zip", "my_photos.zip.json"]


def test_no_secret_is_in_output_record_or_cache(server, cache, capfd, caplog):
    where = place(server, QUERY).replace("//", "//me:secret-password@")
    server.faults = [Fault("my%20photos.zip", cut_after=300_000)]
    got = fetched(where, cache)
    assert got.source == place(server, "?id=7")
    printed = "".join(capfd.readouterr()) + caplog.text
    assert printed.count("contains a password or signature") == 1 and "connection broken" in printed
    kept = "".join(str(p) + p.read_bytes().decode("latin-1") for p in cache.rglob("*") if p.is_file())
    assert not any(secret in printed + kept + str(got) for secret in SECRETS)
    assert server.requests[0].headers["Authorization"].startswith("Basic ")  # the server got it


def test_a_new_signature_finds_the_same_zip(server, cache):
    first = fetched(place(server, "?sig=a"), cache)
    assert fetched(place(server, "?sig=b"), cache) == first
    assert server.requests[1].headers["If-None-Match"] == f'"{first.version}"'


def test_a_zip_that_has_not_changed_is_not_fetched_again(server, cache):
    first = fetched(place(server), cache)
    server.faults = [Fault("my%20photos.zip", cut_after=0)]  # the headers are enough
    assert fetched(place(server), cache) == first
    server.faults = [Fault("my%20photos.zip", status=304, body=b"")]
    assert fetched(place(server), cache) == first
    assert not server.faults


def test_a_zip_that_has_changed_or_is_damaged_is_fetched_again(server, cache):
    first = fetched(place(server), cache)
    first.path.write_bytes(PHOTOS[:-1])
    assert fetched(place(server), cache).path.read_bytes() == PHOTOS
    server.files["my%20photos.zip"] = OTHER
    second = fetched(place(server), cache)
    assert second.path.read_bytes() == OTHER and second.version != first.version


def test_without_validators_it_is_fetched_each_time(server, cache):
    server.validators = False
    assert fetched(place(server), cache).version == ""
    server.files["my%20photos.zip"] = OTHER
    assert fetched(place(server), cache).path.read_bytes() == OTHER


def test_the_date_of_the_last_change_is_the_version_without_an_etag(server, cache):
    server.validators = False
    date = "Wed, 01 Jan 2025 00:00:00 GMT"
    server.faults = [Fault("my%20photos.zip*", headers={"Last-Modified": date})]
    assert fetched(place(server), cache).version == date
    assert fetched(place(server), cache).version == date
    assert server.requests[1].headers["If-Modified-Since"] == date


def test_a_cut_resumes(server, cache, naps):
    server.faults = [Fault("my%20photos.zip", cut_after=300_000)]
    assert fetched(place(server), cache).path.read_bytes() == PHOTOS
    kept = int(ranges(server)[1].removeprefix("bytes=").removesuffix("-"))
    assert 300_000 - transfer.BLOCK_BYTES <= kept <= 300_000 and naps == [2.0]


def test_the_next_run_resumes_too(server, cache):
    server.faults = [Fault("my%20photos.zip", cut_after=300_000), Fault("my%20photos.zip*", cut_after=0)]
    said = "no connection, or it broke or was silent for 60 s; check the network and run again (finished parts are kept)"
    assert refused(place(server, QUERY), cache) == f"data.path: {place(server, '?id=7')}: {said}"
    server.faults, server.requests = [], []
    assert fetched(place(server, QUERY), cache).path.read_bytes() == PHOTOS
    assert len(ranges(server)) == 1 and ranges(server)[0].startswith("bytes=")


def test_a_range_that_is_not_there_starts_afresh(server, cache):
    server.faults = [Fault("my%20photos.zip", cut_after=300_000), Fault("my%20photos.zip", status=416)]
    assert fetched(place(server), cache).path.read_bytes() == PHOTOS
    assert ranges(server)[2] is None


def test_a_host_that_hangs_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.1)
    server.faults = [Fault("my%20photos.zip*", cut_after=100, hold=True)]
    assert HOLD_S > 30 and "was silent" in refused(place(server), cache)


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        (
            {"Content-Type": "text/html; charset=utf-8"},
            b"<html>Log in</html>",
            r"is a web page \(text/html\), perhaps a log-in .*",
        ),
        (
            {},
            b"<!DOCTYPE html><html>",
            r"is neither a zip nor a tar \(it begins with b'<!DOCTYPE html><'\); use the address of one",
        ),
        ({"Content-Type": "application/json"}, b'{"error": 1}', r"is neither a zip nor a tar .*"),
        (
            {"Content-Type": "application/zip"},
            b"Rar!\x1a\x07",
            r"is a RAR archive, which is not read; use the address of a zip or tar",
        ),
    ],
)
def test_what_is_no_zip_never_becomes_data(server, cache, headers, body, said):
    headers = headers | {"Content-Length": str(len(body))}
    server.faults = [Fault("my%20photos.zip*", status=200, headers=headers, body=body)]
    assert re.fullmatch(rf"data\.path: {re.escape(place(server))} {said}", refused(place(server), cache))
    assert left_over(cache) == []


@pytest.mark.parametrize("body", [b"", PHOTOS[:-30], PHOTOS[:1000] + b"?" + PHOTOS[1001:]], ids=["empty", "cut", "flipped"])
def test_a_damaged_zip_is_removed(server, cache, body):
    server.faults = [Fault("my%20photos.zip", headers={"Content-Length": str(len(body))}, body=body)]
    assert "arrived damaged" in refused(place(server), cache)
    assert "my_photos.zip" not in left_over(cache)
    assert fetched(place(server), cache).path.read_bytes() == PHOTOS


def tarred(mode: str) -> bytes:
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            info = tarfile.TarInfo("train/ADONIS/1.jpg")
            info.size = 100_000
            archive.addfile(info, io.BytesIO(os.urandom(100_000)))
        return stream.getvalue()


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w:"])
def test_a_tar_is_fetched_too_and_verified_if_compressed(server, cache, mode):
    whole = tarred(mode)
    server.files["my%20photos.zip"] = (
        whole if mode == "w:" else whole[: len(whole) // 2] + bytes(9) + whole[len(whole) // 2 + 9 :]
    )
    if mode != "w:":
        assert "arrived damaged" in refused(place(server), cache)
        server.files["my%20photos.zip"] = whole
    assert fetched(place(server), cache).path.read_bytes() == whole


@pytest.mark.parametrize("length", ["10", "many"])
def test_a_wrong_length_is_one_line(server, cache, length):
    server.faults = [Fault("my%20photos.zip*", headers={"Content-Length": length, "Connection": "close"}, cut_after=500_000)]
    assert "arrived damaged" in refused(place(server), cache)


def test_more_than_the_bound_is_refused_by_the_declared_size(server, cache):
    said = "0.000801 GB or more, above data.max_gigabytes (0.0008); increase it"
    assert refused(place(server), cache, 800_000) == f"data.path: {place(server)}: {said}"
    assert left_over(cache) == []


def test_more_than_the_bound_is_refused_by_what_arrives(server, cache):
    server.faults = [Fault("my%20photos.zip*", headers={"Content-Encoding": "identity"})]  # so the length says nothing
    assert "above data.max_gigabytes (0.0003)" in refused(place(server), cache, 300_000)
    assert left_over(cache) == []
    assert fetched(place(server), cache, len(PHOTOS)).path.read_bytes() == PHOTOS


@pytest.mark.parametrize(
    ("status", "said", "tries"),
    [
        (401, "a password is needed (401)", 1),
        (403, "access is refused (403), or the signature has expired", 1),
        (404, "not found (404); correct the address", 1),
        (410, "no longer there (410)", 1),
        (418, "the server answers with status 418", 1),
        (429, "too many requests (429)", 5),
        (503, "the server answers with status 503", 5),
    ],
)
def test_refusals_are_one_line(server, cache, capfd, caplog, status, said, tries):
    server.faults = [Fault("my%20photos.zip*", status=status)]
    assert refused(place(server, QUERY), cache).startswith(f"data.path: {place(server, '?id=7')}: {said}")
    assert len(server.requests) == tries and left_over(cache) == []
    assert not any(secret in "".join(capfd.readouterr()) + caplog.text for secret in SECRETS)


def test_redirects_are_followed_but_not_for_ever_or_elsewhere(server, cache):
    server.faults = [Fault("my%20photos.zip", status=302, headers={"Location": "/store/competition/my%20photos.zip?token=t"})]
    assert fetched(place(server), cache).source == place(server)
    server.faults = [Fault("my%20photos.zip*", status=302, headers={"Location": place(server, QUERY)})]
    assert refused(place(server, QUERY), cache).endswith("redirects without end; correct the address")
    for elsewhere in ("file:///etc/passwd", "https://[broken"):
        server.faults = [Fault("my%20photos.zip*", status=302, headers={"Location": elsewhere})]
        assert refused(place(server), cache).endswith("is not a valid address, or redirects to none; correct it")


@pytest.mark.parametrize(
    "where", ["https://", "http://:0x", "http://[::1/a.zip", "https://a b/c.zip", f"http://{'a' * 70}.org/c.zip"]
)
def test_an_address_that_is_none_is_one_line(cache, where):
    assert "correct" in refused(where, cache)


@pytest.mark.parametrize("where", ["ftp://example.org/a.zip", "file:///data/a.zip", "hf://datasets/a"])
def test_other_schemes_are_named(cache, where):
    scheme = where.partition(":")[0]
    said = f"begins with {scheme}://; use https://, http://, s3://, gs://, an archive or a folder"
    assert refused(where, cache) == f"data.path: {where} {said}"
    assert not cache.exists()


def test_no_network_is_one_line(server, cache, monkeypatch):
    assert "no connection" in refused("http://127.0.0.1:9/a.zip", cache)
    assert "no such host" in refused("http://no-such-host.invalid/a.zip?token=secret-token", cache)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert "the proxy does not answer" in refused("http://no-such-host.invalid/a.zip", cache)


def test_a_certificate_that_is_not_trusted_is_one_line(cache, monkeypatch):
    def untrusted(*args: object, **settings: object) -> None:
        raise requests.exceptions.SSLError(ssl.SSLCertVerificationError("secret-token"))

    monkeypatch.setattr(requests, "get", untrusted)
    assert "certificate of the server is not trusted" in refused("https://example.org/a.zip", cache)


def test_a_full_disk_is_one_line(server, cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert refused(place(server), cache).endswith("0.001 GB are needed, 0.000 GB are free; free disk space")
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "_write", full)
    assert refused(place(server), cache).endswith(": No space left on device; free disk space or fix the permissions")


def test_progress_on_a_terminal_only(server, cache, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    fetched(place(server), cache)
    assert "my_photos.zip:" in terminal.getvalue() and "/801k [" in terminal.getvalue()


def test_a_password_may_be_in_netrc(server, cache, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine 127.0.0.1 login me password secret-password\n")
    (tmp_path / "home" / ".netrc").chmod(0o600)
    fetched(place(server), cache)
    assert server.requests[0].headers["Authorization"] == "Basic bWU6c2VjcmV0LXBhc3N3b3Jk"
    assert json.loads(next(cache.rglob("*.json")).read_text())["bytes"] == len(PHOTOS)
