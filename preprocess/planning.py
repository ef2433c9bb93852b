"""Pure plans of a build: the shard of a video, the part of a shard, the frames to keep.

They depend on the sorted keys, on the shards that exist, and on the frame counts, so that every
machine and every run makes the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ShardPlan:
    """The videos of one shard."""

    name: str
    index: int
    """Number of the shard in the pool, counted from 0."""
    keys: tuple[str, ...]
    """In the order in which the videos are written."""


def sort_keys(keys: Iterable[str]) -> list[str]:
    """Sort keys by their UTF-8 bytes."""
    return sorted(keys, key=str.encode)


def shard_name(dataset: str, index: int) -> str:
    """Return `<dataset>-<000000>`."""
    return f"{dataset}-{index:06d}"


def plan_shards(
    keys: Collection[str],
    *,
    dataset: str,
    videos_per_shard: int,
    existing: Sequence[ShardPlan] = (),
) -> list[ShardPlan]:
    """Divide the sorted keys into shards.

    Keys that no existing shard has get new shards after the last one.

    Returns:
        The existing and the new shards, by index. Each key is in exactly one of them."""
    assigned = {key for shard in existing for key in shard.keys}
    new = sort_keys(set(keys) - assigned)
    first = max((shard.index for shard in existing), default=-1) + 1

    # Existing shards are never divided again: a pool that grows keeps its bytes.
    shards = sorted(existing, key=lambda shard: shard.index)
    for index, start in enumerate(range(0, len(new), videos_per_shard), first):
        chunk = tuple(new[start : start + videos_per_shard])
        shards.append(ShardPlan(shard_name(dataset, index), index, chunk))
    return shards


def part_of(shard_index: int, num_parts: int) -> int:
    """Return the part that builds a shard, counted from 1."""
    # Round robin: the numbers of shards of two parts differ by at most one.
    return shard_index % num_parts + 1


def stored_indices(num_frames: int, frames_per_clip: int) -> list[int]:
    """Choose the decoded frames to store: all n if n <= F, else j*n//F for j in 0..F-1.

    Args:
        num_frames: n, the decoded frames of the video
        frames_per_clip: F, the most frames to store

    Returns:
        Distinct indices in [0, num_frames), ascending."""
    if num_frames <= frames_per_clip:
        return list(range(num_frames))
    return [position * num_frames // frames_per_clip for position in range(frames_per_clip)]
