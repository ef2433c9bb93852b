"""Open the store of an address."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from shards.config import build_settings
from shards.errors import ConfigError
from shards.storage.base import Store
from shards.storage.buckets import BucketStore
from shards.storage.local import LocalStore
from shards.storage.providers import AzureContainer, GoogleBucket, S3Bucket, WebFolder

_REMOTE: dict[str, type[BucketStore]] = {
    "s3": S3Bucket,
    "gs": GoogleBucket,
    "az": AzureContainer,
    "abfs": AzureContainer,
    "abfss": AzureContainer,
    "https": WebFolder,
    "http": WebFolder,
}
# `user@` before the host, or `user:password@` anywhere: a secret may hold / and ?, and the options
# may hold any @.
_CREDENTIALS = re.compile(r"^/*[^/]*@|[:?].*@", re.DOTALL)
# The container of abfs://container@account.host.
_CONTAINER = re.compile(r"^[^/?:@]+@")


def open_store(uri: str | Path) -> Store:
    """Return the store of an address, without a request to it.

    Args:
        uri: a path, a `file://` address, or `<scheme>://<bucket>/<prefix>?<options>`; the options
            are those of `shards.storage.buckets` and `shards.storage.providers`.

    Raises:
        ConfigError: for another scheme, an unknown option, or an address that holds credentials,
            which the message does not repeat.
    """
    text = str(uri)
    scheme, is_address, rest = text.partition("://")
    if not is_address:
        return LocalStore(Path(text).absolute())
    if scheme == "file":
        return LocalStore(Path(unquote(urlsplit(text).path)))

    # Check for credentials before any message can quote the address.
    store_type = _REMOTE.get(scheme)
    schemes = ", ".join(_REMOTE)
    if _holds_credentials(rest, may_name_container=store_type is AzureContainer):
        hint = store_type.hint if store_type else f"give a folder or one of {schemes}"
        raise ConfigError(
            f"{scheme}://...: the address holds credentials; leave them out and {hint}"
        )

    path, _, query = rest.partition("?")
    bucket, _, prefix = path.strip("/").partition("/")
    shown = f"{scheme}://{bucket}/{prefix}".rstrip("/")

    if store_type is None:
        raise ConfigError(
            f"{shown}: {scheme}:// is not supported; give a folder or one of {schemes}"
        )
    if not bucket:
        raise ConfigError(f"{scheme}://: names no bucket; give {scheme}://bucket/prefix")
    if not bucket.isprintable() or " " in bucket:
        raise ConfigError(
            f"{shown!r}: bucket and host names cannot contain spaces; give {scheme}://bucket/prefix"
        )

    values = dict(parse_qsl(query, keep_blank_values=True))
    options = build_settings(store_type.Options, values, where=shown)
    return store_type(scheme, bucket, prefix, options)


def _holds_credentials(rest: str, *, may_name_container: bool) -> bool:
    """Return whether the text after `://` may hold a user name or a secret.

    The text is decoded until nothing is percent-encoded.
    """
    while (plain := unquote(rest)) != rest:
        rest = plain
    return bool(_CREDENTIALS.search(_CONTAINER.sub("", rest) if may_name_container else rest))
