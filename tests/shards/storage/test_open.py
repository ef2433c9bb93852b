"""Reading and writing objects of a folder, and the sentences for what goes wrong."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError, StorageError
from shards.storage.base import Store
from shards.storage.open import open_store

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(tmp_path_factory.mktemp("a b#%41"))
    store.put("shards/a.tar", DATA)
    return store


def _read_start(store: Store) -> bytes:
    return store.read_ranges("shards/a.tar", [0], [4])[0]


def test_what_is_put_is_read_and_listed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new")
    store.put("b/two.bin", b"22")
    store.put("b/one.bin", b"1")
    store.put("b/one.bin", b"111")
    assert store.names("b/") == ["b/one.bin", "b/two.bin"]
    assert store.read("b/one.bin") == (tmp_path / "new" / "b" / "one.bin").read_bytes() == b"111"
    assert store.exists("b/two.bin")
    assert not store.exists("b/three.bin")


def test_a_file_address_and_a_path_lead_to_the_same_place(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    open_store(folder).put("x", b"1")
    assert open_store(folder.as_uri()).read("x") == b"1"
    assert open_store(str(folder)).uri("x") == str(folder / "x")


@given(
    ranges=st.lists(
        st.tuples(st.integers(0, len(DATA) - 1), st.integers(1, 300)), min_size=1, max_size=9
    )
)
@settings(max_examples=50, deadline=None)
def test_ranges_come_in_the_order_asked_for(store: Store, ranges: list[tuple[int, int]]) -> None:
    cut = [(start, min(size, len(DATA) - start)) for start, size in ranges]
    starts, sizes = zip(*cut, strict=True)
    assert store.read_ranges("shards/a.tar", starts, sizes) == [
        DATA[start : start + size] for start, size in cut
    ]


def test_a_range_over_the_end_says_that_the_file_is_cut_short(store: Store) -> None:
    for start in (len(DATA) - 1, len(DATA) + 10):
        message = (
            rf"shards/a.tar: holds {len(DATA)} bytes, expected {start + 5} "
            rf"or more; the file is truncated"
        )
        with pytest.raises(StorageError, match=message):
            store.read_ranges("shards/a.tar", [0, start], [4, 5])


def test_a_missing_object_is_named_with_its_full_address(store: Store) -> None:
    with pytest.raises(
        StorageError, match=r"shards/b.tar: no such file; is the pool complete\?"
    ) as caught:
        store.read_ranges("shards/b.tar", [0], [1])
    assert str(caught.value).startswith(store.uri(""))
    with pytest.raises(StorageError, match=r"nothing.json: no such file; is this the right pool\?"):
        store.read("nothing.json")


def test_a_store_that_was_used_can_be_sent_to_another_process(store: Store) -> None:
    assert _read_start(store) == DATA[:4]
    assert _read_start(pickle.loads(pickle.dumps(store))) == DATA[:4]
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        assert processes.apply(_read_start, (store,)) == DATA[:4]


def test_a_folder_in_the_way_of_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StorageError, match=r"file/below: cannot be written: .*Not a directory"
    ) as caught:
        open_store(tmp_path).put("file/below", b"1")
    assert "\n" not in str(caught.value)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^ftp://host/x: ftp:// is not supported; give a folder or one of s3, gs, az",
    ):
        open_store("ftp://host/x")
    with pytest.raises(ConfigError, match=r"^s3://: names no bucket; give s3://bucket/prefix"):
        open_store("s3://")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "s3://bucket/pool?regoin=x",
            r"^s3://bucket/pool: unknown key regoin; did you mean region\?",
        ),
        (
            "s3://bucket/pool?path_style=maybe",
            r"^s3://bucket/pool: path_style: Input should be a valid boolean",
        ),
        (
            "s3://bucket?timeout_seconds=0",
            r"^s3://bucket: timeout_seconds: Input should be greater than 0, got '0'",
        ),
        (
            "s3://bucket?timeout_seconds=nan",
            r"^s3://bucket: timeout_seconds: Input should be .*, got 'nan'",
        ),
        (
            "s3://bucket?timeout_seconds=inf",
            r"^s3://bucket: timeout_seconds: Input should be .* 3600, got 'inf'",
        ),
        (
            "s3://bucket?retry_seconds=inf",
            r"^s3://bucket: retry_seconds: Input should be .* 300, got 'inf'",
        ),
        (
            "s3://bucket?retry_seconds=301",
            r"^s3://bucket: retry_seconds: Input should be .* 300, got '301'",
        ),
        (
            "s3://buc ket/pool",
            r"^'s3://buc ket/pool': bucket and host names cannot contain spaces; give s3://",
        ),
        (
            "http://ho\nst/pool",
            r"^'http://ho\\nst/pool': bucket and host names cannot contain spaces",
        ),
        (
            "gs://bucket?endpoint=host:80",
            r"^gs://bucket: endpoint: String should match pattern .*, got 'host:80'",
        ),
        ("gs://bucket?region=x", r"^gs://bucket: unknown key region"),
        ("https://host/pool?anonymous=true", r"^https://host/pool: unknown key anonymous"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:planted@bucket/pool",
        "ftp://key:planted@bucket/pool",
        "abfs://key:planted@account.dfs.core.windows.net/pool",
        "https://planted@host/pool",
        "https://planted%40host/pool",
        "s3:///planted@bucket/pool",
        "s3://AKIA:wJalr/planted@bucket/pool",
        "s3://AKIA:planted/wJalr@bucket/pool",
        "s3://AKIA%3Awjalr%2Fplanted%40bucket/pool",
        "https://user:pa/planted@host/pool",
        "https://user:planted?x@host/pool",
        "https://user:pa@planted@host/pool",
        "abfs://container@key:planted@account.dfs.core.windows.net/pool",
        "s3://bucket/pool?endpoint=http://key:planted@host",
        "s3://bucket/pool?endpoint=http://key%3Aplanted%40host",
        "s3://bucket/pool?endpoint=http://key%253Aplanted%2540host",
        "s3://bucket/pool?endpoint=key:planted%40host",
        "s3://bucket/pool?region=planted%2540host",
        "s3://bucket/pool?secret_access_key=planted",
        "https://host/pool?X-Amz-Signature=planted",
        "az://container/pool?sig=planted",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(address)
    assert "planted" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/me@lab/pool",
        "http://host:80/pool",
        "abfs://box@account.dfs.core.windows.net/me@lab",
        "s3://bucket/50%/pool",
    ],
)
def test_what_only_looks_a_little_like_credentials_is_an_address(address: str) -> None:
    assert open_store(address).uri("x") == f"{address}/x"


def test_the_options_of_an_address_are_not_shown() -> None:
    assert (
        open_store("s3://bucket/me@lab?endpoint=http://host:80").uri("x") == "s3://bucket/me@lab/x"
    )
