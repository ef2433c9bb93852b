"""Pure plans of a build: which shard a video goes to, which part writes a shard, which frames are
kept.

All of it is a function of the sorted keys alone, so that every machine and every rerun comes to the
same plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ShardPlan:
    """The videos of one shard, in the order in which they are written.

    index: counted from 0 over the whole pool"""

    name: str
    index: int
    keys: tuple[str, ...]


def sort_keys(keys: Iterable[str]) -> list[str]:
    """Sort by UTF-8 bytes."""
    return sorted(keys, key=str.encode)


def shard_name(dataset: str, index: int) -> str:
    """`<dataset>-<000000>`."""
    return f"{dataset}-{index:06d}"


def plan_shards(
    keys: Collection[str],
    *,
    dataset: str,
    videos_per_shard: int,
    existing: Sequence[ShardPlan] = (),
) -> list[ShardPlan]:
    """Cut the sorted keys into shards; with `existing` shards only the keys that are in none, after
    the last.

    Returns: the existing shards and the new ones, by index. Each key is in exactly one shard."""
    placed = {key for shard in existing for key in shard.keys}
    new = sort_keys(set(keys) - placed)
    first = max((shard.index for shard in existing), default=-1) + 1
    chunks = [
        tuple(new[start : start + videos_per_shard])
        for start in range(0, len(new), videos_per_shard)
    ]
    added = [
        ShardPlan(shard_name(dataset, index), index, chunk)
        for index, chunk in enumerate(chunks, first)
    ]
    return [*sorted(existing, key=lambda shard: shard.index), *added]


def part_of(shard_index: int, num_parts: int) -> int:
    """The part that writes a shard, counted from 1."""
    return shard_index % num_parts + 1


def stored_indices(num_frames: int, frames_per_clip: int) -> list[int]:
    """Pick the decoded frames that are stored: all of n <= F, else j*n//F for j in 0..F-1.

    Returns: ascending, distinct, each in [0, num_frames)."""
    if num_frames <= frames_per_clip:
        return list(range(num_frames))
    return [position * num_frames // frames_per_clip for position in range(frames_per_clip)]
