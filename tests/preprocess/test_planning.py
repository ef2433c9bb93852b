"""Test that plans depend on the keys alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from preprocess.planning import part_of, plan_shards, stored_indices

KEYS = st.sets(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=40
)


@given(KEYS, st.integers(1, 7))
def test_each_key_is_in_exactly_one_shard_in_the_order_of_its_bytes(
    keys: set[str], per_shard: int
) -> None:
    plans = plan_shards(keys, dataset="d", videos_per_shard=per_shard)
    planned = [key for plan in plans for key in plan.keys]
    assert planned == sorted(keys, key=str.encode)
    assert all(len(plan.keys) == per_shard for plan in plans[:-1])
    assert [plan.name for plan in plans] == [f"d-{index:06d}" for index in range(len(plans))]


@given(KEYS, KEYS, st.integers(1, 7))
def test_new_keys_get_shards_after_the_existing_ones(
    old: set[str], new: set[str], per_shard: int
) -> None:
    before = plan_shards(old, dataset="d", videos_per_shard=per_shard)
    after = plan_shards(old | new, dataset="d", videos_per_shard=per_shard, existing=before)
    assert after[: len(before)] == before
    added = [key for plan in after[len(before) :] for key in plan.keys]
    assert added == sorted(new - old, key=str.encode)


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_every_shard_belongs_to_exactly_one_part(index: int, num_parts: int) -> None:
    assert [part for part in range(1, num_parts + 1) if part_of(index, num_parts) == part] == [
        index % num_parts + 1
    ]


@given(st.integers(0, 3000), st.integers(1, 999))
def test_stored_frames_are_distinct_ascending_and_evenly_spread(
    num_frames: int, frames_per_clip: int
) -> None:
    indices = stored_indices(num_frames, frames_per_clip)
    assert len(indices) == min(num_frames, frames_per_clip)
    assert indices == sorted(set(indices))
    assert all(0 <= index < num_frames for index in indices)
    if num_frames > frames_per_clip:
        assert indices == [j * num_frames // frames_per_clip for j in range(frames_per_clip)]
