"""What all ranks learn of an optimiser step before they compute it: its clips in one order, and
what reading took."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmpt.runtime.distributed import World, sum_over_ranks
from bmpt.runtime.failures import all_failures
from shards.fetching.frames import ReadStats
from shards.sampling.orders import IndexArray
from shards.sampling.plan import rank_slice
from shards.stream.batches import MicroBatch


@dataclass(frozen=True)
class GlobalBatch:
    """The B = `data.batch_size` clips of a step over all ranks and micro-batches.

    rows_B: int64, rows of the manifest, in the global order
    failures: why a clip could not be read, None for the others
    wait_seconds: for the batch, of the rank that waited longest
    reads: of all ranks
    write_failed: some rank could not write what an earlier step gave"""

    rows_B: IndexArray
    failures: list[str | None]
    wait_seconds: float
    reads: ReadStats
    write_failed: bool = False

    @property
    def num_valid(self) -> int:
        """Count the clips that were read."""
        return self.failures.count(None)

    def reading(self, seconds: float) -> dict[str, float]:
        """What reading the step's clips took, for the log and TensorBoard; requests only where
        there are any.

        seconds: from the last step's end to this one's"""
        reads, row = self.reads, {"wait_seconds": round(self.wait_seconds, 4)}
        if reads.requests or reads.hits:
            row["requests"], row["bytes"] = reads.requests, reads.bytes
            row["mb_per_second"] = round(reads.bytes / 1e6 / seconds, 3)
            row["cache_hits"], row["cache_misses"] = reads.hits, reads.misses
            row["request_ms_p99"] = reads.latency_ms(0.99)
        return row


def share_batch(
    batches: list[MicroBatch],
    wait_seconds: float,
    *,
    batch_size: int,
    world: World,
    write_failed: bool = False,
) -> GlobalBatch:
    """Join what each rank has read of a step: one sum of `batch_size` + ranks + 32 numbers.

    write_failed: on this rank, since the last step.

    A step in which something failed costs a second exchange, of the reasons."""
    start, stop = rank_slice(batch_size, world.rank, world.size)
    rows_here = [row for batch in batches for row in batch.clips.positions_B.tolist()]
    failures = [failure for batch in batches for failure in batch.clips.failures]
    reads = ReadStats()
    for batch in batches:
        reads.add(batch.reads)
    # every rank fills its own places and leaves zeros in the others'
    places, waits = [0.0] * batch_size, [0.0] * world.size
    places[start:stop] = rows_here
    waits[world.rank] = wait_seconds
    num_failed = float(len(failures) - failures.count(None))
    shared = sum_over_ranks(
        [*places, *waits, float(write_failed), num_failed, *reads.to_numbers()], world
    )
    rows, waits = shared[:batch_size], shared[batch_size:][: world.size]
    num_unwritten, num_failed, *counts = shared[batch_size + world.size :]
    return GlobalBatch(
        rows_B=np.array(rows, dtype=np.int64),
        failures=all_failures(failures, world) if num_failed else [None] * batch_size,
        wait_seconds=max(waits),
        reads=ReadStats.from_numbers(counts),
        write_failed=num_unwritten > 0,
    )


def digest_of(keys: Sequence[str]) -> str:
    """Hash keys in their order, 16 hex digits: two runs that see the same clips in the same order
    agree in it."""
    return hashlib.blake2b("\n".join(keys).encode(), digest_size=8).hexdigest()
