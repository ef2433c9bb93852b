"""Requests to an OpenAI-compatible chat endpoint (vLLM, llama.cpp, Ollama, hosted ones), each with
a deadline.

The HTTP client of the standard library sends and receives one JSON object per request. It connects
directly: proxies of the environment are not used. The key is sent to the endpoint and appears in no
message, file or `repr`.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from shards.errors import BmptError, ConfigError
from shards.files import one_line, os_error_text

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
# For a connection, and for the whole first check.
_CONNECT_SECONDS = 10.0
_LARGEST_REPLY_BYTES = 8 << 20
# HTTP statuses.
_UNKNOWN, _KEY_REFUSED, _TOO_MANY = (404, 405), (401, 403), 429
_RETRIED = (408, 409, 425, _TOO_MANY)


class EndpointError(BmptError):
    """The endpoint cannot be used: it is down, refuses the key or does not know the model."""


class RefusedError(BmptError):
    """The endpoint will never answer this question."""


class UnansweredError(BmptError):
    """A try has no usable answer; a retry may have one."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        """Create the error, with the wait that the server requested, if any."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Endpoint:
    """A server and one of its models; `parse_endpoint` makes it."""

    url: str
    """The base, for example http://localhost:8000/v1."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0
    """For one request, including its whole answer."""


@dataclass(frozen=True)
class Reply:
    """An answer of the model."""

    text: str
    """As the model wrote it."""
    finish_reason: str | None = None
    """`stop`, `length` for a truncated answer, or None if it is not stated."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def said(self) -> str:
        """Return the text behind the thoughts of a reasoning model; empty if they do not end.

        Some servers put the opening `<think>` into the prompt, and only send its end.
        """
        _, end, answer = self.text.rpartition("</think>")
        return "" if not end and answer.lstrip().startswith("<think>") else answer


def parse_endpoint(
    url: str,
    model: str,
    *,
    api_key_env: str | None = None,
    environment: Mapping[str, str] = os.environ,
    timeout_seconds: float = 120.0,
) -> Endpoint:
    """Check an address and find its key in the environment, without a request.

    Args:
        url: base of the server, or its address of chat completions.
        model: a model that the server offers.
        api_key_env: the variable that must hold the key; None for OPENAI_API_KEY, if it is set.
        environment: environment variables.
        timeout_seconds: for one request.

    Raises:
        ConfigError: the message repeats neither a key nor a password of the address.
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    shown = f"{parts.scheme}://{host}{parts.path}"
    hint = "give its base, such as http://localhost:8000/v1"

    try:
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # The port is not a number.
        is_address = False
    if not is_address:
        raise ConfigError(f"--endpoint {shown}: is not an http:// or https:// address; {hint}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"--endpoint {shown}: has a user, a query or a fragment; {hint}, "
            "and the key in a variable"
        )
    if not model.strip():
        raise ConfigError("--model is empty; name a model that the endpoint offers")

    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    variable = api_key_env or DEFAULT_KEY_VARIABLE
    key = environment.get(variable, "").strip()
    if api_key_env and not key:
        raise ConfigError(
            f"--api-key-env {api_key_env}: the variable is not set; export it, "
            "or leave the option out"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"${variable}: is not a key: it has characters that a header cannot have; "
            "export it again"
        )

    return Endpoint(f"{parts.scheme}://{host}{path}", model, key or None, timeout_seconds)


class Client:
    """Requests to one endpoint from any number of threads; `close` ends the open ones."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._parts = urlsplit(endpoint.url)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """End every open request with an UnansweredError."""
        with self._lock:
            self._is_closed = True
            for connection in self._open:
                _shut_down(connection)

    def check(self) -> None:
        """Request the list of models, to find a server that is down or refuses the key at once.

        A server that has no such list, or is still loading, passes.

        Raises:
            EndpointError: if the endpoint cannot be used.
        """
        seconds = min(_CONNECT_SECONDS, self.endpoint.timeout_seconds)
        try:
            status, _, body = self._exchange("GET", "/models", None, seconds)
        except UnansweredError as error:
            raise EndpointError(
                f"{self.endpoint.url}: no endpoint answers there ({error}); "
                "start the server or correct --endpoint"
            ) from None

        if status in _KEY_REFUSED or 300 <= status < 400:
            raise self._unusable(status, body)

    def ask(self, messages: list[dict[str, Any]], *, max_tokens: int) -> Reply:
        """Ask one question at temperature 0.

        Raises:
            UnansweredError: if a retry may have an answer.
            RefusedError: if no retry would have one.
            EndpointError: if the endpoint cannot be used.
        """
        question = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": False,
        }
        body = json.dumps(question).encode()
        status, headers, answer = self._exchange(
            "POST", "/chat/completions", body, self.endpoint.timeout_seconds
        )
        if status == 200:
            return _parse_reply(answer)
        if status in _KEY_REFUSED or status in _UNKNOWN or status < 400:
            raise self._unusable(status, answer)

        reason = self._reason(status, answer)
        if status >= 500 or status in _RETRIED:
            wait = _retry_after(headers.get("Retry-After"))
            raise UnansweredError(reason, retry_after_seconds=wait)
        raise RefusedError(reason)

    def _exchange(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one request and return (status, headers, body).

        Raises:
            UnansweredError: also if no byte arrives or the body does not end.
        """
        is_https = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_https else http.client.HTTPConnection
        connect_seconds = min(_CONNECT_SECONDS, seconds)
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=connect_seconds)
        ends_at = time.monotonic() + seconds

        try:
            connection.connect()
            with self._deadline(connection.sock, ends_at - time.monotonic()) as is_over:
                problem = None
                try:
                    connection.request(
                        method, self._parts.path + path, body=body, headers=self._headers()
                    )
                    answer = connection.getresponse()
                    data = answer.read(_LARGEST_REPLY_BYTES + 1)
                except (OSError, http.client.HTTPException) as error:
                    problem = _in_words(error)
            # The deadline may look like a reset, an end of file, or a body that is too short.
            if is_over.is_set():
                problem = f"no answer within {seconds:g} s"
            if problem:
                raise UnansweredError(problem)
        except (OSError, UnicodeError) as error:
            # UnicodeError: the host name is not valid.
            raise UnansweredError(_in_words(error)) from None
        finally:
            connection.close()

        if len(data) > _LARGEST_REPLY_BYTES:
            raise UnansweredError(f"an answer of more than {_LARGEST_REPLY_BYTES >> 20} MiB")
        return answer.status, answer.headers, data

    @contextlib.contextmanager
    def _deadline(self, connection: socket.socket, seconds: float) -> Iterator[threading.Event]:
        """Shut a connection down after some seconds.

        The timeout of a socket is not enough: it starts again with every byte that arrives.

        Yields:
            An event that is set once the time is over.
        """
        is_over = threading.Event()

        def end() -> None:
            is_over.set()
            _shut_down(connection)

        connection.settimeout(None)
        timer = threading.Timer(max(seconds, 0.0), end)
        timer.daemon = True
        with self._lock:
            if self._is_closed:
                raise UnansweredError("the run is ending")
            self._open.add(connection)

        timer.start()
        try:
            yield is_over
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(connection)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.endpoint.api_key:
            headers["Authorization"] = f"Bearer {self.endpoint.api_key}"
        return headers

    def _unusable(self, status: int, body: bytes) -> EndpointError:
        """Return the error for a status that ends the run."""
        where = self.endpoint.url
        reason = self._reason(status, body)

        if status in _KEY_REFUSED:
            problem = "refuses the key" if self.endpoint.api_key else "needs a key"
            return EndpointError(f"{where}: {problem} ({reason}); export it, see --api-key-env")
        if status in _UNKNOWN:
            return EndpointError(
                f"{where}: has no model {self.endpoint.model} or no /chat/completions ({reason}); "
                "correct --model or --endpoint"
            )
        return EndpointError(
            f"{where}: answers with HTTP {status}; give the address that it leads to as --endpoint"
        )

    def _reason(self, status: int, body: bytes) -> str:
        """Return `HTTP 500: message of the server` on one short line, without the key."""
        message = _error_message(body)
        if self.endpoint.api_key:
            message = message.replace(self.endpoint.api_key, "<key>")
        return f"HTTP {status}: {message[:200]}" if message else f"HTTP {status}"


def _shut_down(connection: socket.socket) -> None:
    """Shut a connection down, which wakes a thread that reads it; closing would not."""
    # The method of the plain socket: the state of TLS belongs to the thread that reads.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _parse_reply(body: bytes) -> Reply:
    """Parse a chat completion.

    Raises:
        UnansweredError: for anything else.
    """
    shown = _decode_line(body)[:80]
    try:
        values = json.loads(body)
        choice = values["choices"][0]
        text = choice["message"]["content"]
        reason = choice.get("finish_reason")
        usage = values.get("usage")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise UnansweredError(f"not a chat completion: {shown!r}") from None
    if not isinstance(text, str):
        raise UnansweredError(f"a chat completion without a text: {shown!r}")

    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        # JSON can hold single halves of surrogate pairs, Parquet cannot.
        text.encode("utf-8", "replace").decode(),
        reason if isinstance(reason, str) else None,
        _token_count(counts.get("prompt_tokens")),
        _token_count(counts.get("completion_tokens")),
    )


def _token_count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _error_message(body: bytes) -> str:
    """Return the message of {"error": {"message": ...}}, {"error": ...} or {"detail": ...}.

    Any other body is returned as it is.
    """
    with contextlib.suppress(ValueError):
        values = json.loads(body)
        if isinstance(values, dict):
            message = values.get("error", values.get("message", values.get("detail")))
            if isinstance(message, dict):
                message = message.get("message", message)
            return one_line(message)
    return _decode_line(body)


def _decode_line(data: bytes) -> str:
    return one_line(data[:2000].decode("utf-8", "replace"))


def _retry_after(value: str | None) -> float | None:
    """Return the wait in seconds that a header requests: a number, or until an HTTP date."""
    if value is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection ended without an answer"
    text = os_error_text(error) if isinstance(error, OSError) else one_line(error)
    return text or type(error).__name__
