"""The retry policy: short before the first answer, long after it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shards.storage.retries import FIRST_ANSWER_SECONDS, retry_config


def test_retries_of_a_store_that_never_answered_end_within_seconds() -> None:
    config = retry_config(240.0, has_answered=False)
    assert config["retry_timeout"] == timedelta(seconds=FIRST_ANSWER_SECONDS)
    assert FIRST_ANSWER_SECONDS <= 10


def test_retries_of_a_store_that_has_answered_last_as_long_as_the_option_says() -> None:
    assert retry_config(240.0, has_answered=True)["retry_timeout"] == timedelta(seconds=240)


def test_retries_never_last_longer_than_the_option_says() -> None:
    assert retry_config(3.0, has_answered=False)["retry_timeout"] == timedelta(seconds=3)


@pytest.mark.parametrize("has_answered", [False, True])
def test_retries_are_off_with_zero_seconds(has_answered: bool) -> None:
    assert retry_config(0.0, has_answered=has_answered)["max_retries"] == 0


def test_retries_are_bounded_by_time_and_not_by_their_number() -> None:
    config = retry_config(240.0, has_answered=True)
    longest = config["backoff"]["max_backoff"]
    assert config["max_retries"] * config["backoff"]["init_backoff"] > timedelta(seconds=240)
    assert longest < timedelta(seconds=FIRST_ANSWER_SECONDS + 1)
