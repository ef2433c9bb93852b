"""Planned traffic equals the requests of a run: without a cache, with one that is too small, and
with one that holds everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.fetching.frames import ReadSettings, ReadStats
from shards.fetching.read_plan import ReadPlan, plan_scoring, plan_text, plan_training
from shards.loader import build_eval_loader, build_train_loader
from shards.reader import Pool, open_pool
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import OrderKind
from shards.storage.local import LocalStore
from shards.stream.settings import BlockSettings, StreamSettings
from tests.fault_proxy import FaultProxy, run_fault_proxy
from tests.object_store import ObjectServer
from tests.pools import make_pool
from tests.shards.streams import held_bytes

TRAIN = "base_to_novel/val_novel"  # 24 samples, all of 12 shards
CLIP = ClipSettings(frames=2, size_px=32)
TWO_SAMPLES = 0.0005  # seconds of latency: the gap between two samples of a shard costs less
NOTHING = 0.0


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """48 samples of 8 frames in 24 shards."""
    return make_pool(
        tmp_path_factory.mktemp("pool"), samples_per_class=12, frames=8, samples_per_shard=2
    )


@pytest.fixture(scope="module")
def uploaded(pool: Pool, object_server: ObjectServer) -> str:
    """The same pool in a bucket."""
    assert isinstance(pool.store, LocalStore)
    return object_server.upload(pool.store.root, "plans")


@pytest.fixture
def proxy(s3: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with run_fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def remote(uploaded: str, s3: ObjectServer) -> Pool:
    return open_pool(uploaded)


def shard_requests(proxy: FaultProxy) -> int:
    return sum(method == "GET" and "/shards/" in path for method, path in proxy.requests)


def needed_bytes(pool: Pool) -> int:
    return sum(pool.manifest(TRAIN).table["size"].to_pylist())


def plan_of(
    pool: Pool,
    reading: ReadSettings,
    order: OrderKind = "global",
    *,
    group_shards: int = 2,
    batch_size: int = 8,
    epochs: int = 2,
) -> ReadPlan:
    return plan_training(
        pool.store,
        pool.manifest(TRAIN),
        CLIP,
        reading,
        order=order,
        group_shards=group_shards,
        seed=3,
        batch_size=batch_size,
        epochs=epochs,
    )


def train(
    pool: Pool, reading: ReadSettings, order: OrderKind, *, group_shards: int = 2, batch_size: int
) -> tuple[int, int]:
    """Read two epochs, check the cap after every batch, and return the bytes and requests."""
    loader = build_train_loader(
        pool,
        pool.manifest(TRAIN),
        CLIP,
        StreamSettings(
            batch_size=batch_size,
            seed=3,
            epochs=2,
            order=order,
            group_shards=group_shards,
            reading=reading,
        ),
    )
    stats = ReadStats()
    for _ in range(2):
        for batch in loader:
            assert batch.clips.failures == [None] * batch_size
            stats.add(batch.reads)
            if reading.cache is not None:
                assert held_bytes(reading.cache) <= reading.cache_bytes
    return stats.bytes, stats.requests


CAPS = {
    "no cache": None,
    "a cap of 0": 0.0,
    "less than a sample": 0.01,
    "half": 0.5,
    "more than enough": 1.5,
}


@pytest.mark.parametrize("latency", [NOTHING, TWO_SAMPLES])
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize(("order", "group_shards"), [("global", 2), ("grouped", 2), ("grouped", 5)])
def test_training_makes_the_planned_requests(
    proxy: FaultProxy,
    remote: Pool,
    tmp_path: Path,
    order: OrderKind,
    group_shards: int,
    cap: str,
    latency: float,
) -> None:
    fraction = CAPS[cap]
    reading = ReadSettings(
        cache=None if fraction is None else tmp_path / "cache",
        cache_bytes=int(needed_bytes(remote) * (fraction or 0)),
        latency_seconds=latency,
        # Four times as many samples are read ahead: one group here, no more.
        requests_in_flight=1 if order == "grouped" else 16,
    )
    plan = plan_of(remote, reading, order, group_shards=group_shards, batch_size=7)
    requested = train(remote, reading, order, group_shards=group_shards, batch_size=7)
    assert requested == (plan.all_bytes, plan.all_requests)
    assert shard_requests(proxy) == plan.all_requests, "reads ahead count, too"


def test_a_grouped_order_fetches_each_uncached_sample_once_per_epoch(
    remote: Pool, tmp_path: Path
) -> None:
    reading = ReadSettings(
        cache=tmp_path, cache_bytes=needed_bytes(remote) // 2, latency_seconds=TWO_SAMPLES
    )
    alone = plan_of(remote, reading, "global", epochs=10)
    plan = plan_of(remote, reading, "grouped", epochs=10)
    assert 0 < plan.kept_bytes < alone.kept_bytes < reading.cache_bytes
    assert plan.kept_bytes + plan.passing_bytes <= reading.cache_bytes
    assert plan.all_bytes == plan.kept_bytes + 10 * (plan.extent_bytes - plan.kept_bytes)
    assert plan.all_requests < alone.all_requests


@pytest.mark.parametrize("order", ["global", "grouped"])
def test_entries_of_other_runs_do_not_change_the_traffic(
    remote: Pool, tmp_path: Path, order: OrderKind
) -> None:
    reading = ReadSettings(
        cache=tmp_path,
        cache_bytes=needed_bytes(remote) // 2,
        latency_seconds=TWO_SAMPLES,
        requests_in_flight=1,
    )
    other = remote.manifest("base_to_novel/val_base")  # none of the samples of TRAIN
    list(build_eval_loader(remote, other, CLIP, BlockSettings(block_size=5, reading=reading)))
    assert held_bytes(tmp_path) > reading.cache_bytes / 3
    plan = plan_of(remote, reading, order)
    assert train(remote, reading, order, batch_size=8) == (plan.all_bytes, plan.all_requests)


@pytest.mark.parametrize("fraction", [0.5, 1.5])
def test_a_second_evaluation_requests_what_the_cache_did_not_keep(
    uploaded: str, proxy: FaultProxy, tmp_path: Path, fraction: float
) -> None:
    remote = open_pool(uploaded)
    reading = ReadSettings(
        cache=tmp_path,
        cache_bytes=int(fraction * needed_bytes(remote)),
        latency_seconds=TWO_SAMPLES,
        requests_in_flight=1,
    )
    plan = plan_scoring(remote.store, remote.manifest(TRAIN), CLIP, reading)
    requested = []
    for _ in range(2):
        before = shard_requests(proxy)
        loader = build_eval_loader(
            remote, remote.manifest(TRAIN), CLIP, BlockSettings(block_size=5, reading=reading)
        )
        assert sum(len(clips.keys) for clips in loader) == plan.clips == 24
        requested.append(shard_requests(proxy) - before)
    assert requested[0] == plan.all_requests
    if fraction < 1:
        assert 0 < requested[1] < requested[0]
        assert "a second evaluation requests the others again" in plan.advice
    else:
        assert requested[1] == 0
        assert "a second evaluation requests nothing" in plan.advice


def test_clips_beyond_the_counted_ones_are_extrapolated(
    remote: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = ReadSettings(latency_seconds=NOTHING)
    exact = plan_of(remote, reading, epochs=12)
    monkeypatch.setattr("shards.fetching.traffic._NUM_COUNTED_CLIPS", 100)
    estimated = plan_of(remote, reading, epochs=12)
    assert estimated != exact
    assert estimated.all_bytes == pytest.approx(exact.all_bytes, rel=0.01)
    assert estimated.all_requests == pytest.approx(exact.all_requests, rel=0.03)


def test_the_estimated_seconds_are_those_of_all_connections(remote: Pool) -> None:
    reading = ReadSettings(latency_seconds=0.5, bytes_per_second=1e6, requests_in_flight=4)
    plan = plan_of(remote, reading)
    assert plan.seconds == pytest.approx((plan.all_requests * 0.5 + plan.all_bytes / 1e6) / 4)


class TestAdvice:
    """The order that `bmpt plan` advises, with its reason."""

    def test_advice_for_a_folder(self, pool: Pool) -> None:
        plan = plan_of(pool, ReadSettings())
        assert plan.advised_order == "global"
        assert plan.seconds is None
        assert "frames are read directly" in plan.advice

    def test_advice_without_a_cache(self, remote: Pool) -> None:
        plan = plan_of(remote, ReadSettings(), "grouped", epochs=2)
        assert plan.advised_order == "global"
        assert (
            f"data.cache=DIR would keep {plan.needed_bytes:,} bytes and request them once"
            in plan.advice
        )
        assert "data.cache" not in plan_of(remote, ReadSettings(), epochs=1).advice
        scoring = plan_scoring(remote.store, remote.manifest(TRAIN), CLIP, ReadSettings())
        assert (scoring.advised_order, scoring.advice) == (
            None,
            "no cache: a second evaluation requests everything again",
        )

    def test_advice_for_a_cache_that_holds_all(self, remote: Pool, tmp_path: Path) -> None:
        plan = plan_of(remote, ReadSettings(cache=tmp_path), "grouped")
        assert plan.advised_order == "global"
        assert f"the cache holds all {plan.extent_bytes:,} bytes" in plan.advice
        assert f"keeps all {plan.extent_bytes:,} bytes" in plan_text(plan)

    def test_advice_for_a_cache_that_does_not_hold_two_groups(
        self, remote: Pool, tmp_path: Path
    ) -> None:
        reading = ReadSettings(cache=tmp_path, cache_bytes=needed_bytes(remote) // 2)
        plan = plan_of(remote, reading, "grouped", group_shards=5)
        assert (plan.advised_order, plan.passing_bytes) == ("global", 0)
        assert "nor two groups of 5 shards" in plan.advice
        assert "raise data.cache_bytes or lower data.group_shards" in plan.advice
        assert "read clip by clip, since two groups of shards do not fit" in plan_text(plan)

    def test_advice_for_expensive_requests_is_grouped(self, remote: Pool, tmp_path: Path) -> None:
        reading = ReadSettings(
            cache=tmp_path, cache_bytes=needed_bytes(remote) // 2, latency_seconds=0.01
        )
        for order in ("global", "grouped"):
            plan = plan_of(remote, reading, order, group_shards=1, epochs=10)
            assert plan.advised_order == "grouped"
            assert plan.advice.startswith("data.order=grouped: about ")
        assert "group by group" in plan_text(plan)

    def test_advice_for_expensive_bytes_is_global(self, remote: Pool, tmp_path: Path) -> None:
        reading = ReadSettings(
            cache=tmp_path, cache_bytes=needed_bytes(remote) // 2, latency_seconds=NOTHING
        )
        plan = plan_of(remote, reading, "global", group_shards=1, epochs=10)
        assert plan.advised_order == "global"
        assert "the frames of a clip cost less than the whole sample" in plan.advice
        assert "the others are read clip by clip\n" in plan_text(plan)
