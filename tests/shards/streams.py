"""Training streams of the small pool, compared with each other, and the bytes of a cache."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from shards.fetching.frames import ReadSettings, ReadStats
from shards.loader import TrainLoader, build_train_loader
from shards.reader import Pool
from shards.sampling.clip_settings import ClipSettings
from shards.stream.batches import MicroBatch
from shards.stream.settings import StreamSettings

TRAIN = "base_to_novel/val_novel"  # 12 samples of 5 shards
CLIP = ClipSettings(frames=4, size_px=32)


def train_loader(
    pool: Pool, reading: ReadSettings | None = None, num_workers: int = 0
) -> TrainLoader:
    """Return a loader of three steps per epoch."""
    settings = StreamSettings(
        batch_size=4, seed=3, num_workers=num_workers, reading=reading or ReadSettings()
    )
    return build_train_loader(pool, pool.manifest(TRAIN), CLIP, settings)


def assert_same(batches: list[MicroBatch], expected: list[MicroBatch]) -> None:
    """Check that an epoch has the same clips as another one, and no failure."""
    assert len(batches) == len(expected) == 3
    for batch, expected_batch in zip(batches, expected, strict=True):
        assert batch.clips.keys == expected_batch.clips.keys
        assert batch.clips.failures == [None] * 4
        assert torch.equal(batch.clips.frames_BVTCHW, expected_batch.clips.frames_BVTCHW)


def total(batches: list[MicroBatch]) -> ReadStats:
    """Return the cost of reading of all batches together."""
    stats = ReadStats()
    for batch in batches:
        stats.add(batch.reads)
    return stats


def held_bytes(folder: Path) -> int:
    """Return the bytes of all entries and reservations in the folder of a cache."""
    sizes = {}
    for path in folder.glob("pieces/*/*"):
        # A reservation that has just been written has the name of its entry now.
        with contextlib.suppress(FileNotFoundError):
            name = path.stem.rpartition(".")[0] if path.suffix == ".part" else path.name
            sizes[path.parent / name] = path.stat().st_size
    return sum(sizes.values())
