"""The log of a step's clips. `test_kill_and_resume.py` shows that it is the same on all ranks."""

from __future__ import annotations

import numpy as np
import pytest

from bmpt.engine.global_batch import GlobalBatch, digest_of
from shards.fetching.frames import ReadStats
from shards.reader import open_pool
from shards.sampling.orders import permute
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import folder_of, run
from tests.bmpt.tiny import metrics_of


def batch_of(reads: ReadStats) -> GlobalBatch:
    return GlobalBatch(np.arange(3), [None, "gone", None], wait_seconds=0.25, reads=reads)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_log_has_the_digest_of_the_keys_in_the_order_of_the_stream(
    config: MakeConfig, accumulation: int
) -> None:
    settings = config(train={"accumulation": accumulation})
    run(settings)
    keys = open_pool(settings.data.pool).manifest("few_shot/train_k2").table["key"].to_pylist()
    expected = []
    for epoch in (0, 1):
        order = [keys[row] for row in permute(np.arange(8), 8, seed=0, epoch=epoch)]
        expected += [digest_of(order[:4]), digest_of(order[4:])]
    assert [row["batch"] for row in metrics_of(folder_of(settings))] == expected
    assert len(set(expected)) == 4


def test_a_digest_is_that_of_keys_in_their_order() -> None:
    assert len(digest_of(["a", "b"])) == 16
    assert (
        len({digest_of(keys) for keys in (["a", "b"], ["b", "a"], ["ab"], ["a"], ["a", "b", "c"])})
        == 5
    )


def test_reading_is_a_small_dict_with_requests_only_where_there_are_any() -> None:
    reads = ReadStats(hits=2, misses=1)
    reads.count_request(3_000_000, seconds=0.01)
    assert batch_of(reads).reading_row(seconds=1.5) == {
        "wait_seconds": 0.25,
        "requests": 1,
        "bytes": 3_000_000,
        "mb_per_second": 2.0,
        "cache_hits": 2,
        "cache_misses": 1,
        "request_ms_p99": 12.8,
    }
    assert batch_of(ReadStats()).reading_row(seconds=1.5) == {"wait_seconds": 0.25}
    assert batch_of(ReadStats()).num_valid == 2
