"""Open the place that an address leads to."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from shards.config import build_settings
from shards.errors import ConfigError
from shards.storage.base import LocalStore, Store
from shards.storage.buckets import AzureContainer, BucketStore, GoogleBucket, S3Bucket, WebFolder

__all__ = ["BucketStore", "LocalStore", "Store", "open_store"]

_REMOTE: dict[str, type[BucketStore]] = {
    "s3": S3Bucket,
    "gs": GoogleBucket,
    "az": AzureContainer,
    "abfs": AzureContainer,
    "abfss": AzureContainer,
    "https": WebFolder,
    "http": WebFolder,
}
# user@ before the host, user:password@ anywhere, for a secret may hold / and ?, or any @ among the
# options
_CREDENTIALS = re.compile(r"^/*[^/]*@|[:?].*@", re.DOTALL)
_CONTAINER = re.compile(r"^[^/?:@]+@")  # abfs://container@account.host


def open_store(uri: str | Path) -> Store:
    """Open a path, a `file://` address, or `<scheme>://<bucket>/<prefix>?<options>` of object
    storage or the web.

    Nothing is asked of the store yet. An address holds no credentials; for the options see
    `shards.storage.buckets`.
    Raises: ConfigError for another scheme, an unknown option, or credentials in the address, which
        it does not repeat.
    """
    text = str(uri)
    scheme, is_address, rest = text.partition("://")
    if not is_address:
        return LocalStore(Path(text).absolute())
    if scheme == "file":
        return LocalStore(Path(unquote(urlsplit(text).path)))
    face = _REMOTE.get(scheme)
    if _holds_credentials(rest, may_name_container=face is AzureContainer):
        cure = face.cure if face else f"give a folder or one of {', '.join(_REMOTE)}"
        raise ConfigError(
            f"{scheme}://...: the address holds credentials; leave them out and {cure}"
        )
    place, _, query = rest.partition("?")
    bucket, _, prefix = place.strip("/").partition("/")
    shown = f"{scheme}://{bucket}/{prefix}".rstrip("/")
    if face is None:
        raise ConfigError(
            f"{shown}: {scheme}:// is not supported; give a folder or one of {', '.join(_REMOTE)}"
        )
    if not bucket:
        raise ConfigError(f"{scheme}://: names no bucket; give {scheme}://bucket/prefix")
    if not bucket.isprintable() or " " in bucket:
        raise ConfigError(
            f"{shown!r}: no bucket and no host has a name with a space; give {scheme}://bucket/prefix"
        )
    options = build_settings(
        face.Options, dict(parse_qsl(query, keep_blank_values=True)), where=shown
    )
    return face(scheme, bucket, prefix, options)


def _holds_credentials(rest: str, *, may_name_container: bool) -> bool:
    """Whether what follows `://` may hold a user's name or a secret, however often it is
    percent-encoded."""
    while (plain := unquote(rest)) != rest:
        rest = plain
    return bool(_CREDENTIALS.search(_CONTAINER.sub("", rest) if may_name_container else rest))
