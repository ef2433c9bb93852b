"""Which bytes of a shard are fetched together, and which of them a cache keeps: pure functions, the
same everywhere.

An extent is a run of neighbouring samples that one request reads. Two are joined if reading what
lies between them is cheaper than another request, and if it stays a small part of what is needed: a
sparse selection reads its samples and next to nothing else, a dense one reads shards in large
pieces."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shards.reader import Manifest

MAX_WASTE = 0.05  # of the bytes that are needed
LATENCY_SECONDS = 0.03
BYTES_PER_SECOND = 90e6

_SAMPLE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("sha256", "S64")])


@dataclass(frozen=True)
class RequestCost:
    """What object storage costs; the defaults are a guess at S3 within a region, `bmpt plan
    --measure` has yours.

    latency_seconds: until the first byte; bytes_per_second: of one connection"""

    latency_seconds: float = LATENCY_SECONDS
    bytes_per_second: float = BYTES_PER_SECOND

    @property
    def gap_bytes(self) -> int:
        """So many bytes take as long as a request."""
        return int(self.latency_seconds * self.bytes_per_second)

    def seconds(self, num_bytes: float, requests: float) -> float:
        """What so many bytes in so many requests take over one connection."""
        return requests * self.latency_seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Extents:
    """Extents of one manifest, by shard and place.

    shard: name of each; start, stop: its bytes [start, stop), int64 [E]; of_row: the extent of each
        row, int64 [N]
    by_place: all rows by shard and offset, int64 [N]; first: where those of an extent begin in it,
        int64 [E + 1]
    content: a hash over offset, size and sha256 of the samples in it, 16 bytes [E]"""

    shard: list[str]
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    of_row: npt.NDArray[np.int64]
    by_place: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    content: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.shard)

    def rows_of(self, extent: int) -> npt.NDArray[np.int64]:
        """The rows of the manifest whose samples lie in an extent, by place."""
        return self.by_place[self.first[extent] : self.first[extent + 1]]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each, int64 [E]."""
        return self.stop - self.start

    @property
    def total_bytes(self) -> int:
        """What reading each once takes."""
        return int(self.sizes.sum())


@dataclass(frozen=True)
class Retention:
    """What a cache does with extents.

    kept: which stay from pass to pass, bool [E]
    passing_bytes: room for the others, which stay while a pass is among their shards; 0 if they are
        never cached"""

    kept: npt.NDArray[np.bool_]
    passing_bytes: int

    @property
    def keeps_all(self) -> bool:
        return bool(self.kept.all())


def plan_extents(manifest: Manifest, cost: RequestCost) -> Extents:
    """Cut what a manifest needs into extents, the same in every process; 240,000 rows in 0.7 s.

    An extent grows to the bytes that take as long as a request: larger ones would delay the first
    batch."""
    shards = [
        sys.intern(shard) for shard in manifest.table["shard"].to_pylist()
    ]  # a name is pickled once
    samples = np.empty(len(manifest), _SAMPLE)
    for name in _SAMPLE.names or ():
        samples[name] = manifest.table[name].to_pylist()
    offsets, sizes = samples["offset"].tolist(), samples["size"].tolist()
    by_place = sorted(range(len(shards)), key=lambda row: (shards[row], offsets[row]))
    names: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    firsts: list[int] = []
    of_row = np.empty(len(shards), np.int64)
    needed = wasted = 0
    for place, row in enumerate(by_place):
        offset, size = offsets[row], sizes[row]
        gap = offset - stops[-1] if names and names[-1] == shards[row] else None
        joins = (
            gap is not None
            and gap <= cost.gap_bytes
            and wasted + gap <= MAX_WASTE * (needed + size)
            and offset + size - starts[-1] <= max(cost.gap_bytes, size)
        )
        needed += size
        if joins and gap is not None:
            wasted += gap
            stops[-1] = offset + size
        else:
            names.append(shards[row])
            starts.append(offset)
            stops.append(offset + size)
            firsts.append(place)
        of_row[row] = len(names) - 1
    firsts.append(len(by_place))
    listed = samples[by_place].tobytes()
    content = [
        hashlib.blake2b(
            listed[_SAMPLE.itemsize * start : _SAMPLE.itemsize * stop], digest_size=16
        ).digest()
        for start, stop in pairwise(firsts)
    ]
    return Extents(
        names,
        np.array(starts, np.int64),
        np.array(stops, np.int64),
        of_row,
        np.array(by_place, np.int64),
        np.array(firsts, np.int64),
        np.array(content, "V16"),
    )


def plan_retention(
    extents: Extents, room_bytes: int, *, group_shards: int | None = None
) -> Retention:
    """Choose what stays in a cache: extents in file order until `room_bytes` are full.

    A cache that takes all in would throw each out before the next pass comes for it. group_shards:
    of a grouped order; if two of its groups fit (ranks and workers are not in step), what is not
    kept passes through the cache."""
    passing_bytes = 0
    if group_shards is not None and extents.total_bytes > room_bytes:
        passing_bytes = 2 * group_bytes(extents, group_shards)
    if passing_bytes > room_bytes:
        passing_bytes = 0
    left = room_bytes - passing_bytes
    kept = np.zeros(len(extents), bool)
    for number, size in enumerate(extents.sizes.tolist()):
        if size <= left:
            kept[number] = True
            left -= size
    return Retention(kept, passing_bytes)


def group_bytes(extents: Extents, group_shards: int) -> int:
    """What the largest group of so many shards takes; a grouped order may put any shards
    together."""
    of_shard: Counter[str] = Counter()
    for shard, size in zip(extents.shard, extents.sizes.tolist(), strict=True):
        of_shard[shard] += size
    return sum(size for _, size in of_shard.most_common(group_shards))
