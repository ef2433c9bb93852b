"""Object storage behaves as a folder does, and says in one line what is wrong."""

from __future__ import annotations

import hashlib
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import StorageError
from shards.storage.base import Store
from shards.storage.open import open_store
from tests.fault_proxy import Fault, FaultProxy, run_fault_proxy
from tests.object_store import DOMAIN, PUBLIC, READER, WRITER, ObjectServer
from tests.shards.aws_files import write_profile

DATA = random.Random(0).randbytes(20_000_000)  # more than two parts of an upload


@pytest.fixture
def store(s3: ObjectServer) -> Store:
    s3.make_bucket("storage")
    return open_store("s3://storage/a pool/#1 %41")


def test_what_is_put_is_read_listed_and_removed(store: Store) -> None:
    store.put("b/two é.bin", b"22")
    store.put("b/.one.bin", b"1")
    assert store.sizes("b/") == {"b/.one.bin": 1, "b/two é.bin": 2}
    assert store.read("b/two é.bin") == b"22"
    assert store.exists("b/.one.bin")
    for _ in range(2):
        store.delete("b/.one.bin")
    assert not store.exists("b/.one.bin")
    assert store.names("b/") == ["b/two é.bin"]
    assert store.names("nothing/") == []


def test_a_file_is_taken_in_whole_and_read_in_pieces_and_ranges(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    store.move_in("shards/a.tar", tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert store.sha256("shards/a.tar") == hashlib.sha256(DATA).hexdigest()
    sizes = [1, 12_000_000, 0, 7_999_000]
    assert (
        b"".join(bytes(piece) for piece in store.read_chunks("shards/a.tar", sizes))
        == DATA[: sum(sizes)]
    )
    assert store.read_ranges("shards/a.tar", [19_999_990, 5], [10, 7]) == [DATA[-10:], DATA[5:12]]
    with pytest.raises(StorageError, match=r"s3://storage/.*a.tar: ends before the 20000001 bytes"):
        list(store.read_chunks("shards/a.tar", [20_000_000, 1]))
    with pytest.raises(StorageError, match="the file is truncated"):
        store.read_ranges("shards/a.tar", [19_999_990], [11])


@pytest.fixture
def proxy(s3: ObjectServer) -> Iterator[FaultProxy]:
    """Shows what is asked of the server."""
    with run_fault_proxy(s3.endpoint) as proxy:
        yield proxy


@pytest.mark.parametrize("status", [500, 503])
def test_requests_that_fail_at_first_are_repeated(
    s3: ObjectServer, proxy: FaultProxy, tmp_path: Path, status: int
) -> None:
    """Also the first request of all, and each one of an upload in parts."""
    s3.make_bucket("storage")
    failed: set[tuple[str, str]] = set()

    def fail_once(number: int, method: str, path: str) -> Fault | None:
        if (method, path) in failed:
            return None
        failed.add((method, path))
        return Fault(status=status)

    proxy.decide = fail_once
    flaky = open_store(f"s3://storage/flaky-{status}?endpoint={proxy.endpoint}")
    flaky.put("small", b"1")
    assert flaky.read("small") == b"1"
    assert flaky.sizes("") == {"small": 1}
    (tmp_path / "large").write_bytes(DATA)
    flaky.move_in("large", tmp_path / "large")
    assert flaky.sha256("large") == hashlib.sha256(DATA).hexdigest()
    flaky.delete("small")
    assert flaky.names("") == ["large"]

    methods = {method for method, _ in failed}
    assert methods >= {"PUT", "POST", "GET", "HEAD"}
    for request in failed:
        assert proxy.requests.count(request) > 1, request


def test_options_of_the_address_win_over_the_environment_and_are_kept_in_a_pickle(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    other = open_store(f"s3://storage/a pool/#1 %41?endpoint={proxy.endpoint}&region=antarctica-1")
    other.put("x", b"1")
    assert pickle.loads(pickle.dumps(other)).read("x") == b"1"
    assert other.uri("x") == "s3://storage/a pool/#1 %41/x"
    assert all("/antarctica-1/s3/aws4_request" in signature for signature in proxy.signatures)
    assert proxy.requests[0] == ("PUT", "/storage/a%20pool/%231%20%2541/x")


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region_of_the_environment_is_signed(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv(name, "antarctica-2")
    assert not open_store(f"s3://storage/pool?endpoint={proxy.endpoint}").exists("x")
    assert all("/antarctica-2/s3/aws4_request" in signature for signature in proxy.signatures)


@pytest.mark.parametrize("as_option", [True, False])
def test_the_bucket_is_named_by_the_host_where_that_is_asked_for(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, as_option: bool
) -> None:
    """The server knows its domain; a proxy stands in for the name service."""
    open_store("s3://storage/by host").put("x", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{DOMAIN}")
    monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    if not as_option:
        monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    virtual = open_store(f"s3://storage/by host{'?path_style=false' if as_option else ''}")
    assert virtual.read("x") == b"1"
    assert virtual.sizes("") == {"x": 1}
    path_style = open_store("s3://storage/by host?path_style=true")
    assert path_style.read("x") == b"1"
    hosts = [path.split("/")[2] for _, path in proxy.requests]
    assert hosts == [f"storage.{DOMAIN}", f"storage.{DOMAIN}", DOMAIN]


@pytest.mark.parametrize("as_option", [True, False])
def test_a_public_bucket_is_read_without_a_signature_and_nothing_else_is(
    s3: ObjectServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, as_option: bool
) -> None:
    s3.client(s3.make_bucket(PUBLIC), "pool").put("x", b"1")
    s3.client(s3.make_bucket("storage"), "pool").put("x", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    options = f"endpoint={proxy.endpoint}" + ("&anonymous=true" if as_option else "")
    if not as_option:
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    public = open_store(f"s3://{PUBLIC}/pool?{options}")
    assert public.read("x") == b"1"
    assert public.sizes("") == {"x": 1}
    assert set(proxy.signatures) == {""}
    with pytest.raises(
        StorageError, match=r"cannot be written: access was refused \(AccessDenied\)"
    ):
        public.put("y", b"1")
    with pytest.raises(StorageError, match=r"cannot be read: access was refused"):
        open_store(f"s3://storage/pool?{options}").exists("x")


@pytest.mark.parametrize("name", ["default", "lab"])
def test_keys_region_and_endpoint_come_from_a_profile(
    s3: ObjectServer,
    store: Store,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    write_profile(tmp_path, name, region="antarctica-3", endpoint=proxy.endpoint)
    for variable in (*s3.environment(), "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if name != "default":
        monkeypatch.setenv("AWS_PROFILE", name)
    other = open_store("s3://storage/pool")
    other.put("x", b"1")
    assert pickle.loads(pickle.dumps(other)).read("x") == b"1"
    assert all("/antarctica-3/s3/aws4_request" in signature for signature in proxy.signatures)
    for variable, value in s3.environment((WRITER[0], "wrong")).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError, match="access was refused"):  # the environment wins
        open_store("s3://storage/pool").exists("x")


def test_a_profile_that_needs_a_sign_in_is_one_line(
    s3: ObjectServer, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.make_bucket(PUBLIC)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[default]\nsso_session = work\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        StorageError,
        match=r"^s3://storage/pool/x: cannot be read: AWS profile default: has sso_session",
    ):
        open_store("s3://storage/pool").exists("x")
    assert not open_store(f"s3://{PUBLIC}/nothing?anonymous=true").exists("x")  # needs no keys


@pytest.mark.parametrize(
    "half_written", ["", "[default]\naws_access_key_id = writer", "aws_secret"]
)
def test_a_profile_that_is_just_being_written_costs_no_request(
    s3: ObjectServer,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    half_written: str,
) -> None:
    """Between the first answer and the client for the time after it."""
    write_profile(tmp_path, "default", region="us-east-1", endpoint=s3.endpoint)
    for variable in s3.environment():
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    other = open_store("s3://storage/half written")
    other.put("x", b"1")
    for name in ("config", "credentials"):
        (tmp_path / ".aws" / name).write_text(half_written)
    assert other.read("x") == b"1"
    assert other.read("x") == b"1"


@pytest.mark.parametrize(
    ("key", "bucket", "words"),
    [
        ((WRITER[0], "wrong"), "storage", r"access was refused.*; check the credentials"),
        (("nobody", "wrong"), "storage", r"access was refused.*; check the credentials"),
        (READER, "storage", r"access was refused \(AccessDenied\)"),
        (WRITER, "no-such-bucket", r"no such bucket|access was refused"),
    ],
)
def test_what_the_server_refuses_is_one_line_after_one_request(
    s3: ObjectServer,
    store: Store,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    key: tuple[str, str],
    bucket: str,
    words: str,
) -> None:
    for name, value in s3.environment(key).items():
        monkeypatch.setenv(name, value)
    other = open_store(f"s3://{bucket}/pool?endpoint={proxy.endpoint}")
    with pytest.raises(StorageError, match=words) as caught:
        other.put("x", b"1")
    assert proxy.requests == [("PUT", f"/{bucket}/pool/x")]
    assert str(caught.value).startswith(f"s3://{bucket}/pool/x: cannot be written: ")
    assert "\n" not in str(caught.value)
    assert key[1] not in str(caught.value)


def test_a_bucket_that_is_not_there_is_no_empty_pool(s3: ObjectServer) -> None:
    other = open_store("s3://no-such-bucket/pool")
    with pytest.raises(StorageError, match="no such bucket"):
        other.exists("pool.json")
    with pytest.raises(StorageError, match="no such bucket"):
        other.names("shards/")


def test_no_credentials_at_all_is_one_line(
    s3: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(
        "AWS_METADATA_ENDPOINT", "http://127.0.0.1:9"
    )  # where a machine would be asked for its role
    with pytest.raises(
        StorageError, match=r"cannot be read: no credentials were found; check .*AWS_PROFILE"
    ) as caught:
        open_store("s3://storage/pool?retry_seconds=1").exists("x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", ["?retry_seconds=1", pytest.param("", marks=pytest.mark.long)])
def test_a_server_that_never_answered_is_one_line_within_seconds(
    monkeypatch: pytest.MonkeyPatch, s3: ObjectServer, options: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"^s3://bucket/x: cannot be read: no answer; check the address"
    ) as caught:
        open_store(f"s3://bucket{options}").exists("x")
    assert (
        time.monotonic() - started < 60
    )  # not the four minutes for which a known server is waited for
    assert "\n" not in str(caught.value)
