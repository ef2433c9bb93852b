"""Object storage behaves as a folder does, and says in one line what is wrong."""

from __future__ import annotations

import hashlib
import pickle
import random
import time
from pathlib import Path

import pytest

from shards.errors import StorageError
from shards.storage import Store, open_store
from tests.object_store import READER, WRITER, ObjectServer

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


def test_a_file_is_taken_in_whole_and_read_in_pieces_and_ranges(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    store.adopt("shards/a.tar", tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert store.sha256("shards/a.tar") == hashlib.sha256(DATA).hexdigest()
    sizes = [1, 12_000_000, 0, 7_999_000]
    assert b"".join(bytes(piece) for piece in store.read_pieces("shards/a.tar", sizes)) == DATA[: sum(sizes)]
    assert store.read_ranges("shards/a.tar", [19_999_990, 5], [10, 7]) == [DATA[-10:], DATA[5:12]]
    with pytest.raises(StorageError, match=r"s3://storage/.*a.tar: ends before the 20000001 bytes"):
        list(store.read_pieces("shards/a.tar", [20_000_000, 1]))
    with pytest.raises(StorageError, match="the file is cut short"):
        store.read_ranges("shards/a.tar", [19_999_990], [11])


def test_a_pickle_and_a_repr_hold_no_secret(store: Store) -> None:
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"
    for shown in (pickle.dumps(store), repr(store).encode(), repr(vars(store)).encode()):
        assert WRITER[1].encode() not in shown


@pytest.mark.parametrize(
    ("key", "bucket", "words"),
    [
        ((WRITER[0], "wrong"), "storage", r"access was refused.*; check the credentials"),
        (("nobody", "wrong"), "storage", r"access was refused.*; check the credentials"),
        (READER, "storage", r"access was refused \(AccessDenied\)"),
        (WRITER, "no-such-bucket", r"no such bucket|access was refused"),
    ],
)
def test_what_the_server_refuses_is_one_line_at_once(
    s3: ObjectServer, store: Store, monkeypatch: pytest.MonkeyPatch, key: tuple[str, str], bucket: str, words: str
) -> None:
    for name, value in s3.environment(key).items():
        monkeypatch.setenv(name, value)
    other = open_store(f"s3://{bucket}/pool")
    started = time.monotonic()
    with pytest.raises(StorageError, match=words) as caught:
        other.put("x", b"1")
    assert time.monotonic() - started < 5  # no ten retries
    assert str(caught.value).startswith(f"s3://{bucket}/pool/x: cannot be written: ")
    assert "\n" not in str(caught.value)
    assert key[1] not in str(caught.value)


def test_a_bucket_that_is_not_there_is_no_empty_pool(s3: ObjectServer) -> None:
    other = open_store("s3://no-such-bucket/pool")
    with pytest.raises(StorageError, match="no such bucket"):
        other.exists("pool.json")
    with pytest.raises(StorageError, match="no such bucket"):
        other.names("shards/")


@pytest.mark.long  # ten retries take 2 to 20 s
def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch, s3: ObjectServer) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://bucket/x: cannot be read: .*after 10 retries") as caught:
        open_store("s3://bucket").exists("x")
    assert "\n" not in str(caught.value)
