"""Samples that could not be read: known to all ranks, and named at the end of a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bmpt.runtime.distributed import World, all_gather, sum_over_ranks
from shards.cli import warn
from shards.files import name_some

_NUM_NAMED = 10


def share_failures(failures: list[str | None], world: World) -> list[str | None]:
    """Join the failures of all ranks, in rank order, on every rank.

    It costs a sum of two numbers, and an exchange of the reasons if there are any.

    Args:
        failures: Why each sample of this rank could not be read; None for one that was.
        world: The ranks.
    """
    num_failed = sum(failure is not None for failure in failures)
    # Reasons are text and need a slow exchange; most steps have none.
    samples, failed = sum_over_ranks([float(len(failures)), float(num_failed)], world)
    return all_failures(failures, world) if failed else [None] * int(samples)


def all_failures(failures: list[str | None], world: World) -> list[str | None]:
    """Join the failures of all ranks, in rank order, on every rank, by exchanging the reasons."""
    return [failure for of_rank in all_gather(failures, world) for failure in of_rank]


def name_failures(
    where: str, keys: Collection[str], *, num_samples: int, reasons: Path, repeats: bool = False
) -> None:
    """Print a warning with the number and keys of samples that could not be read, if any.

    Args:
        where: The manifest.
        keys: Keys of the samples that could not be read.
        num_samples: Number of all samples of the manifest.
        reasons: The file that holds the reasons.
        repeats: Whether each sample is read once per epoch; a sample is named if one epoch missed
            it.
    """
    if not keys:
        return
    once = "at least once " if repeats else ""
    warn(
        f"{where}: {len(keys)} of {num_samples} samples could not be read {once}and were left "
        f"out: {name_some(keys, _NUM_NAMED)}; `failed` in {reasons} says why"
    )
