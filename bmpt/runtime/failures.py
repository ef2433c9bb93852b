"""Samples that could not be read: known to all ranks alike, and named at the end."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from bmpt.runtime.distributed import World, gather_to_all, sum_over_ranks

_NUM_NAMED = 10


def share_failures(failures: list[str | None], world: World) -> list[str | None]:
    """Join what every rank says of its own samples (None for one that was read), in rank order, on
    all ranks.

    Costs one sum of two numbers; the reasons travel only if there are any."""
    num_failed = sum(failure is not None for failure in failures)
    samples, failed = sum_over_ranks([float(len(failures)), float(num_failed)], world)
    return all_failures(failures, world) if failed else [None] * int(samples)


def all_failures(failures: list[str | None], world: World) -> list[str | None]:
    """The same with the reasons, whether there are any or not."""
    return [failure for of_rank in gather_to_all(failures, world) for failure in of_rank]


def failure_limit(max_failures: int, num_samples: int) -> int:
    """Samples in a row that end a run: `data.max_failures`, or all of an epoch or a manifest if
    that is fewer."""
    return min(max_failures, num_samples)


def name_failures(
    where: str, keys: Collection[str], *, num_samples: int, reasons: Path, repeats: bool = False
) -> None:
    """Say on stderr how many samples of a manifest could not be read, and which; nothing if there
    are none.

    repeats: samples are read once an epoch, and one epoch without them is enough to be named"""
    if not keys:
        return
    named = ", ".join(list(keys)[:_NUM_NAMED])
    more = f" and {len(keys) - _NUM_NAMED} more" if len(keys) > _NUM_NAMED else ""
    once = "at least once " if repeats else ""
    print(
        f"warning: {where}: {len(keys)} of {num_samples} samples could not be read {once}and were left out: "
        f"{named}{more}; `failed` in {reasons} says why",
        file=sys.stderr,
        flush=True,
    )
