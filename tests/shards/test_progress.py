"""Progress where stderr is not a terminal, and as a bar on a real one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from shards import progress
from shards.progress import NullProgress, Progress


def test_progress_lines_state_counts_note_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with Progress() as shown:
        for step in (11, 12, 40):  # a run that resumes at step 11
            shown.update("train", step, 40, "loss 0.5")

    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "train: 11/40, loss 0.5"
    assert re.fullmatch(r"train: 12/40, loss 0\.5, [\d.]+/s, ETA \d+\.\d s", second)
    assert re.fullmatch(r"train: 40/40, loss 0\.5, [\d.]+/s", last)


def test_progress_prints_the_first_and_the_last_line_of_a_short_step_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress() as shown:
        for done in range(101):
            shown.update("clips", done, 100)

    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["clips: 0/100", "clips: 100/100"]


def test_progress_of_other_ranks_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with NullProgress() as shown:
        shown.update("train", 1, 1)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar() -> None:
    code = (
        "from shards.progress import Progress\n"
        "with Progress() as shown:\n"
        "    for done in range(4): shown.update('clips', done, 3, 'fine')\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=theirs, stderr=theirs, env=environment, check=True
    )
    os.close(theirs)

    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "clips" in shown
    assert "3/3" in shown
    assert "fine" in shown
