"""The common part of all remote stores: ranged reads, checked uploads, error messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from pydantic import Field

from shards.config import Settings
from shards.errors import ConfigError, StorageError
from shards.files import hash_file, os_error_text
from shards.storage.base import FAILURES, READ_BYTES, Store
from shards.storage.retries import retry_config

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# For one whole request. The 30 s of obstore cut off large objects and slow networks.
_REQUEST_SECONDS = 900.0
# Uploads of one file, if the object has other bytes than the file.
_MAX_UPLOADS = 3
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
# Paths of the metadata service of a machine, which obstore asks last for credentials.
_METADATA_PATHS = (
    "/latest/api/token",
    "/latest/meta-data",
    "/computeMetadata/v1",
    "/metadata/identity",
)
# Parts of obstore's messages that are left out. A query may hold a signature, and the text before
# the @ of a host a secret.
_NOISE = re.compile(
    r"^Generic \w+ error: |, max_retries: \d+, retry_timeout: \S+ ?|: <.*|\?\S*|(?<=//)\S*@"
)
# obstore panics at other endpoints; % and @ could hide credentials.
_ENDPOINT = re.compile(
    r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d+)?(/[\w./~-]*)?", re.ASCII | re.IGNORECASE
)
_VARIABLES_IN_HEADERS = ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "GOOGLE_BEARER_TOKEN")


class WebOptions(Settings):
    """Options of every remote address."""

    timeout_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="time without a byte until a connection is closed and the rest requested again "
        "(botocore: 60)",
    )
    retry_seconds: float = Field(
        240.0,
        ge=0,
        le=300,
        description="time for the retries of a failed request; its signature stays the same, so "
        "that obstore advises at most 5 minutes",
    )


class BucketOptions(WebOptions):
    """Options of gs:// and az://. None leaves an option to the environment."""

    endpoint: str | None = Field(
        None, pattern=r"^https?://.", description="http(s) address of the server"
    )
    anonymous: bool | None = Field(None, description="send no credentials")


class BucketStore(Store):
    """A prefix of a bucket; credentials come from the environment, never from the options."""

    Options: ClassVar[type[WebOptions]]
    """Model of the options behind the `?` of an address."""
    hint: ClassVar[str]
    """How the user can solve a refused request, the end of the error message."""
    endpoint_variables: ClassVar[tuple[str, ...]] = ()
    """Environment variables with the endpoint, the first one that is set wins."""

    def __init__(self, scheme: str, bucket: str, prefix: str, options: Any) -> None:
        super().__init__()
        self.scheme, self.bucket, self.prefix, self.options = scheme, bucket, prefix, options

    def uri(self, name: str) -> str:
        """Return `scheme://bucket/prefix/name`, without the options."""
        return f"{self.scheme}://" + "/".join(filter(None, (self.bucket, self.prefix, name)))

    def exists(self, name: str) -> bool:
        """Return whether there is an object of that name.

        Raises:
            StorageError: also if there is no such bucket.
        """
        if super().exists(name):
            return True

        # The answer to a HEAD request does not tell a missing bucket from a missing object; the
        # answer to a listing does.
        self.sizes(f"{name}/")
        return False

    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read byte ranges with one request per range, several at the same time.

        `shards.fetching.frames` merges neighbouring ranges first where that is cheaper.
        """

        def fetch(client: Any) -> list[bytes]:
            try:
                parts = client.get_ranges(
                    name, starts=list(starts), lengths=list(sizes), coalesce=0
                )
            except FAILURES as error:
                # The object ends before the range begins.
                if "status code: 416 " not in str(error):
                    raise
                return [b"" for _ in sizes]
            return [bytes(part) for part in parts]

        try:
            blocks = self.request(name, "read", fetch)
        except FileNotFoundError:
            raise self._missing(name) from None

        if any(len(block) < size for block, size in zip(blocks, sizes, strict=True)):
            raise self._truncated(name, starts, sizes, self.size(name))
        return blocks

    def read_chunks(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """Read an object in order with one request; see `Store.read_chunks`.

        Holds the bytes that no chunk has taken yet: about 10 MB and the largest chunk at most.
        """
        held = bytearray()

        try:
            answer = self.request(name, "read", lambda client: client.get(name))
            blocks = iter(answer.stream(min_chunk_size=READ_BYTES))

            for size in sizes:
                while len(held) < size:
                    block = next(blocks, None)
                    if block is None:
                        raise self._too_short(name, sum(sizes))
                    held += block
                yield memoryview(bytes(held[:size]))
                del held[:size]
        except FileNotFoundError:
            raise self._missing(name) from None
        except FAILURES as error:
            raise self._failed(name, "read", error) from None

    def move_in(self, name: str, path: Path) -> None:
        """Upload a file, and delete it once the object has its size and its sha256."""
        try:
            size, sha256 = path.stat().st_size, hash_file(path)

            for _ in range(_MAX_UPLOADS):
                self.request(name, "written", lambda client: client.put(name, path))
                if self.size(name) == size and self.sha256(name) == sha256:
                    path.unlink()
                    return
            self.delete(name)
        except OSError as error:
            raise self._failed(name, "written", error) from None

        raise StorageError(
            f"{self.uri(name)}: has other bytes than {path} after {_MAX_UPLOADS} uploads; "
            "check the server"
        )

    def _endpoint(self, of_profile: str | None = None) -> str | None:
        """Return the address of the server, or None for the provider's own.

        Raises:
            ConfigError: for an endpoint that holds credentials or that obstore panics at; the
                message does not repeat it.
        """
        for variable in _VARIABLES_IN_HEADERS:
            if not is_plain(os.environ.get(variable, "")):
                raise ConfigError(
                    f"{variable}: holds a line break or another character that no key has; "
                    "set it again"
                )

        # In the order in which they count.
        sources = {"endpoint= of the address": self.options.endpoint}
        sources.update((variable, first_set(variable)) for variable in self.endpoint_variables)
        sources["endpoint_url of the AWS profile"] = of_profile

        for source, endpoint in sources.items():
            if not endpoint:
                continue
            check_endpoint(endpoint, source=source)
            return endpoint
        return None

    def _client_options(self, endpoint: str | None) -> ClientConfig:
        return {
            "allow_http": (endpoint or "").startswith("http://"),
            "read_timeout": timedelta(seconds=self.options.timeout_seconds),
            "timeout": timedelta(seconds=max(_REQUEST_SECONDS, self.options.timeout_seconds)),
        }

    def _retries(self) -> RetryConfig:
        return retry_config(self.options.retry_seconds, has_answered=self._has_answered)

    def _is_bucket_missing(self, error: FileNotFoundError) -> bool:
        return _error_code(str(error)) in _NO_BUCKET

    def _reason(self, error: Exception) -> str:
        """Return the reason of a failure on one line.

        The messages of obstore are a page of Rust, of XML and of debug output.
        """
        text = str(error)
        code = _error_code(text)
        shown_code = f" ({code})" if code else ""

        if code in _NO_BUCKET:
            return f"no such bucket{shown_code}; create it, or check the address and the endpoint"
        if any(path in text for path in _METADATA_PATHS):
            return f"no credentials were found; {self.hint}"

        is_refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if is_refused or "Expired" in code or re.search(r"status code: 40[13] ", text):
            return f"access was refused{shown_code}; {self.hint}"

        if "InvalidCertificate" in text:
            return (
                "the server's certificate is not trusted; "
                "name a file with its authority in SSL_CERT_FILE"
            )
        if "response body error" in text and "TimedOut" in text:
            seconds = f"{self.options.timeout_seconds:g} s (timeout_seconds)"
            return f"the download stalled repeatedly for {seconds}"
        if isinstance(error, OSError) and error.strerror:
            return os_error_text(error)

        line = _NOISE.sub("", text.partition("\n")[0]).strip()
        if "error sending request" in line:
            return f"no answer; check the address, the endpoint and the network ({line})"
        return f"{line}{shown_code}"


def check_endpoint(endpoint: str, *, source: str) -> None:
    """Check that an endpoint is an http(s) address without credentials that obstore can parse.

    Raises:
        ConfigError: otherwise; it names the source of the endpoint and does not repeat the
            endpoint, which may hold a secret.
    """
    if not (_ENDPOINT.fullmatch(endpoint) and is_address(endpoint)):
        raise ConfigError(f"{source}: is not http(s)://host:port without credentials; correct it")


def is_address(text: str) -> bool:
    """Return whether obstore can parse the host and the port of an address."""
    from obstore.store import HTTPStore

    try:
        HTTPStore(text, client_options={"allow_http": True})
    except ValueError:
        return False
    return True


def is_plain(text: str) -> bool:
    """Return whether a text can be a header of a request; obstore panics at other texts."""
    return text.isascii() and text.isprintable() and " " not in text


def first_set(*variables: str) -> str | None:
    """Return the value of the first environment variable that is set and not empty."""
    for variable in variables:
        if value := os.environ.get(variable):
            return value
    return None


def _error_code(text: str) -> str:
    """Return the error code of an XML answer, or an empty text."""
    match = re.search(r"<Code>(\w+)</Code>", text)
    return match[1] if match else ""
