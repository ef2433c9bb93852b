"""What a request to a pool's store costs here and now: the two numbers by which reads are
planned."""

from __future__ import annotations

import statistics
import time

from shards.errors import ConfigError
from shards.fetching.extents import RequestCost
from shards.reader import Pool
from shards.storage.local import LocalStore

_SMALL_READS, _SMALL_BYTES = 16, 1024
_LARGE_READS, _LARGE_BYTES = 4, 8_000_000


def measure_request_cost(pool: Pool) -> RequestCost:
    """Time 16 small reads and 4 of 8 MB (or of a whole shard, if that is smaller) one after the
    other; medians.

    Both with two digits, so that a plan can be had again from what is printed. Shards far below 1
    MB say little of a
    bandwidth. Raises: ConfigError for a folder or a pool without shards, StorageError."""
    if isinstance(pool.store, LocalStore):
        raise ConfigError(
            f"{pool.store.uri('')}: --measure needs a pool in a bucket; a folder has no requests"
        )
    shards = sorted(pool.card.shards, key=lambda shard: -shard.size)[
        : max(_SMALL_READS, _LARGE_READS)
    ]
    if not shards:
        raise ConfigError(f"{pool.store.uri('')}: --measure needs a pool with at least one shard")

    def seconds(number: int, size: int) -> float:
        shard = shards[number % len(shards)]
        start = (
            number // len(shards) * size % (shard.size - size + 1)
        )  # another place when a shard comes again
        begun = time.monotonic()
        pool.store.read_ranges(shard.name, [start], [size])
        return time.monotonic() - begun

    small = min(_SMALL_BYTES, shards[-1].size)
    seconds(0, small)  # connects
    latency = statistics.median(seconds(number, small) for number in range(_SMALL_READS))
    large = min(_LARGE_BYTES, shards[min(_LARGE_READS, len(shards)) - 1].size)
    whole = statistics.median(seconds(number, large) for number in range(_LARGE_READS))
    rate = large / max(
        whole - latency, 0.01 * whole
    )  # a read that is all latency says only that much
    return RequestCost(float(f"{latency:.2g}"), float(f"{rate:.2g}"))
