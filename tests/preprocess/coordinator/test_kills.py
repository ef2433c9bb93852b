"""SIGKILL at any instant: the next run continues and gives the files of an undisturbed build."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.preprocess.builds import make_tree
from tests.preprocess.kills import check_equal, kill_again_and_again, undisturbed


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_build_killed_at_random_instants_gives_the_same_bytes_and_leaves_no_other_file(
    tmp_path: Path, kills: int
) -> None:
    videos = make_tree(tmp_path / "videos")
    seconds = undisturbed(videos, tmp_path / "reference")
    done = kill_again_and_again(
        videos, tmp_path / "pool", kills=kills, build_seconds=seconds, seed=kills
    )
    check_equal(tmp_path / "reference", tmp_path / "pool")
    # a journalled video is never decoded again
    assert all(kill.num_after == -1 or kill.num_after >= kill.num_before for kill in done)
