"""The sample clips and published lists that some tests need; they are not part of the
repository."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

VIDEO_SUFFIXES = {".avi", ".mp4", ".webm", ".mov"}
# the smallest clips of each codec and container
SMALL_CLIPS = (
    "ucf101/HorseRace/v_HorseRace_g04_c03.avi",
    "ucf101/BasketballDunk/v_BasketballDunk_g19_c02.avi",
    "ssv2/166766.webm",
    "odd/video_90.mov",
)


def shared_data() -> Path:
    """The folder `data` (with `clips/` and `splits/`) below $BMPT_SHARED, else below `shared`
    beside the checkout.

    Skips the test if it is not there."""
    named = os.environ.get("BMPT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data" / "splits").is_dir():
        pytest.skip(
            "needs the sample clips and lists: ../shared/data beside the "
            "checkout, or $BMPT_SHARED/data"
        )
    return folder / "data"


def sample_clips() -> list[str]:
    """Names of the sample clips; one stand-in where they are absent, so that its test says why it
    skips."""
    with contextlib.suppress(pytest.skip.Exception):
        clips = shared_data() / "clips"
        return sorted(
            str(path.relative_to(clips))
            for path in clips.rglob("*")
            if path.suffix in VIDEO_SUFFIXES
        )
    return ["absent"]
