"""The examples of docs/page.md for nginx and Caddy, as they stand there, before a server: page, API and assets work."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT
from support.app_server import LONG_S, Served, png, serving, wait_until, write_model

pytestmark = pytest.mark.slow
NAME = "guide.example.org"
PAGE = (ROOT / "docs" / "page.md").read_text(encoding="utf-8")
BODY = (
    b'--x\r\nContent-Disposition: form-data; name="images"; filename="red.png"\r\nContent-Type: image/png\r\n\r\n'
    + png()
    + b"\r\n--x--\r\n"
)


def example(kind: str) -> str:
    """The block of docs/page.md in this language."""
    return re.search(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, served: int) -> list[str]:
    """The command that runs the example of nginx with the ports and files of this test."""
    changes = {"listen 443": f"listen 127.0.0.1:{port}", ":8000": f":{served}", "/etc/ssl": str(folder)}
    paths = "".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = replaced(example("nginx"), changes)
    around = f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{around} http {{ access_log off; {paths}\n{text}}}")
    return ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]


def caddy(folder: Path, port: int, served: int) -> list[str]:
    changes = {f"{NAME} {{": f"https://{NAME}:{port} {{\n tls {folder}/guide.crt {folder}/guide.key", ":8000": f":{served}"}
    (folder / "Caddyfile").write_text("{\n admin off\n auto_https off\n}\n" + replaced(example("caddy"), changes))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    command = re.search(r"fieldguide serve (--trusted-proxy .*)$", PAGE, re.MULTILINE)[1]
    with serving(write_model(tmp_path_factory.mktemp("served")), *command.split()) as server:
        yield server


class Proxy:
    """The address of a visitor."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        context = ssl._create_unverified_context()
        with contextlib.closing(http.client.HTTPConnection(f"{NAME}:{self.port}")) as connection:
            plain = socket.create_connection(("127.0.0.1", self.port), timeout=LONG_S)
            connection.sock = context.wrap_socket(plain, server_hostname=NAME)
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, served: Served, tmp_path: Path) -> Iterator[Proxy]:
    for program in (request.param.__name__, "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "guide.key", "-out", "guide.crt"]
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *key, *names], cwd=tmp_path, capture_output=True, check=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    homes = {name: str(tmp_path) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    with (tmp_path / "log").open("wb") as log:
        command = request.param(tmp_path, port, served.port)
        process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | homes, stdout=log, stderr=log)
    try:
        found = Proxy(port)
        wait_until(lambda: found.listens() or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield found
    finally:
        process.kill()
        process.wait()


def test_page_api_and_assets_work_behind_a_proxy_with_a_prefix(proxy: Proxy, served: Served) -> None:
    status, page = proxy.ask("GET", "/guide/", Accept="text/html")
    addresses = set(re.findall(r'(?:href|src|action)="(/[^"]*)"', page.decode()))
    assert status == 200 and len(addresses) > 4
    for address in addresses:
        assert address.startswith("/guide/") and proxy.ask("GET", address)[0] == 200, address
    origin = f"https://{NAME}:{proxy.port}"
    kind = "multipart/form-data; boundary=x"
    assert proxy.ask("POST", "/guide/", BODY, Content_Type=kind, Origin=origin)[0] == 200
    assert proxy.ask("POST", "/guide/", BODY, Content_Type=kind, Origin="https://evil.example")[0] == 403
    status, answer = proxy.ask("POST", "/guide/api/predict", png(), Content_Type="image/png")
    assert (status, json.loads(answer)["results"][0]["answers"][0]["name"]) == (200, "RED")
    assert json.loads(proxy.ask("GET", "/guide/openapi.json")[1])["servers"] == [{"url": "/guide"}]
    assert proxy.ask("GET", "/guide")[0] // 100 == 3  # to /guide/
    assert served.ask("GET", "/readyz", Host="10.0.0.7")[0] == 200  # a probe asks by address
    assert served.ask("GET", "/", Host="10.0.0.7")[0] == 400
