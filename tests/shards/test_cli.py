"""Tests of how a command ends: the wait of higher ranks before they print an error."""

from __future__ import annotations

import pytest

from shards.cli import RANK_WAIT_VARIABLE, seconds_before_error


def test_rank_0_prints_an_error_at_once() -> None:
    assert seconds_before_error({}) == 0
    assert seconds_before_error({"RANK": "0", "LOCAL_RANK": "0", RANK_WAIT_VARIABLE: "60"}) == 0


def test_higher_ranks_wait_longer_by_local_rank() -> None:
    waits = [
        seconds_before_error({"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(8)
    ]
    assert waits == pytest.approx([0, 6, 7, 8, 9, 10, 11, 12])
    # the first rank of another node
    assert seconds_before_error({"RANK": "8", "LOCAL_RANK": "0"}) == 5
    assert seconds_before_error({"RANK": "8"}) == 5


@pytest.mark.parametrize(("wait", "expected"), [("0", 0.0), ("0.5", 0.7), ("10", 14.0)])
def test_variable_sets_the_wait_before_an_error(wait: str, expected: float) -> None:
    environment = {"RANK": "10", "LOCAL_RANK": "2", RANK_WAIT_VARIABLE: wait}
    assert seconds_before_error(environment) == pytest.approx(expected)


@pytest.mark.parametrize("wait", ["", "soon", "-1", "nan", "inf", "1e9"])
def test_unusable_wait_before_an_error_is_replaced_by_5_seconds(wait: str) -> None:
    assert seconds_before_error({"RANK": "1", RANK_WAIT_VARIABLE: wait}) == 5
