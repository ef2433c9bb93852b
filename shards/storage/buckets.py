"""Pools in object storage or behind a web server, through obstore: S3 and what speaks it, Google,
Azure, HTTP.

A store that has not answered yet gives up soon, since its address or key is likely wrong; one that
has is waited for, so that a long run outlives a server that restarts. What a server refuses is
never asked twice."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from pydantic import Field

from shards.config import Settings
from shards.errors import ConfigError, StorageError
from shards.files import hash_file
from shards.storage.aws_profile import profile_credentials, read_aws_profile
from shards.storage.base import FAILURES, READ_BYTES, Store

if TYPE_CHECKING:
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        RetryConfig,
        S3Config,
        S3Credential,
    )

_FIRST_SECONDS = 10.0  # for which a store is tried that has never answered
_REQUEST_SECONDS = 900.0  # a whole one; obstore's 30 s cut off what is large or slow
_BACKOFF_BASE = 3  # with obstore's jitter the mean wait grows 1.5 times a retry
_MAX_BACKOFF_SECONDS = 10.0
_UPLOADS = 3  # of one file, when it comes back with other bytes
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
# where a machine is asked for its role, the last resort of obstore
_ROLE_PATHS = (
    "/latest/api/token",
    "/latest/meta-data",
    "/computeMetadata/v1",
    "/metadata/identity",
)
# what obstore says too much; a query may be a signature, and what stands before a host's @ a secret
_NOISE = re.compile(
    r"^Generic \w+ error: |, max_retries: \d+, retry_timeout: \S+ ?|: <.*|\?\S*|(?<=//)\S*@"
)
# obstore panics at another one; % and @ could hide credentials
_ENDPOINT = re.compile(
    r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d+)?(/[\w./~-]*)?", re.ASCII | re.IGNORECASE
)
_IN_HEADERS = ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "GOOGLE_BEARER_TOKEN")


class WebOptions(Settings):
    """Options of every address.

    timeout_seconds: without a byte, then a connection is given up and the rest is asked for again
        (botocore: 60)
    retry_seconds: for which a failed request is tried again, with the signature of the first try;
        obstore advises
    5 minutes at most"""

    timeout_seconds: float = Field(60.0, gt=0, le=3600)
    retry_seconds: float = Field(240.0, ge=0, le=300)


class BucketOptions(WebOptions):
    """Options of gs:// and az://; None leaves it to the environment.

    endpoint: http(s) address of the server; anonymous: send no credentials"""

    endpoint: str | None = Field(None, pattern=r"^https?://.")
    anonymous: bool | None = None


class S3Options(BucketOptions):
    """Options of s3://; None leaves it to the environment and the AWS profile.

    path_style: https://host/bucket, or else https://bucket.host"""

    region: str | None = None
    path_style: bool | None = None


class BucketStore(Store):
    """A prefix of a bucket; `options` hold no credentials, those come from the environment."""

    Options: ClassVar[type[WebOptions]]
    cure: ClassVar[str]
    endpoint_variables: ClassVar[tuple[str, ...]] = ()

    def __init__(self, scheme: str, bucket: str, prefix: str, options: Any) -> None:
        super().__init__()
        self.scheme, self.bucket, self.prefix, self.options = scheme, bucket, prefix, options

    def uri(self, name: str) -> str:
        """`scheme://bucket/prefix/name`, without the options."""
        return f"{self.scheme}://" + "/".join(filter(None, (self.bucket, self.prefix, name)))

    def exists(self, name: str) -> bool:
        """Whether an object of that name is there. Raises: StorageError also if there is no such
        bucket."""
        if super().exists(name):
            return True
        self.sizes(f"{name}/")  # a listing tells whether there is a bucket, HEAD does not
        return False

    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """A request a range, several at once; who wants fewer joins ranges first
        (`shards.fetching.frames`)."""

        def fetch(client: Any) -> list[bytes]:
            try:
                parts = client.get_ranges(
                    name, starts=list(starts), lengths=list(sizes), coalesce=0
                )
            except FAILURES as error:
                if "status code: 416 " not in str(error):
                    raise
                return [b"" for _ in sizes]
            return [bytes(part) for part in parts]

        try:
            blocks = self._ask(name, "read", fetch)
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None
        if any(len(block) < size for block, size in zip(blocks, sizes, strict=True)):
            raise self._cut_short(name, starts, sizes, self.size(name))
        return blocks

    def read_pieces(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """One request; what the pieces do not take yet is held, at most about 10 MB and the largest
        piece."""
        held = bytearray()
        try:
            blocks = iter(
                self._ask(name, "read", lambda client: client.get(name)).stream(
                    min_chunk_size=READ_BYTES
                )
            )
            for size in sizes:
                while len(held) < size:
                    block = next(blocks, None)
                    if block is None:
                        raise StorageError(
                            f"{self.uri(name)}: ends before the {sum(sizes)} bytes that it should hold"
                        )
                    held += block
                yield memoryview(bytes(held[:size]))
                del held[:size]
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None
        except FAILURES as error:
            raise self._failed(name, "read", error) from None

    def adopt(self, name: str, path: Path) -> None:
        """Upload a file and remove it once the object, read back, has its size and its sha256."""
        try:
            size, sha256 = path.stat().st_size, hash_file(path)
            for _ in range(_UPLOADS):
                self._ask(name, "written", lambda client: client.put(name, path))
                if self.size(name) == size and self.sha256(name) == sha256:
                    path.unlink()
                    return
            self.delete(name)
        except OSError as error:
            raise self._failed(name, "written", error) from None
        raise StorageError(
            f"{self.uri(name)}: {path} came back changed {_UPLOADS} times; check the server"
        )

    def _endpoint(self, of_profile: str | None = None) -> str | None:
        """The server to ask, None for the provider's own.

        Raises: ConfigError, which does not repeat it, for one that holds credentials or that
            obstore panics at."""
        for name in _IN_HEADERS:
            if not _is_plain(os.environ.get(name, "")):
                raise ConfigError(
                    f"{name}: holds a line break or another character that no key has; set it again"
                )
        sources = {
            "endpoint= of the address": self.options.endpoint,
            **{name: _first(name) for name in self.endpoint_variables},
        }
        sources["endpoint_url of the AWS profile"] = of_profile
        where, endpoint = next(
            ((where, found) for where, found in sources.items() if found), ("", None)
        )
        if endpoint and not (_ENDPOINT.fullmatch(endpoint) and _is_address(endpoint)):
            raise ConfigError(
                f"{where}: is not http(s)://host:port without credentials; correct it"
            )
        return endpoint

    def _client_options(self, endpoint: str | None) -> ClientConfig:
        return {
            "allow_http": (endpoint or "").startswith("http://"),
            "read_timeout": timedelta(seconds=self.options.timeout_seconds),
            "timeout": timedelta(seconds=max(_REQUEST_SECONDS, self.options.timeout_seconds)),
        }

    def _retries(self) -> RetryConfig:
        """Bounded by time alone: obstore's ten retries are over within 2 to 20 s."""
        seconds = self.options.retry_seconds
        if not self._has_answered:
            seconds = min(seconds, _FIRST_SECONDS)
        return {
            "max_retries": 10_000 if seconds else 0,
            "retry_timeout": timedelta(seconds=seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=_MAX_BACKOFF_SECONDS),
                "base": _BACKOFF_BASE,
            },
        }

    def _is_lost(self, error: FileNotFoundError) -> bool:
        return _code(str(error)) in _NO_BUCKET

    def _reason(self, error: Exception) -> str:
        """What went wrong in one line; obstore gives a page of Rust, of XML and of debug output."""
        text = str(error)
        code = _code(text)
        shown = f" ({code})" if code else ""
        if code in _NO_BUCKET:
            return f"no such bucket{shown}; make it, or check the address and the endpoint"
        if any(path in text for path in _ROLE_PATHS):
            return f"no credentials were found; {self.cure}"
        is_refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if is_refused or "Expired" in code or re.search(r"status code: 40[13] ", text):
            return f"access was refused{shown}; {self.cure}"
        if "InvalidCertificate" in text:
            return "the server's certificate is not trusted; name a file with its authority in SSL_CERT_FILE"
        if "response body error" in text and "TimedOut" in text:
            return f"its bytes stop half-way, again and again, for {self.options.timeout_seconds:g} s (timeout_seconds)"
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        line = _NOISE.sub("", text.partition("\n")[0]).strip()
        if "error sending request" in line:
            return f"no answer; check the address, the endpoint and the network ({line})"
        return f"{line}{shown}"


class S3Bucket(BucketStore):
    """`s3://bucket/prefix`: AWS and S3-compatible servers.

    Credentials by the standard chain: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile of
        `~/.aws`,
    a web identity, the role of the container or of the machine."""

    Options = S3Options
    cure = "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and what they may do"
    endpoint_variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

    def __init__(self, scheme: str, bucket: str, prefix: str, options: Any) -> None:
        super().__init__(scheme, bucket, prefix, options)
        self._merged: tuple[S3Config, Callable[[], S3Credential] | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_merged": None}

    def _connect(self) -> Any:
        from obstore.store import S3Store

        if (
            self._merged is None
        ):  # once: whoever rotates keys may be writing the profile at the next client
            self._merged = self._merge()
        config, keys = self._merged
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            client_options=self._client_options(config.get("endpoint")),
            retry_config=self._retries(),
            credential_provider=keys,
        )

    def _merge(self) -> tuple[S3Config, Callable[[], S3Credential] | None]:
        """Merge the options, the environment and the profile; None leaves the keys to obstore."""
        options, profile = self.options, read_aws_profile(os.environ)
        config: S3Config = {}
        region = (
            options.region or _first("AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region")
        )
        if region:
            if not _is_plain(region):
                raise ConfigError(
                    f"{region!r} is no name of a region; correct region=, AWS_REGION or the profile"
                )
            config["region"] = region
        endpoint = self._endpoint(profile.get("endpoint_url"))
        path_style = options.path_style
        if path_style is None:
            path_style = not _is_on("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")
        config["virtual_hosted_style_request"] = not path_style
        if endpoint:
            config["endpoint"] = endpoint if path_style else _with_bucket(endpoint, self.bucket)
            config["aws_endpoint_url_s3"] = config[
                "endpoint"
            ]  # the variable of this name would win over `endpoint`
        is_anonymous = (
            _is_on("AWS_SKIP_SIGNATURE") if options.anonymous is None else options.anonymous
        )
        config["skip_signature"] = is_anonymous
        return config, None if is_anonymous else profile_credentials(os.environ)


class GoogleBucket(BucketStore):
    """`gs://bucket/prefix`, with the application default credentials."""

    Options = BucketOptions
    cure = (
        "check the credentials (GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT_KEY) "
        "and what they may do with the bucket"
    )
    endpoint_variables = ("GOOGLE_BASE_URL",)

    def _connect(self) -> Any:
        from obstore.store import GCSStore

        endpoint = self._endpoint()
        config: GCSConfig = {}
        if endpoint:
            config["base_url"] = endpoint
        if self.options.anonymous is not None:
            config["skip_signature"] = self.options.anonymous
        return GCSStore(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            client_options=self._client_options(endpoint),
            retry_config=self._retries(),
        )

    def _reason(self, error: Exception) -> str:
        if "decode service account" in str(error):  # and then a quotation from it
            return f"the service account's key is not the JSON that Google gives; {self.cure}"
        return super()._reason(error)


class AzureContainer(BucketStore):
    """`az://container/prefix` with AZURE_STORAGE_ACCOUNT_NAME, or
    `abfs://container@account.host/prefix`."""

    Options = BucketOptions
    cure = (
        "check the credentials (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN) "
        "and what they may do with the container"
    )
    endpoint_variables = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")

    def _connect(self) -> Any:
        from obstore.store import AzureStore

        endpoint = self._endpoint()
        container, _, host = self.bucket.partition("@")
        config: AzureConfig = {}
        account = host.partition(".")[0] or _first("AZURE_STORAGE_ACCOUNT_NAME")
        if account:  # obstore reads the variable too, but then the repr of its client panics
            config["account_name"] = account
        if endpoint:
            config["endpoint"] = endpoint
        if self.options.anonymous is not None:
            config["skip_signature"] = self.options.anonymous
        return AzureStore(
            container,
            prefix=self.prefix or None,
            config=config,
            client_options=self._client_options(endpoint),
            retry_config=self._retries(),
        )

    def _reason(self, error: Exception) -> str:
        if "Account must be specified" in str(error):
            return f"the address names no account; {self.cure}"
        return super()._reason(error)


class WebFolder(BucketStore):
    """`https://host/path` (and `http://`): files behind a web server that answers byte ranges, to
    be read by anyone.

    A web server has no listing, so that only what is known by name can be read."""

    Options = WebOptions
    cure = "a web server must let anyone read the pool; where it takes credentials, use s3://, gs:// or az://"

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        return Store.exists(self, name)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Raises: StorageError, always."""
        raise StorageError(
            f"{self.uri(prefix.rstrip('/'))}: cannot be listed on a web server; training and evaluation need the exact "
            "names of manifests, verify, report and diff need a copy of the pool"
        )

    def put(self, name: str, data: bytes) -> None:
        """Raises: StorageError, always."""
        raise self._read_only(name, "written")

    def delete(self, name: str) -> None:
        """Raises: StorageError, always."""
        raise self._read_only(name, "removed")

    def adopt(self, name: str, path: Path) -> None:
        """Raises: StorageError, always."""
        raise self._read_only(name, "written")

    def _connect(self) -> Any:
        from obstore.store import HTTPStore

        address = self.uri("")
        if not _is_address(address):
            raise ConfigError("the address names no host:port; correct it")
        return HTTPStore(
            address, client_options=self._client_options(address), retry_config=self._retries()
        )

    def _read_only(self, name: str, what: str) -> StorageError:
        return StorageError(
            f"{self.uri(name)}: cannot be {what}: a web server is only read from; "
            "write to a folder, s3://, gs:// or az://"
        )

    def _reason(self, error: Exception) -> str:
        if "Range request not supported" in str(error):
            return "the web server ignores byte ranges; serve the pool from one that answers them"
        return super()._reason(error)


def _is_address(text: str) -> bool:
    """Whether obstore can parse an address: its host, its port, an IP."""
    from obstore.store import HTTPStore

    try:
        HTTPStore(text, client_options={"allow_http": True})
    except ValueError:
        return False
    return True


def _is_plain(text: str) -> bool:
    """Whether text can stand in the header of a request, where obstore panics at more."""
    return text.isascii() and text.isprintable() and " " not in text


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The address of a bucket in the virtual-hosted style, where the endpoint is not one
    already."""
    scheme, _, host = endpoint.partition("://")
    return endpoint if host.startswith(f"{bucket}.") else f"{scheme}://{bucket}.{host}"


def _first(*names: str) -> str | None:
    """The first environment variable that is set and not empty."""
    return next((value for name in names if (value := os.environ.get(name))), None)


def _is_on(name: str) -> bool:
    """Whether an environment variable says yes, as obstore reads it."""
    return os.environ.get(name, "").lower() in ("1", "true", "on", "yes", "y")


def _code(text: str) -> str:
    """The error code in an answer of XML, empty if there is none."""
    found = re.search(r"<Code>(\w+)</Code>", text)
    return found[1] if found else ""
