"""A pool is read through every face: unsigned S3, Google's and the web's from a real server,
Azure's up to its door."""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shards.errors import StorageError
from shards.fetching.frames import ReadSettings
from shards.loader import build_eval_loader
from shards.maintenance.diff import diff_pools
from shards.maintenance.pool_report import report_pool
from shards.maintenance.verify import verify_pool
from shards.reader import Pool, open_pool
from shards.storage.open import LocalStore, open_store
from shards.storage.providers import AzureContainer
from shards.stream.settings import BlockSettings
from tests.fault_proxy import Fault, run_fault_proxy
from tests.object_store import PUBLIC, ObjectServer
from tests.shards.streams import CLIP, TRAIN, assert_same, train_loader

FACES = {
    "s3": "s3://public/a pool?anonymous=true",
    "gs": "gs://public/a pool?anonymous=true&endpoint={endpoint}",
    "http": "{endpoint}/public/a%20pool",
}


@pytest.fixture
def root(pool: Pool) -> Path:
    assert isinstance(pool.store, LocalStore)
    return pool.store.root


@pytest.fixture
def public(root: Path, s3: ObjectServer) -> ObjectServer:
    """The pool of these tests in a bucket that everyone may read."""
    s3.upload(root, PUBLIC, "a pool")
    return s3


@pytest.fixture
def web(root: Path) -> Iterator[str]:
    """The web server of Python's library, which ignores byte ranges."""

    class Handler(SimpleHTTPRequestHandler):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            with contextlib.suppress(ConnectionError):  # a client that wanted less goes away
                super().copyfile(source, outputfile)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("face", FACES)
def test_batches_are_those_of_a_folder(
    pool: Pool, public: ObjectServer, tmp_path: Path, face: str, cached: bool
) -> None:
    remote = open_pool(FACES[face].format(endpoint=public.endpoint))
    reading = ReadSettings(cache=tmp_path / "cache" if cached else None)
    assert_same(list(train_loader(remote, reading)), list(train_loader(pool)))
    scored = build_eval_loader(
        remote, remote.manifest(TRAIN), CLIP, BlockSettings(block_size=5, reading=reading)
    )
    assert [clips.failures for clips in scored] == [[None] * 5, [None] * 5, [None] * 2]
    assert pickle.loads(pickle.dumps(remote)).samples() == pool.samples()


@pytest.mark.parametrize("face", ["s3", "gs"])
def test_a_pool_in_a_bucket_is_verified_reported_and_compared(
    root: Path, public: ObjectServer, face: str
) -> None:
    address = FACES[face].format(endpoint=public.endpoint)
    assert verify_pool(address).is_clean
    assert report_pool(address).counts == report_pool(root).counts
    assert diff_pools(address, str(root)).is_equal


@pytest.mark.parametrize("face", FACES)
def test_a_file_that_is_missing_or_cut_short_is_named(public: ObjectServer, face: str) -> None:
    store = open_store(FACES[face].format(endpoint=public.endpoint))
    assert store.exists("pool.json")
    assert not store.exists("none.json")
    size = store.size("pool.json")
    with pytest.raises(StorageError, match=r"pool/none.json: no such file; is the pool complete\?"):
        store.read_ranges("none.json", [0], [1])
    with pytest.raises(
        StorageError, match=rf"pool/pool.json: holds {size} bytes, expected {size + 5} or more"
    ):
        store.read_ranges("pool.json", [0, size], [1, 5])
    with pytest.raises(StorageError, match=r"pool/pool.json: ends before the \d+ bytes"):
        list(store.read_chunks("pool.json", [size + 1]))
    assert len(store.sha256("pool.json")) == 64


def test_a_web_server_lists_nothing_and_takes_nothing(public: ObjectServer, tmp_path: Path) -> None:
    address = FACES["http"].format(endpoint=public.endpoint)
    with pytest.raises(
        StorageError, match=r"a%20pool/shards: cannot be listed on a web server; .* need a copy"
    ):
        verify_pool(address)
    store = open_store(address)
    (tmp_path / "x").write_bytes(b"1")
    for attempt in (
        lambda: store.put("x", b"1"),
        lambda: store.delete("x"),
        lambda: store.move_in("x", tmp_path / "x"),
    ):
        with pytest.raises(
            StorageError, match=r"a%20pool/x: cannot be .*: a web server is read-only"
        ):
            attempt()
    assert (tmp_path / "x").exists()


def test_a_web_server_without_byte_ranges_is_refused_by_its_first_frame(web: str) -> None:
    remote = open_pool(web)
    with pytest.raises(
        StorageError,
        match=rf"{web}/shards/.*: the web server ignores byte ranges; serve the pool from",
    ):
        remote.store.read_ranges(remote.card.shards[0].name, [0], [10])


@pytest.mark.parametrize("face", ["gs", "http"])
def test_what_is_not_public_is_refused_in_one_line(s3: ObjectServer, face: str) -> None:
    s3.client(s3.make_bucket("private"), "a pool").put("pool.json", b"{}")
    address = FACES[face].format(endpoint=s3.endpoint).replace("/public/", "/private/")
    with pytest.raises(
        StorageError, match=r"/private/.*: cannot be read: access was refused; (check|a web)"
    ) as caught:
        open_pool(address)
    assert "\n" not in str(caught.value)


def test_a_wrong_token_of_google_is_refused_in_one_line_and_not_repeated(
    s3: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "planted-secret")
    with run_fault_proxy(s3.endpoint) as proxy:
        proxy.decide = lambda number, method, path: Fault(
            status=401
        )  # as Google does; SeaweedFS knows no tokens
        store = open_store(f"gs://private/pool?endpoint={proxy.endpoint}")
        for attempt in (lambda: store.exists("x"), lambda: store.put("x", b"1")):
            with pytest.raises(
                StorageError, match=r"access was refused.*GOOGLE_APPLICATION_CREDENTIALS"
            ) as caught:
                attempt()
            assert "planted" not in str(caught.value)
            assert "\n" not in str(caught.value)
    assert proxy.signatures == ["Bearer planted-secret"] * 2


def test_azure_needs_an_account_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        StorageError,
        match=r"^az://box/pool/x: cannot be read: the address names no account; check the",
    ):
        open_store("az://box/pool").exists("x")


@pytest.mark.parametrize(
    "address", ["az://box/a pool", "abfs://box@account.dfs.core.windows.net/a pool"]
)
def test_azure_is_asked_in_its_own_way_and_its_signature_never_shows(
    s3: ObjectServer, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """What comes back is no Azure's answer; that an Azure server takes it was tried by hand with
    Azurite."""
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sig=planted-secret")
    if address.startswith("az"):
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    with run_fault_proxy(s3.endpoint) as proxy:
        proxy.decide = lambda number, method, path: Fault(status=403)
        store = open_store(f"{address}?endpoint={proxy.endpoint}/account")
        assert isinstance(store, AzureContainer)
        with pytest.raises(
            StorageError, match=r"a pool/x: cannot be read: access was refused.*AZURE_STORAGE"
        ) as caught:
            store.read("x")
    assert proxy.requests == [("GET", "/account/box/a%20pool/x?sv=2024-01-01&sig=planted-secret")]
    for shown in (
        str(caught.value),
        repr(store),
        repr(vars(store)),
        pickle.dumps(store).decode("latin-1"),
    ):
        assert "planted" not in shown
