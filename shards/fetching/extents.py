"""Which bytes of a shard are fetched together, and which of them a cache keeps.

Pure functions, with the same results in every process. An extent is a run of neighbouring samples
that one request reads. Two extents are joined if the bytes between them are cheaper to read than
another request, and remain a small part of the bytes that are needed. A sparse selection thus
reads its samples and next to nothing else; a dense one reads shards in large extents.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shards.reader import Manifest
from shards.sampling.orders import IndexArray

MAX_WASTE = 0.05  # bytes between samples that are read, as a fraction of the bytes that are needed
LATENCY_SECONDS = 0.03
BYTES_PER_SECOND = 90e6

_SAMPLE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("sha256", "S64")])


@dataclass(frozen=True)
class RequestCost:
    """Cost of a request to object storage.

    The defaults are an estimate for S3 within a region; `bmpt plan --measure` measures yours.
    """

    latency_seconds: float = LATENCY_SECONDS
    """Time until the first byte."""

    bytes_per_second: float = BYTES_PER_SECOND
    """Bandwidth of one connection."""

    @property
    def gap_bytes(self) -> int:
        """Bytes that take as long as the latency of a request: larger gaps are not read."""
        return int(self.latency_seconds * self.bytes_per_second)

    def seconds(self, num_bytes: float, requests: float) -> float:
        """Return the time of `requests` requests of `num_bytes` in all over one connection."""
        return requests * self.latency_seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Extents:
    """The E extents of one manifest of N rows, ordered by shard and offset."""

    shard: list[str]
    """Shard of each extent."""

    start: IndexArray
    """int64 [E], first byte of each extent in its shard."""

    stop: IndexArray
    """int64 [E], the byte after each extent."""

    of_row: IndexArray
    """int64 [N], the extent of each row of the manifest."""

    sorted_rows: IndexArray
    """int64 [N], the rows of the manifest by shard and offset."""

    first: IndexArray
    """int64 [E + 1], where the rows of each extent begin in `sorted_rows`."""

    content: npt.NDArray[np.void]
    """16 bytes [E], a hash of the offset, size and sha256 of each sample of an extent."""

    def __len__(self) -> int:
        return len(self.shard)

    def rows_of(self, extent: int) -> IndexArray:
        """Return the rows of the manifest whose samples are in an extent, by offset."""
        return self.sorted_rows[self.first[extent] : self.first[extent + 1]]

    @property
    def sizes(self) -> IndexArray:
        """Bytes of each extent, int64 [E]."""
        return self.stop - self.start

    @property
    def total_bytes(self) -> int:
        """Bytes of all extents together."""
        return int(self.sizes.sum())


@dataclass(frozen=True)
class Retention:
    """How long a cache keeps each extent of a manifest."""

    kept: npt.NDArray[np.bool_]
    """bool [E], the extents that stay from epoch to epoch."""

    transient_bytes: int
    """Budget for the other extents, which stay while their shards are read; 0 if they are never
    cached."""

    @property
    def keeps_all(self) -> bool:
        """Whether every extent stays."""
        return bool(self.kept.all())


def plan_extents(manifest: Manifest, cost: RequestCost) -> Extents:
    """Divide the bytes that a manifest needs into extents; 240,000 rows take 0.7 s.

    An extent grows up to the bytes that take as long as a request: larger ones would delay the
    first batch.
    """
    shards, samples = _read_placements(manifest)
    # Plain lists, since indexing NumPy arrays in a loop of Python is several times as slow.
    offsets, sizes = samples["offset"].tolist(), samples["size"].tolist()
    sorted_rows = sorted(range(len(shards)), key=lambda row: (shards[row], offsets[row]))

    names: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    firsts: list[int] = []
    of_row = np.empty(len(shards), np.int64)
    needed_bytes = wasted_bytes = 0

    for index, row in enumerate(sorted_rows):
        offset, size = offsets[row], sizes[row]
        needed_bytes += size
        is_joined = False

        if names and names[-1] == shards[row]:
            gap = offset - stops[-1]
            # The gap costs less than a request, all gaps together are a small part of the bytes,
            # and the extent does not delay the first batch.
            is_joined = (
                gap <= cost.gap_bytes
                and wasted_bytes + gap <= MAX_WASTE * needed_bytes
                and offset + size - starts[-1] <= max(cost.gap_bytes, size)
            )

        if is_joined:
            wasted_bytes += gap
            stops[-1] = offset + size
        else:
            names.append(shards[row])
            starts.append(offset)
            stops.append(offset + size)
            firsts.append(index)
        of_row[row] = len(names) - 1

    firsts.append(len(sorted_rows))
    return Extents(
        names,
        np.array(starts, np.int64),
        np.array(stops, np.int64),
        of_row,
        np.array(sorted_rows, np.int64),
        np.array(firsts, np.int64),
        _hash_contents(samples[sorted_rows], firsts),
    )


def _read_placements(manifest: Manifest) -> tuple[list[str], npt.NDArray[np.void]]:
    """Return the shard of each row, and its offset, size and sha256 as _SAMPLE [N]."""
    # An interned name is pickled once, not once per row.
    shards = [sys.intern(shard) for shard in manifest.table["shard"].to_pylist()]
    samples = np.empty(len(manifest), _SAMPLE)
    for name in _SAMPLE.names or ():
        samples[name] = manifest.table[name].to_pylist()
    return shards, samples


def _hash_contents(samples: npt.NDArray[np.void], firsts: list[int]) -> npt.NDArray[np.void]:
    """Return a hash of the samples of each extent, 16 bytes [E]."""
    raw, item_bytes = samples.tobytes(), _SAMPLE.itemsize
    digests = [
        hashlib.blake2b(raw[item_bytes * first : item_bytes * last], digest_size=16).digest()
        for first, last in pairwise(firsts)
    ]
    return np.array(digests, "V16")


def plan_retention(
    extents: Extents, usable_bytes: int, *, group_shards: int | None = None
) -> Retention:
    """Choose the extents that stay in a cache: in file order until `usable_bytes` are full.

    A cache that accepted every extent would evict each one before the next epoch asks for it.

    Args:
        extents: of the manifest.
        usable_bytes: room in the cache, see `shards.fetching.cache.usable_bytes`.
        group_shards: of a grouped order. If two of its groups fit, the extents that do not stay
            are cached while their groups are read. Two, since ranks and workers are not in step.
    """
    transient_bytes = 0
    if group_shards is not None and extents.total_bytes > usable_bytes:
        two_groups = 2 * group_bytes(extents, group_shards)
        if two_groups <= usable_bytes:
            transient_bytes = two_groups

    # First fit in file order: a fixed set, whatever order an epoch has.
    bytes_left = usable_bytes - transient_bytes
    kept = np.zeros(len(extents), bool)
    for extent, size in enumerate(extents.sizes.tolist()):
        if size <= bytes_left:
            kept[extent] = True
            bytes_left -= size

    return Retention(kept, transient_bytes)


def group_bytes(extents: Extents, group_shards: int) -> int:
    """Return the bytes of the largest group; a grouped order may combine any shards."""
    # The largest shards, since a permutation can bring any of them together.
    bytes_of_shard: Counter[str] = Counter()
    for shard, size in zip(extents.shard, extents.sizes.tolist(), strict=True):
        bytes_of_shard[shard] += size
    return sum(size for _, size in bytes_of_shard.most_common(group_shards))
