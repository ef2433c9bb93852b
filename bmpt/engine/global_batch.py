"""The global batch of an optimiser step: its clips in one order, and the cost of reading them.

All ranks learn it before they compute the step.
"""

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
    """The B = `data.batch_size` clips of a step over all ranks and micro-batches."""

    rows_B: IndexArray
    """int64, rows of the manifest in the global order."""

    failures: list[str | None]
    """Why a clip could not be read; None for a clip that was."""

    wait_seconds: float
    """Time that the slowest rank waited for the batch."""

    reads: ReadStats
    """Counts of all ranks."""

    write_failed: bool = False
    """Whether a rank could not write the results of an earlier step."""

    @property
    def num_valid(self) -> int:
        """Number of clips that were read."""
        return self.failures.count(None)

    def reading_row(self, seconds: float) -> dict[str, float]:
        """Return the cost of reading for the log; counts of requests only where there are any.

        Args:
            seconds: Time from the end of the last step to the end of this one.
        """
        reads = self.reads
        row: dict[str, float] = {"wait_seconds": round(self.wait_seconds, 4)}
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
    """Join the clips that each rank has read of a step.

    It costs one sum of `batch_size` + ranks + 32 numbers. A step in which a sample failed costs a
    second exchange, of the reasons.

    Args:
        batches: The micro-batches of this rank.
        wait_seconds: Time that this rank waited for them.
        batch_size: Clips of all ranks.
        world: The ranks.
        write_failed: Whether this rank could not write something since the last step.
    """
    rows_here = [row for batch in batches for row in batch.clips.positions_B.tolist()]
    failures = [failure for batch in batches for failure in batch.clips.failures]
    reads = ReadStats()
    for batch in batches:
        reads.add(batch.reads)

    # Every rank fills its own slots and leaves zeros in those of the others, so that a sum joins
    # them.
    start, stop = rank_slice(batch_size, world.rank, world.size)
    row_slots, wait_slots = [0.0] * batch_size, [0.0] * world.size
    row_slots[start:stop] = rows_here
    wait_slots[world.rank] = wait_seconds
    num_failed = float(len(failures) - failures.count(None))
    numbers = [*row_slots, *wait_slots, float(write_failed), num_failed, *reads.to_numbers()]
    shared = sum_over_ranks(numbers, world)

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
    """Return a hash of keys in their order, as 16 hex digits.

    Two runs that see the same clips in the same order have equal digests.
    """
    return hashlib.blake2b("\n".join(keys).encode(), digest_size=8).hexdigest()
