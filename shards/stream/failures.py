"""Samples that could not be read: so many in a row end a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shards.errors import StorageError
from shards.stream.batches import MicroBatch

MAX_FAILURES = 32


@dataclass
class FailureRule:
    """Ends a run when `limit` samples in a row could not be read; None never does. in_a_row: so
    far"""

    limit: int | None
    in_a_row: int = 0

    def count(self, failures: Sequence[str | None]) -> None:
        """Take the next samples in order, None for those that were read. Raises: StorageError at
        the limit."""
        for failure in failures:
            self.in_a_row = self.in_a_row + 1 if failure is not None else 0
            if self.limit is not None and self.in_a_row >= self.limit:
                raise StorageError(
                    f"{self.in_a_row} samples in a row could not be read; the last: {failure}"
                )


def failure_limit(max_failures: int | None, num_samples: int) -> int | None:
    """Return `max_failures`, or the number of samples if that is smaller.

    A manifest of few samples, none of which can be read, then ends the run too.
    """
    return None if max_failures is None else min(max_failures, max(1, num_samples))


def stop_at_failures(batches: Iterator[MicroBatch], limit: int | None) -> Iterator[MicroBatch]:
    """Pass batches on. Raises: StorageError once `limit` samples in a row could not be read."""
    rule = FailureRule(limit)
    for batch in batches:
        rule.count(batch.clips.failures)
        yield batch
