"""Progress where stderr is no terminal: a line now and then, with the time left."""

from __future__ import annotations

import re

import pytest

from shards import progress
from shards.progress import ProgressBars


def test_lines_say_what_is_done_and_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with ProgressBars(enabled=True) as bars:
        for step in (11, 12, 40):  # a run that goes on at step 11
            bars.update("train", step, 40, "loss 0.5")
    first, second, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("train: 11/40 loss 0.5", "train: 40/40 loss 0.5")
    assert re.fullmatch(r"train: 12/40 loss 0\.5, ETA \d+\.\d s", second)


def test_a_rank_that_is_not_the_main_one_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars(enabled=False) as bars:
        bars.update("train", 1, 1)
    assert capsys.readouterr().err == ""
