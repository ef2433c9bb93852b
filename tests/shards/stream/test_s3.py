"""Batches from object storage are those from a folder, whatever the server does."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import StorageError
from shards.fetching.frames import ReadSettings, make_reader
from shards.loader import build_eval_loader, build_train_loader
from shards.reader import Pool, open_pool
from shards.storage.local import LocalStore
from shards.stream.settings import BlockSettings, StreamSettings
from tests.fault_proxy import Fault, FaultProxy, run_fault_proxy
from tests.object_store import ObjectServer
from tests.shards.streams import CLIP, TRAIN, assert_same, total, train_loader

STALL_SECONDS = 600
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def remote(pool: Pool, s3: ObjectServer) -> Pool:
    """The pool of these tests in a bucket."""
    assert isinstance(pool.store, LocalStore)
    return open_pool(s3.upload(pool.store.root, "stream"))


@pytest.fixture
def proxy(s3: ObjectServer, remote: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with run_fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("cached", [False, True])
def test_batches_from_a_bucket_equal_those_from_a_folder(
    pool: Pool, remote: Pool, tmp_path: Path, cached: bool
) -> None:
    loader = train_loader(
        remote, ReadSettings(cache=tmp_path / "cache" if cached else None, requests_in_flight=5)
    )
    local = train_loader(pool)
    for epoch in range(2):
        batches = list(loader)
        assert_same(batches, list(local))
        stats = total(batches)
        assert (stats.requests == 0) == (cached and epoch == 1)
        assert stats.hits + stats.misses == (12 if cached else 0)


_WITH_WORKERS = """
import sys
from pathlib import Path
from shards.fetching.frames import ReadSettings
from shards.reader import open_pool
from tests.shards.streams import assert_same, total, train_loader
cache = Path(sys.argv[2]) if sys.argv[2] else None
loader = train_loader(open_pool("s3://stream/pool"), ReadSettings(cache=cache), num_workers=2)
local = train_loader(open_pool(sys.argv[1]))
for _ in range(2):
    batches = list(loader)
    assert_same(batches, list(local))
    print(total(batches).requests)
"""


@pytest.mark.parametrize("cached", [False, True])
def test_batches_of_two_workers_from_a_bucket_equal_those_from_a_folder(
    pool: Pool, remote: Pool, tmp_path: Path, cached: bool
) -> None:
    """It runs in a process of its own, since loader processes have the environment of the first
    one."""
    arguments = [str(pool.store.uri("")), str(tmp_path / "cache") if cached else ""]
    done = subprocess.run(
        [sys.executable, "-c", _WITH_WORKERS, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    # A loader process that is ahead may load an entry in the second epoch that another process
    # would have loaded in the first.
    if cached:
        reader = make_reader(remote.store, remote.manifest(TRAIN), ReadSettings(cache=tmp_path))
        assert reader.cache_plan is not None
        assert first + second == len(reader.cache_plan.extents)
    else:
        assert (first, second) == (12, 12)


def test_a_sparse_selection_is_fetched_as_planned_without_excess_bytes(
    remote: Pool, tmp_path: Path
) -> None:
    manifest = remote.manifest(TRAIN)
    reader = make_reader(remote.store, manifest, ReadSettings(cache=tmp_path / "cache"))
    assert reader.cache_plan is not None
    stats = total(list(train_loader(remote, ReadSettings(cache=tmp_path / "cache"))))
    needed = sum(manifest.table["size"].to_pylist())
    assert stats.bytes == reader.cache_plan.extents.total_bytes
    assert stats.requests == len(reader.cache_plan.extents)
    assert needed <= stats.bytes <= 1.05 * needed


def test_single_frames_are_fetched_where_requests_are_cheap(remote: Pool) -> None:
    free_requests = ReadSettings(latency_seconds=0.0)
    exact = total(list(train_loader(remote, free_requests)))
    merged = total(list(train_loader(remote, ReadSettings(latency_seconds=1.0))))
    assert merged.requests == 12
    assert exact.requests > merged.requests
    assert exact.bytes < merged.bytes


def test_an_evaluation_reads_the_cache_of_training(remote: Pool, tmp_path: Path) -> None:
    reading = ReadSettings(cache=tmp_path / "cache")
    list(train_loader(remote, reading))
    loader = build_eval_loader(
        remote, remote.manifest(TRAIN), CLIP, BlockSettings(block_size=5, reading=reading)
    )
    assert [len(clips.keys) for clips in loader] == [5, 5, 2]
    shutil.rmtree(tmp_path / "cache")
    assert [clips.failures for clips in loader] == [[None] * 5, [None] * 5, [None] * 2]


def test_a_cache_entry_that_the_disk_changed_is_fetched_again(
    pool: Pool, remote: Pool, tmp_path: Path
) -> None:
    reading = ReadSettings(cache=tmp_path / "cache")
    list(train_loader(remote, reading))
    for path in (tmp_path / "cache").glob("pieces/*/*"):
        path.write_bytes(bytes(path.stat().st_size))
    assert_same(list(train_loader(remote, reading)), list(train_loader(pool)))
    again = train_loader(remote, reading)
    assert_same(list(again), list(train_loader(pool)))


FAULTS = {
    "500": Fault(status=500),
    "503": Fault(status=503),
    "reset in the body": Fault(body_share=0.5),
    "latency": Fault(delay_seconds=0.1),
    "stall": Fault(body_share=0.5, stall_seconds=STALL_SECONDS),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_a_temporary_fault_costs_time_but_no_sample(
    pool: Pool, remote: Pool, proxy: FaultProxy, tmp_path: Path, name: str, cached: bool
) -> None:
    proxy.decide = lambda number, method, path: (
        FAULTS[name] if method == "GET" and number % 3 == 0 else None
    )
    other = open_pool("s3://stream/pool?timeout_seconds=1")
    reading = ReadSettings(cache=tmp_path / "cache" if cached else None)
    started = time.monotonic()
    assert_same(list(train_loader(other, reading)), list(train_loader(pool)))
    # A stalled request is abandoned after a second: all of them together take less time than one
    # stall.
    assert time.monotonic() - started < STALL_SECONDS


@pytest.mark.parametrize("seconds", [4, pytest.param(90, marks=pytest.mark.long)])
@pytest.mark.parametrize("fault", [Fault(status=503), Fault(body_share=0.5)])
def test_a_stream_waits_for_the_end_of_an_outage(
    pool: Pool, remote: Pool, proxy: FaultProxy, fault: Fault, seconds: int
) -> None:
    other = open_pool("s3://stream/pool")
    loader = train_loader(other)
    end = time.monotonic() + seconds
    proxy.decide = lambda number, method, path: fault if time.monotonic() < end else None
    assert_same(list(loader), list(train_loader(pool)))
    assert time.monotonic() > end


@pytest.mark.parametrize("cached", [False, True])
def test_a_sample_of_a_stalled_object_is_a_named_failure(
    remote: Pool, proxy: FaultProxy, tmp_path: Path, cached: bool
) -> None:
    other = open_pool("s3://stream/pool?timeout_seconds=2&retry_seconds=2")
    loader = train_loader(other, ReadSettings(cache=tmp_path / "cache" if cached else None))
    victim = other.manifest(TRAIN).row(0)["shard"]
    proxy.decide = lambda number, method, path: (
        Fault(body_share=0.5, stall_seconds=STALL_SECONDS)
        if method == "GET" and path.endswith(victim)
        else None
    )
    failures = [
        failure for batch in loader for failure in batch.clips.failures if failure is not None
    ]
    assert failures
    assert all(
        failure.startswith(
            f"s3://stream/pool/{victim}: cannot be read: the download stalled repeatedly"
        )
        for failure in failures
    )


@pytest.mark.parametrize("cached", [False, True])
def test_a_truncated_response_is_a_failure_and_never_a_wrong_sample(
    remote: Pool, proxy: FaultProxy, tmp_path: Path, cached: bool
) -> None:
    other = open_pool("s3://stream/pool")
    loader = train_loader(other, ReadSettings(cache=tmp_path / "cache" if cached else None))
    victim = other.manifest(TRAIN).row(0)["shard"]
    proxy.decide = lambda number, method, path: (
        Fault(body_share=0.7, is_short=True) if method == "GET" and path.endswith(victim) else None
    )
    failures = [
        failure for batch in loader for failure in batch.clips.failures if failure is not None
    ]
    assert failures
    assert all(f"s3://stream/pool/{victim}: holds " in failure for failure in failures)


def test_an_object_that_was_replaced_is_a_failure_and_is_not_cached(
    remote: Pool, s3: ObjectServer, tmp_path: Path
) -> None:
    loader = train_loader(remote, ReadSettings(cache=tmp_path / "cache"))
    client = s3.client("stream", "pool")
    for name in [entry["path"] for batch in client.list("shards") for entry in batch]:
        client.put(name, bytes(reversed(bytes(client.get(name).bytes()))))
    with pytest.raises(
        StorageError,
        match=r"samples in a row could not be read; the last: s3://stream/pool/shards/.*CRC",
    ):
        list(loader)
    assert list((tmp_path / "cache").glob("pieces/*/*")) == []


def test_a_server_that_disappears_ends_the_run_and_is_named(
    remote: Pool, proxy: FaultProxy
) -> None:
    other = open_pool("s3://stream/pool")
    loader = train_loader(other)
    proxy.decide = lambda number, method, path: Fault(status=404) if "/shards/" in path else None
    with pytest.raises(
        StorageError,
        match=r"samples in a row could not be read; the last: s3://stream/pool/shards/",
    ):
        list(loader)


def test_requests_overlap_in_time(remote: Pool, proxy: FaultProxy) -> None:
    other = open_pool("s3://stream/pool")
    loader = train_loader(other, ReadSettings(requests_in_flight=12))
    meeting = threading.Barrier(12)  # passes only when twelve requests are in flight

    def decide(number: int, method: str, path: str) -> Fault:
        meeting.wait(timeout=60)
        return Fault(delay_seconds=0.5)

    proxy.decide = decide
    stats = total(list(loader))
    assert stats.requests == 12
    assert stats.seconds >= 12 * 0.5, "the duration of each request counts"


def test_an_unreadable_profile_makes_failures_that_end_the_run(
    remote: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loader = build_train_loader(
        pickle.loads(pickle.dumps(remote)),  # without a client, as in a worker
        remote.manifest(TRAIN),
        CLIP,
        StreamSettings(batch_size=4, seed=3),
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "keys").write_text("half")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    with pytest.raises(
        StorageError,
        match=r"samples in a row could not be read; the last: s3://stream/pool/shards/.*/keys: "
        "is not an INI",
    ):
        list(loader)


def test_a_closed_stream_does_not_wait_for_running_requests(
    proxy: FaultProxy, remote: Pool
) -> None:
    """As after Ctrl-C or a failed run during an outage."""
    loader = train_loader(remote, ReadSettings(requests_in_flight=2))
    before = len(proxy.requests)
    proxy.decide = lambda number, method, path: (
        Fault(delay_seconds=60.0) if number > before + 5 else None
    )
    begun = time.monotonic()
    batches = iter(loader)
    next(batches)  # of 4 samples; two more are being read
    batches.close()  # type: ignore[attr-defined]
    del batches, loader
    assert time.monotonic() - begun < 60, "it waited for a request"
