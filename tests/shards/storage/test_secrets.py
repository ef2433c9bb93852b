"""A planted secret is in nothing that a run shows, sends to a worker or keeps, wherever the keys
come from."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError

from shards.errors import BmptError, ConfigError, StorageError
from shards.fetching.frames import FrameReader, ReadSettings, make_reader
from shards.loader import build_eval_loader
from shards.reader import Pool, open_pool
from shards.sampling.clip_settings import ClipSettings
from shards.storage.buckets import check_endpoint
from shards.storage.open import LocalStore, open_store
from shards.stream.settings import BlockSettings
from tests.object_store import READER, WRITER, ObjectServer
from tests.shards.aws_files import write_profile

MANIFEST = "base_to_novel/val_novel"
SECRETS = (
    "planted",
    WRITER[1],
    READER[1],
)  # the keys of the server begin so, the wrong ones below too


@pytest.fixture(params=["environment", "profile"])
def give_keys(
    request: pytest.FixtureRequest,
    s3: ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., None]:
    """Put keys and an endpoint where the parameter says."""

    def give(key: tuple[str, str] = WRITER, endpoint: str = s3.endpoint) -> None:
        for name, value in s3.environment(key).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        if request.param == "profile":
            for name in s3.environment():
                monkeypatch.delenv(name)
            write_profile(tmp_path, "default", key=key, region="us-east-1", endpoint=endpoint)
            monkeypatch.setenv("HOME", str(tmp_path))

    return give


@pytest.fixture
def stored(pool: Pool, s3: ObjectServer) -> str:
    """The address of a pool in a bucket."""
    assert isinstance(pool.store, LocalStore)
    return s3.upload(pool.store.root, "secrets")


def shown(value: Any, depth: int = 6) -> str:
    """All that printing, logging or sending an object and what it holds gives away."""
    if isinstance(value, Mapping):
        held = [*value, *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        held = list(value)
    else:
        held = list(getattr(value, "__dict__", {}).values())
    return "\n".join([f"{value!r} {value}", *(shown(part, depth - 1) for part in held if depth)])


def test_what_was_used_shows_and_carries_no_secret(
    stored: str, give_keys: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    give_keys()
    remote = open_pool(stored)
    manifest = remote.manifest(MANIFEST)
    reading = ReadSettings(cache=tmp_path / "cache")
    reader = make_reader(remote.store, manifest, reading)
    clip = ClipSettings(frames=2, size_px=16)
    loader = build_eval_loader(
        remote, manifest, clip, BlockSettings(block_size=12, reading=reading)
    )
    (clips,) = loader
    assert clips.failures == [None] * 12
    for value in (remote, remote.store, reader, loader, clips):
        assert not any(secret in shown(value) for secret in SECRETS)
    assert all(
        repr(remote.store) in shown(value) for value in (remote, reader, loader)
    )  # it looks deep enough
    for value in (remote, remote.store, reader):
        sent = pickle.dumps(value)
        assert not any(secret.encode() in sent for secret in SECRETS)
        again = pickle.loads(sent)
        store = again if again.__class__ is remote.store.__class__ else again.store
        assert store.exists("pool.json")
        assert isinstance(again, Pool | FrameReader | type(remote.store))
    held = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    printed = "".join(capfd.readouterr()).encode()
    assert held
    assert not any(secret.encode() in held + printed for secret in SECRETS)


@pytest.mark.parametrize(
    ("key", "bucket", "endpoint"),
    [
        ((WRITER[0], "planted-wrong-secret"), "secrets", None),
        (("nobody", "planted-wrong-secret"), "secrets", None),
        (READER, "secrets", None),
        (WRITER, "no-such-bucket", None),
        (WRITER, "secrets", "http://127.0.0.1:9"),
    ],
)
def test_no_failure_repeats_a_secret(
    stored: str,
    s3: ObjectServer,
    give_keys: Callable[..., None],
    key: tuple[str, str],
    bucket: str,
    endpoint: str | None,
) -> None:
    give_keys(key, endpoint or s3.endpoint)
    store = open_store(f"s3://{bucket}/pool?retry_seconds=1")
    attempts: list[Callable[[], object]] = [
        lambda: store.put("new", b"1"),
        lambda: store.read("missing"),
        lambda: store.read_ranges("missing", [0], [1]),
        lambda: list(store.read_chunks("missing", [1])),
        lambda: store.size("missing"),
    ]
    for attempt in attempts:
        with pytest.raises(BmptError) as caught:
            attempt()
        error = caught.value
        said = f"{error!r} {error} {error.__cause__!r} {pickle.dumps(error)!r}"
        assert not any(secret in said for secret in SECRETS)
        assert "\n" not in str(error)


def complaint(address: str) -> str:
    """What is said of an object that cannot be asked for."""
    with pytest.raises(StorageError) as caught:
        open_store(f"{address}{'&' if '?' in address else '?'}retry_seconds=0").read("x")
    error = caught.value
    assert "\n" not in str(error)
    return f"{error!r} {error} {error.__cause__!r} {pickle.dumps(error)!r}"


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://key:planted@127.0.0.1:9",
        "http://key:pa/planted@127.0.0.1:9",
        "http://planted@127.0.0.1:9",
        "http://key%3Aplanted%40127.0.0.1:9",
        "http://key%3Aplanted",
        "http://127.0.0.1:9/planted%40x",
        "http://planted:99999",
        "http://1.2.3.999",
        "http://[::planted]",
        "http://",
        "http:///planted",
        "planted:9",
        "http://127.0.0.1:9 x",
        "http://127.0.0.1:9?planted",
        "http://é",
        "ftp://planted",
    ],
)
def test_endpoint_that_cannot_be_used_is_refused_and_not_repeated(endpoint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_endpoint(endpoint, source="ENDPOINT")
    expected = "ENDPOINT: is not http(s)://host:port without credentials; correct it"
    assert str(caught.value) == expected
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9", "https://minio.lab", "HTTPS://host:443/path/", "http://[::1]:9000"],
)
def test_endpoint_that_can_be_used_is_not_refused(endpoint: str) -> None:
    """The check returns nothing: that it does not raise is the whole test."""
    check_endpoint(endpoint, source="ENDPOINT")


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("s3://b/p?endpoint=http://planted:99999", "endpoint= of the address"),
        ("s3://b/p", "AWS_ENDPOINT_URL_S3"),
        ("s3://b/p", "AWS_ENDPOINT_URL"),
        ("s3://b/p", "AWS_ENDPOINT"),
        ("s3://b/p", "endpoint_url of the AWS profile"),
        ("gs://b/p?anonymous=true", "GOOGLE_BASE_URL"),
        ("az://b/p?anonymous=true", "AZURE_STORAGE_ENDPOINT"),
    ],
)
def test_every_source_of_an_endpoint_is_checked_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, source: str
) -> None:
    endpoint = "http://planted:99999"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("HOME", str(tmp_path))
    if source == "endpoint_url of the AWS profile":
        write_profile(tmp_path, "default", region="us-east-1", endpoint=endpoint)
    elif source != "endpoint= of the address":
        monkeypatch.setenv(source, endpoint)
    said = complaint(address)
    assert f"/p/x: cannot be read: {source}: is not http(s)://host:port without credentials" in said
    assert "planted" not in said


@pytest.mark.parametrize(
    "address",
    ["http://host:99999/p", "http://1.2.3.999/p", "http://key%253Aplanted/p", "https://[::x]/p"],
)
def test_a_web_address_that_is_none_is_one_line(address: str) -> None:
    assert "the address names no host:port" in complaint(address)


@pytest.mark.parametrize(
    ("address", "variable", "value"),
    [
        ("s3://b/p", "AWS_ACCESS_KEY_ID", "planted\n"),
        ("s3://b/p", "AWS_SESSION_TOKEN", "planted é"),
        ("s3://b/p", "AWS_REGION", "eu west"),
        ("gs://b/p", "GOOGLE_BEARER_TOKEN", "planted\nx"),
        ("gs://b/p", "GOOGLE_SERVICE_ACCOUNT_KEY", '"planted"'),
        ("gs://b/p", "GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": ["planted"]}'),
        ("az://b/p", "AZURE_STORAGE_ACCOUNT_KEY", "planted!"),
        ("az://b/p", "AZURE_STORAGE_SAS_TOKEN", "sig=%ffplanted"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_a_secret_not_repeated(
    s3: ObjectServer, monkeypatch: pytest.MonkeyPatch, address: str, variable: str, value: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv(variable, value)
    said = complaint(address)
    assert "planted" not in said
    if not address.startswith("az"):
        assert variable in said


def test_a_google_file_that_is_no_key_is_not_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key.json").write_text('{"type": "planted"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    said = complaint("gs://b/p")
    assert (
        "is not the JSON that Google issues; check the credentials "
        "(GOOGLE_APPLICATION_CREDENTIALS, " in said
    )
    assert "planted" not in said


def test_what_stands_before_the_host_of_an_address_in_an_error_is_left_out() -> None:
    error = GenericError(
        "Generic S3 error: Error performing GET http://key:pa/planted@host/x in 1 ms - HTTP error"
    )
    said = str(open_store("http://host/p")._failed("x", "read", error))
    assert said == (
        "http://host/p/x: cannot be read: Error performing GET http://host/x in 1 ms - HTTP error"
    )
