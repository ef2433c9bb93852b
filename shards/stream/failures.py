"""The rule that unreadable samples end a run: too many of them in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shards.errors import StorageError
from shards.stream.batches import MicroBatch

MAX_FAILURES = 32


@dataclass
class FailureRule:
    """Count unreadable samples in a row, and end the run at a limit."""

    limit: int | None
    """Unreadable samples in a row that end the run; None for no limit."""

    in_a_row: int = 0
    """Unreadable samples since the last one that was read."""

    def count(self, failures: Sequence[str | None]) -> None:
        """Count the next samples, in order.

        Args:
            failures: why each sample could not be read; None for a sample that was read.

        Raises:
            StorageError: at the limit.
        """
        for failure in failures:
            self.in_a_row = 0 if failure is None else self.in_a_row + 1
            if self.limit is not None and self.in_a_row >= self.limit:
                raise StorageError(
                    f"{self.in_a_row} samples in a row could not be read; the last: {failure}"
                )


def failure_limit(max_failures: int | None, num_samples: int) -> int | None:
    """Return `max_failures`, or the number of samples if that is smaller.

    A manifest of few samples, none of which can be read, then ends the run too.
    """
    if max_failures is None:
        return None
    return min(max_failures, max(1, num_samples))


def stop_at_failures(batches: Iterator[MicroBatch], limit: int | None) -> Iterator[MicroBatch]:
    """Yield batches.

    Raises:
        StorageError: once `limit` samples in a row could not be read.
    """
    rule = FailureRule(limit)
    for batch in batches:
        rule.count(batch.clips.failures)
        yield batch
