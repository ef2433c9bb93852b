"""A run of real processes over a bucket, killed and resumed with other ranks, is the unbroken run.

One sample of the pool is damaged and one shard is gone, so that all of it holds for runs with
failures too."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bmpt.checkpoints.state import load_state
from bmpt.config import RunConfig
from shards.errors import StorageError
from shards.reader import open_pool
from shards.sampling.orders import permute
from tests.bmpt.runs import (
    ROOT,
    TIMEOUT_SECONDS,
    checkpoint_of,
    damage_a_sample,
    error_lines,
    folder_of,
    kill_tree,
    run,
    run_ranks,
    torchrun,
    torchrun_command,
)
from tests.bmpt.tiny import make_config, metrics_of, write_config
from tests.object_store import WRITER, ObjectServer
from tests.pools import make_pool
from tests.process_memory import children_of

STEPS_PER_EPOCH, SAVE_EVERY = 32, 8
SECTIONS: dict[str, Any] = {
    # 96 clips in steps of 3: two ranks have 1 and 2 of them
    "data": {
        "pool": "s3://runs/pool",
        "train": "base_to_novel/val_novel",
        "val": "few_shot/train_k2",
        "batch_size": 3,
    },
    # at larger rates AdamW makes the rounding of another topology visible: 1e-5 of a loss here,
    # 1e-2 at ten times these
    "train": {"epochs": 2, "lr": 1e-5, "lr_prompts": 1e-4},
}


@pytest.fixture(scope="module")
def failing(object_server: ObjectServer, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The pool s3://runs/pool; returns the keys of its training clips that cannot be read."""
    local = tmp_path_factory.mktemp("bucket") / "pool"
    make_pool(local, samples_per_class=48, frames=6)
    training = open_pool(local).manifest("base_to_novel/val_novel").table
    damaged = damage_a_sample(local, "base_to_novel/val_novel", 7)
    gone = training["shard"].to_pylist()[-1]
    (local / gone).unlink()
    object_server.upload(local, "runs")
    rows = zip(training["key"].to_pylist(), training["shard"].to_pylist(), strict=True)
    return {damaged} | {key for key, shard in rows if shard == gone}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture
def unbroken(folder: Path, clip: Path, failing: set[str], s3: ObjectServer) -> RunConfig:
    """One process, here, to the end; made by the first test that needs it."""
    settings = make_config(folder, clip, Path(), run="unbroken", **SECTIONS)
    if not (folder / "unbroken" / "results.json").exists():
        run(settings)
    return settings


@pytest.fixture
def killed(folder: Path, clip: Path, failing: set[str], s3: ObjectServer) -> Path:
    """The folder of a run of two ranks with two loader processes each that SIGKILL ended within its
    first epoch.

    Its processes yield to the one that watches, and are held before they are looked for one by
    one."""
    ended = folder / "killed"
    if ended.exists():
        return ended
    path = write_config(folder, clip, Path(), run="killed", **SECTIONS)
    changes = ("--set", f"run.save_every_steps={SAVE_EVERY}", "--set", "data.num_workers=2")
    command = ["nice", *torchrun_command(2, "train", str(path), *changes)]
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        metrics, deadline, ranks = (
            ended / "metrics.jsonl",
            time.monotonic() + TIMEOUT_SECONDS,
            list[int](),
        )
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists():
                ranks = ranks or children_of(process.pid)
                if metrics.read_bytes().count(b"\n") > SAVE_EVERY + 1:
                    break
            time.sleep(0.005)
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
    finally:
        kill_tree(process.pid)
        process.wait()
    return ended


def clips_of(run_dir: Path) -> list[tuple[Any, ...]]:
    """What every step saw: the order of its clips, how many were valid, which could not be read,
    what was asked for."""
    names = ("step", "batch", "valid_clips", "failed", "requests", "bytes")
    return [tuple(row.get(name) for name in names) for row in metrics_of(run_dir)]


def files_with_credentials(folder: Path) -> list[Path]:
    """The files below a folder that hold the key or the secret of this environment."""
    words = [os.environ[f"AWS_{name}"].encode() for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(word in path.read_bytes() for word in words)]


def test_the_killed_run_stopped_within_an_epoch_and_saw_the_clips_of_one_process(
    killed: Path, unbroken: RunConfig
) -> None:
    done = metrics_of(killed)[-1]["step"]
    saved = load_state(killed / "state.pt")
    assert SAVE_EVERY <= saved["step"] <= done < STEPS_PER_EPOCH, "the kill came too late"
    assert saved["stream"]["position"] == 3 * saved["step"]
    assert clips_of(killed) == clips_of(folder_of(unbroken))[:done]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_killed_run_goes_on_with_other_ranks_to_the_unbroken_end(
    folder: Path, clip: Path, killed: Path, unbroken: RunConfig, failing: set[str], ranks: int
) -> None:
    name = f"resumed{ranks}"
    shutil.copytree(killed, folder / name)
    done = torchrun(ranks, "train", str(write_config(folder, clip, Path(), run=name, **SECTIONS)))
    assert done.returncode == 0, done.stderr
    (folder / name / "said").write_text(done.stdout + done.stderr)
    assert files_with_credentials(folder / name) == []
    ours, theirs = metrics_of(folder / name), metrics_of(folder_of(unbroken))
    assert clips_of(folder / name) == clips_of(folder_of(unbroken))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-4)
    resumed = make_config(folder, clip, Path(), run=name, **SECTIONS)
    tensors, others = checkpoint_of(resumed), checkpoint_of(unbroken)
    for tensor in others:
        torch.testing.assert_close(tensors[tensor], others[tensor], rtol=1e-4, atol=1e-6)
    # counted once, the places before the kill too
    assert (
        done.stderr.count(
            f"base_to_novel/val_novel: {len(failing)} of 96 samples could not be read"
        )
        == 1
    )
    assert failing == {key for row in ours for key in row.get("failed", {})}
    assert sum(3 - row["valid_clips"] for row in ours) == 2 * len(failing)


def test_the_log_has_the_bytes_and_requests_of_the_bucket(unbroken: RunConfig) -> None:
    rows = metrics_of(folder_of(unbroken))
    for row in rows:
        assert row["requests"] == row["valid_clips"] or row["valid_clips"] < 3
        assert row["mb_per_second"] == pytest.approx(
            row["bytes"] / 1e6 / (row["seconds"] + row["wait_seconds"]), abs=0.1
        )
        assert row["request_ms_p99"] > 0
        assert row["wait_seconds"] >= 0


def test_no_file_and_no_line_of_a_run_holds_credentials(
    folder: Path, killed: Path, unbroken: RunConfig, tmp_path: Path
) -> None:
    assert files_with_credentials(folder) == []
    (tmp_path / "log").write_text(f"... {WRITER[1]} ...")
    assert files_with_credentials(tmp_path) == [tmp_path / "log"], "one would be found"


def test_too_many_failures_in_a_row_end_all_ranks_at_one_step(
    folder: Path, clip: Path, s3: ObjectServer, tmp_path: Path
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=12, frames=4)
    manifest = open_pool(tmp_path / "pool").manifest("base_to_novel/val_novel")
    for shard in (tmp_path / "pool" / "shards").glob("*.tar"):
        shard.unlink()
    s3.upload(tmp_path / "pool", "empty")
    sections = {
        **SECTIONS,
        "data": SECTIONS["data"] | {"pool": "s3://empty/pool", "max_failures": 7},
    }
    seventh = manifest.row(permute(np.arange(7), len(manifest), seed=0, epoch=0)[6])
    sentence = (
        f"7 samples in a row could not be read; the last: s3://empty/pool/{seventh['shard']}: "
    )
    alone = make_config(folder, clip, Path(), run="empty1", **sections)
    with pytest.raises(StorageError, match=f"^{re.escape(sentence)}") as caught:
        run(alone)
    ended = run_ranks(2, "train", str(write_config(folder, clip, Path(), run="empty2", **sections)))
    assert [rank.returncode for rank in ended] == [2, 2]
    assert error_lines(ended) == [f"error: {caught.value}"]
    assert clips_of(folder / "empty1") == clips_of(folder / "empty2")
    assert [row["valid_clips"] for row in metrics_of(folder / "empty1")] == [0, 0, 0]
