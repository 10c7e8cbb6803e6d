"""A Kaggle on loopback: the client's own protocol (kagglesdk's service paths and JSON), with faults on order."""

import hashlib
import io
import json
import threading
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

GOOD_TOKEN = "KGAT_good_0123456789"
API = "/api/v1/"
HOLD_S = 60.0
DATE = "2020-02-07T00:00:00.000Z"
MODIFIED = "Wed, 01 Jan 2025 00:00:00 GMT"


@dataclass
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, object]

    @property
    def call(self) -> str:
        """The last part of the path: "DownloadDataset", or the file's name."""
        return self.path.rsplit("/", 1)[-1].split("?")[0]


@dataclass
class Fault:
    """What the server does once in place of the answer to `call`."""

    call: str
    status: int = 0  # 0 = the answer itself, cut
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # None = a JSON error as Kaggle writes it
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    hold: bool = False  # and kept open instead


class KaggleServer(ThreadingHTTPServer):
    """Serves `archives` {(slug, version): bytes} and `files` {path: bytes} of one competition; records `requests`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archives: dict[tuple[str, int], bytes] = {}
        self.files: dict[str, bytes] = {}
        self.zipped: set[str] = set()  # single files that Kaggle sends packed
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.page_files = 3  # files listed at once, whatever is asked
        self.redirects = True
        self.ranges = True
        self.md5 = True
        self.validators = True  # ETag and Last-Modified
        self.if_range = True
        self.tells_version = True
        self.released = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Answers requests in a thread until the block ends."""
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self.shutdown()
            thread.join()
            self.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def calls(self, *names: str) -> list[Request]:
        return [request for request in self.requests if request.call in names]

    def fault(self, call: str) -> Fault | None:
        """The next fault ordered for `call`, used up; "*" fits every call and is never used up."""
        for fault in self.faults:
            if fault.call == call:
                self.faults.remove(fault)
                return fault
        return next((fault for fault in self.faults if fault.call == f"{call}*"), None)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KaggleServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(json.loads(raw or b"{}"))

    def do_GET(self) -> None:
        self.answer({})

    def answer(self, body: dict[str, object]) -> None:
        request = Request(self.command, self.path, dict(self.headers), body)
        self.server.requests.append(request)
        fault = self.server.fault(request.call)
        if fault and fault.status:
            content = fault.body
            if content is None:
                content = json.dumps({"code": fault.status, "message": f"refused {self.headers}"}).encode()
                fault.headers.setdefault("Content-Type", "application/json")
            self.send(fault.status, {}, content, fault)
        elif request.path.startswith("/store/"):
            self.send_file(request.path, fault)
        elif request.call == "IntrospectToken":
            good = body["token"] == GOOD_TOKEN
            self.send_json({"active": good, "username": "keeper"} if good else {"active": False})
        elif self.headers.get("Authorization") not in (f"Bearer {GOOD_TOKEN}", "Basic a2VlcGVyOmdvb2Q="):
            self.send(401, {"Content-Type": "application/json"}, b'{"code": 401, "message": "Unauthenticated"}')
        else:
            self.answer_call(request.path.removeprefix(API), body, fault)

    def answer_call(self, call: str, body: dict[str, object], fault: Fault | None) -> None:
        server, slug = self.server, f"{body.get('ownerSlug')}/{body.get('datasetSlug')}"
        versions = [number for known, number in server.archives if known == slug]
        match call:
            case "datasets.DatasetApiService/GetDataset" if versions:
                told = {"currentVersionNumber": max(versions)} if server.tells_version else {}
                self.send_json({"ref": slug, "totalBytes": 1, **told})
            case "datasets.DatasetApiService/DownloadDataset":
                version = body.get("datasetVersionNumber") or max(versions, default=0)
                self.redirect(f"/store/{slug}/{version}/archive.zip", fault)
            case "competitions.CompetitionApiService/ListDataFiles":
                names, start = list(server.files), int(str(body.get("pageToken") or 0))
                page, end = names[start : start + server.page_files], start + server.page_files
                files = [{"name": n, "totalBytes": len(server.files[n]), "creationDate": DATE} for n in page]
                self.send_json({"files": files, "nextPageToken": str(end) if end < len(names) else ""})
            case "competitions.CompetitionApiService/DownloadDataFile":
                self.redirect(f"/store/competition/{body['fileName']}", fault)
            case _:
                self.send(404, {"Content-Type": "application/json"}, b'{"code": 404, "message": "Not found"}')

    def redirect(self, path: str, fault: Fault | None) -> None:
        if self.content(path) is None:
            self.send(404, {"Content-Type": "application/json"}, b'{"code": 404, "message": "Not found"}')
        elif self.server.redirects:  # "localhost" is another host than 127.0.0.1, as Kaggle's file store is
            place = f"http://localhost:{self.server.server_port}{path}?X-Goog-Signature=signed-secret"
            self.send(302, {"Location": place}, b"")
        else:
            self.send_file(path, fault)

    def content(self, path: str) -> bytes | None:
        parts = path.split("?")[0].removeprefix("/store/").split("/")
        if parts[0] == "competition":
            return self.server.files.get("/".join(parts[1:]))
        return self.server.archives.get((f"{parts[0]}/{parts[1]}", int(parts[2])))

    def send_file(self, path: str, fault: Fault | None) -> None:
        content, name = self.content(path), path.split("?")[0].removeprefix("/store/competition/")
        assert content is not None
        if name in self.server.zipped:
            content = packed({name.rsplit("/", 1)[-1]: content})
        digest = hashlib.md5(content).digest()
        etag = f'"{digest.hex()}"'
        headers = {"Content-Type": "application/octet-stream"}
        if self.server.ranges:
            headers["Accept-Ranges"] = "bytes"
        if self.server.validators:
            headers |= {"ETag": etag, "Last-Modified": MODIFIED}
        if self.server.md5:
            headers["x-goog-hash"] = f"crc32c=AAAAAA==, md5={b64encode(digest).decode()}"
        asked = self.headers.get("Range")
        if asked and self.server.ranges and (not self.server.if_range or self.headers.get("If-Range") in (None, etag)):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, headers, content[start:], fault)
        else:
            self.send(200, headers, content, fault)

    def send_json(self, content: dict[str, object]) -> None:
        self.send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers | (fault.headers if fault else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if fault is None or fault.cut_after is None:
            self.wfile.write(fault.body if fault and fault.body is not None else body)
            return
        self.wfile.write(body[: fault.cut_after])
        self.wfile.flush()
        if fault.hold:
            self.server.released.wait(HOLD_S)
        self.close_connection = True


def packed(members: dict[str, bytes]) -> bytes:
    """A zip of `members`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
