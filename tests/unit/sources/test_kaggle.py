"""Downloads from a Kaggle on loopback, through the unmodified `kaggle` client: whole, resumed, refused, killed."""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests.adapters

from fieldguide.core.errors import UserError
from fieldguide.sources import kaggle, transfer
from support import ROOT
from support.kaggle_server import GOOD_TOKEN, HOLD_S, Fault, KaggleServer, packed

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("naps")]

SLUG = "gpiosenka/butterfly-images40-species"
IMAGES = {f"train/ADONIS/{n}.jpg": random.Random(n).randbytes(100_000) for n in range(8)}
OLD, NEW = packed({"train/ADONIS/1.jpg": b"old"}), packed(IMAGES)
SHARDS = {
    f"tfrecords-jpeg-{px}x{px}/{split}/{n:02}-{px}x{px}-3.tfrec": random.Random(px + n).randbytes(1000 + px)
    for px in (192, 512)
    for split in ("train", "val", "test")
    for n in range(2)
}
FLOWERS = {"sample_submission.csv": b"id,label\n252d840db,0\n", **SHARDS}
SHARD = min(SHARDS)


@pytest.fixture(scope="module", autouse=True)
def fresh_client() -> Iterator[None]:
    """The client reads its environment when it is imported: these tests get their own copy and leave none behind."""

    send = requests.adapters.HTTPAdapter.send

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in ("kaggle", "kagglesdk")]:
            del sys.modules[name]

    forget()
    yield
    forget()
    assert requests.adapters.HTTPAdapter.send is send


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    for name in [name for name in os.environ if name.startswith("KAGGLE_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home/config"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", GOOD_TOKEN)
    from kagglesdk import kaggle_env

    server = KaggleServer()
    server.archives = {(SLUG, 1): OLD, (SLUG, 2): NEW}
    server.files = dict(FLOWERS)
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, server.endpoint)
    with server.running():
        yield server


def left_over(cache: Path) -> list[str]:
    """The files under `cache`, but for the locks."""
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


def refused(download: Callable[[], object]) -> str:
    """The one line of the `UserError`, which tells no secret in its traceback either."""
    with pytest.raises(UserError) as raised:
        download()
    shown = "".join(traceback.format_exception(raised.value))
    assert GOOD_TOKEN not in shown and "signed-secret" not in shown
    return str(raised.value)


# A data set


@pytest.mark.parametrize("redirects", [True, False])
def test_newest_version_arrives_whole(server, cache, capfd, redirects):
    server.redirects = redirects
    got = kaggle.download_dataset(SLUG, version="", cache=cache)
    assert got.path.read_bytes() == NEW and zipfile.is_zipfile(got.path)
    assert (got.source, got.version) == (f"kaggle:{SLUG}", "2")
    assert json.loads(Path(f"{got.path}.json").read_text()) == {"stated": "2", "bytes": len(NEW)}
    assert left_over(cache) == [f"datasets/{SLUG}/2.zip", f"datasets/{SLUG}/2.zip.json"]
    assert capfd.readouterr() == ("", "")
    assert [r.body["datasetVersionNumber"] for r in server.calls("DownloadDataset")] == [2]
    assert all("Authorization" not in r.headers for r in server.requests if r.method == "GET")


def test_pinned_version(server, cache):
    got = kaggle.download_dataset(SLUG, version="1", cache=cache)
    assert got.path.read_bytes() == OLD and got.version == "1"
    assert not server.calls("GetDataset")


def test_version_that_kaggle_does_not_tell(server, cache):
    server.tells_version = False
    got = kaggle.download_dataset(SLUG, version="", cache=cache)
    assert got.path.read_bytes() == NEW and got.version == ""
    server.archives[SLUG, 2] = OLD  # nothing tells that the file at hand is still the newest: it is fetched again
    assert kaggle.download_dataset(SLUG, version="", cache=cache).path.read_bytes() == OLD


def test_what_is_there_is_not_fetched_again(server, cache, monkeypatch):
    first = kaggle.download_dataset(SLUG, version="", cache=cache)
    server.requests.clear()
    assert kaggle.download_dataset(SLUG, version="", cache=cache) == first
    assert [r.call for r in server.requests if r.call != "IntrospectToken"] == ["GetDataset"]
    server.requests.clear()
    monkeypatch.delenv("KAGGLE_API_TOKEN")  # a pinned version that is there needs no account
    assert kaggle.download_dataset(SLUG, version="2", cache=cache) == first
    assert not server.requests


def test_newer_version_and_damaged_cache_are_fetched(server, cache):
    first = kaggle.download_dataset(SLUG, version="", cache=cache)
    server.archives[SLUG, 3] = OLD
    assert kaggle.download_dataset(SLUG, version="", cache=cache).path.read_bytes() == OLD
    first.path.write_bytes(NEW[:-1])
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    for damaged in ("{", "[]", "{}"):
        Path(f"{first.path}.json").write_text(damaged)
        assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert len(server.calls("DownloadDataset")) == 6


@pytest.mark.parametrize("version", ["0", "latest", "1.5", "-1", "../1"])
def test_version_is_a_number(cache, version):
    assert f"got {version!r}" in refused(lambda: kaggle.download_dataset(SLUG, version=version, cache=cache))
    assert not cache.exists()


def test_progress_on_a_terminal_only(server, cache, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    kaggle.download_dataset(SLUG, version="2", cache=cache)
    assert "2.zip:" in terminal.getvalue() and "/801k [" in terminal.getvalue()


def test_compressed_on_the_way(server, cache):
    body = gzip.compress(NEW)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
    server.faults = [Fault("archive.zip*", headers=headers, body=body)]
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW


# Cuts


def ranges(server: KaggleServer) -> list[str | None]:
    """The Range of each request for the file itself."""
    return [request.headers.get("Range") for request in server.calls("archive.zip")]


def test_cut_resumes_with_the_rest(server, cache, naps, caplog):
    server.faults = [Fault("archive.zip", cut_after=300_000)]
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert server.calls("archive.zip")[-1].headers["If-Range"] == f'"{hashlib.md5(NEW).hexdigest()}"'
    kept = int(ranges(server)[-1].removeprefix("bytes=").removesuffix("-"))
    assert 300_000 - transfer.BLOCK_BYTES <= kept <= 300_000
    assert ranges(server) == [None, f"bytes={kept}-"] and naps == [2.0]
    assert "connection broken" in caplog.text and "signed-secret" not in caplog.text


def test_as_many_cuts_as_bring_something(server, cache):
    server.faults = [Fault("archive.zip*", cut_after=100_000)]
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert len(server.calls("DownloadDataset")) > transfer.MAX_TRIES


def cut_for_good(server: KaggleServer, cache: Path) -> int:
    """Bytes that a first call, which gives up, leaves in the cache."""
    server.faults = [Fault("archive.zip", cut_after=300_000), Fault("archive.zip*", cut_after=0)]
    assert "no connection" in refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))
    assert left_over(cache) == [f"datasets/{SLUG}/2.zip.part", f"datasets/{SLUG}/2.zip.part.json"]
    server.faults.clear()
    server.requests.clear()
    return (cache / f"datasets/{SLUG}/2.zip.part").stat().st_size


def test_next_call_resumes(server, cache, naps):
    kept = cut_for_good(server, cache)
    assert len(naps) == transfer.MAX_TRIES - 1
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert ranges(server) == [f"bytes={kept - 1}-"]
    assert left_over(cache) == [f"datasets/{SLUG}/2.zip", f"datasets/{SLUG}/2.zip.json"]


@pytest.mark.parametrize("if_range", [True, False])
def test_changed_content_starts_afresh(server, cache, if_range):
    cut_for_good(server, cache)
    server.archives[SLUG, 2] = packed({name: content[::-1] for name, content in IMAGES.items()})
    assert len(server.archives[SLUG, 2]) == len(NEW)
    server.if_range = if_range
    got = kaggle.download_dataset(SLUG, version="2", cache=cache)
    assert got.path.read_bytes() == server.archives[SLUG, 2]
    assert len(ranges(server)) == 1 if if_range else ranges(server)[1:] == [None]


def test_range_that_is_not_there_starts_afresh(server, cache):
    cut_for_good(server, cache)
    server.faults = [Fault("archive.zip", status=416)]
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert ranges(server)[1:] == [None]


def test_complete_part_needs_one_byte(server, cache, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer, "atomic_path", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        kaggle.download_dataset(SLUG, version="2", cache=cache)
    server.requests.clear()
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert ranges(server) == [f"bytes={len(NEW) - 1}-"]


@pytest.mark.parametrize("lacks", ["ranges", "validators"])
def test_what_cannot_be_resumed_safely_starts_afresh(server, cache, lacks):
    setattr(server, lacks, False)
    server.faults = [Fault("archive.zip", cut_after=300_000)]
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert len(server.calls("DownloadDataset")) == 2


def test_rest_that_is_shorter_than_said(server, cache):
    short = Fault("archive.zip", headers={"Content-Length": "10"}, cut_after=10)
    server.faults = [Fault("archive.zip", cut_after=300_000), short]
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert len(server.calls("DownloadDataset")) == 3


@pytest.mark.parametrize(
    "refusal",
    [
        Fault("archive.zip", status=403, body=b"<Error>expired</Error>"),
        Fault("archive.zip", status=503, body=b"busy"),
        Fault("archive.zip", status=429, headers={"Retry-After": "3"}),
        Fault("archive.zip", headers={"Content-Range": f"bytes 0-{len(NEW) - 1}/{len(NEW)}"}),
    ],
    ids=["expired", "busy", "too many", "wrong range"],
)
def test_refused_resume_keeps_the_bytes(server, cache, refusal):
    server.faults = [Fault("archive.zip", cut_after=300_000), refusal]
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert ranges(server)[1] == ranges(server)[2] is not None


def test_silent_server_is_a_cut(server, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.2)
    server.faults = [Fault("archive.zip", cut_after=300_000, hold=True)]
    start_s = time.monotonic()
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert len(ranges(server)) == 2 and time.monotonic() - start_s < HOLD_S


DRIVER = """
import sys
from pathlib import Path
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.LOCAL] = sys.argv[1]
from fieldguide.sources import kaggle, transfer
from fieldguide.core.errors import UserError
try:
    print(kaggle.download_dataset(sys.argv[3], version=sys.argv[4], cache=Path(sys.argv[2])).path.name)
except UserError as error:
    sys.exit(f"error: {error}")
"""


def start(server: KaggleServer, cache: Path, version: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", DRIVER, server.endpoint, str(cache), SLUG, version]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_killed_in_the_middle(server, cache):
    server.faults = [Fault("archive.zip", cut_after=400_000, hold=True)]
    part = cache / f"datasets/{SLUG}/2.zip.part"
    with start(server, cache, "2") as process:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size >= 300_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = part.stat().st_size
    assert 300_000 <= kept < len(NEW) and left_over(cache) == [f"datasets/{SLUG}/2.zip.part{s}" for s in ("", ".json")]
    server.requests.clear()
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW
    assert ranges(server) == [f"bytes={kept - 1}-"]


def test_two_processes_download_once(server, cache):
    with start(server, cache, "") as first, start(server, cache, "") as second:
        assert [first.communicate(timeout=20), second.communicate(timeout=20)] == [("2.zip\n", "")] * 2
    assert len(server.calls("DownloadDataset")) == 1


# Refusals


def test_too_many_requests_waits_as_told(server, cache, naps, caplog):
    server.faults = [
        Fault("IntrospectToken", status=429, headers={"Retry-After": "0"}),  # answers the import, which hides it
        Fault("GetDataset", status=429, headers={"Retry-After": "7"}),
        Fault("DownloadDataset", status=429, headers={"Retry-After": format_datetime(soon(30), usegmt=True)}),
        Fault("DownloadDataset", status=429),
    ]
    assert kaggle.download_dataset(SLUG, version="", cache=cache).path.read_bytes() == NEW
    told = [nap for nap in naps if nap != 2.0]
    assert told[0] == 7.0 and 25 < told[1] <= 30 and told[2:] == [4.0]
    assert "429" in caplog.text and GOOD_TOKEN not in caplog.text


def soon(seconds: int) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("retry_after", "waits", "told"),
    [("5", [5.0] * 4, 5), ("400", [400.0], 400), ("4000", [], 4000), ("soon", [2.0, 4.0, 8.0, 16.0], 600)],
)
def test_too_many_requests_is_bounded(server, cache, naps, retry_after, waits, told):
    server.faults = [Fault("DownloadDataset*", status=429, headers={"Retry-After": retry_after})]
    line = refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))
    assert f"{SLUG}/2: too many requests (429); wait {told} s" in line and naps == waits


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "https://www.kaggle.com/settings"),
        (403, f"open https://www.kaggle.com/datasets/{SLUG} signed in"),
        (404, f"check name and version at https://www.kaggle.com/datasets/{SLUG}"),
        (500, "status 500"),
    ],
)
@pytest.mark.parametrize("call", ["GetDataset", "DownloadDataset"])
def test_refusals(server, cache, capfd, caplog, naps, status, told, call):
    server.faults = [Fault(f"{call}*", status=status)]
    line = refused(lambda: kaggle.download_dataset(SLUG, version="", cache=cache))
    assert line.startswith(f"kaggle:{SLUG}") and str(status) in line and told in line
    assert capfd.readouterr().out == "" and GOOD_TOKEN not in caplog.text
    assert left_over(cache) == [] and (status == 500 or not naps)


def test_error_code_inside_an_answer(server, cache):
    body = b'{"code": 403, "message": "no"}'
    server.faults = [Fault("GetDataset", status=200, headers={"Content-Type": "application/json"}, body=body)]
    assert "refuses access (403)" in refused(lambda: kaggle.download_dataset(SLUG, version="", cache=cache))


def test_unknown_version(server, cache):
    line = refused(lambda: kaggle.download_dataset(SLUG, version="99", cache=cache))
    assert line.startswith(f"kaggle:{SLUG}/99: Kaggle has no such data (404)")


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (None, "no Kaggle account is set up"),
        ("KGAT_wrong", "does not accept the token in KAGGLE_API_TOKEN"),
        ("KGAT_line\n", "cannot be read or sent"),
        ("KGAT_" + "x" * 5000, "cannot be read or sent"),
        ("KGAT_\u2026", "cannot be read or sent"),
    ],
    ids=["none", "wrong", "line break", "too long", "not latin"],
)
def test_credentials_of_no_use(server, cache, monkeypatch, capfd, token, told):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    if token:
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    with pytest.raises(UserError, match=told) as raised:
        kaggle.download_dataset(SLUG, version="2", cache=cache)
    line, shown = str(raised.value), "".join(traceback.format_exception(raised.value))
    for remedy in ("https://www.kaggle.com/settings", "~/.kaggle/access_token", "KAGGLE_API_TOKEN", "-S data.path="):
        assert remedy in line
    assert not token or token.strip() not in shown + "".join(capfd.readouterr())
    assert capfd.readouterr() == ("", "")


def test_token_file_and_legacy_key(server, cache, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    token = tmp_path / "home/.kaggle/access_token"
    token.parent.mkdir(parents=True)
    token.write_text(f"{GOOD_TOKEN}\n")
    kaggle.download_dataset(SLUG, version="1", cache=cache)
    token.unlink()
    monkeypatch.setenv("KAGGLE_USERNAME", "keeper")
    monkeypatch.setenv("KAGGLE_KEY", "good")
    kaggle.download_dataset(SLUG, version="2", cache=cache)
    monkeypatch.setenv("KAGGLE_KEY", "bad")
    assert "credentials (401" in refused(lambda: kaggle.download_dataset(SLUG, version="", cache=cache))


def test_token_refused_with_401(server, cache):
    server.faults = [Fault("IntrospectToken*", status=401)]
    assert "credentials (401" in refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))


def test_no_network(server, cache, monkeypatch, naps):
    from kagglesdk import kaggle_env

    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, "http://127.0.0.1:9")
    line = refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))
    assert line.startswith(f"kaggle:{SLUG}/2: no connection to Kaggle, or it broke; check") and not naps


def test_silent_api_is_no_network(server, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.2)
    server.faults = [Fault("GetDataset", status=200, cut_after=0, hold=True)]
    start_s = time.monotonic()
    assert "no connection" in refused(lambda: kaggle.download_dataset(SLUG, version="", cache=cache))
    assert time.monotonic() - start_s < HOLD_S


def test_page_of_a_proxy(server, cache):
    page = Fault("GetDataset", status=200, headers={"Content-Type": "text/html"}, body=b"<html>Log in</html>")
    server.faults = [page]
    assert "not Kaggle's; look for a proxy" in refused(lambda: kaggle.download_dataset(SLUG, version="", cache=cache))


def test_disk_too_small(server, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(NEW) - 1))
    line = refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))
    assert line == f"{cache}/datasets/{SLUG}: 0.001 GB are needed, 0.001 GB are free; free disk space"
    assert left_over(cache) == [f"datasets/{SLUG}/2.zip.part.json"]
    kaggle.download_dataset(SLUG, version="1", cache=cache)


def test_disk_that_fills_up_or_refuses(server, cache, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "2.zip.part")

    monkeypatch.setattr(transfer, "_write", full)
    line = refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))
    assert line == "2.zip.part: No space left on device; free disk space or fix the permissions"
    (cache / "file").write_text("")
    line = refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache / "file"))
    assert "Not a directory" in line


@pytest.mark.parametrize("md5", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "cut off", "no zip"])
def test_damaged_archive_is_removed(server, cache, damage, md5):
    server.md5 = md5
    position = NEW.index(IMAGES["train/ADONIS/3.jpg"]) + 5
    flipped = NEW[:position] + bytes([NEW[position] ^ 1]) + NEW[position + 1 :]
    server.archives[SLUG, 2] = {"flipped": flipped, "cut off": NEW[:-100], "no zip": b"<html>"}[damage]
    line = refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))
    assert "arrived damaged" in line and "run again" in line
    assert left_over(cache) == [f"datasets/{SLUG}/2.zip.part.json"]
    server.archives[SLUG, 2] = NEW
    assert kaggle.download_dataset(SLUG, version="2", cache=cache).path.read_bytes() == NEW


def test_content_other_than_its_stated_hash(server, cache):
    server.faults = [Fault("archive.zip", headers={"x-goog-hash": "crc32c=AAAA, md5=1B2M2Y8AsgTpgAmY7PhCfg=="})]
    line = refused(lambda: kaggle.download_dataset(SLUG, version="2", cache=cache))
    assert "not the md5 that the server states" in line


# A competition


def download_flowers(cache: Path, px: int) -> transfer.Download:
    folder = f"tfrecords-jpeg-{px}x{px}/"
    return kaggle.download_competition("tpu-getting-started", keep=lambda path: path.startswith(folder), cache=cache)


def test_only_the_resolution_wanted(server, cache, capfd):
    got = download_flowers(cache, 192)
    wanted = {path: content for path, content in SHARDS.items() if "512" not in path}
    assert {path: (got.path / path).read_bytes() for path in got.files} == wanted
    assert (got.source, got.version) == ("kaggle:tpu-getting-started", "")
    pages = server.calls("ListDataFiles")
    assert [page.body.get("pageToken", "") for page in pages] == ["", "3", "6", "9", "12"]
    assert {page.body["pageSize"] for page in pages} == {kaggle.PAGE_FILES}
    assert len(server.calls("DownloadDataFile")) == 6 and capfd.readouterr() == ("", "")


def test_competition_fetches_what_is_missing_or_changed(server, cache):
    first = download_flowers(cache, 192)
    assert download_flowers(cache, 192) == first
    assert len(server.calls("DownloadDataFile")) == 6
    assert len(download_flowers(cache, 512).files) == 6
    assert len(server.calls("DownloadDataFile")) == 12
    server.files[SHARD] += b"more"
    assert (download_flowers(cache, 192).path / SHARD).read_bytes() == server.files[SHARD]
    assert len(server.calls("DownloadDataFile")) == 13
    server.files[SHARD] = b""
    for _ in range(2):
        empty = download_flowers(cache, 192).path / SHARD
        assert empty.read_bytes() == b""
        empty.unlink()
    assert len(server.calls("DownloadDataFile")) == 15


def test_competition_resumes_within_a_file(server, cache):
    server.files[SHARD] = random.Random(0).randbytes(500_000)
    server.faults = [Fault(SHARD.rsplit("/", 1)[1], cut_after=200_000)]
    got = download_flowers(cache, 192)
    assert (got.path / SHARD).read_bytes() == server.files[SHARD]
    assert sum("Range" in request.headers for request in server.requests) == 1


def test_single_file_that_kaggle_packs(server, cache):
    server.zipped = {SHARD}
    got = download_flowers(cache, 192)
    assert (got.path / SHARD).read_bytes() == SHARDS[SHARD]
    assert not list(got.path.rglob("*.part*"))
    server.files[SHARD] = packed({"a": b"1", "b": b"2"})
    server.zipped.clear()
    assert "arrived damaged" in refused(lambda: download_flowers(cache, 192))


def test_rules_not_accepted(server, cache):
    server.faults = [Fault("DownloadDataFile", status=403)]
    line = refused(lambda: download_flowers(cache, 192))
    assert "(403); open https://www.kaggle.com/competitions/tpu-getting-started/rules" in line


def test_too_many_requests_between_pages(server, cache, naps):
    server.faults = [Fault("ListDataFiles", status=429, headers={"Retry-After": "9"})]
    assert len(download_flowers(cache, 192).files) == 6
    assert naps == [9.0] and len(server.calls("ListDataFiles")) == 6


def test_competition_checks_the_disk_for_all_files(server, cache, monkeypatch):
    total = sum(len(content) for path, content in SHARDS.items() if "512" not in path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=total - 1))
    assert "GB are needed" in refused(lambda: download_flowers(cache, 192))
    assert not server.calls("DownloadDataFile")


def test_competition_without_the_wanted(server, cache):
    assert "none of its 13 files is wanted" in refused(lambda: download_flowers(cache, 224))


def test_competition_file_outside_its_folder(server, cache):
    server.files["tfrecords-jpeg-192x192/../../../x.tfrec"] = b"evil"
    assert "outside its folder" in refused(lambda: download_flowers(cache, 192))
    assert not server.calls("DownloadDataFile")


# The client


def test_import_leaves_the_client_alone():
    code = "import sys, fieldguide.sources.kaggle; print([m for m in sys.modules if m.startswith('kaggle')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_first_import_without_account_prints_nothing(server, cache, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    with start(server, cache, "2") as process:
        out, err = process.communicate(timeout=20)
    assert out == "" and err.startswith("error: kaggle: no Kaggle account") and err.count("\n") == 1
    assert process.returncode == 1
