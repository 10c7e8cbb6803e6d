"""Waitress with deadlines, bounded memory, errors as problem details, and a graceful stop."""

import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask

from fieldguide.web.problems import MEDIA_TYPE, Problem, code_of
from fieldguide.web.settings import MIB, Settings

HEADER_BYTES = 16384  # of a request
SILENT_S = 10  # an idle connection is closed
REQUEST_S = 60  # deadline for receiving a request
LINGER_S = 2  # time to read from a refused client, so that it receives the response
STOP_S = 20  # for requests in flight when the server stops
FRESH_S = 0.5  # a younger connection may have a request in transit
CONNECTIONS = 1000
UNFINISHED_BYTES = 256 * MIB  # of all partially received requests; above, the largest is dropped
SENTENCES = {
    413: "The request is too large.",
    431: "The request's headers are too large.",
    500: "Internal server error; see the server's log.",
    501: "The transfer encoding is not supported.",
}
logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # otherwise it warns about every queued request


class Parser(HTTPRequestParser):
    """Sends no "100 Continue" for a refused request."""

    def received(self, data: bytes) -> int:
        n_taken = super().received(data)
        if self.error:
            self.expect_continue = False
        return n_taken


class Refusal(ErrorTask):
    """Errors of the server itself, as problem details."""

    def execute(self) -> None:
        status = self.request.error.code
        problem = Problem(code_of(status), SENTENCES.get(status, "The request is not valid HTTP."))
        body = problem.body()
        self.status = f"{status} {self.request.error.reason}"
        self.response_headers += [("Content-Type", MEDIA_TYPE), ("X-Content-Type-Options", "nosniff")]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class LastAnswer(WSGITask):
    """A response that closes the connection if the server is stopping."""

    def execute(self) -> None:
        if self.channel.server.stopping:
            self.set_close_on_finish()
        super().execute()


class Channel(HTTPChannel):
    """One connection, with a deadline for each request."""

    parser_class = Parser
    close_when_flushed: bool
    task_class = LastAnswer
    error_task_class = Refusal
    begun = None  # arrival of the first byte of an incomplete request
    lingering = False  # after a refusal: further input is discarded

    def received(self, data: bytes) -> bool:
        if self.lingering:
            return True
        if self.request is None:
            self.begun = time.time()
        taken = super().received(data)
        if self.request is None:
            self.begun = None
        return taken

    def readable(self) -> bool:
        return (self.lingering and not self.will_close) or super().readable()

    def writable(self) -> bool:
        """False while a request is answered, so that the loop does not spin on a partial response; it is woken at the end."""
        if self.requests and not self.will_close and self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return False
        return super().writable()

    def handle_write(self) -> None:
        if self.close_when_flushed and not self.total_outbufs_len and not self.lingering and self.connected:
            self.close_when_flushed = False
            self.lingering, self.begun = True, time.time()
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.will_close = True
        super().handle_write()

    def overdue(self, now: float) -> bool:
        return self.begun is not None and now > self.begun + (LINGER_S if self.lingering else REQUEST_S)

    def busy(self, now: float) -> bool:
        """Whether a client waits for a response or may be sending a request."""
        if self.lingering:
            return False
        return bool(self.requests or self.request or self.total_outbufs_len) or now < self.creation_time + FRESH_S


class Server(TcpWSGIServer):
    """Listens on creation; `run` serves until `stop`, then finishes the requests in flight."""

    channel_class = Channel
    stopping = False

    def __init__(self, app: Callable[..., Any], host: str, port: int, settings: Settings) -> None:
        adjustments = Adjustments(
            listen=[f"[{host}]:{port}" if ":" in host else f"{host}:{port}"],
            threads=settings.max_images + 8,  # the additional ones answer requests without images, and refuse others
            connection_limit=CONNECTIONS,
            asyncore_use_poll=True,
            channel_timeout=SILENT_S,
            cleanup_interval=1,
            max_request_header_size=HEADER_BYTES,
            max_request_body_size=settings.max_body_bytes + 1,
            inbuf_overflow=settings.max_body_bytes + MIB,  # never reached: waitress would write uploads to disk
            outbuf_overflow=1 << 40,  # likewise for responses, which contain images
            recv_bytes=65536,
            ident=None,
            url_prefix=settings.prefix,  # taken off the paths that have it
            clear_untrusted_proxy_headers=not settings.trusted_proxies,  # otherwise the application reads them
            log_socket_errors=False,
        )
        super().__init__(app, adj=adjustments, sockinfo=adjustments.listen[0])

    def maintenance(self, now: float) -> None:
        """Closes idle and overdue connections; drops the largest partial requests while they use too much memory."""
        super().maintenance(now)
        arriving = []
        for channel in self.active_channels.values():
            if channel.overdue(now):
                channel.will_close = True
            elif channel.request is not None:
                arriving.append((channel.request.body_bytes_received, id(channel), channel))
        held = sum(n_bytes for n_bytes, _, _ in arriving)
        for n_bytes, _, channel in sorted(arriving, reverse=True):
            if held <= UNFINISHED_BYTES:
                break
            channel.will_close = True
            held -= n_bytes

    def stop(self) -> None:
        """Ends `run`; may be called from a signal handler."""
        self.stopping = True
        self.pull_trigger()

    def run(self) -> None:
        while not self.stopping:
            self._once(self.adj.asyncore_loop_timeout)
        n_before = 0
        while len(self._map) > n_before:  # connections that the system has already accepted
            n_before = len(self._map)
            self.handle_accept()
        self.del_channel()
        self.socket.close()
        last = time.time() + STOP_S
        while time.time() < last and any(channel.busy(time.time()) for channel in list(self.active_channels.values())):
            self._once(0.05)
        self.task_dispatcher.shutdown()

    def _once(self, timeout_s: float) -> None:
        self.asyncore.loop(timeout=timeout_s, use_poll=True, map=self._map, count=1)
