"""Measurement of the latency and bandwidth by which reads are planned."""

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
    """Measure what a request to a pool's store costs here and now.

    Times 16 small reads and 4 reads of 8 MB (of a whole shard if that is smaller), one after the
    other, and takes the medians. Both numbers have two digits, so that a plan can be repeated from
    the printed ones. Shards far below 1 MB say little about the bandwidth.

    Raises:
        ConfigError: for a pool in a folder, or one without shards.
        StorageError: if a shard cannot be read.
    """
    uri = pool.store.uri("")
    if isinstance(pool.store, LocalStore):
        raise ConfigError(f"{uri}: --measure needs a pool in a bucket; a folder has no requests")

    # The largest shards, since a large read must fit into one.
    shards = sorted(pool.card.shards, key=lambda shard: -shard.size)
    shards = shards[: max(_SMALL_READS, _LARGE_READS)]
    if not shards:
        raise ConfigError(f"{uri}: --measure needs a pool with at least one shard")

    def seconds(number: int, size: int) -> float:
        shard = shards[number % len(shards)]
        # A shard that is read again is read at another offset, since the server may cache it.
        start = number // len(shards) * size % (shard.size - size + 1)
        started = time.monotonic()
        pool.store.read_ranges(shard.name, [start], [size])
        return time.monotonic() - started

    small = min(_SMALL_BYTES, shards[-1].size)
    seconds(0, small)  # opens the connection
    latency = statistics.median(seconds(number, small) for number in range(_SMALL_READS))

    large = min(_LARGE_BYTES, shards[min(_LARGE_READS, len(shards)) - 1].size)
    large_seconds = statistics.median(seconds(number, large) for number in range(_LARGE_READS))
    # Where latency is nearly all of a large read, the quotient would be noise: it is bounded.
    bandwidth = large / max(large_seconds - latency, 0.01 * large_seconds)

    return RequestCost(float(f"{latency:.2g}"), float(f"{bandwidth:.2g}"))
