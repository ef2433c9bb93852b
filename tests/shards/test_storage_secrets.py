"""A planted secret is in nothing that a run shows, sends to a worker or keeps, wherever the keys come from."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.errors import BmptError
from shards.fetch import FrameReader, ReadSettings, make_reader
from shards.loader import ClipSettings, build_eval_loader
from shards.reader import Pool, open_pool
from shards.storage import LocalStore, open_store
from tests.object_store import READER, WRITER, ObjectServer
from tests.shards.test_storage_s3 import write_profile

MANIFEST = "base_to_novel/val_novel"
SECRETS = ("planted", WRITER[1], READER[1])  # the keys of the server begin so, the wrong ones below too


@pytest.fixture(params=["environment", "profile"])
def give_keys(
    request: pytest.FixtureRequest, s3: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    client = s3.client(s3.make_bucket("secrets"), "pool")
    for path in pool.store.root.rglob("*"):
        if path.is_file():
            client.put(str(path.relative_to(pool.store.root)), path.read_bytes())
    return "s3://secrets/pool"


def shown(value: Any) -> str:
    """All that printing, logging or sending an object gives away."""
    fields = {name: repr(field) for name, field in getattr(value, "__dict__", {}).items()}
    return f"{value!r} {value} {fields}"


def test_what_was_used_shows_and_carries_no_secret(
    stored: str, give_keys: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    give_keys()
    remote = open_pool(stored)
    manifest = remote.manifest(MANIFEST)
    reading = ReadSettings(cache=tmp_path / "cache")
    reader = make_reader(remote.store, manifest, reading)
    clip = ClipSettings(frames=2, size_px=16)
    loader = build_eval_loader(remote, manifest, clip, block_size=12, num_workers=0, reading=reading)
    (clips,) = loader
    assert clips.failures == [None] * 12
    for value in (remote, remote.store, reader, loader, clips):
        assert not any(secret in shown(value) for secret in SECRETS)
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
        lambda: list(store.read_pieces("missing", [1])),
        lambda: store.size("missing"),
    ]
    for attempt in attempts:
        with pytest.raises(BmptError) as caught:
            attempt()
        error = caught.value
        said = f"{error!r} {error} {error.__cause__!r} {pickle.dumps(error)!r}"
        assert not any(secret in said for secret in SECRETS)
        assert "\n" not in str(error)
