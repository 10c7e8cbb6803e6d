"""The server as a process: slow, broken and hostile clients, a new model under load, and a stop that loses nothing."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from waitress.adjustments import Adjustments

from fieldguide.web.server import HEADER_BYTES, SILENT_S, Channel
from support import ROOT
from support.app_server import Served, png, serving, wait_until, write_model
from support.mean_colour import NAMES

SENT = (
    b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(png())
    + png()
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(write_model(tmp_path_factory.mktemp("served")), "--max-mib", "2") as server:
        yield server


def exchanged(served: Served, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """All that the server says to these bytes until it closes; an end of sending is sent after them."""
    with served.socket() as connection:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            connection.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                said += part
        return said


def problem_of(said: bytes) -> tuple[int, str]:
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return int(head.split()[1]), json.loads(body)["code"]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="/proc/net/tcp is Linux's")
def test_it_listens_on_loopback_and_says_where(served: Served) -> None:
    listening = Path("/proc/net/tcp").read_text()
    found = re.findall(rf"\d+: ([0-9A-F]{{8}}):{served.port:04X} 00000000:0000 0A", listening)
    assert found == ["0100007F"]
    assert served.predict(png())[0] == 200


def test_a_connection_is_kept_for_many_requests(served: Served) -> None:
    with contextlib.closing(served.connection()) as connection:
        for _ in range(5):
            connection.request("POST", "/api/predict", png(), {"Content-Type": "image/png"})
            assert json.loads(connection.getresponse().read())["results"][0]["answers"][0]["name"] == "RED"


def test_the_loop_leaves_an_answer_in_the_making_alone_unless_much_of_it_waits() -> None:
    channel = object.__new__(Channel)
    channel.adj, channel.will_close, channel.close_when_flushed = Adjustments(), False, False
    channel.requests, channel.total_outbufs_len = [object()], 100  # else it would turn until the thread is done
    assert not channel.writable()
    channel.total_outbufs_len = channel.adj.outbuf_high_watermark + 1  # for which that thread waits
    assert channel.writable()
    channel.requests, channel.total_outbufs_len = [], 100
    assert channel.writable()


def test_requests_sent_at_once_are_answered_in_order(served: Served) -> None:
    said = exchanged(served, SENT * 3)
    assert said.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2 * HEADER_BYTES + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * HEADER_BYTES, 431, "headers_too_large"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\nab", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n", 413, "too_large"),
    ],
)
def test_what_is_no_request_is_refused_as_a_problem(served: Served, sent: bytes, status: int, code: str) -> None:
    assert problem_of(exchanged(served, sent)) == (status, code)


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_a_client_that_sends_too_much_gets_to_see_why(served: Served, expect: bytes) -> None:
    head = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n" + expect + b"\r\n"
    assert problem_of(exchanged(served, head, *[bytes(100_000)] * 90)) == (413, "too_large")


def test_a_chunked_upload_without_an_end_is_cut_at_the_limit(served: Served) -> None:
    head = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert problem_of(exchanged(served, head, *[b"10000\r\n" + bytes(0x10000) + b"\r\n"] * 64)) == (413, "too_large")


def test_a_chunked_upload_is_answered(served: Served) -> None:
    head = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    content = png()
    said = exchanged(served, head, b"%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 OK")


def test_names_of_hosts_that_are_not_ours_are_refused(served: Served) -> None:
    assert problem_of(exchanged(served, b"GET / HTTP/1.1\r\nHost: rebound.example\r\n\r\n")) == (400, "bad_request")


def test_hosts_can_be_allowed_and_a_prefix_given(tmp_path: Path) -> None:
    options = ["--allowed-host", "Guide.Example:80", "--allowed-host", "127.0.0.1", "--prefix", "/guide/"]
    with serving(write_model(tmp_path), *options) as server:
        for path in ("/api/model", "/guide/api/model"):  # a proxy may have taken the prefix off
            assert server.ask("GET", path, Host="guide.example")[0] == 200
        assert server.ask("GET", "/guide", Host="guide.example")[1]["Location"] == "/guide/"
        assert b'action="/guide/"' in server.ask("GET", "/guide/", Host="guide.example")[2]
        assert server.ask("GET", "/guide/healthz", Host="10.0.0.7")[0] == 200
        assert server.ask("GET", "/api/model", Host="localhost")[0] == 400


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--workers", "-1"), "argument --workers: -1 must be an integer ≥ 0"),
        (("--port", "70000"), "argument --port: 70000 must be an integer in [0, 65535]"),
        (("--max-files", "0"), "argument --max-files: 0 must be an integer ≥ 1"),
    ],
)
def test_options_out_of_range_are_refused(option: tuple[str, str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fieldguide", "serve", *option], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, f"fieldguide serve: error: {said}")


@pytest.mark.slow
def test_dripping_clients_do_not_starve_the_others(served: Served) -> None:
    n_dripping, stop = 300, threading.Event()
    dripping = [served.socket() for _ in range(n_dripping)]
    for number, connection in enumerate(dripping):
        connection.sendall(SENT[: 20 + number % 100])

    def drip() -> None:
        while not stop.wait(0.2):
            for connection in dripping:
                with contextlib.suppress(OSError):
                    connection.sendall(b"a")

    thread = threading.Thread(target=drip)
    thread.start()
    assert [served.predict(png())[0] for _ in range(100)] == [200] * 100  # how soon: benchmarks/serving.py
    stop.set()
    thread.join()
    for connection in dripping:
        connection.close()


@pytest.mark.slow
def test_silent_connections_are_closed(served: Served) -> None:
    with served.socket() as connection:
        connection.sendall(SENT[:50])
        start = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - start > SILENT_S - 1


def mutated(random: np.random.Generator) -> bytes:
    """A request with some of its bytes changed, cut, repeated or its head's lines mixed up."""
    boundary = b"----b"
    body = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n'
    body += b"Content-Type: image/png\r\n\r\n" + png() + b"\r\n--" + boundary + b"--\r\n"
    method, path = (
        random.choice([b"POST", b"GET", b"HEAD"], p=[0.8, 0.1, 0.1]),
        random.choice([b"/api/predict", b"/", b"/model?a=%ff"]),
    )
    head = [
        b"Host: 127.0.0.1",
        b"Content-Type: multipart/form-data; boundary=" + boundary,
        b"Content-Length: %d" % len(body),
        b"Accept: text/html",
        b"Cookie: a=b",
        b"X-Plates: 3",
    ]
    content = bytearray(b"%s %s HTTP/1.1\r\n%s\r\n\r\n" % (method, path, b"\r\n".join(head)) + body)
    limit = len(content) if random.integers(2) else 300
    for place in random.integers(0, limit, random.integers(1, 6)):
        content[place] = random.integers(0, 256)
    match random.integers(6):
        case 0:
            del content[random.integers(1, len(content)) :]
        case 1:
            start = random.integers(0, len(content))
            content[start:start] = content[start : start + random.integers(1, 400)]
    return bytes(content)


@pytest.mark.slow
def test_ten_thousand_mutated_requests_get_no_fault(served: Served) -> None:
    def statuses(seed: int) -> list[bytes]:
        random, found = np.random.default_rng(seed), []
        for _ in range(1250):
            said = exchanged(served, mutated(random))
            assert b"Traceback" not in said
            found += re.findall(rb"HTTP/1\.[01] (\d+) [A-Z]", said)
        return found

    with ThreadPoolExecutor(8) as pool:
        found = [status for part in pool.map(statuses, range(8)) for status in part]
    assert len(found) > 5000
    assert {status for status in found if status.startswith(b"5")} <= {b"501", b"503"}  # 501: a transfer coding it lacks
    assert {b"200", b"400", b"404"} <= set(found)


@pytest.mark.slow
def test_sixty_four_clients_get_an_answer_or_are_told_to_come_back(tmp_path: Path) -> None:
    with serving(write_model(tmp_path), "--max-images", "4", "--max-files", "1") as server, ThreadPoolExecutor(64) as pool:
        large = png(size=(1800, 1800))  # takes a while to decode
        found = list(pool.map(lambda _: server.ask("POST", "/api/predict", large, Content_Type="image/png"), range(128)))
        statuses = [status for status, _, _ in found]
        assert set(statuses) == {200, 503}
        assert all(headers["Retry-After"] == "1" for status, headers, _ in found if status == 503)


def test_what_is_in_flight_is_finished_when_told_to_stop(tmp_path: Path) -> None:
    served = Served(write_model(tmp_path))
    try:
        connections = [served.socket() for _ in range(32)]
        for connection in connections:
            connection.sendall(SENT[:-20])
        wait_until(lambda: len(os.listdir(f"/proc/{served.process.pid}/fd")) > 32)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        found = []
        for connection in connections:
            connection.sendall(SENT[-20:])
        for connection in connections:
            found.append(connection.recv(65536))
            connection.close()
        assert sum(said.startswith(b"HTTP/1.1 200 OK") for said in found) == 32
        assert all(b"Connection: close" in said for said in found)
        _, errors = served.process.communicate(timeout=30)
        assert (served.process.returncode, errors) == (0, b"")
    finally:
        served.process.kill()


def test_a_new_model_is_taken_up_without_a_lost_request_and_a_broken_one_refused(tmp_path: Path) -> None:
    with serving(write_model(tmp_path)) as server:
        stop, found = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                status, content = server.predict(png())
                found.append((status, content["results"][0]["answers"][0]["name"]))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        write_model(tmp_path, ("SCARLET", *NAMES[1:]))
        wait_until(lambda: (200, "SCARLET") in found)
        (tmp_path / "broken").write_bytes(b"broken")
        (tmp_path / "broken").replace(tmp_path / "model.onnx")
        wait_until(lambda: b'reloads_total{outcome="refused"} 1.0' in server.ask("GET", "/metrics")[2])
        n_before = len(found)
        wait_until(lambda: len(found) > n_before + 20)
        write_model(tmp_path, ("CRIMSON", *NAMES[1:]))
        wait_until(lambda: (200, "CRIMSON") in found)
        stop.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in found} == {200}
        assert found[n_before][1] == "SCARLET"


def test_nothing_of_an_upload_is_logged_or_left_on_disk(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(tmp_path / "scratch")
    try:
        served = Served(write_model(tmp_path))
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
    scratch = sorted((tmp_path / "scratch").iterdir())  # what libraries put there when they start
    noise = np.random.default_rng(0).bytes(3_000_000)
    for content in (png(), png()[:50], noise):
        served.predict(content)
    body = b'--b\r\nContent-Disposition: form-data; name="images"; filename="my-secret.png"\r\n\r\n' + noise + b"\r\n--b--\r\n"
    assert served.ask("POST", "/api/predict", body, Content_Type="multipart/form-data; boundary=b")[0] == 400
    status, errors = served.stop()
    assert (status, errors, sorted((tmp_path / "scratch").iterdir())) == (0, "", scratch)
    assert sum(file.stat().st_size for file in scratch) < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gone.onnx"], "error: gone.onnx: No such file or directory; create it with: dvc repro"),
        (["--host", "203.0.113.7"], "error: 203.0.113.7:0: cannot listen"),
    ],
)
def test_what_a_user_can_mend_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "fieldguide", "serve", "--port", "0", "--model", str(write_model(tmp_path)), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_flood_of_requests_leaves_memory_as_it_was(served: Served) -> None:
    def ask(number: int) -> int:
        return served.predict(png(((number * 37) % 256, 90, 10)) if number % 10 else b"\xff\xd8\xff broken")[0]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(300)))
        before = served.resident_bytes()
        assert set(pool.map(ask, range(1000))) == {200, 422}
    assert served.resident_bytes() - before < 8 << 20
