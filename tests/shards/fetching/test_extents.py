"""Extents: they contain every sample and next to nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.fetching.extents import (
    MAX_WASTE,
    RequestCost,
    group_bytes,
    plan_extents,
    plan_retention,
)
from shards.format.schema import ManifestInfo
from shards.reader import Manifest


def manifest_of(samples: list[tuple[int, int, int]]) -> Manifest:
    """Return a manifest of rows (shard, offset, size)."""
    table = pa.table(
        {
            "shard": [f"shards/toy-{shard:06d}.tar" for shard, _, _ in samples],
            "offset": pa.array([offset for _, offset, _ in samples], pa.int64()),
            "size": pa.array([size for _, _, size in samples], pa.int64()),
            "sha256": [hashlib.sha256(repr(sample).encode()).hexdigest() for sample in samples],
        }
    )
    return Manifest(ManifestInfo.model_construct(), table)


@st.composite
def selections(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Draw some samples of shards without gaps, in any order."""
    samples = []
    for shard in range(draw(st.integers(1, 4))):
        end = 0
        for size in draw(st.lists(st.integers(1, 5000), min_size=1, max_size=30)):
            samples.append((shard, end, size))
            end += size
    chosen = draw(st.lists(st.sampled_from(samples), min_size=1, unique=True))
    return draw(st.permutations(chosen))


@given(samples=selections(), latency=st.floats(0, 1), rate=st.floats(1, 20_000))
@settings(max_examples=150)
def test_extents_contain_every_sample_and_waste_little(
    samples: list[tuple[int, int, int]], latency: float, rate: float
) -> None:
    extents = plan_extents(manifest_of(samples), RequestCost(latency, rate))
    for row, (shard, offset, size) in enumerate(samples):
        extent = extents.of_row[row]
        assert extents.shard[extent] == f"shards/toy-{shard:06d}.tar"
        assert extents.start[extent] <= offset
        assert offset + size <= extents.stop[extent]
    needed = sum(size for _, _, size in samples)
    assert needed <= extents.total_bytes <= (1 + MAX_WASTE) * needed
    for one in range(len(extents)):  # none overlaps the next one of its shard
        for other in range(one + 1, len(extents)):
            if extents.shard[one] == extents.shard[other]:
                assert extents.stop[one] <= extents.start[other]


def test_a_dense_selection_has_large_extents_and_a_sparse_one_single_samples() -> None:
    dense = [(0, 1000 * number, 1000) for number in range(256)]
    cost = RequestCost(latency_seconds=0.1, bytes_per_second=640_000)
    assert len(plan_extents(manifest_of(dense), cost)) == 4
    sparse = plan_extents(manifest_of(dense[::8]), cost)
    assert (len(sparse), sparse.total_bytes) == (32, 32_000)
    assert len(plan_extents(manifest_of(dense), RequestCost(0.0, 1e9))) == 256


def test_rows_of_an_extent_are_sorted_by_offset() -> None:
    extents = plan_extents(manifest_of([(1, 0, 5), (0, 5, 5), (0, 0, 5)]), RequestCost(1.0, 100))
    assert [extents.rows_of(number).tolist() for number in range(len(extents))] == [[2, 1], [0]]
    assert extents.of_row.dtype == np.int64
    assert len(plan_extents(manifest_of([]), RequestCost())) == 0


def test_the_content_hash_of_an_extent_depends_on_its_samples_only() -> None:
    one = plan_extents(manifest_of([(0, 0, 5), (0, 5, 5), (1, 0, 9)]), RequestCost(1.0, 100))
    other = plan_extents(manifest_of([(2, 7, 3), (0, 5, 5), (0, 0, 5)]), RequestCost(1.0, 100))
    fewer = plan_extents(manifest_of([(0, 0, 5)]), RequestCost(1.0, 100))
    assert one.content[0] == other.content[0]
    assert (
        len({one.content[0].tobytes(), one.content[1].tobytes(), fewer.content[0].tobytes()}) == 3
    )


@given(samples=selections(), usable=st.integers(0, 100_000), group=st.none() | st.integers(1, 4))
@settings(max_examples=150)
def test_retention_fits_into_the_cache(
    samples: list[tuple[int, int, int]], usable: int, group: int | None
) -> None:
    extents = plan_extents(manifest_of(samples), RequestCost(0.1, 20_000))
    retention = plan_retention(extents, usable, group_shards=group)
    kept = int(extents.sizes[retention.kept].sum())
    assert kept + retention.transient_bytes <= usable
    if extents.total_bytes <= usable:
        assert retention.keeps_all
        assert retention.transient_bytes == 0
    elif group is not None and 2 * group_bytes(extents, group) <= usable:
        assert retention.transient_bytes == 2 * group_bytes(extents, group)
    else:
        assert retention.transient_bytes == 0
    assert all(
        kept + retention.transient_bytes + size > usable for size in extents.sizes[~retention.kept]
    )
    again = plan_retention(
        plan_extents(manifest_of(samples[::-1]), RequestCost(0.1, 20_000)),
        usable,
        group_shards=group,
    )
    # The order of a list has no influence.
    assert np.array_equal(again.kept, retention.kept)


def test_group_bytes_are_those_of_the_largest_shards() -> None:
    extents = plan_extents(
        manifest_of([(0, 0, 5), (0, 90, 5), (1, 0, 8), (2, 0, 20)]), RequestCost(0.0, 1.0)
    )
    assert [group_bytes(extents, count) for count in (1, 2, 3, 9)] == [20, 30, 38, 38]
