"""The remote stores: S3, Google, Azure, and web servers.

A class states the endpoint, the credentials and the error messages of one provider.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shards.errors import ConfigError, StorageError
from shards.storage.aws_profile import profile_credentials, read_aws_profile
from shards.storage.base import Store
from shards.storage.buckets import (
    BucketOptions,
    BucketStore,
    WebOptions,
    first_set,
    is_address,
    is_plain,
)

if TYPE_CHECKING:
    from obstore.store import AzureConfig, GCSConfig, S3Config, S3Credential


class S3Options(BucketOptions):
    """Options of s3://. None leaves an option to the environment and the AWS profile."""

    region: str | None = Field(None, description="region of the bucket")
    path_style: bool | None = Field(
        None, description="use https://host/bucket instead of https://bucket.host"
    )


class S3Bucket(BucketStore):
    """`s3://bucket/prefix`: AWS and S3-compatible servers.

    Credentials come from the standard chain: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the
    profile in `~/.aws`, a web identity, the role of the container or of the machine.
    """

    Options = S3Options
    hint = (
        "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) "
        "and their permissions"
    )
    endpoint_variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

    def __init__(self, scheme: str, bucket: str, prefix: str, options: Any) -> None:
        super().__init__(scheme, bucket, prefix, options)
        self._merged: tuple[S3Config, Callable[[], S3Credential] | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_merged": None}

    def _connect(self) -> Any:
        from obstore.store import S3Store

        # Merged once: a program that rotates keys may be writing the profile when the second
        # client is created.
        if self._merged is None:
            self._merged = self._merge()

        config, credentials = self._merged
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            client_options=self._client_options(config.get("endpoint")),
            retry_config=self._retries(),
            credential_provider=credentials,
        )

    def _merge(self) -> tuple[S3Config, Callable[[], S3Credential] | None]:
        """Merge the options, the environment and the profile.

        Returns:
            The config, and the provider of the keys, or None if obstore finds them itself.
        """
        options, profile = self.options, read_aws_profile(os.environ)
        config: S3Config = {}

        region = options.region or first_set("AWS_REGION", "AWS_DEFAULT_REGION")
        region = region or profile.get("region")
        if region:
            if not is_plain(region):
                raise ConfigError(
                    f"{region!r} is not a region; correct region=, AWS_REGION or the profile"
                )
            config["region"] = region

        path_style = options.path_style
        if path_style is None:
            path_style = not _is_on("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")
        config["virtual_hosted_style_request"] = not path_style

        endpoint = self._endpoint(profile.get("endpoint_url"))
        if endpoint:
            config["endpoint"] = endpoint if path_style else _with_bucket(endpoint, self.bucket)
            # Otherwise the environment variable of this name would override `endpoint`.
            config["aws_endpoint_url_s3"] = config["endpoint"]

        is_anonymous = options.anonymous
        if is_anonymous is None:
            is_anonymous = _is_on("AWS_SKIP_SIGNATURE")
        config["skip_signature"] = is_anonymous

        return config, None if is_anonymous else profile_credentials(os.environ)


class GoogleBucket(BucketStore):
    """`gs://bucket/prefix`, with the application default credentials."""

    Options = BucketOptions
    hint = (
        "check the credentials (GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT_KEY) "
        "and their permissions for the bucket"
    )
    endpoint_variables = ("GOOGLE_BASE_URL",)

    def _connect(self) -> Any:
        from obstore.store import GCSStore

        config: GCSConfig = {}
        endpoint = self._endpoint()
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
        # The original message quotes the key.
        if "decode service account" in str(error):
            return f"the key of the service account is not the JSON that Google issues; {self.hint}"
        return super()._reason(error)


class AzureContainer(BucketStore):
    """`az://container/prefix` or `abfs://container@account.host/prefix`.

    AZURE_STORAGE_ACCOUNT_NAME names the account where the address does not.
    """

    Options = BucketOptions
    hint = (
        "check the credentials (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or "
        "AZURE_STORAGE_SAS_TOKEN) and their permissions for the container"
    )
    endpoint_variables = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")

    def _connect(self) -> Any:
        from obstore.store import AzureStore

        config: AzureConfig = {}
        container, _, host = self.bucket.partition("@")
        account = host.partition(".")[0] or first_set("AZURE_STORAGE_ACCOUNT_NAME")
        if account:
            # obstore reads the variable itself, but then the repr of its client panics.
            config["account_name"] = account
        endpoint = self._endpoint()
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
            return f"the address names no account; {self.hint}"
        return super()._reason(error)


class WebFolder(BucketStore):
    """`https://host/path` or `http://host/path`: files on a web server that answers byte ranges.

    A web server has no listing, so that only objects whose names are known can be read.
    """

    Options = WebOptions
    hint = (
        "a web server must let everyone read the pool; "
        "for a pool with credentials use s3://, gs:// or az://"
    )

    def exists(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        return Store.exists(self, name)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Raise StorageError: a web server has no listing."""
        raise StorageError(
            f"{self.uri(prefix.rstrip('/'))}: cannot be listed on a web server; training and "
            "evaluation need the exact names of manifests, verify, report and diff need a copy of "
            "the pool"
        )

    def put(self, name: str, data: bytes) -> None:
        """Raise StorageError: a web server is read-only."""
        raise self._read_only(name, "written")

    def delete(self, name: str) -> None:
        """Raise StorageError: a web server is read-only."""
        raise self._read_only(name, "removed")

    def move_in(self, name: str, path: Path) -> None:
        """Raise StorageError: a web server is read-only."""
        raise self._read_only(name, "written")

    def _connect(self) -> Any:
        from obstore.store import HTTPStore

        address = self.uri("")
        if not is_address(address):
            raise ConfigError("the address names no host:port; correct it")
        return HTTPStore(
            address, client_options=self._client_options(address), retry_config=self._retries()
        )

    def _read_only(self, name: str, action: str) -> StorageError:
        return StorageError(
            f"{self.uri(name)}: cannot be {action}: a web server is read-only; "
            "write to a folder, s3://, gs:// or az://"
        )

    def _reason(self, error: Exception) -> str:
        if "Range request not supported" in str(error):
            return "the web server ignores byte ranges; serve the pool from one that answers them"
        return super()._reason(error)


def _with_bucket(endpoint: str, bucket: str) -> str:
    """Return the address of a bucket in the virtual-hosted style, unless the endpoint is one."""
    scheme, _, host = endpoint.partition("://")
    return endpoint if host.startswith(f"{bucket}.") else f"{scheme}://{bucket}.{host}"


def _is_on(variable: str) -> bool:
    """Return whether an environment variable is true, with the values that obstore accepts."""
    return os.environ.get(variable, "").lower() in ("1", "true", "on", "yes", "y")
