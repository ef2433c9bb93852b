"""The profile of `~/.aws` that obstore does not read: keys, region and endpoint, as the AWS CLI
finds them.

Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files"."""

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

_FRESH = timedelta(
    minutes=15
)  # then the files are read again: whoever rotates keys writes them there
_SIGN_IN = ("sso_session", "sso_start_url", "credential_process", "role_arn")


@dataclass(frozen=True)
class AwsProfile:
    """One profile; its keys never show.

    values: of the credentials file over those of the config file, by lower-case name; None if
        neither has it
    files: what was read, for messages"""

    name: str
    files: str
    values: Mapping[str, str] | None = field(repr=False)

    def get(self, name: str) -> str | None:
        """A value, None if it is not there or empty."""
        return (self.values or {}).get(name) or None


def read_aws_profile(environment: Mapping[str, str]) -> AwsProfile:
    """Read the profile AWS_PROFILE, or `default`, from both files. Raises: ConfigError if one is
    not an INI file."""
    name = environment.get("AWS_PROFILE") or "default"
    folder = Path(environment.get("HOME", "/")) / ".aws"
    config = Path(environment.get("AWS_CONFIG_FILE") or folder / "config").expanduser()
    keys = Path(
        environment.get("AWS_SHARED_CREDENTIALS_FILE") or folder / "credentials"
    ).expanduser()
    below = _section(config, name if name == "default" else f"profile {name}")
    above = _section(keys, name)
    values = None if below is None and above is None else {**(below or {}), **(above or {})}
    return AwsProfile(name, f"{keys} and {config}", values)


def aws_credential(environment: Mapping[str, str]) -> S3Credential | None:
    """The keys of the profile; None where the environment has keys or nothing names a profile.

    Raises: ConfigError if AWS_PROFILE names a profile that does not exist, or one that needs a
        sign-in."""
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return None
    profile = read_aws_profile(environment)
    if profile.values is None:
        if environment.get("AWS_PROFILE"):
            raise ConfigError(
                f"AWS_PROFILE={profile.name}: no such profile in {profile.files}; see `aws configure list`"
            )
        return None
    key, secret = profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")
    if key and secret:
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": profile.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + _FRESH,
        }
    needed = next((name for name in _SIGN_IN if profile.get(name)), None)
    if needed is not None:
        raise ConfigError(
            f"AWS profile {profile.name}: has {needed} and no keys, which only the AWS CLI can use; "
            f'run eval "$(aws configure export-credentials --profile {profile.name} --format env)" first'
        )
    return None


def profile_credentials(environment: Mapping[str, str]) -> Callable[[], S3Credential] | None:
    """What obstore calls for the keys of the profile, and again before they expire; None as
    `aws_credential`.

    While the files have no keys to use, it goes on with the last ones: whoever rotates keys may be
    writing there.
    Raises: ConfigError as `aws_credential`; a later call raises nothing."""
    first = aws_credential(environment)
    if first is None:
        return None
    last = first

    def read_again() -> S3Credential:
        nonlocal last
        try:
            found = aws_credential(environment)
        except ConfigError:
            found = None
        if found is None:
            return {**last, "expires_at": datetime.now(UTC)}  # asked for again by the next request
        last = found
        return found

    return read_again


def _section(path: Path, name: str) -> Mapping[str, str] | None:
    """One section of an INI file, None if it is not there."""
    parser = configparser.RawConfigParser(default_section="", strict=False)  # a secret may hold %
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # their texts quote lines of the file
        raise ConfigError(f"{path}: is not an INI file; see `aws configure list`") from None
    return dict(parser[name]) if parser.has_section(name) else None
