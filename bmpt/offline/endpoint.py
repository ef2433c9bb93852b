"""One exchange with an OpenAI-compatible chat endpoint (vLLM, llama.cpp, Ollama, hosted ones), with
a hard deadline.

The standard library's HTTP client: what is sent and received is one JSON object each. It connects
directly; proxies of the environment are not used. The key is sent to the endpoint and is in no
message, file or `repr`."""

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

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_CONNECT_SECONDS = 10.0  # for a connection, and for the whole first check
_LARGEST_REPLY_BYTES = 8 << 20
_NOT_KNOWN, _KEY_REFUSED, _TOO_MANY = (404, 405), (401, 403), 429
_WORTH_ANOTHER_TRY = (408, 409, 425, _TOO_MANY)


class EndpointError(BmptError):
    """The endpoint as a whole cannot be used: it is down, refuses the key or does not know the
    model."""


class RefusedError(BmptError):
    """The endpoint will not answer this question, now or later."""


class UnansweredError(BmptError):
    """This try brought no usable answer; another may. retry_after_seconds: what the server asked
    for, if it did."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Endpoint:
    """Where to ask; made by `parse_endpoint`.

    url: the base, such as http://localhost:8000/v1; timeout_seconds: of one request, its whole
        answer included"""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0


@dataclass(frozen=True)
class Reply:
    """text: as the model wrote it; finish_reason: `stop`, or `length` for an answer that was cut;
    None if not stated"""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def said(self) -> str:
        """What stands behind the thoughts of a reasoning model; nothing if they do not end.

        Some servers put the opening `<think>` into the prompt and send its end alone."""
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
    """Check an address and find its key in the environment; nothing is asked yet.

    api_key_env: the variable that must hold the key; None: OPENAI_API_KEY, if it is set.
    Raises: ConfigError, which repeats neither a key nor a password of the address."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    shown = f"{parts.scheme}://{host}{parts.path}"
    cure = "give its base, such as http://localhost:8000/v1"
    try:
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address:
        raise ConfigError(f"--endpoint {shown}: is not an http:// or https:// address; {cure}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"--endpoint {shown}: has a user, a query or a fragment; {cure}, and the key in a variable"
        )
    if not model.strip():
        raise ConfigError("--model is empty; name the model that the endpoint serves")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    variable = api_key_env or DEFAULT_KEY_VARIABLE
    key = environment.get(variable, "").strip()
    if api_key_env and not key:
        raise ConfigError(
            f"--api-key-env {api_key_env}: the variable is not set; export it, or leave the option out"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"${variable}: is no key, it holds characters that a header cannot; export it again"
        )
    return Endpoint(f"{parts.scheme}://{host}{path}", model, key or None, timeout_seconds)


class Client:
    """Exchanges with one endpoint, from any number of threads; `close` ends those that are open."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._parts = urlsplit(endpoint.url)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """End every exchange; those who wait for one get an UnansweredError."""
        with self._lock:
            self._is_closed = True
            for connected in self._open:
                _hang_up(connected)

    def check(self) -> None:
        """Ask for the list of models, so that an endpoint that is down or refuses the key is known
        at once.

        Raises: EndpointError. A server that has no such list, or is still loading, passes."""
        try:
            status, _, body = self._exchange(
                "GET", "/models", None, min(_CONNECT_SECONDS, self.endpoint.timeout_seconds)
            )
        except UnansweredError as error:
            raise EndpointError(
                f"{self.endpoint.url}: no endpoint answers there ({error}); start the server or correct --endpoint"
            ) from None
        if status in _KEY_REFUSED or 300 <= status < 400:
            raise self._unusable(status, body)

    def ask(self, messages: list[dict[str, Any]], *, max_tokens: int) -> Reply:
        """Ask one question at temperature 0. Raises: UnansweredError, RefusedError,
        EndpointError."""
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
        if status in _KEY_REFUSED or status in _NOT_KNOWN or status < 400:
            raise self._unusable(status, answer)
        reason = self._reason(status, answer)
        if status >= 500 or status in _WORTH_ANOTHER_TRY:
            raise UnansweredError(
                reason, retry_after_seconds=_retry_after(headers.get("Retry-After"))
            )
        raise RefusedError(reason)

    def _exchange(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """(status, headers, body). Raises: UnansweredError, also for silence and for a body that
        does not end."""
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        connection = kind(
            self._parts.hostname or "", self._parts.port, timeout=min(_CONNECT_SECONDS, seconds)
        )
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
            if (
                is_over.is_set()
            ):  # whatever it looked like: a reset, an end of file, or a body that is merely short
                problem = f"no answer within {seconds:g} s"
            if problem:
                raise UnansweredError(problem)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
            raise UnansweredError(_in_words(error)) from None
        finally:
            connection.close()
        if len(data) > _LARGEST_REPLY_BYTES:
            raise UnansweredError(f"an answer of more than {_LARGEST_REPLY_BYTES >> 20} MiB")
        return answer.status, answer.headers, data

    @contextlib.contextmanager
    def _deadline(self, connected: socket.socket, seconds: float) -> Iterator[threading.Event]:
        """Hang up after some seconds, since a socket's own timeout begins anew with every byte that
        drips in."""
        is_over = threading.Event()

        def end() -> None:
            is_over.set()
            _hang_up(connected)

        connected.settimeout(None)
        timer = threading.Timer(max(seconds, 0.0), end)
        timer.daemon = True
        with self._lock:
            if self._is_closed:
                raise UnansweredError("the run is ending")
            self._open.add(connected)
        timer.start()
        try:
            yield is_over
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(connected)

    def _headers(self) -> dict[str, str]:
        key = self.endpoint.api_key
        return {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {key}"} if key else {}),
        }

    def _unusable(self, status: int, body: bytes) -> EndpointError:
        where = self.endpoint.url
        if status in _KEY_REFUSED:
            how = "refuses the key" if self.endpoint.api_key else "wants a key"
            return EndpointError(
                f"{where}: {how} ({self._reason(status, body)}); export it, see --api-key-env"
            )
        if status in _NOT_KNOWN:
            return EndpointError(
                f"{where}: has no model {self.endpoint.model} or no /chat/completions ({self._reason(status, body)}); "
                "correct --model or --endpoint"
            )
        return EndpointError(
            f"{where}: answers with HTTP {status}; give the address that it leads to as --endpoint"
        )

    def _reason(self, status: int, body: bytes) -> str:
        """`HTTP 500: what the server says`, in one short line; a server may repeat the key."""
        said = _error_text(body)
        if self.endpoint.api_key:
            said = said.replace(self.endpoint.api_key, "<key>")
        return f"HTTP {status}: {said[:200]}" if said else f"HTTP {status}"


def _hang_up(connected: socket.socket) -> None:
    """Wakes a thread that is reading it, which closing would not."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(
            connected, socket.SHUT_RDWR
        )  # beneath TLS, whose own state is the reader's


def _parse_reply(body: bytes) -> Reply:
    """Raises: UnansweredError for anything but a chat completion."""
    try:
        values = json.loads(body)
        choice = values["choices"][0]
        text, reason, usage = (
            choice["message"]["content"],
            choice.get("finish_reason"),
            values.get("usage"),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise UnansweredError(f"not a chat completion: {_one_line(body)[:80]!r}") from None
    if not isinstance(text, str):
        raise UnansweredError(f"a chat completion without a text: {_one_line(body)[:80]!r}")
    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        text.encode(
            "utf-8", "replace"
        ).decode(),  # JSON can hold halves of surrogate pairs, tables cannot
        reason if isinstance(reason, str) else None,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _error_text(body: bytes) -> str:
    """The message of {"error": {"message": ...}}, {"error": ...}, {"detail": ...}, else the
    body."""
    with contextlib.suppress(ValueError):
        values = json.loads(body)
        if isinstance(values, dict):
            said = values.get("error", values.get("message", values.get("detail")))
            said = said.get("message", said) if isinstance(said, dict) else said
            return _one_line(str(said).encode())
    return _one_line(body)


def _one_line(text: bytes) -> str:
    return " ".join(text[:2000].decode("utf-8", "replace").split())


def _retry_after(value: str | None) -> float | None:
    """Seconds, or the seconds until an HTTP date."""
    if value is None or re.fullmatch(r"\d+(\.\d+)?", value):
        return None if value is None else float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection ended without an answer"
    return (
        (isinstance(error, OSError) and error.strerror)
        or _one_line(str(error).encode())
        or type(error).__name__
    )
