"""The order of the stream is a pure function; here it is taken apart and put together in every topology."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.plan import (
    MicroPlan,
    Place,
    check_batch,
    eval_blocks,
    eval_plan,
    micro_slices,
    num_steps,
    permute,
    rank_slice,
    train_plan,
)

SEEDS = st.integers(0, 2**40)


def stream_of_rank(
    num_samples: int, *, num_batches: int, num_workers: int, rank: int, world_size: int, **options: int
) -> list[MicroPlan]:
    """What a rank gets: the micro-batches of its workers in turn, as the loader takes them."""
    places = [Place(rank, world_size, worker, num_workers) for worker in range(num_workers)]
    workers = [train_plan(num_samples, place=place, **options) for place in places]
    return [next(workers[number % num_workers]) for number in range(num_batches)]


def global_order(num_samples: int, *, steps: int, world_size: int, accumulation: int, **options: int) -> list[int]:
    """The samples of `steps` optimiser steps, rank slices one after the other."""
    ranks = [
        stream_of_rank(
            num_samples,
            num_batches=steps * accumulation,
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
            **options,
        )
        for rank in range(world_size)
    ]
    order: list[int] = []
    for step in range(steps):
        for plans in ranks:
            for plan in plans[step * accumulation : (step + 1) * accumulation]:
                order.extend(plan.rows.tolist())
    return order


@given(num_samples=st.integers(1, 700), seed=SEEDS, epoch=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_every_sample_exactly_once(num_samples: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(num_samples), num_samples, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))


@given(num_samples=st.integers(2, 10**9), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_position_gives_the_same_sample_alone_and_among_others(
    num_samples: int, seed: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, num_samples - 1), min_size=1, max_size=8))
    together = permute(positions, num_samples, seed=seed, epoch=3)
    assert [int(permute(position, num_samples, seed=seed, epoch=3)) for position in positions] == together.tolist()
    assert ((together >= 0) & (together < num_samples)).all()


def test_the_order_of_version_1_never_changes() -> None:
    # A change here moves every published run: raise STATE_VERSION with it.
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [8, 5, 4, 9, 6, 0, 7, 3, 1, 2]
    assert permute([0, 1, 2], 193_690, seed=7, epoch=3).tolist() == [130_015, 177_465, 169_657]


def test_seed_and_epoch_each_change_the_order() -> None:
    orders = {
        tuple(permute(np.arange(50), 50, seed=seed, epoch=epoch).tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_every_sample_is_as_often_first_as_any_other() -> None:
    first = [int(permute(0, 100, seed=1, epoch=epoch)) for epoch in range(10_000)]
    assert _is_uniform(np.bincount(first, minlength=100))


def test_every_order_of_four_samples_is_as_frequent_as_any_other() -> None:
    orders = Counter(tuple(permute(np.arange(4), 4, seed=1, epoch=epoch).tolist()) for epoch in range(24 * 50))
    assert len(orders) == 24
    assert _is_uniform(np.array(list(orders.values())))


def _is_uniform(counts: np.ndarray) -> bool:
    """Whether chi-square lies within four standard deviations of what chance gives."""
    expected, freedom = counts.mean(), len(counts) - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return bool(abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom))


def test_neighbours_in_the_manifest_do_not_stay_neighbours() -> None:
    steps = np.diff(permute(np.arange(10_000), 10_000, seed=0, epoch=0))
    assert (np.abs(steps) == 1).mean() < 0.002


def test_a_position_outside_the_epoch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"position 5 is not in \[0, 5\)"):
        permute([4, 5], 5, seed=0, epoch=0)


@given(batch_size=st.integers(1, 200), world_size=st.integers(1, 20), accumulation=st.integers(1, 8))
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


def test_the_tail_that_fills_no_batch_is_dropped() -> None:
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


@given(batch_size=st.integers(1, 12), extra=st.integers(0, 40), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_order_is_the_same_in_every_topology(batch_size: int, extra: int, seed: int, data: st.DataObject) -> None:
    num_samples = batch_size + extra
    steps = num_samples // batch_size
    topology = data.draw(topologies(batch_size=batch_size))
    order = global_order(num_samples, steps=steps, seed=seed, epoch=2, position=0, **topology)
    expected = permute(np.arange(steps * batch_size), num_samples, seed=seed, epoch=2)
    assert order == expected.tolist()
    assert len(set(order)) == len(order)


@given(batch_size=st.integers(1, 10), extra=st.integers(0, 30), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_run_killed_at_any_step_goes_on_in_another_topology_as_if_unbroken(
    batch_size: int, extra: int, seed: int, data: st.DataObject
) -> None:
    num_samples = batch_size + extra
    per_epoch = num_samples // batch_size
    unbroken = global_order(
        num_samples,
        steps=3 * per_epoch,
        seed=seed,
        epoch=0,
        position=0,
        **data.draw(topologies(batch_size=batch_size)),
    )
    killed = data.draw(st.integers(0, 3 * per_epoch - 1))
    resumed = global_order(
        num_samples,
        steps=3 * per_epoch - killed,
        seed=seed,
        epoch=killed // per_epoch,
        position=killed % per_epoch * batch_size,
        **data.draw(topologies(batch_size=batch_size)),
    )
    assert resumed == unbroken[killed * batch_size :]


def test_going_on_with_another_batch_size_takes_the_exact_next_sample() -> None:
    options = {"seed": 5, "epoch": 1, "accumulation": 1, "num_workers": 1, "world_size": 1}
    order = global_order(23, steps=4, position=6, batch_size=4, **options)
    assert order == permute(np.arange(6, 22), 23, seed=5, epoch=1).tolist()


def test_steps_are_numbered_within_the_epoch_also_after_a_resume() -> None:
    plans = islice(
        train_plan(10, seed=0, epoch=4, position=3, batch_size=3, accumulation=1, place=Place()),
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
                num_samples, block_size=block_size, place=Place(rank, world_size, worker, num_workers)
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
def test_a_batch_that_cannot_be_shared_out_is_refused_with_both_numbers(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_batch(8, **{"accumulation": 1, "world_size": 1, **options})
