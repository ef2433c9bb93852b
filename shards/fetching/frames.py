"""Frames of samples from any pool: in a folder, in a bucket, or in a bucket behind a cache.

Requests are counted, so that `bmpt plan` can be compared with what a run did.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from shards.config import Settings
from shards.errors import SampleError
from shards.fetching.cache import Cache, usable_bytes
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

Range = tuple[int, int]
"""First byte and number of bytes."""

_NUM_LATENCY_BUCKETS = 24  # of 0.1 ms, 0.2 ms, 0.4 ms, ...


@dataclass
class ReadStats:
    """Cost of reading; every field is a sum, so that workers and ranks can be added up."""

    requests: int = 0
    """Requests to the store."""

    bytes: int = 0
    """Bytes of these requests."""

    hits: int = 0
    """Samples that were read from the cache."""

    misses: int = 0
    """Samples whose extent was loaded into the cache first."""

    seconds: float = 0.0
    """Duration of all requests, added up over threads."""

    waited_seconds: float = 0.0
    """Time that the stream waited for reads."""

    latency_counts: list[int] = field(default_factory=lambda: [0] * _NUM_LATENCY_BUCKETS)
    """Requests by duration; bucket i ends at 0.1 ms * 2**i."""

    def count_request(self, num_bytes: int, seconds: float) -> None:
        """Count one answered request."""
        self.requests += 1
        self.bytes += num_bytes
        self.seconds += seconds
        # The number of binary digits of a duration in units of 0.1 ms.
        bucket = int(seconds * 1e4).bit_length()
        self.latency_counts[min(bucket, _NUM_LATENCY_BUCKETS - 1)] += 1

    def add(self, other: ReadStats) -> None:
        """Add the counts of another part of the stream."""
        self.requests += other.requests
        self.bytes += other.bytes
        self.hits += other.hits
        self.misses += other.misses
        self.seconds += other.seconds
        self.waited_seconds += other.waited_seconds
        for bucket, count in enumerate(other.latency_counts):
            self.latency_counts[bucket] += count

    def to_numbers(self) -> list[float]:
        """Return all counts as one list, which ranks can add up element by element."""
        counts = [self.requests, self.bytes, self.hits, self.misses]
        return [*counts, self.seconds, self.waited_seconds, *self.latency_counts]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> ReadStats:
        """Return the counts of a list that `to_numbers` has made."""
        requests, num_bytes, hits, misses, seconds, waited_seconds, *latency_counts = numbers
        return cls(
            requests=int(requests),
            bytes=int(num_bytes),
            hits=int(hits),
            misses=int(misses),
            seconds=seconds,
            waited_seconds=waited_seconds,
            latency_counts=[int(count) for count in latency_counts],
        )

    def latency_ms(self, fraction: float) -> float:
        """Return the duration that a fraction of all requests did not exceed; 0 without requests.

        The duration is the end of its bucket.
        """
        wanted, seen = fraction * sum(self.latency_counts), 0
        for bucket, count in enumerate(self.latency_counts):
            seen += count
            if count and seen >= wanted:
                return float(0.1 * 2**bucket)
        return 0.0


class ReadSettings(Settings):
    """How a pool in object storage is read; a pool in a folder needs none of it."""

    cache: Path | None = Field(
        None, description="folder for bytes of a remote pool, shared by all ranks of a node"
    )
    cache_bytes: int = Field(50_000_000_000, ge=0, description="hard cap of the cache")
    requests_in_flight: int = Field(
        16, ge=1, description="samples that a loader process requests at the same time"
    )
    latency_seconds: float = Field(
        LATENCY_SECONDS,
        ge=0,
        allow_inf_nan=False,
        description="latency of a request; `bmpt plan --measure` measures it",
    )
    bytes_per_second: float = Field(
        BYTES_PER_SECOND,
        gt=0,
        allow_inf_nan=False,
        description="bandwidth of one connection; together with latency_seconds it sets how large "
        "a gap between two samples is read through",
    )


@dataclass(frozen=True)
class CachePlan:
    """How the extents of a manifest are read through a cache."""

    cache: Cache
    extents: Extents
    retention: Retention

    def uses_cache(self, extent: int) -> bool:
        """Return whether an extent is read through the cache, to stay or as a transient entry."""
        return bool(self.retention.kept[extent]) or self.retention.transient_bytes > 0


class DamagedExtents:
    """The extents in which this process has found a damaged sample.

    They are not requested as a whole again; their samples are read one by one, since most of them
    are intact. A loader process starts with none, and keeps them as long as its reader.
    """

    def __init__(self) -> None:
        self._extents: set[int] = set()

    def add(self, extent: int) -> None:
        """Remember a damaged extent; threads may call it at the same time."""
        self._extents.add(extent)

    def __contains__(self, extent: int) -> bool:
        return extent in self._extents


@dataclass(frozen=True)
class FrameReader:
    """Read the JPEG bytes of frames; a loader process can unpickle it."""

    store: Store

    manifest: Manifest
    """The rows that are read."""

    cost: RequestCost
    """Gaps that are cheaper to read than to skip are read as part of the same request."""

    cache_plan: CachePlan | None = None
    """None for a pool in a folder, where a request costs next to nothing, and without a cache."""

    damaged: DamagedExtents = field(default_factory=DamagedExtents, compare=False)

    def read(
        self,
        index: int,
        row: Mapping[str, Any],
        positions: Sequence[int],
        stats: ReadStats,
        *,
        epoch: int = 0,
    ) -> list[bytes]:
        """Return the JPEG bytes of frames of one sample; each frame is fetched once.

        Args:
            index: row number of the sample in the manifest.
            row: that row.
            positions: positions of the frames in the stored sample.
            stats: where requests are counted.
            epoch: transient entries are fetched again in each epoch, so that the traffic of a run
                can be planned.

        Returns:
            The bytes in the order of `positions`.

        Raises:
            SampleError: if a CRC is wrong.
            StorageError: if the shard cannot be read.
        """
        # A clip of a short sample repeats frames; ascending ranges can be merged.
        wanted = sorted(set(positions))
        ranges = [
            (row["offset"] + row["frame_offset"][position], row["frame_size"][position])
            for position in wanted
        ]

        jpegs = None
        if self.cache_plan is not None:
            jpegs = self._read_cached(self.cache_plan, index, row, wanted, ranges, stats, epoch)
        if jpegs is None:
            jpegs = self._read_directly(row["shard"], ranges, stats)

        check_frames(self.store, row, wanted, jpegs)
        jpeg_at = dict(zip(wanted, jpegs, strict=True))
        return [jpeg_at[position] for position in positions]

    def _read_cached(
        self,
        plan: CachePlan,
        index: int,
        row: Mapping[str, Any],
        wanted: Sequence[int],
        ranges: Sequence[Range],
        stats: ReadStats,
        epoch: int,
    ) -> list[bytes] | None:
        """Read ranges of a sample through the cache.

        Returns:
            None if its extent is not read through the cache, or if something in it is damaged.
        """
        extent = int(plan.extents.of_row[index])
        if extent in self.damaged or not plan.uses_cache(extent):
            return None

        start, stop = int(plan.extents.start[extent]), int(plan.extents.stop[extent])
        is_transient = not plan.retention.kept[extent]
        name = self._entry_name(plan.extents, extent)
        if is_transient:
            # Without the epoch, entries of an earlier epoch would be hits or not by chance.
            name += f"/epoch {epoch}"

        try:
            jpegs, is_hit = plan.cache.read(
                name,
                stop - start,
                [(first - start, size) for first, size in ranges],
                lambda: self._load_extent(plan.extents, extent, stats),
                is_transient=is_transient,
            )
        except SampleError:
            # Another sample of the extent may be the damaged one.
            self.damaged.add(extent)
            return None

        # The extent was intact when it was stored, so that the disk of the cache has changed it.
        if first_wrong_frame(row, wanted, jpegs) is not None:
            plan.cache.drop(name, is_transient=is_transient)
            return None

        stats.hits += is_hit
        stats.misses += not is_hit
        return jpegs

    def _entry_name(self, extents: Extents, extent: int) -> str:
        """Return the name of an extent in the cache.

        It contains a hash of the content, since pools of one `pool_id` may have different shards.
        """
        content = extents.content[extent].tobytes().hex()
        pool_id = self.manifest.info.pool_id
        return f"{pool_id}/{extents.shard[extent]}/{extents.start[extent]}/{content}"

    def _load_extent(self, extents: Extents, extent: int, stats: ReadStats) -> bytes:
        """Fetch an extent and compare every sample of the manifest in it with its sha256.

        Raises:
            SampleError: if a sample is damaged.
        """
        shard = extents.shard[extent]
        start, stop = int(extents.start[extent]), int(extents.stop[extent])
        (data,) = self._request(shard, [(start, stop - start)], stats)

        # A view, so that hashing a sample does not copy it.
        view, table = memoryview(data), self.manifest.table
        for row in extents.rows_of(extent).tolist():
            offset, size = table["offset"][row].as_py(), table["size"][row].as_py()
            sample = view[offset - start : offset - start + size]
            if hashlib.sha256(sample).hexdigest() != table["sha256"][row].as_py():
                raise SampleError(
                    f"{self.store.uri(shard)}: the sample at byte {offset} has a wrong sha256"
                )
        return data

    def _read_directly(self, shard: str, ranges: Sequence[Range], stats: ReadStats) -> list[bytes]:
        """Read ranges without the cache."""
        # A folder has no latency to save, and its ranges are read in one call.
        if isinstance(self.store, LocalStore):
            return self.store.read_ranges(shard, *zip(*ranges, strict=True))

        # Small gaps are read as part of the same request, and cut out again.
        spans = merge_ranges(ranges, self.cost.gap_bytes)
        data = self._request(shard, [(start, stop - start) for start, stop, _ in spans], stats)

        parts: list[bytes] = []
        for (start, _, members), span in zip(spans, data, strict=True):
            parts += [span[first - start : first - start + size] for first, size in members]
        return parts

    def _request(self, shard: str, ranges: Sequence[Range], stats: ReadStats) -> list[bytes]:
        """Request ranges of a shard one after the other, and count each."""
        parts = []
        for start, size in ranges:
            started = time.monotonic()
            parts += self.store.read_ranges(shard, [start], [size])
            stats.count_request(size, time.monotonic() - started)
        return parts


def make_reader(
    store: Store, manifest: Manifest, settings: ReadSettings, *, group_shards: int | None = None
) -> FrameReader:
    """Make a reader of the frames of one manifest.

    Args:
        store: of the pool.
        manifest: the rows that are read.
        settings: how a remote pool is read.
        group_shards: of a grouped order; None for every other order.
    """
    cost = RequestCost(settings.latency_seconds, settings.bytes_per_second)
    if isinstance(store, LocalStore) or settings.cache is None:
        return FrameReader(store, manifest, cost)

    # A relative folder would mean another one in a loader process that changes its directory.
    folder = settings.cache.absolute()
    extents = plan_extents(manifest, cost)
    retention = plan_retention(
        extents, usable_bytes(settings.cache_bytes), group_shards=group_shards
    )
    cache = Cache(
        folder,
        max_bytes=settings.cache_bytes,
        transient_bytes=retention.transient_bytes,
    )
    return FrameReader(store, manifest, cost, CachePlan(cache, extents, retention))


def merge_ranges(ranges: Sequence[Range], gap_bytes: int) -> list[tuple[int, int, list[Range]]]:
    """Join ranges, ascending and disjoint, over gaps of at most `gap_bytes`.

    Returns:
        (start, stop, the ranges in it) of each span, in order.
    """
    spans: list[tuple[int, int, list[Range]]] = []
    for start, size in ranges:
        if spans and start - spans[-1][1] <= gap_bytes:
            first, _, members = spans.pop()
            spans.append((first, start + size, [*members, (start, size)]))
        else:
            spans.append((start, start + size, [(start, size)]))
    return spans
