"""The plan of a stream: every number of ranks, workers and micro-batches gives the same order."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.sampling.orders import GroupedOrder, Order, permute
from shards.sampling.plan import (
    MicroPlan,
    WorkerSlice,
    check_batch,
    eval_blocks,
    eval_plan,
    micro_slices,
    num_steps,
    rank_slice,
    train_plan,
)

SEEDS = st.integers(0, 2**40)


def stream_of_rank(
    order: Order, *, num_batches: int, num_workers: int, rank: int, world_size: int, **options: int
) -> list[MicroPlan]:
    """Return the micro-batches of a rank as its loader takes them: from its workers in turn."""
    parts = [WorkerSlice(rank, world_size, worker, num_workers) for worker in range(num_workers)]
    workers = [train_plan(order, worker=part, **options) for part in parts]
    return [next(workers[number % num_workers]) for number in range(num_batches)]


def global_order(
    order: Order, *, steps: int, world_size: int, accumulation: int, **options: int
) -> list[int]:
    """Return the samples of `steps` optimiser steps, rank after rank."""
    ranks = [
        stream_of_rank(
            order,
            num_batches=steps * accumulation,
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
            **options,
        )
        for rank in range(world_size)
    ]
    rows: list[int] = []
    for step in range(steps):
        for plans in ranks:
            for plan in plans[step * accumulation : (step + 1) * accumulation]:
                rows.extend(plan.rows.tolist())
    return rows


@st.composite
def orders(draw: st.DrawFn, *, num_samples: int) -> Order:
    """Draw an order of either kind, with any number of shards."""
    seed = draw(SEEDS)
    if draw(st.booleans()):
        return Order(num_samples, seed=seed)
    shards = draw(st.lists(st.integers(0, 9), min_size=num_samples, max_size=num_samples))
    return GroupedOrder(
        pa.chunked_array([[str(shard) for shard in shards]]),
        seed=seed,
        group_shards=draw(st.integers(1, 12)),
    )


@given(
    batch_size=st.integers(1, 200), world_size=st.integers(1, 20), accumulation=st.integers(1, 8)
)
def test_slices_of_ranks_and_micro_batches_make_up_the_batch(
    batch_size: int, world_size: int, accumulation: int
) -> None:
    positions: list[int] = []
    sizes = []
    for rank in range(world_size):
        start, stop = rank_slice(batch_size, rank, world_size)
        sizes.append(stop - start)
        for low, high in micro_slices(start, stop, accumulation):
            positions.extend(range(low, high))
    assert positions == list(range(batch_size))
    assert max(sizes) - min(sizes) <= 1


def test_num_steps_drops_an_incomplete_last_batch() -> None:
    assert [num_steps(count, 8) for count in (0, 7, 8, 15, 16)] == [0, 0, 1, 1, 2]


@st.composite
def topologies(draw: st.DrawFn, *, batch_size: int) -> dict[str, int]:
    world_size = draw(st.integers(1, min(4, batch_size)))
    return {
        "batch_size": batch_size,
        "world_size": world_size,
        "accumulation": draw(st.integers(1, batch_size // world_size)),
        "num_workers": draw(st.integers(1, 4)),
    }


@given(batch_size=st.integers(1, 12), extra=st.integers(0, 40), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_order_is_the_same_in_every_topology(
    batch_size: int, extra: int, data: st.DataObject
) -> None:
    num_samples = batch_size + extra
    steps = num_samples // batch_size
    order = data.draw(orders(num_samples=num_samples))
    found = global_order(
        order, steps=steps, epoch=2, position=0, **data.draw(topologies(batch_size=batch_size))
    )
    assert found == order.rows(np.arange(steps * batch_size), 2).tolist()
    assert len(set(found)) == len(found)


@given(batch_size=st.integers(1, 10), extra=st.integers(0, 30), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_run_resumed_in_another_topology_equals_an_uninterrupted_run(
    batch_size: int, extra: int, data: st.DataObject
) -> None:
    num_samples = batch_size + extra
    order = data.draw(orders(num_samples=num_samples))
    per_epoch = num_samples // batch_size
    uninterrupted = global_order(
        order,
        steps=3 * per_epoch,
        epoch=0,
        position=0,
        **data.draw(topologies(batch_size=batch_size)),
    )
    killed = data.draw(st.integers(0, 3 * per_epoch - 1))
    resumed = global_order(
        order,
        steps=3 * per_epoch - killed,
        epoch=killed // per_epoch,
        position=killed % per_epoch * batch_size,
        **data.draw(topologies(batch_size=batch_size)),
    )
    assert resumed == uninterrupted[killed * batch_size :]


def test_a_run_resumed_with_another_batch_size_continues_at_the_next_sample() -> None:
    options = {"epoch": 1, "accumulation": 1, "num_workers": 1, "world_size": 1}
    found = global_order(Order(23, seed=5), steps=4, position=6, batch_size=4, **options)
    assert found == permute(np.arange(6, 22), 23, seed=5, epoch=1).tolist()


def test_steps_of_a_resumed_run_are_numbered_within_the_epoch() -> None:
    plans = islice(
        train_plan(
            Order(10, seed=0),
            epoch=4,
            position=3,
            batch_size=3,
            accumulation=1,
            worker=WorkerSlice(),
        ),
        4,
    )
    assert [(plan.epoch, plan.step) for plan in plans] == [(4, 1), (4, 2), (5, 0), (5, 1)]


@given(
    num_samples=st.integers(1, 300),
    block_size=st.integers(1, 40),
    world_size=st.integers(1, 6),
    num_workers=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_an_evaluation_visits_each_sample_once_in_the_same_blocks_at_any_world_size(
    num_samples: int, block_size: int, world_size: int, num_workers: int
) -> None:
    found = {}
    for rank in range(world_size):
        for worker in range(num_workers):
            for plan in eval_plan(
                num_samples,
                block_size=block_size,
                worker=WorkerSlice(rank, world_size, worker, num_workers),
            ):
                assert plan.step % world_size == rank
                found[plan.step] = plan.rows.tolist()
    blocks = [found[number] for number in range(len(found))]
    assert [row for block in blocks for row in block] == list(range(num_samples))
    assert all(len(block) == block_size for block in blocks[:-1])
    assert blocks == [list(range(*block)) for block in eval_blocks(num_samples, block_size, 0, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9}, "data.batch_size is 9, but the training manifest has 8 samples"),
        ({"batch_size": 4, "world_size": 5}, "data.batch_size is 4, but there are 5 ranks"),
        (
            {"batch_size": 8, "world_size": 3, "accumulation": 3},
            "train.accumulation is 3, but .* 3 ranks leaves 2 clips",
        ),
    ],
)
def test_a_batch_with_too_few_clips_per_rank_is_refused_with_both_numbers(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_batch(8, **{"accumulation": 1, "world_size": 1, **options})
