"""Who reads which sample, and when: pure functions of (order, epoch, position, worker)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shards.errors import ConfigError
from shards.sampling.orders import IndexArray, Order


@dataclass(frozen=True)
class RankSlice:
    """The part of the stream that one of `world_size` ranks reads."""

    rank: int = 0
    world_size: int = 1


ONE_RANK = RankSlice()


@dataclass(frozen=True)
class WorkerSlice(RankSlice):
    """The part of a rank's stream that one of its loader workers makes."""

    worker: int = 0
    num_workers: int = 1


@dataclass(frozen=True)
class MicroPlan:
    """One micro-batch of one rank (or one block of an evaluation).

    epoch: from 0
    step: optimiser step of the epoch, from 0 (the block's number in an evaluation)
    micro: micro-batch of the step, from 0
    rows: int64 [b], rows of the manifest in the order of the batch"""

    epoch: int
    step: int
    micro: int
    rows: IndexArray


def num_steps(num_samples: int, batch_size: int) -> int:
    """Count the optimiser steps in `num_samples`; the tail that does not fill a batch is
    dropped."""
    return max(0, num_samples) // batch_size


def rank_slice(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Cut a global batch: rank r takes positions [r*B//W, (r+1)*B//W)."""
    return rank * batch_size // world_size, (rank + 1) * batch_size // world_size


def micro_slices(start: int, stop: int, accumulation: int) -> list[tuple[int, int]]:
    """Cut a rank's slice [start, stop) the same way into `accumulation` micro-batches."""
    cuts = [rank_slice(stop - start, micro, accumulation) for micro in range(accumulation)]
    return [(start + low, start + high) for low, high in cuts]


def eval_blocks(
    num_samples: int, block_size: int, rank: int, world_size: int
) -> list[tuple[int, int]]:
    """List a rank's fixed blocks of rows [start, stop): block b goes to rank b mod W, the last one
    is short."""
    starts = range(rank * block_size, num_samples, world_size * block_size)
    return [(start, min(start + block_size, num_samples)) for start in starts]


def train_plan(
    order: Order,
    *,
    epoch: int,
    position: int,
    batch_size: int,
    accumulation: int,
    epochs: int | None = None,
    worker: WorkerSlice,
) -> Iterator[MicroPlan]:
    """Yield the micro-batches of one worker of one rank, epoch after epoch, up to `epochs` of them
    from epoch 0.

    Starts after the first `position` samples of `epoch`. Counted over the whole stream of the rank,
    micro-batch i is made by worker i mod num_workers."""
    cuts = micro_slices(*rank_slice(batch_size, worker.rank, worker.world_size), accumulation)
    number = 0
    while epochs is None or epoch < epochs:
        first = position // batch_size
        for index in range(num_steps(order.num_samples - position, batch_size)):
            start = position + index * batch_size
            for micro, (low, high) in enumerate(cuts):
                if number % worker.num_workers == worker.worker:
                    rows = order.rows(np.arange(start + low, start + high), epoch)
                    yield MicroPlan(epoch, first + index, micro, rows)
                number += 1
        epoch, position = epoch + 1, 0


def eval_plan(num_samples: int, *, block_size: int, worker: WorkerSlice) -> Iterator[MicroPlan]:
    """Yield the blocks of one worker of one rank once, in manifest order; block i of a rank to
    worker i mod w."""
    blocks = eval_blocks(num_samples, block_size, worker.rank, worker.world_size)
    for start, stop in blocks[worker.worker :: worker.num_workers]:
        yield MicroPlan(epoch=0, step=start // block_size, micro=0, rows=np.arange(start, stop))


def check_batch(num_samples: int, *, batch_size: int, accumulation: int, world_size: int) -> None:
    """Refuse a batch that the samples, ranks and micro-batches cannot share. Raises: ConfigError
    with both numbers."""
    if num_samples < batch_size:
        raise ConfigError(
            f"data.batch_size is {batch_size}, but the training manifest has {num_samples} samples; "
            f"set data.batch_size to {num_samples} or less"
        )
    if world_size > batch_size:
        raise ConfigError(
            f"data.batch_size is {batch_size}, but there are {world_size} ranks; give each at least one clip"
        )
    if accumulation > batch_size // world_size:
        raise ConfigError(
            f"train.accumulation is {accumulation}, but data.batch_size {batch_size} over {world_size} ranks leaves "
            f"{batch_size // world_size} clips a rank, one for each micro-batch at least; give that or less"
        )
