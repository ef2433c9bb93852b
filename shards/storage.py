"""Open the place that an address leads to."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from shards.buckets import AzureContainer, BucketStore, GoogleBucket, S3Bucket, WebFolder
from shards.config import build_settings
from shards.errors import ConfigError
from shards.store import LocalStore, Store

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


def open_store(uri: str | Path) -> Store:
    """Open a path, a `file://` address, or `<scheme>://<bucket>/<prefix>?<options>` of object storage or the web.

    Nothing is asked of the store yet. An address holds no credentials; for the options see `shards.buckets`.
    Raises: ConfigError for another scheme, an unknown option, or credentials in the address, which it does not repeat.
    """
    text = str(uri)
    scheme, is_address, rest = text.partition("://")
    if not is_address:
        return LocalStore(Path(text).absolute())
    if scheme == "file":
        return LocalStore(Path(unquote(urlsplit(text).path)))
    place, _, query = rest.partition("?")
    bucket, _, prefix = place.strip("/").partition("/")
    user, has_user, host = bucket.rpartition("@")
    face = _REMOTE.get(scheme)
    is_account = face is AzureContainer and ":" not in user
    shown = f"{scheme}://{bucket if is_account else host}/{prefix}".rstrip("/")
    if face is None:
        raise ConfigError(f"{shown}: {scheme}:// is not supported; give a folder or one of {', '.join(_REMOTE)}")
    if (has_user and not is_account) or "@" in query:
        raise ConfigError(f"{shown}: the address holds credentials; {face.cure}")
    if not bucket:
        raise ConfigError(f"{scheme}://: names no bucket; give {scheme}://bucket/prefix")
    options = build_settings(face.Options, dict(parse_qsl(query, keep_blank_values=True)), where=shown)
    return face(scheme, bucket, prefix, options)
