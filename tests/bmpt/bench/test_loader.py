"""The loader benchmark measures all its sides; what it finds is no assertion of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmpt.bench.loader import bench_loader
from shards.errors import ConfigError
from tests.pools import make_pool


def test_every_side_is_measured(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", samples_per_class=8)
    seen: list[tuple[int, int]] = []
    measured = bench_loader(
        str(tmp_path / "pool"),
        "base_to_novel/val_novel",
        videos=None,
        remote=None,
        repeats=1,
        progress=lambda done, total: seen.append((done, total)),
        seconds=0.2,
    )
    sides = [
        "plain",
        "limit",
        *(f"{who}_{processes}" for who in ("ours", "stock", "folders") for processes in (0, 2)),
    ]
    assert list(measured.rates) == list(measured.first_batch_seconds) == sides
    assert all(rate > 0 for rate in measured.rates.values())
    assert seen == [(done, 8) for done in range(1, 9)]
    ratios = measured.as_json()["ratios"]
    assert ratios["ours_0_of_limit"] == measured.rates["ours_0"] / measured.rates["limit"]
    assert (
        ratios["ours_2_times_folders_2"] == measured.rates["ours_2"] / measured.rates["folders_2"]
    )


def test_too_few_samples_cannot_be_measured(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", samples_per_class=2)
    with pytest.raises(ConfigError, match="at least 16 samples"):
        bench_loader(
            str(tmp_path / "pool"),
            "few_shot/val",
            videos=None,
            remote=None,
            repeats=1,
            progress=lambda done, total: None,
        )
