"""Test that the build benchmark measures every contender; its figures are not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.bench import BuildBenchmark, bench_build
from shards.errors import ConfigError
from tests.preprocess.builds import CallOnUpdate
from tests.preprocess.tiny_videos import make_video


def test_every_contender_is_measured_on_every_video(tmp_path: Path) -> None:
    for name in ("a/one.avi", "b/two.webm"):
        (tmp_path / name).parent.mkdir()
        make_video(tmp_path / name)
    seen: list[tuple[int, int]] = []
    measured = bench_build(
        tmp_path,
        repeats=1,
        progress=CallOnUpdate(lambda done, total: seen.append((done, total))),
        build_seconds=0.1,
    )
    assert seen == [(1, 2), (2, 2)]
    seconds = (
        measured.decode,
        measured.ours,
        measured.every_frame,
        measured.reencode,
        measured.rate_1,
        measured.rate_2,
    )
    assert all(value > 0 for value in seconds)  # 0 is a side that was not measured
    assert (measured.videos, measured.repeats) == (2, 1)


def test_ratios_of_known_times() -> None:
    measured = BuildBenchmark(
        videos=2,
        repeats=3,
        cores=2,
        decode=6.0,
        ours=8.0,
        every_frame=40.0,
        reencode=24.0,
        rate_1=10.0,
        rate_2=19.0,
    )
    assert measured.as_json()["ratios"] == {
        "ours_of_decode_only_rate": 0.75,
        "ours_times_every_frame_script": 5.0,
        "ours_times_reencoding": 3.0,
        "two_workers_times_one": 1.9,
    }


def test_a_folder_without_videos_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no video file"):
        bench_build(tmp_path, repeats=1)
