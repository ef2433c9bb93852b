"""The loader benchmark measures all its sides; what it finds is no assertion of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmpt.loader_bench import bench_loader
from shards.errors import ConfigError
from tests.pools import make_pool


def test_every_side_is_measured(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", samples_per_class=8)
    seen: list[tuple[int, int]] = []
    measured = bench_loader(
        str(tmp_path / "pool"),
        "base_to_novel/val_novel",
        videos=None,
        repeats=1,
        progress=lambda done, total: seen.append((done, total)),
        seconds=0.2,
    )
    assert seen == [(done, 5) for done in range(1, 6)]
    assert all(
        rate > 0 for rate in (measured.limit, measured.ours_0, measured.ours_2, measured.stock_0, measured.stock_2)
    )
    assert measured.as_json()["ratios"]["ours_0_of_limit"] == measured.ours_0 / measured.limit
    assert "ours_0_times_decord_0" not in measured.ratios()


def test_too_few_samples_cannot_be_measured(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", samples_per_class=2)
    with pytest.raises(ConfigError, match="at least 16 samples"):
        bench_loader(str(tmp_path / "pool"), "few_shot/val", videos=None, repeats=1, progress=lambda done, total: None)
