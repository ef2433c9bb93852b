"""Who reads which sample, and when: pure functions of order, epoch, position, rank and worker."""

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
    """The samples of one micro-batch of one rank, or of one block of an evaluation."""

    epoch: int
    """From 0."""

    step: int
    """Optimiser step of the epoch, from 0; the number of the block in an evaluation."""

    micro: int
    """Micro-batch of the step, from 0."""

    rows: IndexArray
    """int64 [b], rows of the manifest in the order of the batch."""


def num_steps(num_samples: int, batch_size: int) -> int:
    """Return the optimiser steps of `num_samples`; an incomplete last batch is dropped."""
    return max(0, num_samples) // batch_size


def rank_slice(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the positions [start, stop) of a global batch that a rank reads.

    Rank r reads [r*B//W, (r+1)*B//W), so that the sizes of two ranks differ by at most one.
    """
    # Adjacent slices compute their common edge from the same product, so that no position is lost.
    return rank * batch_size // world_size, (rank + 1) * batch_size // world_size


def micro_slices(start: int, stop: int, accumulation: int) -> list[tuple[int, int]]:
    """Cut a rank's positions [start, stop) into `accumulation` micro-batches, by the same rule."""
    cuts = [rank_slice(stop - start, micro, accumulation) for micro in range(accumulation)]
    return [(start + low, start + high) for low, high in cuts]


def eval_blocks(
    num_samples: int, block_size: int, rank: int, world_size: int
) -> list[tuple[int, int]]:
    """Return the rows [start, stop) of each block of a rank.

    Block b goes to rank b mod W; the last block may be short.
    """
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
    """Yield the micro-batches of one worker of one rank, epoch after epoch.

    Micro-batch i, counted over the whole stream of the rank, is made by worker i mod num_workers.

    Args:
        order: of the samples.
        epoch: the epoch to start in, from 0.
        position: samples of that epoch that are already done, over all ranks.
        batch_size: clips of one optimiser step over all ranks and micro-batches.
        accumulation: micro-batches of one optimiser step.
        epochs: where the stream ends, counted from epoch 0; None for no end.
        worker: whose micro-batches are yielded.
    """
    cuts = micro_slices(*rank_slice(batch_size, worker.rank, worker.world_size), accumulation)
    # The micro-batches of the rank are numbered across epochs: workers take turns without a gap.
    number = 0

    while epochs is None or epoch < epochs:
        first_step = position // batch_size
        for index in range(num_steps(order.num_samples - position, batch_size)):
            start = position + index * batch_size
            for micro, (low, high) in enumerate(cuts):
                if number % worker.num_workers == worker.worker:
                    rows = order.rows(np.arange(start + low, start + high), epoch)
                    yield MicroPlan(epoch, first_step + index, micro, rows)
                number += 1
        # Only the first epoch can start in the middle.
        epoch, position = epoch + 1, 0


def eval_plan(num_samples: int, *, block_size: int, worker: WorkerSlice) -> Iterator[MicroPlan]:
    """Yield the blocks of one worker of one rank once, in manifest order.

    Block i of a rank is made by worker i mod num_workers.
    """
    # Blocks go to ranks as a whole: class features of some methods depend on the clips of a block.
    blocks = eval_blocks(num_samples, block_size, worker.rank, worker.world_size)
    for start, stop in blocks[worker.worker :: worker.num_workers]:
        yield MicroPlan(epoch=0, step=start // block_size, micro=0, rows=np.arange(start, stop))


def check_batch(num_samples: int, *, batch_size: int, accumulation: int, world_size: int) -> None:
    """Check that every rank and micro-batch gets at least one clip of a batch.

    Raises:
        ConfigError: with both numbers and the largest value that fits.
    """
    if num_samples < batch_size:
        raise ConfigError(
            f"data.batch_size is {batch_size}, but the training manifest has {num_samples} "
            f"samples; set data.batch_size to {num_samples} or less"
        )

    if world_size > batch_size:
        raise ConfigError(
            f"data.batch_size is {batch_size}, but there are {world_size} ranks; give each rank "
            "at least one clip"
        )

    clips_per_rank = batch_size // world_size
    if accumulation > clips_per_rank:
        raise ConfigError(
            f"train.accumulation is {accumulation}, but data.batch_size {batch_size} over "
            f"{world_size} ranks leaves {clips_per_rank} clips per rank, and each micro-batch "
            f"needs one; set train.accumulation to {clips_per_rank} or less"
        )
