"""Zips and folders copied from an S3 on loopback: whole, resumed, unchanged, refused."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fieldguide.core.errors import UserError
from fieldguide.sources import address, bucket
from fieldguide.sources.transfer import Download
from support.kaggle_server import packed

PHOTOS = packed({f"train/ADONIS/{n}.jpg": bytes([n]) * 10_000 for n in range(4)})
FILES = {f"train/{name}/{n}.jpg": f"{name} {n}".encode() for name in ("A", "B c", "è*[x]?#") for n in range(3)}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client with an empty bucket `photos`; this machine's settings of AWS lead to it."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    settings = {
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret-key",
        "DEFAULT_REGION": "us-east-1",
        "ENDPOINT_URL": endpoint,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    for listed in client.list_objects_v2(Bucket="photos").get("Contents", []):
        client.delete_object(Bucket="photos", Key=listed["Key"])
    client.delete_bucket(Bucket="photos")
    client.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int, int]]]:
    """The ranges that are read: name, start and end, by batch."""
    reads: list[list[tuple[str, int, int]]] = []
    read = bucket.Bucket.read

    def noted(self: bucket.Bucket, wants: list[tuple[bucket.Entry, int, int]]) -> list[bytes]:
        reads.append([(entry.name, start, end) for entry, start, end in wants])
        return read(self, wants)

    monkeypatch.setattr(bucket.Bucket, "read", noted)
    return reads


def put(s3: Any, files: dict[str, bytes], folder: str = "my photos/") -> None:
    for name, content in files.items():
        s3.put_object(Bucket="photos", Key=folder + name, Body=content)


def fetched(where: str, cache: Path, max_bytes: int = 10**9) -> Download:
    return address.fetch(where, max_bytes=max_bytes, cache=cache)


def refused(where: str, cache: Path, max_bytes: int = 10**9) -> str:
    with pytest.raises(UserError) as raised:
        fetched(where, cache, max_bytes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_zip_is_copied_once_with_its_version(s3, cache, reads):
    put(s3, {"a b.zip": PHOTOS})
    got = fetched("s3://photos/my photos/a b.zip", cache)
    assert got.path.read_bytes() == PHOTOS
    assert (got.path.name, got.source) == ("a_b.zip", "s3://photos/my photos/a b.zip")
    assert got.version == s3.head_object(Bucket="photos", Key="my photos/a b.zip")["ETag"].strip('"')
    reads.clear()
    assert fetched("s3://photos/my photos/a b.zip", cache) == got
    assert not reads
    put(s3, {"a b.zip": packed({"train/A/1.jpg": b"x"})})
    again = fetched("s3://photos/my photos/a b.zip", cache)
    assert again.version != got.version and again.path.stat().st_size < len(PHOTOS)


def test_a_folder_is_copied_file_by_file_and_then_follows_the_bucket(s3, cache, reads):
    put(s3, FILES | {"empty.txt": b"", "a folder/": b""})
    put(s3, {"other.jpg": b"x"}, "my photos 2/")
    got = fetched("s3://photos/my photos/", cache)
    assert content_of(got.path) == FILES | {"empty.txt": b""}
    assert re.fullmatch("10 files, sha256:[0-9a-f]{16}", got.version)
    reads.clear()
    assert fetched("s3://photos/my photos/", cache) == got
    assert not reads
    s3.delete_object(Bucket="photos", Key="my photos/train/A/0.jpg")
    put(s3, {"train/A/1.jpg": b"new", "train/D/1.jpg": b"more"})
    (got.path / "train/A/2.jpg").write_bytes(b"cut off")
    again = fetched("s3://photos/my photos/", cache)
    wanted = FILES | {"empty.txt": b"", "train/A/1.jpg": b"new", "train/D/1.jpg": b"more"}
    del wanted["train/A/0.jpg"]
    assert content_of(again.path) == wanted and again.version != got.version
    assert [name for batch in reads for name, *_ in batch] == ["train/A/1.jpg", "train/A/2.jpg", "train/D/1.jpg"]


def test_a_whole_bucket_is_a_folder_too(s3, cache):
    put(s3, FILES, "")
    assert content_of(fetched("s3://photos", cache).path) == FILES


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The copy ends as by Ctrl-C after so many reads."""
    read, count = bucket.Bucket.read, []

    def interrupted(self: bucket.Bucket, wants: Any) -> list[bytes]:
        count.append(1)
        if len(count) > after:
            raise KeyboardInterrupt
        return read(self, wants)

    monkeypatch.setattr(bucket.Bucket, "read", interrupted)


def test_an_interrupted_zip_resumes(s3, cache, monkeypatch):
    monkeypatch.setattr(bucket, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(bucket, "BATCH_BYTES", 4000)
    put(s3, {"a.zip": PHOTOS})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, after=3)  # the first looks at its kind
        fetched("s3://photos/my photos/a.zip", cache)
    assert next(cache.rglob("*.part")).read_bytes() == PHOTOS[:8000]
    starts: list[int] = []
    read = bucket.Bucket.read
    monkeypatch.setattr(bucket.Bucket, "read", lambda self, wants: starts.append(wants[0][1]) or read(self, wants))
    assert fetched("s3://photos/my photos/a.zip", cache).path.read_bytes() == PHOTOS
    assert starts[:3] == [0, 8000, 12000]
    assert not list(cache.rglob("*.part*"))


def test_an_interrupted_folder_resumes(s3, cache, monkeypatch, reads):
    monkeypatch.setattr(bucket, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(bucket, "BATCH_BYTES", 2000)
    monkeypatch.setattr(bucket, "BATCH_FILES", 2)
    files = FILES | {"large.jpg": bytes(5000)}
    put(s3, files)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, after=4)  # large.jpg in three, then two files
        fetched("s3://photos/my photos", cache)
    with next(cache.rglob("files.jsonl")).open("a") as journal:
        journal.write('["train/A/2.jpg", 3')  # a line that was cut off
    reads.clear()
    assert content_of(fetched("s3://photos/my photos", cache).path) == files
    assert [len(batch) for batch in reads] == [2, 2, 2, 1]


def test_an_object_that_changes_meanwhile_is_not_mixed(s3, cache, monkeypatch):
    monkeypatch.setattr(bucket, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(bucket, "BATCH_BYTES", 4000)
    put(s3, {"a.zip": PHOTOS})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, after=3)
        fetched("s3://photos/my photos/a.zip", cache)
    other = packed({f"train/ADONIS/{n}.jpg": bytes([n + 100]) * 10_000 for n in range(4)})
    put(s3, {"a.zip": other})
    assert fetched("s3://photos/my photos/a.zip", cache).path.read_bytes() == other
    read = bucket.Bucket.read

    def replaced(self: bucket.Bucket, wants: Any) -> list[bytes]:
        contents = read(self, wants)
        put(s3, {"b.zip": other})
        return contents

    put(s3, {"b.zip": PHOTOS})
    monkeypatch.setattr(bucket.Bucket, "read", replaced)
    said = "data.path: s3://photos/my photos/b.zip: b.zip has changed while it was copied; run again"
    assert refused("s3://photos/my photos/b.zip", cache) == said


def test_more_than_the_bound_is_refused_before_copying(s3, cache, reads):
    put(s3, FILES | {"a.zip": PHOTOS})
    for where in ("s3://photos/my photos", "s3://photos/my photos/a.zip"):
        said = f"data.path: {where}: 4.05e-05 GB or more, above data.max_gigabytes (4e-05); increase it"
        assert refused(where, cache, 40_000) == said
    assert not reads


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("s3://photos/none.zip", "data.path: s3://photos/none.zip: not found; correct the address"),
        ("s3://no-such-bucket/a.zip", "data.path: s3://no-such-bucket/a.zip: not found; correct the address"),
        ("s3://", "data.path: s3:// names no bucket; correct the address"),
        (
            "s3://key:secret-key@photos/a.zip",
            "data.path: s3://photos/a.zip was given a user or password; set the credentials as for AWS or gcloud",
        ),
        (
            "s3://photos/page.html",
            "data.path: s3://photos/page.html is neither a zip nor a tar (it begins with b'<html>'); use the address of one",
        ),
        (
            "s3://photos/empty.zip",
            "data.path: s3://photos/empty.zip is neither a zip nor a tar (it begins with b''); use the address of one",
        ),
    ],
)
def test_refusals_are_one_line(s3, cache, where, said):
    put(s3, {"page.html": b"<html>", "empty.zip": b""}, "")
    assert refused(where, cache) == said


@pytest.mark.parametrize("name", ["../a.jpg", "a//b.jpg", "./a.jpg", "a\nb.jpg", "x.jpg"])
def test_names_that_no_folder_can_hold_are_refused(s3, cache, monkeypatch, name):
    found = {f"photos/{key}": {"type": "file", "size": 1} for key in (name, "x.jpg/y.jpg")}
    monkeypatch.setattr("s3fs.S3FileSystem.find", lambda *_, **__: found)
    put(s3, {"x.jpg": b"x"}, "")
    said = f"data.path: s3://photos: the name of {name!r} is no file's in a folder; rename it"
    assert refused("s3://photos", cache) == said


def test_a_refused_access_is_one_line(s3, cache, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError("secret-key is wrong")

    monkeypatch.setattr("s3fs.S3FileSystem.info", denied)
    said = "data.path: s3://photos/a.zip: access is refused; correct the address or the credentials of this machine"
    assert refused("s3://photos/a.zip", cache) == said


@pytest.mark.slow
def test_no_network_is_one_line(s3, cache, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "EndpointConnectionError; check address, credentials and network" in refused("s3://photos/a.zip", cache)


def test_a_public_bucket_needs_no_credentials(s3, cache, monkeypatch):
    for name, content in FILES.items():
        s3.put_object(Bucket="photos", Key=name, Body=content, ACL="public-read")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert content_of(fetched("s3://photos", cache).path) == FILES


def test_settings_that_aws_does_not_know_are_one_line(s3, cache, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert refused("s3://photos", cache).endswith("could not be found; correct the settings of AWS on this machine")


def test_a_package_that_is_missing_is_named(s3, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert re.fullmatch(
        r"data\.path s3:// needs s3fs; install it with: (make setup|pip install 'fieldguide\[team\]')",
        refused("s3://photos", cache),
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused("gs://photos", cache) == "data.path gs:// needs gcsfs; install it with: pip install gcsfs"


def test_the_journal_names_what_is_there(s3, cache):
    put(s3, {"a.jpg": b"1"}, "")
    fetched("s3://photos", cache)
    (line,) = next(cache.rglob("files.jsonl")).read_text().splitlines()
    name, n_bytes, version = json.loads(line)
    assert (name, n_bytes, len(version)) == ("a.jpg", 1, 32)
