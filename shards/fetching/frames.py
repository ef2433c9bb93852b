"""Frames of samples from wherever a pool lies: a folder, a bucket, or a bucket with a cache before
it.

Counts what it asks for, so that `bmpt plan` can be held to its numbers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import Field

from shards.config import Settings
from shards.errors import SampleError
from shards.fetching.cache import Cache, room_bytes
from shards.fetching.extents import (
    BYTES_PER_SECOND,
    LATENCY_SECONDS,
    Extents,
    RequestCost,
    Retention,
    plan_extents,
    plan_retention,
)
from shards.reader import Manifest, check_frames, first_wrong_frame
from shards.storage.base import Store
from shards.storage.local import LocalStore

_LATENCY_BUCKETS = 24  # of 0.1 ms, 0.2 ms, 0.4 ms, ...


@dataclass
class ReadStats:
    """What reading took; sums, so that those of workers and ranks can be added.

    requests, bytes: to the store; hits, misses: of the cache; seconds: in requests, of all threads
        together
    waited_seconds: of the stream for a read; latency_counts: requests by duration, bucket i ends at
        0.1 ms * 2**i"""

    requests: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    latency_counts: list[int] = field(default_factory=lambda: [0] * _LATENCY_BUCKETS)

    def count_request(self, num_bytes: int, seconds: float) -> None:
        """Count one answered request."""
        self.requests += 1
        self.bytes += num_bytes
        self.seconds += seconds
        bucket = max(0, int(seconds * 1e4)).bit_length()
        self.latency_counts[min(bucket, _LATENCY_BUCKETS - 1)] += 1

    def add(self, other: ReadStats) -> None:
        """Add what another one counted."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            added = (
                [a + b for a, b in zip(mine, theirs, strict=True)]
                if isinstance(mine, list)
                else mine + theirs
            )
            setattr(self, item.name, added)

    def latency_ms(self, share: float) -> float:
        """The duration that a share of all requests did not pass, as the end of its bucket; 0
        without requests."""
        wanted, seen = share * sum(self.latency_counts), 0
        for bucket, count in enumerate(self.latency_counts):
            seen += count
            if count and seen >= wanted:
                return float(0.1 * 2**bucket)
        return 0.0


class ReadSettings(Settings):
    """How a pool in object storage is read; a pool in a folder needs none of it."""

    cache: Path | None = Field(
        None, description="folder for what is read of a remote pool, shared by a node's ranks"
    )
    cache_bytes: int = Field(50_000_000_000, ge=0, description="hard cap of that folder")
    requests_in_flight: int = Field(
        16, ge=1, description="samples that a loader process asks object storage for"
    )
    latency_seconds: float = Field(
        LATENCY_SECONDS,
        ge=0,
        allow_inf_nan=False,
        description="of a request; `bmpt plan --measure` gives yours",
    )
    bytes_per_second: float = Field(
        BYTES_PER_SECOND,
        gt=0,
        allow_inf_nan=False,
        description="of one connection; decides with it what is read along",
    )


@dataclass(frozen=True)
class FrameReader:
    """Reads the JPEG bytes of frames; a value that a loader worker can unpickle.

    manifest: the rows that are read
    cost: decides which gaps are read along
    cache, extents, retention: None for a folder, where a range costs next to nothing, and where no
        cache is wanted
    damaged: extents with a sample that is not what the manifest says; they are not asked for again
        as a whole"""

    store: Store
    manifest: Manifest
    cost: RequestCost
    cache: Cache | None = None
    extents: Extents | None = None
    retention: Retention | None = None
    damaged: set[int] = field(default_factory=set, compare=False)

    def read(
        self,
        index: int,
        row: Mapping[str, Any],
        positions: Sequence[int],
        stats: ReadStats,
        *,
        epoch: int = 0,
    ) -> list[bytes]:
        """Frames at `positions` of the sample in row `index`, in that order; each is fetched once.

        epoch: what only passes through the cache is fetched in each one, so that what a run reads
            can be planned.
        Raises: SampleError if a CRC is wrong, StorageError if the shard cannot be read."""
        wanted = sorted(set(positions))
        places = [
            (row["offset"] + row["frame_offset"][position], row["frame_size"][position])
            for position in wanted
        ]
        blocks = self._read_cached(index, row, wanted, places, stats, epoch=epoch)
        if blocks is None:
            blocks = self._read_directly(row["shard"], places, stats)
        check_frames(self.store, row, wanted, blocks)
        found = dict(zip(wanted, blocks, strict=True))
        return [found[position] for position in positions]

    def _read_directly(
        self, shard: str, places: Sequence[tuple[int, int]], stats: ReadStats
    ) -> list[bytes]:
        if isinstance(self.store, LocalStore):
            return self.store.read_ranges(shard, *zip(*places, strict=True))
        return self._read_merged(shard, places, stats)

    def _read_cached(
        self,
        index: int,
        row: Mapping[str, Any],
        wanted: Sequence[int],
        places: Sequence[tuple[int, int]],
        stats: ReadStats,
        *,
        epoch: int,
    ) -> list[bytes] | None:
        """From the sample's extent; None if the cache does not take it, or if something in it is
        damaged."""
        if self.cache is None or self.extents is None or self.retention is None:
            return None
        number = int(self.extents.of_row[index])
        is_passing = not self.retention.kept[number]
        if (is_passing and self.retention.passing_bytes == 0) or number in self.damaged:
            return None
        name = self._piece(number) + (f"/epoch {epoch}" if is_passing else "")
        start, stop = int(self.extents.start[number]), int(self.extents.stop[number])
        try:
            blocks, was_there = self.cache.read(
                name,
                stop - start,
                [(place - start, size) for place, size in places],
                lambda: self._load_extent(number, start, stop, stats),
                is_passing=is_passing,
            )
        except SampleError:  # the wanted frames may be sound
            self.damaged.add(number)
            return None
        if (
            first_wrong_frame(row, wanted, blocks) is not None
        ):  # the disk of the cache has changed it
            self.cache.drop(name, is_passing=is_passing)
            return None
        stats.hits += was_there
        stats.misses += not was_there
        return blocks

    def _piece(self, extent: int) -> str:
        """The name of an extent in the cache: by what it holds, since pools of one `pool_id` may be
        laid out apart."""
        assert self.extents is not None
        content = self.extents.content[extent].tobytes().hex()
        return f"{self.manifest.info.pool_id}/{self.extents.shard[extent]}/{self.extents.start[extent]}/{content}"

    def _load_extent(self, number: int, start: int, stop: int, stats: ReadStats) -> bytes:
        """Fetch an extent and compare every sample of the manifest in it with its sha256. Raises:
        SampleError."""
        assert self.extents is not None
        shard = self.extents.shard[number]
        (data,) = self._request(shard, [(start, stop - start)], stats)
        view = memoryview(data)
        table = self.manifest.table
        for row in self.extents.rows_of(number).tolist():
            offset, size, sha256 = (
                table[name][row].as_py() for name in ("offset", "size", "sha256")
            )
            if hashlib.sha256(view[offset - start : offset - start + size]).hexdigest() != sha256:
                raise SampleError(
                    f"{self.store.uri(shard)}: the sample at byte {offset} has a wrong sha256"
                )
        return data

    def _read_merged(
        self, shard: str, places: Sequence[tuple[int, int]], stats: ReadStats
    ) -> list[bytes]:
        """Read what lies in small gaps along, and cut it out again."""
        spans = merge_ranges(places, self.cost.gap_bytes)
        data = self._request(shard, [(start, stop - start) for start, stop, _ in spans], stats)
        blocks: list[bytes] = []
        for (start, _, members), span in zip(spans, data, strict=True):
            blocks += [span[place - start : place - start + size] for place, size in members]
        return blocks

    def _request(
        self, shard: str, places: Sequence[tuple[int, int]], stats: ReadStats
    ) -> list[bytes]:
        blocks = []
        for start, size in places:
            begun = time.monotonic()
            blocks += self.store.read_ranges(shard, [start], [size])
            stats.count_request(size, time.monotonic() - begun)
        return blocks


def make_reader(
    store: Store, manifest: Manifest, settings: ReadSettings, *, group_shards: int | None = None
) -> FrameReader:
    """A reader of the frames of one manifest. group_shards: of a grouped order, None for any
    other."""
    cost = RequestCost(settings.latency_seconds, settings.bytes_per_second)
    if isinstance(store, LocalStore) or settings.cache is None:
        return FrameReader(store, manifest, cost)
    extents = plan_extents(manifest, cost)
    retention = plan_retention(extents, room_bytes(settings.cache_bytes), group_shards=group_shards)
    cache = Cache(
        settings.cache.absolute(),
        max_bytes=settings.cache_bytes,
        passing_bytes=retention.passing_bytes,
    )
    return FrameReader(store, manifest, cost, cache, extents, retention)


def merge_ranges(
    places: Sequence[tuple[int, int]], gap_bytes: int
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Join ranges (start, size), ascending and apart, over gaps of at most `gap_bytes`.

    Returns: (start, stop, the ranges in it) of each span, in order."""
    spans: list[tuple[int, int, list[tuple[int, int]]]] = []
    for start, size in places:
        if spans and start - spans[-1][1] <= gap_bytes:
            first, _, members = spans.pop()
            spans.append((first, start + size, [*members, (start, size)]))
        else:
            spans.append((start, start + size, [(start, size)]))
    return spans
