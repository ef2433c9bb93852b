"""The order of an epoch: a bijection, fair, and for `grouped` within a few shards at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sampling.orders import GroupedOrder, make_order, permute

SEEDS = st.integers(0, 2**40)


@given(num_samples=st.integers(1, 700), seed=SEEDS, epoch=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_every_sample_exactly_once(num_samples: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(num_samples), num_samples, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))


@given(num_samples=st.integers(2, 10**9), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_position_has_the_same_sample_in_any_set_of_positions(
    num_samples: int, seed: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, num_samples - 1), min_size=1, max_size=8))
    together = permute(positions, num_samples, seed=seed, epoch=3)
    assert [
        int(permute(position, num_samples, seed=seed, epoch=3)) for position in positions
    ] == together.tolist()
    assert ((together >= 0) & (together < num_samples)).all()


def test_the_order_of_version_1_never_changes() -> None:
    # A change here moves every published run: raise STATE_VERSION with it.
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [8, 5, 4, 9, 6, 0, 7, 3, 1, 2]
    assert permute([0, 1, 2], 193_690, seed=7, epoch=3).tolist() == [130_015, 177_465, 169_657]


def test_seed_and_epoch_each_change_the_order() -> None:
    orders = {
        tuple(permute(np.arange(50), 50, seed=seed, epoch=epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_every_sample_is_first_equally_often() -> None:
    first = [int(permute(0, 100, seed=1, epoch=epoch)) for epoch in range(10_000)]
    assert _is_uniform(np.bincount(first, minlength=100))


def test_every_order_of_four_samples_is_equally_frequent() -> None:
    orders = Counter(
        tuple(permute(np.arange(4), 4, seed=1, epoch=epoch).tolist()) for epoch in range(24 * 50)
    )
    assert len(orders) == 24
    assert _is_uniform(np.array(list(orders.values())))


def _is_uniform(counts: np.ndarray) -> bool:
    """Return whether chi-square is within four standard deviations of its expectation."""
    expected, freedom = counts.mean(), len(counts) - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return bool(abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom))


def test_adjacent_samples_of_the_manifest_are_not_adjacent_in_an_epoch() -> None:
    steps = np.diff(permute(np.arange(10_000), 10_000, seed=0, epoch=0))
    assert (np.abs(steps) == 1).mean() < 0.002


def test_a_position_outside_the_epoch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"position 5 is not in \[0, 5\)"):
        permute([4, 5], 5, seed=0, epoch=0)


def column(shards: list[int]) -> pa.ChunkedArray:
    return pa.chunked_array([[f"shards/toy-{shard:06d}.tar" for shard in shards]])


@given(
    shards=st.lists(st.integers(0, 20), min_size=1, max_size=300),
    group_shards=st.integers(1, 25),
    seed=SEEDS,
)
@settings(max_examples=60, deadline=None)
def test_a_grouped_epoch_visits_every_sample_once_and_each_group_of_shards_at_once(
    shards: list[int], group_shards: int, seed: int
) -> None:
    order = GroupedOrder(column(shards), seed=seed, group_shards=group_shards)
    rows = order.rows(np.arange(len(shards)), 4).tolist()
    assert sorted(rows) == list(range(len(shards)))
    visited = [shards[row] for row in rows]
    groups: list[set[int]] = [set()]
    for shard in visited:
        if shard not in groups[-1] and len(groups[-1]) == group_shards:
            groups.append(set())
        groups[-1].add(shard)
    # No shard returns in a later group.
    assert sum(len(group) for group in groups) == len(set(shards))


@given(shards=st.lists(st.integers(0, 6), min_size=2, max_size=80), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_grouped_position_has_the_same_sample_in_any_set_of_positions(
    shards: list[int], seed: int, data: st.DataObject
) -> None:
    order = GroupedOrder(column(shards), seed=seed, group_shards=2)
    positions = data.draw(st.lists(st.integers(0, len(shards) - 1), min_size=1, max_size=8))
    alone = [int(order.rows(np.array([position]), 1)[0]) for position in positions]
    assert order.rows(np.array(positions), 1).tolist() == alone


def test_a_grouped_order_differs_between_epochs_and_mixes_within_a_group() -> None:
    shards = [row // 16 for row in range(16 * 32)]
    order = GroupedOrder(column(shards), seed=0, group_shards=4)
    epochs = [order.rows(np.arange(len(shards)), epoch) for epoch in range(4)]
    assert len({tuple(rows.tolist()) for rows in epochs}) == 4
    first = [shards[row] for row in epochs[0][:64]]
    assert len(set(first)) == 4
    assert len(set(first[:8])) > 1


def test_the_grouped_order_of_version_1_never_changes() -> None:
    order = make_order(column([0, 0, 1, 1, 1, 2, 3, 3]), "grouped", seed=3, group_shards=2)
    assert order.name.startswith("grouped/2/")
    assert order.rows(np.arange(8), 1).tolist() == [7, 6, 3, 4, 2, 5, 1, 0]
