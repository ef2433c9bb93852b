"""A small OpenAI-compatible server that answers, stalls, errs and talks nonsense, as a test tells
it to."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny-vlm"


@dataclass(frozen=True)
class Asked:
    """One question as it came. at_seconds: time.monotonic(); body: of the request, decoded"""

    at_seconds: float
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The words of the question, without pictures."""
        content = self.body["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        return " ".join(part["text"] for part in content if part["type"] == "text")


@dataclass(frozen=True)
class Say:
    """A right answer with this text."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Send:
    """Any status and body. delay_seconds: of silence before; is_reset: the connection is reset
    instead
    drip_seconds: between the bytes of the body"""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    is_reset: bool = False


@dataclass
class ChatServer:
    """decide: (number of the question from 0, the question) -> what is answered; may be changed at
    any time
    asked: the questions that came; most_at_once: of them that were being answered at the same time
    models: what GET /v1/models answers"""

    url: str
    decide: Callable[[int, Asked], Say | Send]
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    models: Send = Send(json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())
    num_checks: int = 0


@contextlib.contextmanager
def run_chat_server() -> Iterator[ChatServer]:
    """Serve on a free port of this machine."""
    lock = threading.Lock()
    is_over = threading.Event()
    now_answering = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            chat.num_checks += 1
            known = self.path == "/v1/models"
            self.send(chat.models if known else Send(b'{"error": "no such path"}', status=404))

        def do_POST(self) -> None:
            nonlocal now_answering
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if len(sent) < int(self.headers["Content-Length"]):  # who asked hung up
                return
            body = json.loads(sent)
            if self.path != "/v1/chat/completions":
                self.send(Send(b'{"error": "no such path"}', status=404))
                return
            asked = Asked(time.monotonic(), dict(self.headers.items()), body)
            with lock:
                number = len(chat.asked)
                chat.asked.append(asked)
                now_answering += 1
                chat.most_at_once = max(chat.most_at_once, now_answering)
            try:
                answer = chat.decide(number, asked)
            finally:
                # Before the answer is sent: the client may ask its next question at once.
                with lock:
                    now_answering -= 1
            self.send(answer if isinstance(answer, Send) else Send(completion(answer)))

        def send(self, answer: Send) -> None:
            is_over.wait(answer.delay_seconds)
            if answer.is_reset:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.close_connection = True
                return
            with contextlib.suppress(OSError):  # who asked may be gone
                self.send_response_only(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if answer.drip_seconds == 0:
                    self.wfile.write(answer.body)
                    return
                for byte in answer.body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    is_over.wait(answer.drip_seconds)

        def log_message(self, format: str, *args: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exc_info()[1], OSError):  # who asked may be gone
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    chat = ChatServer(url, lambda number, asked: Say("hello"))
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield chat
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def completion(answer: Say) -> bytes:
    """The JSON of a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text},
        "finish_reason": answer.finish_reason,
    }
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return json.dumps(
        {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
    ).encode()
