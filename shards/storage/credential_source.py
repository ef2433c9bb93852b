"""The source of the credentials for object storage, in words and without secrets."""

from __future__ import annotations

from collections.abc import Mapping

from shards.errors import ConfigError
from shards.storage.aws_profile import aws_credential, read_aws_profile

# Variables that obstore reads, in the order in which they are tried.
_AWS_ROLES = {
    "AWS_WEB_IDENTITY_TOKEN_FILE": "web identity of AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "role of the container",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "role of the container",
}
_GOOGLE = ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS")
_AZURE = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CLIENT_SECRET")


def credential_sources(environment: Mapping[str, str]) -> dict[str, str]:
    """Return where the credentials of each kind of storage come from, by the scheme of addresses.

    Nothing is requested from a server, so that a role of the machine is only named as possible.
    """
    return {
        "s3": _s3_source(environment),
        "gs": _first_variable(environment, _GOOGLE, "application default credentials, if any"),
        "az": _first_variable(environment, _AZURE, "none in the environment"),
    }


def _s3_source(environment: Mapping[str, str]) -> str:
    if environment.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return "anonymous (AWS_SKIP_SIGNATURE)"
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment"

    try:
        if aws_credential(environment) is not None:
            profile = read_aws_profile(environment)
            return f"profile {profile.name} of {profile.files}"
    except ConfigError as error:
        return f"not usable: {error}"

    for variable, source in _AWS_ROLES.items():
        if environment.get(variable):
            return source
    return "none in the environment or a profile; a role of the machine, if it has one"


def _first_variable(
    environment: Mapping[str, str], variables: tuple[str, ...], otherwise: str
) -> str:
    for variable in variables:
        if environment.get(variable):
            return f"{variable} of the environment"
    return otherwise
