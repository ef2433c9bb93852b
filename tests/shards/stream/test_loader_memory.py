"""The memory of loader processes: small, and constant while they stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shards.loader import build_train_loader
from shards.reader import Pool
from shards.sampling.clip_settings import ClipSettings
from shards.stream.batches import MicroBatch
from shards.stream.settings import StreamSettings
from tests.pools import make_pool
from tests.process_memory import children_of, rss_bytes, uss_bytes

MAX_USS_BYTES = 300_000_000


def descendants_of(pid: int) -> set[int]:
    """Return all descendants: loader processes are children of a server that forks them."""
    children = children_of(pid)
    return set(children).union(*map(descendants_of, children))


def stream(
    pool: Pool, clip: ClipSettings, *, batch_size: int
) -> tuple[Iterator[MicroBatch], set[int]]:
    """Return endless batches of two loader processes, and the processes that they started.

    The first batch is already taken.
    """
    before = descendants_of(os.getpid())
    manifest = pool.manifest("base_to_novel/val_novel")
    loader = build_train_loader(
        pool, manifest, clip, StreamSettings(batch_size=batch_size, num_workers=2, seed=0)
    )

    def endless() -> Iterator[MicroBatch]:
        while True:
            yield from loader

    batches = endless()
    next(batches)
    return batches, descendants_of(os.getpid()) - before


def test_memory_of_loader_processes_is_constant_over_20000_samples(tmp_path: Path) -> None:
    batches, workers = stream(
        make_pool(tmp_path, samples_per_class=40), ClipSettings(frames=4, size_px=32), batch_size=40
    )
    assert len(workers) >= 2
    everyone = [os.getpid(), *workers]
    held = []
    for number, batch in enumerate(batches, start=2):
        assert batch.clips.failures == [None] * 40
        if number in (100, 500):
            held.append([rss_bytes(pid) for pid in everyone])
        if number == 500:
            break
    grown = [after - before for before, after in zip(*held, strict=True)]
    assert max(grown) < 8_000_000, grown


def test_a_loader_process_holds_less_than_300_mb_of_its_own(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, samples_per_class=8, height=256, width=340, frames=16)
    batches, workers = stream(pool, ClipSettings(frames=8, size_px=224), batch_size=16)
    for _ in range(10):
        next(batches)
    held = [uss_bytes(pid) for pid in workers]
    assert len(held) >= 2
    assert 1_000_000 < max(held) < MAX_USS_BYTES, held
    print(f"{max(held) / 1e6:.0f} MB of USS per worker")
