"""Verdicts of damaged copies: cuts are flagged, and changed pixels as often as promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.decode.pyav_reader import set_up_logging
from tests.preprocess.fuzz import (
    FEWEST_SINGLE_FLIPS,
    MIN_FRACTION_OF_SINGLE_FLIPS,
    Damage,
    count_flagged,
    judge_file,
    try_damages,
)
from tests.preprocess.tiny_videos import make_video
from tests.shared_data import SMALL_CLIPS, shared_data

CUTS = [Damage("cut", percent) for percent in (10, 30, 50, 70, 90, 98)]
CODECS = {".avi": "mpeg4", ".mp4": "h264", ".webm": "vp9"}


@pytest.fixture(scope="module", autouse=True)
def _logging() -> None:
    set_up_logging()


@pytest.fixture(params=sorted(CODECS))
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_video(tmp_path / f"whole{request.param}", frames=40, size=(160, 128))


def test_every_cut_copy_is_flagged(video: Path, tmp_path: Path) -> None:
    every_percent = [Damage("cut", percent) for percent in range(10, 99, 4)]
    for outcome in try_damages(video, every_percent, scratch=tmp_path, seed=1):
        assert outcome.is_flagged, outcome
        assert outcome.verdict.reason


@pytest.mark.parametrize("num_bytes", [8, 40])
def test_many_flipped_bytes_that_change_a_pixel_are_flagged(
    video: Path, tmp_path: Path, num_bytes: int
) -> None:
    outcomes = list(try_damages(video, [Damage("flip", num_bytes)] * 8, scratch=tmp_path, seed=2))
    assert any(outcome.has_changed for outcome in outcomes)
    for outcome in outcomes:
        assert outcome.is_flagged or not outcome.has_changed, outcome


def test_single_flipped_bytes_that_change_a_pixel_are_flagged_as_often_as_promised(
    video: Path, tmp_path: Path
) -> None:
    outcomes = try_damages(video, [Damage("flip", 1)] * 25, scratch=tmp_path, seed=3)
    ((codec, _), (_, changed, flagged)) = next(iter(count_flagged(outcomes).items()))
    assert codec == CODECS[video.suffix]
    assert changed >= 15
    assert flagged >= MIN_FRACTION_OF_SINGLE_FLIPS[codec] * changed


def test_zeros_in_a_frame_are_flagged(video: Path, tmp_path: Path) -> None:
    outcomes = list(try_damages(video, [Damage("zero", 512)] * 8, scratch=tmp_path, seed=4))
    changed = [outcome for outcome in outcomes if outcome.has_changed]
    assert len(changed) >= 6
    assert sum(outcome.is_flagged for outcome in changed) >= 0.9 * len(changed)


def test_a_wrong_extension_changes_nothing(video: Path, tmp_path: Path) -> None:
    other = tmp_path / f"other{'.avi' if video.suffix != '.avi' else '.mp4'}"
    other.write_bytes(video.read_bytes())
    assert judge_file(other) == judge_file(video)
    assert judge_file(other)[1].name == "ok"


@pytest.mark.parametrize("name", SMALL_CLIPS)
def test_damaged_sample_clips_are_flagged(name: str, tmp_path: Path) -> None:
    damages = [*CUTS, *[Damage("flip", 8), Damage("flip", 40)] * 2]
    for outcome in try_damages(shared_data() / "clips" / name, damages, scratch=tmp_path, seed=5):
        assert outcome.is_flagged or (outcome.damage.kind != "cut" and not outcome.has_changed), (
            outcome
        )


@pytest.mark.long
@pytest.mark.parametrize("folder", ["ucf101", "hmdb51", "kinetics400", "ssv2", "odd"])
def test_damages_of_all_sample_clips_are_flagged_as_often_as_promised(
    folder: str, tmp_path: Path
) -> None:
    clips = [
        path
        for path in sorted((shared_data() / "clips" / folder).rglob("*"))
        if path.suffix != ".json"
    ]
    damages = [*CUTS, *[Damage("flip", 1), Damage("flip", 8), Damage("flip", 40)] * 2]
    outcomes = [
        outcome
        for clip in clips
        if clip.is_file()
        for outcome in try_damages(clip, damages, scratch=tmp_path, seed=6)
    ]
    assert all(outcome.is_flagged for outcome in outcomes if outcome.damage.kind == "cut")
    for (codec, damage), (_, changed, flagged) in count_flagged(outcomes).items():
        if damage.kind == "flip":
            share = MIN_FRACTION_OF_SINGLE_FLIPS[codec] if damage.amount == 1 else 1.0
            is_chance = damage.amount == 1 and changed < FEWEST_SINGLE_FLIPS
            assert is_chance or flagged >= share * changed, (codec, damage, changed, flagged)
