"""Which profile is read, what of it counts, and the sentences for those that cannot be used."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from shards.errors import ConfigError
from shards.storage.aws_profile import aws_credential, profile_credentials, read_aws_profile

CONFIG = """
[default]
region = eu-west-1
[profile lab]
region = eu-central-1
endpoint_url = https://objects.lab
s3 =
    addressing_style = path
[profile work]
sso_session = work
[profile machine]
region = us-west-2
"""
KEYS = """
[default]
aws_access_key_id = default-key
aws_secret_access_key = default%secret
[lab]
aws_access_key_id = lab-key
aws_secret_access_key = planted-secret
aws_session_token = planted-token
region = eu-north-1
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(CONFIG)
    (tmp_path / ".aws" / "credentials").write_text(KEYS)
    return {"HOME": str(tmp_path)}


def test_the_default_profile_of_the_home_folder_is_read(environment: dict[str, str]) -> None:
    found = aws_credential(environment)
    assert found is not None
    assert (found["access_key_id"], found["secret_access_key"]) == ("default-key", "default%secret")
    assert found["token"] is None
    assert read_aws_profile(environment).get("region") == "eu-west-1"


def test_a_named_profile_of_other_files_is_read_and_the_credentials_file_wins(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".aws" / "config").rename(tmp_path / "c")
    (tmp_path / ".aws" / "credentials").rename(tmp_path / "k")
    files = {
        "AWS_CONFIG_FILE": str(tmp_path / "c"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "k"),
    }
    lab = {**files, "HOME": "/nowhere", "AWS_PROFILE": "lab"}
    found = aws_credential(lab)
    assert found is not None
    assert found["token"] == "planted-token"
    profile = read_aws_profile(lab)
    assert (profile.get("region"), profile.get("endpoint_url")) == (
        "eu-north-1",
        "https://objects.lab",
    )
    assert "planted" not in repr(profile)


def test_keys_of_the_environment_win_also_over_a_profile_that_does_not_exist(
    environment: dict[str, str],
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_PROFILE": "nobody"}
    assert aws_credential({**environment, **keys}) is None


def test_without_files_or_keys_the_role_of_the_machine_is_left_to_obstore(
    environment: dict[str, str],
) -> None:
    assert aws_credential({"HOME": "/nowhere"}) is None
    assert aws_credential({**environment, "AWS_PROFILE": "machine"}) is None


def test_a_profile_that_does_not_exist_is_named_with_the_files(environment: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^AWS_PROFILE=nobody: no such profile in .*/\.aws/credentials and .*config",
    ):
        aws_credential({**environment, "AWS_PROFILE": "nobody"})


@pytest.mark.parametrize(
    "line", ["sso_session = x", "credential_process = x", "role_arn = x\nsource_profile = lab"]
)
def test_a_profile_that_needs_a_sign_in_says_how_to_export_its_keys(
    environment: dict[str, str], line: str
) -> None:
    Path(environment["HOME"], ".aws", "config").write_text(f"[profile work]\n{line}\n")
    words = (
        rf"^AWS profile work: has {line.split()[0]} and no "
        rf"keys.*export-credentials --profile work --format env"
    )
    with pytest.raises(ConfigError, match=words):
        aws_credential({**environment, "AWS_PROFILE": "work"})


@pytest.mark.parametrize(
    "damage", [b"aws_secret_access_key = planted\n", b"[lab]\nplanted\n", b"[lab]\nx = \xff\n"]
)
def test_a_file_that_is_no_ini_file_is_named_and_not_quoted(
    environment: dict[str, str], damage: bytes
) -> None:
    Path(environment["HOME"], ".aws", "credentials").write_bytes(damage)
    with pytest.raises(ConfigError, match=r"/\.aws/credentials: is not an INI file") as caught:
        aws_credential(environment)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "half_written", ["", "[default]\n", "[default]\naws_access_key_id = new-key\n", "[default\n"]
)
def test_keys_that_are_just_being_written_are_the_last_ones_until_they_are_there(
    environment: dict[str, str], half_written: str
) -> None:
    keys = Path(environment["HOME"], ".aws", "credentials")
    read = profile_credentials({**environment, "AWS_PROFILE": "default"})
    assert read is not None
    first = read()
    keys.write_text(half_written)
    held = read()
    assert (held["access_key_id"], held["secret_access_key"]) == ("default-key", "default%secret")
    assert held["expires_at"] is not None
    assert held["expires_at"] <= datetime.now(UTC)  # the next request asks again
    keys.write_text("[default]\naws_access_key_id = new-key\naws_secret_access_key = new-secret\n")
    now = read()
    assert (now["access_key_id"], now["secret_access_key"]) == ("new-key", "new-secret")
    assert first["expires_at"] is not None
    assert now["expires_at"] is not None
    assert now["expires_at"] >= first["expires_at"] > datetime.now(UTC)


def test_a_profile_without_keys_gives_nothing_to_ask_again(environment: dict[str, str]) -> None:
    assert profile_credentials({**environment, "AWS_PROFILE": "machine"}) is None
    with pytest.raises(ConfigError, match="no such profile"):
        profile_credentials({**environment, "AWS_PROFILE": "nobody"})
