"""The download stage from an address: the same raw data as from the zip itself, and no secret in what it writes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.kaggle_server import KaggleServer, packed
from support.projects import TINY, copy_project, run
from support.stages import MakeProject, failed_in_one_line, run_stage, succeeded

PHOTOS = {
    f"{split}/{name}/{n}.jpg": f"{split} {name} {n}".encode()
    for split in ("train", "val", "test")
    for name in "AB"
    for n in "12"
}
QUERY = "?id=7&X-Amz-Signature=secret-signature"
AWS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret-key", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = KaggleServer()
    server.files = {"photos.zip": packed(PHOTOS)}
    with server.running():
        yield server


def receipt(project: Path) -> dict[str, Any]:
    return json.loads((project / "data/raw/receipt.json").read_text())


def test_a_zip_at_an_address_is_treated_like_the_zip(server: KaggleServer, make_project: MakeProject, tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(packed(PHOTOS))
    own = make_project("own", **{"data.dataset": "folder", "data.path": str(tmp_path / "photos.zip")})
    succeeded(run_stage(own, "download"))
    where = f"{server.endpoint}/store/competition/photos.zip"
    secret = where.replace("//", "//me:secret-password@") + QUERY
    project = make_project(**{"data.dataset": "folder", "data.path": secret})
    output = succeeded(run_stage(project, "download"))
    assert (project / "data/raw/images.zip").read_bytes() == (own / "data/raw/images.zip").read_bytes()
    version = receipt(project)["version"]
    assert receipt(project) == receipt(own) | {"source": f"{where}?id=7", "version": version} and len(version) == 32
    assert f"from {where}?id=7 -> data/raw" in output
    assert output.count("contains a password or signature; DVC writes it to dvc.lock") == 1
    written = output + "".join(
        path.read_bytes().decode("latin-1") for path in project.rglob("*") if path.is_file() and path.name != "params.yaml"
    )
    assert "secret-" not in written
    server.requests.clear()
    succeeded(run_stage(project, "download"))
    assert [request.headers.get("If-None-Match") for request in server.requests] == [f'"{version}"']


def test_a_refusal_is_one_line(server: KaggleServer, make_project: MakeProject) -> None:
    where = f"{server.endpoint}/store/competition/photos.zip"
    project = make_project(**{"data.dataset": "folder", "data.path": where, "data.max_gigabytes": 0.000001})
    failed_in_one_line(run_stage(project, "download"), r"data\.path: http://.*/photos\.zip: .* above data\.max_gigabytes .*")


@pytest.mark.slow
def test_a_folder_in_a_bucket_is_treated_like_a_folder(make_project: MakeProject) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    bucket = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    bucket.start()
    host, port = bucket.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret-key",
        region_name="us-east-1",
    )
    try:
        client.create_bucket(Bucket="photos")
        for name, content in PHOTOS.items():
            client.put_object(Bucket="photos", Key=f"moths/{name}", Body=content)
        project = make_project(**{"data.dataset": "folder", "data.path": "s3://photos/moths"})
        succeeded(run_stage(project, "download", **AWS, AWS_ENDPOINT_URL=f"http://{host}:{port}"))
    finally:
        client.close()
        bucket.stop()
    assert receipt(project)["images"] == {"test": 4, "train": 4, "valid": 4}
    assert receipt(project)["source"] == "s3://photos/moths"
    assert receipt(project)["version"].startswith("12 files, sha256:")


@pytest.mark.slow
def test_dvc_fetches_a_changed_zip_when_the_stage_is_forced(server: KaggleServer, tmp_path: Path) -> None:
    project, where = tmp_path / "project", f"{server.endpoint}/store/competition/photos.zip"
    copy_project(project, TINY | {"dataset: sample ": "dataset: folder ", 'path: "" ': f'path: "{where}" '})
    run(project, "dvc", "repro", "download")
    first = receipt(project)
    server.files["photos.zip"] = packed(PHOTOS | {"train/A/3.jpg": b"more"})
    run(project, "dvc", "repro", "download")
    assert receipt(project) == first  # DVC does not look at the address
    run(project, "dvc", "repro", "-f", "download")
    assert receipt(project)["images"]["train"] == first["images"]["train"] + 1
