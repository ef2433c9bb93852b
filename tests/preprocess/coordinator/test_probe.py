"""The probe of a dry run: its order, and videos that do not end in time."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.coordinator import probe
from preprocess.coordinator.estimate import predict_costs
from preprocess.coordinator.probe import Probe, probe_order, probe_videos
from preprocess.sources import SourceVideo
from preprocess.workers.child import DecodeOptions
from shards.format.schema import Encoding
from tests.preprocess.tiny_videos import make_video

_SIZES = st.lists(
    st.tuples(st.integers(0, 10**7), st.sampled_from([".avi", ".mp4", ".webm"])),
    min_size=1,
    max_size=60,
)


@pytest.fixture(autouse=True)
def probe_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe all videos, however busy the machine is: there are few of them."""
    monkeypatch.setattr(probe, "PROBE_SECONDS", 60.0)


def video(num_bytes: int, name: str = "a.mp4") -> SourceVideo:
    """Return a video of which only the size and the file type matter."""
    return SourceVideo(name, Path(name), name, num_bytes, None)


@given(_SIZES, st.integers(0, 99))
def test_the_probe_order_contains_each_video_once(sizes: list[tuple[int, str]], seed: int) -> None:
    videos = [video(size, f"a{suffix}") for size, suffix in sizes]
    assert sorted(probe_order(videos, seed=seed)) == list(range(len(videos)))
    assert probe_order(videos, seed=seed) == probe_order(videos, seed=seed)


@given(st.integers(0, 999), st.integers(10, 200))
def test_every_beginning_of_the_probe_order_is_spread_over_types_and_sizes(
    seed: int, num_first: int
) -> None:
    small_and_large = [video(1 + number, "a.avi") for number in range(600)]
    videos = small_and_large + [video(7, "b.mp4") for _ in range(200)]
    first = probe_order(videos, seed=seed)[:num_first]
    quarters = Counter(position // 200 for position in first)
    for quarter in range(4):
        assert abs(quarters[quarter] - num_first / 4) <= 3, quarters


def test_a_probed_video_that_does_not_end_in_time_is_predicted_like_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_LONGEST_SECONDS", 0.5)
    os.mkfifo(tmp_path / "hangs.avi")  # opening it waits for a writer that never comes
    good = make_video(tmp_path / "good.avi")
    videos = [
        replace(video(1000), key=path.stem, path=path) for path in (tmp_path / "hangs.avi", good)
    ]
    options = DecodeOptions(Encoding(), timeout_seconds=60)
    measured = probe_videos(videos, options, num_workers=2, seed=0)
    assert list(measured.costs) == [1]
    assert 1.0 <= measured.cut_off[0] < 60

    costs = predict_costs(videos, measured)
    assert costs is not None
    expected = replace(costs[1], decode_seconds=measured.cut_off[0])
    # the costs went through a line of one point
    assert astuple(costs[0]) == pytest.approx(astuple(expected), rel=1e-12)
    without_costs = Probe({}, measured.cut_off, start_seconds=0, import_seconds=0, seconds=2)
    assert predict_costs(videos[:1], without_costs) is None


def test_a_probed_video_that_the_build_would_give_up_costs_its_time_and_no_bytes(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "hangs.avi")
    videos = [replace(video(1000), path=tmp_path / "hangs.avi")]
    options = DecodeOptions(Encoding(), timeout_seconds=0.4)
    measured = probe_videos(videos, options, num_workers=1, seed=0)
    assert measured.cut_off == {}
    assert measured.costs[0].tar_bytes == 0
    assert measured.costs[0].decode_seconds >= 0.8
