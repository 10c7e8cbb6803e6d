"""What the server costs beside the classifier alone, how it answers under load, and whether its memory stays flat.

    python benchmarks/serving.py [--model models/model.onnx] [--seconds 20] [--requests 20000] [--skip memory]

Starts `fieldguide serve` as a process of its own on the model, and sends it JPEGs from data/manifest.csv and data/raw, or drawn
ones where these are absent, as raw bodies over connections that are kept. The load comes from one thread of this process
and shares the machine with the server. Printed, part by part:

    start-up      seconds from the command to the first answer, resident memory then
    in process    the same JPEGs through OnnxClassifier.predict: the better of one call with all threads, or a thread a core
    throughput    16 clients: images/s, as a share of in process in the same round; the server's CPU per request beside it
    latency       1 and 8 clients: p50, p95, p99
    overload      64 clients: how many were answered, how soon the surplus was told to come back
    dripping      500 connections that send a byte a second each: p50 and p99 of one client beside them
    stop          32 requests in flight at SIGTERM: how many were answered
    memory        resident memory over many requests, one in ten of them bad
"""

import argparse
import contextlib
import io
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.paths import MANIFEST, ONNX, RAW
from fieldguide.onnx.classifier import OnnxClassifier
from fieldguide.web.settings import n_cores

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("throughput", "latency", "overload", "dripping", "stop", "memory")
IN_PROCESS_BATCH = 8
BAD = (b"no image", b"\xff\xd8\xff broken", b"")
HEAD = "POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"


def photographs(n_images: int) -> list[bytes]:
    """JPEGs of the test split where they are at hand, or drawn ones of 224 px."""
    if MANIFEST.exists() and RAW.exists():
        from fieldguide.core.images import read_encoded
        from fieldguide.core.manifest import held_out, read_manifest

        rows = held_out(read_manifest(MANIFEST))[1].head(n_images)
        return [read_encoded(RAW / row.file, row.offset, row.length) for row in rows.itertuples()]
    random = np.random.default_rng(0)
    return [drawn(random) for _ in range(n_images)]


def drawn(random: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    coarse = Image.fromarray(random.integers(0, 256, (28, 28, 3), dtype=np.uint8))
    coarse.resize((224, 224), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


@dataclass(frozen=True)
class Server:
    """A running `python -m fieldguide serve`."""

    process: subprocess.Popen
    port: int
    start_s: float

    def cpu_s(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextlib.contextmanager
def served(model: Path) -> Iterator[Server]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "fieldguide", "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        lines = [process.stdout.readline().decode() for _ in range(2)]
        address = re.search(r":(\d+)\s*$", lines[1])
        if address is None:  # its error is on standard error
            sys.exit(1)
        port = int(address[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        yield Server(process, port, time.perf_counter() - start)
    finally:
        process.kill()
        process.communicate()


class Client:
    """One connection on which the next request is sent as soon as the last is answered."""

    def __init__(self, server: Server, number: int) -> None:
        self.connection, self.number, self.held = server.connect(), number, b""

    def send(self, request: bytes) -> None:
        self.start = time.perf_counter()
        self.connection.sendall(request)

    def receive(self) -> tuple[int, float] | None:
        """Status and seconds, once the answer is whole; raises `ConnectionError` when the server hung up."""
        part = self.connection.recv(65536)
        if not part:
            raise ConnectionError
        self.held += part
        head, end, body = self.held.partition(b"\r\n\r\n")
        if not end or len(body) < int(re.search(rb"Content-Length: (\d+)", head)[1]):
            return None
        self.held = b""
        return int(head[9:12]), time.perf_counter() - self.start


def load(
    server: Server, requests: Sequence[bytes], n_clients: int, seconds: float, n_requests: int = 0
) -> list[tuple[int, float]]:
    """Status and seconds of every request that `n_clients` send for so long, or `n_requests` of them."""
    answers: list[tuple[int, float]] = []
    selector = selectors.DefaultSelector()
    clients = [Client(server, number) for number in range(n_clients)]
    for client in clients:
        selector.register(client.connection, selectors.EVENT_READ, client)
        client.send(requests[client.number % len(requests)])
    n_sent, last = n_clients, time.perf_counter() + seconds
    n_open = n_clients
    while n_open:
        for key, _ in selector.select():
            client = key.data
            answer = client.receive()
            if answer is None:
                continue
            answers.append(answer)
            if n_sent < n_requests if n_requests else time.perf_counter() < last:
                client.send(requests[n_sent % len(requests)])
                n_sent += 1
            else:
                selector.unregister(client.connection)
                client.connection.close()
                n_open -= 1
    return answers


def quantiles(seconds: Sequence[float]) -> str:
    p50, p95, p99 = np.quantile(seconds, [0.5, 0.95, 0.99]) * 1000
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms, p99/p50 {p99 / p50:.2f}"


def in_process(model: Path, images: list[bytes], seconds: float) -> tuple[float, float]:
    """Images per second of the better way, and CPU milliseconds per image of the cheaper one."""
    whole, single = OnnxClassifier(model), OnnxClassifier(model, n_threads=1)
    batches = [images[i : i + IN_PROCESS_BATCH] for i in range(0, len(images) - IN_PROCESS_BATCH + 1, IN_PROCESS_BATCH)]
    rates, costs = [], []
    for classifier, n_threads in ((whole, 1), (single, n_cores())):
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(classifier.predict, batches[: 2 * n_threads]))
            start, cpu, n_done = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() < start + seconds / 2:
                n_done += sum(len(part) for part in pool.map(classifier.predict, batches[: 4 * n_threads]))
            rates.append(n_done / (time.perf_counter() - start))
            costs.append(1000 * (time.process_time() - cpu) / n_done)
    return max(rates), min(costs)


def throughput(server: Server, model: Path, images: list[bytes], requests: list[bytes], seconds: float) -> None:
    shares, beyond, rates = [], [], []
    for _ in range(3):
        reference, reference_ms = in_process(model, images, seconds / 2)
        start, cpu = time.perf_counter(), server.cpu_s()
        answers = load(server, requests, 16, seconds / 2)
        rates.append(len(answers) / (time.perf_counter() - start))
        assert {status for status, _ in answers} == {200}
        shares.append(rates[-1] / reference)
        beyond.append(1000 * (server.cpu_s() - cpu) / len(answers) - reference_ms)
    print(f"throughput  16 clients: {statistics.median(rates):.0f} images/s, {statistics.median(shares):.2f} of in process")
    print(
        f"            CPU per request: {statistics.median(beyond):+.2f} ms beside in process ({reference_ms:.2f} ms an image)"
    )


def latency(server: Server, requests: list[bytes], seconds: float) -> None:
    for n_clients in (1, 8):
        answers = load(server, requests, n_clients, seconds)
        rate, taken = len(answers) / seconds, quantiles([taken for _, taken in answers])
        print(f"latency     {n_clients} clients: {taken}; {rate:.0f} images/s")


def overload(server: Server, requests: list[bytes], seconds: float) -> None:
    answers = load(server, requests, 64, seconds)
    taken = {status: [one for code, one in answers if code == status] for status in sorted({code for code, _ in answers})}
    for status, times in taken.items():
        print(f"overload    64 clients: {len(times)} x {status}: {quantiles(times)}, longest {1000 * max(times):.0f} ms")


def dripping(server: Server, requests: list[bytes], seconds: float, n_dripping: int = 500) -> None:
    connections = [server.connect() for _ in range(n_dripping)]
    for connection in connections:
        connection.sendall(requests[0][:200])
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(1 / n_dripping * 20):
            for connection in connections[:20]:
                with contextlib.suppress(OSError):
                    connection.sendall(b"a")
            connections.extend(connections[:20])
            del connections[:20]

    thread = threading.Thread(target=drip)
    thread.start()
    answers = load(server, requests, 1, seconds)
    stop.set()
    thread.join()
    for connection in connections:
        connection.close()
    print(f"dripping    1 client beside {n_dripping}: {quantiles([taken for _, taken in answers])}")


def stop(model: Path, requests: list[bytes], n_flying: int = 32) -> None:
    with served(model) as server:
        clients = [Client(server, number) for number in range(n_flying)]
        for client in clients:
            client.send(requests[client.number])
        server.process.send_signal(signal.SIGTERM)
        start, n_answered = time.perf_counter(), 0
        for client in clients:
            with contextlib.suppress(ConnectionError):
                while (answer := client.receive()) is None:
                    pass
                n_answered += answer[0] == 200
        server.process.wait(60)
        seconds = time.perf_counter() - start
        print(f"stop        {n_answered} of {n_flying} in flight answered; ended {seconds:.2f} s after SIGTERM")


def memory(model: Path, requests: list[bytes], n_requests: int) -> None:
    mixed = [sent(BAD[k // 10 % len(BAD)]) if k % 10 == 9 else requests[k % len(requests)] for k in range(1000)]
    with served(model) as server:
        marks = []
        for n_part in (1000, *[(n_requests - 1000) // 4] * 4):
            load(server, mixed, 8, 0, n_part)
            marks.append(server.resident_mib())
        path = ", ".join(f"{mark:.1f}" for mark in marks)
        grown = max(marks) - marks[0]
        print(f"memory      {n_requests} requests, one in ten bad: {path} MiB resident, {grown:+.1f} after the first 1000")


def sent(content: bytes) -> bytes:
    return HEAD.format(len(content)).encode() + content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ONNX)
    parser.add_argument("--seconds", type=float, default=20, help="of each part")
    parser.add_argument("--requests", type=int, default=20000, help="of the part memory")
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS)
    arguments = parser.parse_args()
    images = photographs(200)
    requests = [sent(image) for image in images]
    with served(arguments.model) as server:
        print(f"start-up    {server.start_s:.2f} s, {server.resident_mib():.0f} MiB resident; {n_cores()} cores")
        timed = [part for part in PARTS[:4] if part not in arguments.skip]
        load(server, requests, 8, 2)  # warms up
        for part in timed:
            if part == "throughput":
                throughput(server, arguments.model, images, requests, arguments.seconds)
            else:
                {"latency": latency, "overload": overload, "dripping": dripping}[part](server, requests, arguments.seconds)
        print(f"            {server.resident_mib():.0f} MiB resident")
    if "stop" not in arguments.skip:
        stop(arguments.model, requests)
    if "memory" not in arguments.skip:
        memory(arguments.model, requests, arguments.requests)


if __name__ == "__main__":
    main()
