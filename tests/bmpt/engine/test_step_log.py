"""metrics.jsonl and TensorBoard show every step once, however often a run was stopped."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bmpt.engine.step_log import StepLog
from shards.errors import StorageError
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import ROOT, folder_of, run, stop_early
from tests.bmpt.tiny import metrics_of


def scalars_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar, as TensorBoard shows it."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def wait_for_the_next_second() -> None:
    """TensorBoard orders files by the second in their names; no other process comes back as fast as
    a test."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "batch": "c0ffee", **values}


def test_tensorboard_shows_the_numbers_of_the_log_with_each_step_once_after_a_stop(
    config: MakeConfig,
) -> None:
    settings = config(train={"epochs": 20})
    stop_early(settings)
    wait_for_the_next_second()
    run(settings)
    rows = metrics_of(folder_of(settings))
    scalars = scalars_of(folder_of(settings))
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert scalars.keys() == {
        f"train/{name}"
        for name in ("epoch", "loss", "lr", "valid_clips", "seconds", "wait_seconds")
    }
    for tag, values in scalars.items():
        expected = [(row["step"], pytest.approx(row[tag.removeprefix("train/")])) for row in rows]
        assert values == expected


def test_steps_that_a_resumed_run_does_again_are_forgotten_in_both(tmp_path: Path) -> None:
    for start, stop, failed in (
        (0, 5, "a"),
        (3, 7, "b"),
    ):  # killed after step 5, the state was of step 3
        log = StepLog(tmp_path, step=start, tensorboard=True)
        for step in range(start + 1, stop + 1):
            log.write(row(step, speed=start, failed={failed: f"why {step}"}))
        log.close()
        wait_for_the_next_second()
    assert [(row["step"], row["speed"]) for row in metrics_of(tmp_path)] == [
        *((step, 0) for step in (1, 2, 3)),
        *((step, 3) for step in (4, 5, 6, 7)),
    ]
    assert scalars_of(tmp_path)["train/speed"] == [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 3),
        (5, 3),
        (6, 3),
        (7, 3),
    ]
    assert scalars_of(tmp_path).keys() == {"train/loss", "train/speed"}
    assert log.failed == {"a": "why 1", "b": "why 4"}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_null_in_the_log_and_itself_in_tensorboard(
    tmp_path: Path, loss: float
) -> None:
    log = StepLog(tmp_path, step=0, tensorboard=True)
    log.write(row(1))
    log.write(row(2, loss=loss))
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == row(2, loss=None)
    assert "NaN" not in lines[1]
    assert "Infinity" not in lines[1]
    assert scalars_of(tmp_path)["train/loss"][1] == (2, pytest.approx(loss, nan_ok=True))
    StepLog(tmp_path, step=2, tensorboard=False)
    assert metrics_of(tmp_path) == [row(1), row(2, loss=None)]


KILLED_AFTER_A_FLUSH = """
import os, signal, sys
from pathlib import Path
from bmpt.engine.step_log import StepLog
log = StepLog(Path(sys.argv[1]), step=0, tensorboard=True)
for step in (1, 2):
    log.write({"step": step, "loss": 1.0 / step})
log.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_flushed_numbers_survive_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AFTER_A_FLUSH, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert [row["step"] for row in metrics_of(tmp_path)] == [1, 2]
    assert scalars_of(tmp_path)["train/loss"] == [(1, 1.0), (2, 0.5)]


def test_a_line_that_a_full_disk_cut_within_a_character_is_forgotten(tmp_path: Path) -> None:
    log = StepLog(tmp_path, step=0, tensorboard=False)
    for step in (1, 2):
        log.write(row(step, failed={"café": "gone"}))
    data = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(data[: data.rindex("é".encode()) + 1])
    log = StepLog(tmp_path, step=2, tensorboard=False)
    assert log.failed == {"café": "gone"}
    assert metrics_of(tmp_path) == [row(1, failed={"café": "gone"})]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\n"])
def test_a_key_with_a_line_separator_of_unicode_is_kept(tmp_path: Path, separator: str) -> None:
    failed = {f"a{separator}b": f"gone{separator}away"}
    StepLog(tmp_path, step=0, tensorboard=False).write(row(1, failed=failed))
    log = StepLog(tmp_path, step=1, tensorboard=False)
    assert log.failed == failed
    assert json.loads((tmp_path / "metrics.jsonl").read_bytes()) == row(1, failed=failed)


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    log = StepLog(tmp_path, step=0, tensorboard=False)
    log.write(row(1))
    log.flush()
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_log_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    log = StepLog(tmp_path, step=0, tensorboard=False)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        StorageError, match=r"metrics\.jsonl: cannot be written: Is a directory; make room"
    ):
        log.write(row(1))


def test_a_tensorboard_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(StorageError, match=r"tensorboard: cannot be written: .*; make room"):
        StepLog(tmp_path, step=0, tensorboard=True)


def test_a_fresh_start_forgets_what_tensorboard_showed(config: MakeConfig) -> None:
    run(config(train={"epochs": 2}))
    settings = config(train={"epochs": 1})
    run(settings, fresh=True)
    assert [step for step, _ in scalars_of(folder_of(settings))["train/loss"]] == [1, 2]
