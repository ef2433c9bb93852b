"""Test that the loader benchmark measures all contenders; no test asserts how fast they are."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bmpt.bench.loader import LoaderBenchmark, bench_loader, measure
from shards.errors import ConfigError
from tests.pools import make_pool
from tests.updates import Updates


def test_every_contender_is_measured(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", samples_per_class=8)
    progress = Updates()
    measured = bench_loader(
        str(tmp_path / "pool"),
        "base_to_novel/val_novel",
        videos=None,
        remote=None,
        repeats=1,
        progress=progress,
        seconds=0.2,
    )

    names = [
        *("plain", "limit"),
        *("ours_0", "ours_2"),
        *("stock_0", "stock_2"),
        *("folders_0", "folders_2"),
    ]
    assert list(measured.rates) == list(measured.first_batch_seconds) == names

    # A contender that was not measured has a rate of 0 and an infinite time to its first batch.
    assert all(rate > 0 for rate in measured.rates.values())
    assert all(math.isfinite(seconds) for seconds in measured.first_batch_seconds.values())

    assert progress.all == [("measure", done, 8, "") for done in range(1, 9)]
    assert (measured.samples, measured.repeats) == (16, 1)


def test_ratios_of_known_rates() -> None:
    rates = {
        **{"plain": 100.0, "limit": 200.0},
        **{"ours_0": 80.0, "ours_2": 150.0, "remote_0": 60.0, "remote_2": 120.0},
        **{"stock_0": 20.0, "stock_2": 30.0, "folders_0": 40.0, "folders_2": 60.0},
        **{"decord_0": 8.0, "decord_2": 10.0},
    }
    measured = LoaderBenchmark(
        samples=16, repeats=3, cores=2, rates=rates, first_batch_seconds=dict.fromkeys(rates, 1.0)
    )

    assert measured.as_json()["ratios"] == pytest.approx(
        {
            "ours_0_of_plain": 0.8,
            "ours_2_of_plain_times_cores": 0.75,
            "ours_0_of_limit": 0.4,
            "ours_2_of_limit_times_cores": 0.375,
            "remote_0_of_ours_0": 0.75,
            "remote_2_of_ours_2": 0.8,
            "ours_0_times_stock_0": 4.0,
            "ours_2_times_stock_2": 5.0,
            "ours_0_times_folders_0": 2.0,
            "ours_2_times_folders_2": 2.5,
            "ours_0_times_decord_0": 10.0,
            "ours_2_times_decord_2": 15.0,
        }
    )


def test_ratios_on_one_core_compare_two_processes_with_one_core() -> None:
    rates = {"plain": 100.0, "limit": 200.0, "ours_0": 80.0, "ours_2": 90.0}
    measured = LoaderBenchmark(16, 1, 1, rates, dict.fromkeys(rates, 1.0))
    assert measured.ratios()["ours_2_of_plain_times_cores"] == pytest.approx(0.9)


def test_measure_counts_clips_without_the_time_of_the_start() -> None:
    """The contender takes 200 ms to its first batch and then yields at most 5 clips per 10 ms; a
    busy machine can only lower its rate."""

    def contender() -> Iterator[int]:
        time.sleep(0.2)
        while True:
            yield 5
            time.sleep(0.01)

    first_batch_seconds, rate = measure(contender, 0.3)

    assert first_batch_seconds >= 0.2
    assert 0 < rate <= 5 / 0.01


def test_too_few_samples_cannot_be_measured(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", samples_per_class=2)
    with pytest.raises(ConfigError, match="at least 16 samples"):
        bench_loader(
            str(tmp_path / "pool"),
            "few_shot/val",
            videos=None,
            remote=None,
            repeats=1,
        )
