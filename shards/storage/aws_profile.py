"""The AWS profile in `~/.aws`: keys, region and endpoint, found as the AWS CLI finds them.

obstore does not read profiles. Source: AWS SDKs and Tools Reference Guide, "Shared config and
credentials files".
"""

from __future__ import annotations

import configparser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Credential

# Then the files are read again: a program that rotates keys writes them there.
_MAX_KEY_AGE = timedelta(minutes=15)
# Settings of a profile whose keys only the AWS CLI can obtain.
_SIGN_IN = ("sso_session", "sso_start_url", "credential_process", "role_arn")


@dataclass(frozen=True)
class AwsProfile:
    """One profile. Its repr does not show the keys."""

    name: str
    files: str
    """The files that were read, for messages."""
    values: Mapping[str, str] | None = field(repr=False)
    """Values by lower-case name, the credentials file over the config file; None if neither has
    the profile."""

    def get(self, name: str) -> str | None:
        """Return a value, or None if it is missing or empty."""
        return (self.values or {}).get(name) or None


def read_aws_profile(environment: Mapping[str, str]) -> AwsProfile:
    """Read the profile that AWS_PROFILE names, or `default`, from both files.

    Raises:
        ConfigError: if one of the files is not an INI file.
    """
    name = environment.get("AWS_PROFILE") or "default"
    folder = Path(environment.get("HOME", "/")) / ".aws"
    config = Path(environment.get("AWS_CONFIG_FILE") or folder / "config").expanduser()
    keys_file = environment.get("AWS_SHARED_CREDENTIALS_FILE") or folder / "credentials"
    keys = Path(keys_file).expanduser()

    of_config = _section(config, name if name == "default" else f"profile {name}")
    of_keys = _section(keys, name)

    values = None
    if of_config is not None or of_keys is not None:
        values = {**(of_config or {}), **(of_keys or {})}
    return AwsProfile(name, f"{keys} and {config}", values)


def aws_credential(environment: Mapping[str, str]) -> S3Credential | None:
    """Return the keys of the profile.

    Returns:
        None if the environment has keys, which come first, or if there is no profile with keys.

    Raises:
        ConfigError: if AWS_PROFILE names a profile that does not exist, or one that needs a
            sign-in.
    """
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return None

    profile = read_aws_profile(environment)
    if profile.values is None:
        if environment.get("AWS_PROFILE"):
            raise ConfigError(
                f"AWS_PROFILE={profile.name}: no such profile in {profile.files}; "
                "see `aws configure list`"
            )
        return None

    key, secret = profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")
    if key and secret:
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": profile.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + _MAX_KEY_AGE,
        }

    for setting in _SIGN_IN:
        if profile.get(setting):
            raise ConfigError(
                f"AWS profile {profile.name}: has {setting} and no keys, which only the AWS CLI "
                "can use; run "
                f'eval "$(aws configure export-credentials --profile {profile.name} --format env)" '
                "first"
            )
    return None


def profile_credentials(environment: Mapping[str, str]) -> Callable[[], S3Credential] | None:
    """Return the function that obstore calls for the keys of the profile, or None.

    obstore calls it again before the keys expire. While the files have no usable keys, the
    function returns the last ones: a program that rotates keys may be writing the files.

    Returns:
        None where `aws_credential` returns None.

    Raises:
        ConfigError: as `aws_credential`; a later call of the function raises nothing.
    """
    first = aws_credential(environment)
    if first is None:
        return None

    last = first

    def read_again() -> S3Credential:
        nonlocal last
        try:
            credential = aws_credential(environment)
        except ConfigError:
            credential = None

        if credential is None:
            # Expired at once: the next request asks again.
            return {**last, "expires_at": datetime.now(UTC)}
        last = credential
        return credential

    return read_again


def _section(path: Path, name: str) -> Mapping[str, str] | None:
    """Return a section of an INI file, or None if the section or the file is missing."""
    # Without interpolation, since a secret may hold %.
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        # The original messages quote lines of the file.
        raise ConfigError(f"{path}: is not an INI file; see `aws configure list`") from None
    return dict(parser[name]) if parser.has_section(name) else None
