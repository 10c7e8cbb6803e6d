"""What the tests of the web application share: a small model, plain pictures, and a server in a process of its own."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from support import ROOT
from support.mean_colour import METADATA, NAMES, mean_colour_network, save

LONG_S = 30


def png(colour: tuple[int, ...] = (255, 0, 0), size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    """One colour, without loss: what the test network says of it can be worked out."""
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "PNG")
    return stream.getvalue()


def write_model(folder: Path, names: tuple[str, ...] = NAMES, **metadata: object) -> Path:
    """The network of tests/unit/onnx/test_classifier.py with other names, put in place whole as the export does."""
    (folder / "new").mkdir(exist_ok=True)
    made = save(folder / "new", mean_colour_network(METADATA | {"class_names": names} | metadata))
    return made.replace(folder / "model.onnx")


def write_examples(folder: Path) -> tuple[bytes, Path]:
    """A red photograph at an offset of a file, and the manifest that says so."""
    content = png((255, 0, 0), (300, 200))
    (folder / "shard").write_bytes(b"12345" + content)
    digest = hashlib.sha256(content).hexdigest()
    rows = [
        "split,label,class_name,id,file,offset,length,width,height,sha256,phash,use,reason",
        f"test,0,RED,t,shard,5,{len(content)},1,1,{digest},,True,",
        f"train,0,RED,dropped,shard,0,3,1,1,{digest},,False,leak",
        f"train,0,RED,a,shard,5,{len(content)},1,1,{digest},,True,",
        f"train,1,GREEN,b,gone,5,{len(content)},1,1,{digest},,True,",
        f"train,2,BLUE,c,shard,4,{len(content)},1,1,{digest},,True,",
    ]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return content, folder / "manifest.csv"


class Served:
    """`python -m fieldguide serve` in a process of its own; `port` is where it listens."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "fieldguide",
            "serve",
            "--port",
            "0",
            "--model",
            str(model),
            "--manifest",
            "none.csv",
            *options,
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout
        first, second = self.process.stdout.readline(), self.process.stdout.readline()
        found = re.search(rb"http://\S+:(\d+)", second)
        assert found, (first, second, self.process.communicate())
        self.port = int(found[1])

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG_S)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request on a connection of its own."""
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def predict(self, encoded: bytes) -> tuple[int, dict]:
        status, _, body = self.ask("POST", "/api/predict", encoded, Content_Type="image/png")
        return status, json.loads(body)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LONG_S)

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def stop(self) -> tuple[int, str]:
        """SIGTERM, and how it ended: exit status and standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=LONG_S)
        return self.process.returncode, errors.decode()


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[Served]:
    """A server for the block; it must be alive at its end, stop when asked, and have written no traceback."""
    served = Served(model, *options)
    try:
        yield served
        assert served.ask("GET", "/healthz")[0] == 200
        status, errors = served.stop()
        assert status == 0
        assert "Traceback" not in errors
    finally:
        served.process.kill()
        served.process.communicate()


def wait_until(holds, seconds: float = LONG_S) -> None:
    """Returns once `holds()`; fails when it never does."""
    last = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.02)
