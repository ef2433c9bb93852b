"""The cost of reading, counted, added up and sent between ranks; and the ranges of one request."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.fetching.frames import ReadStats, merge_ranges


def stats_of(*requests: tuple[int, float]) -> ReadStats:
    """Return the counts of requests (bytes, seconds)."""
    stats = ReadStats(hits=1, misses=2, waited_seconds=0.5)
    for num_bytes, seconds in requests:
        stats.count_request(num_bytes, seconds)
    return stats


def test_read_stats_survive_a_list_of_numbers() -> None:
    stats = stats_of((100, 0.002), (50, 3600.0))
    assert ReadStats.from_numbers(stats.to_numbers()) == stats


def test_sums_of_numbers_equal_added_read_stats() -> None:
    first, second = stats_of((100, 0.002)), stats_of((50, 0.5), (7, 0.002))
    sums = [sum(pair) for pair in zip(first.to_numbers(), second.to_numbers(), strict=True)]
    first.add(second)
    assert ReadStats.from_numbers(sums) == first
    assert (first.requests, first.bytes, first.hits, first.misses) == (3, 157, 2, 4)
    assert (first.seconds, first.waited_seconds) == (pytest.approx(0.504), 1.0)


def test_latency_is_the_end_of_the_bucket_that_holds_the_fraction() -> None:
    stats = stats_of(*[(1, 0.00005)] * 98, (1, 0.0003), (1, 0.0030))
    assert stats.latency_ms(0.5) == pytest.approx(0.1)
    assert stats.latency_ms(0.99) == pytest.approx(0.4)
    assert stats.latency_ms(1.0) == pytest.approx(3.2)
    assert ReadStats().latency_ms(0.99) == 0.0


@given(
    sizes=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=20),
    gap=st.integers(0, 60),
)
def test_ranges_are_merged_over_small_gaps(sizes: list[tuple[int, int]], gap: int) -> None:
    ranges, end = [], 0
    for before, size in sizes:
        ranges.append((end + before, size))
        end += before + size
    spans = merge_ranges(ranges, gap)
    assert [item for _, _, members in spans for item in members] == ranges
    for start, stop, members in spans:
        assert (start, stop) == (members[0][0], sum(members[-1]))
    assert all(later[0] - earlier[1] > gap for earlier, later in pairwise(spans))
