"""A proxy before the S3 server that does what networks and servers do: errors, resets, short
bodies, delays, stalls."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    status: answered instead of asking the server; delay_seconds: before the answer
    body_share: of the body that is sent, with its whole length promised and then a reset; is_short:
        with the
    shortened length promised, as a server does that lost the end; stall_seconds: of silence before
    the reset"""

    status: int | None = None
    delay_seconds: float = 0.0
    body_share: float = 1.0
    is_short: bool = False
    stall_seconds: float = 0.0


@dataclass
class FaultProxy:
    """decide: (number of the request from 0, method, path) -> what happens to it
    requests: what came, (method, path); signatures: the Authorization header of each, empty if
        there was none"""

    endpoint: str
    decide: Callable[[int, str, str], Fault | None]
    requests: list[tuple[str, str]] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def run_fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Stand before a server on a free port of this machine; `decide` may be changed at any time."""
    target = urlsplit(upstream)
    lock = threading.Lock()
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                number = len(proxy.requests)
                proxy.requests.append((self.command, self.path))
                proxy.signatures.append(self.headers.get("Authorization", ""))
            fault = proxy.decide(number, self.command, self.path) or Fault()
            time.sleep(fault.delay_seconds)
            if fault.status is not None:
                self.answer(fault.status, [], _SLOW_DOWN)
                return
            server = http.client.HTTPConnection(target.hostname or "", target.port)
            server.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
            answer = server.getresponse()
            data = answer.read()
            server.close()
            kept = data[: int(len(data) * fault.body_share)]
            if fault.is_short:
                self.answer(answer.status, answer.getheaders(), kept)
            elif len(kept) < len(data):
                self.answer(answer.status, answer.getheaders(), kept, promised=len(data))
                is_over.wait(fault.stall_seconds)
                self.reset()
            else:
                self.answer(
                    answer.status,
                    answer.getheaders(),
                    data,
                    promised=answer.getheader("Content-Length"),
                )

        def answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            body: bytes,
            promised: int | str | None = None,
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if promised is None else promised))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()

        def reset(self) -> None:
            """End the connection with RST, as a machine does that goes down."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            return

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = FaultProxy(
        f"http://127.0.0.1:{server.server_address[1]}", lambda number, method, path: None
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
