"""Real processes: torchrun at several sizes gives what one process gives, and SIGTERM saves.

Few tests, since each start costs seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bmpt.config import TrainConfig, load_config
from bmpt.engine.run import run_evaluation, run_training
from tests.bmpt.tiny import ALONE, losses_of, make_config, write_config

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 100


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*command, "-m", "bmpt", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        cwd=ROOT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(folder: Path, clip: Path, toy_pool: Path) -> TrainConfig:
    """A run of one process, here."""
    torch.set_num_threads(1)
    config = make_config(folder, clip, toy_pool, run="alone", data={"batch_size": 5}, train={"epochs": 3})
    run_training(config, ALONE)
    return config


def test_two_ranks_give_the_losses_and_tensors_of_one_process(
    folder: Path, clip: Path, toy_pool: Path, alone: TrainConfig
) -> None:
    # 5 clips over 2 ranks are 2 and 3, and 2 micro-batches of them 1, 1 and 1, 2
    sections = {"data": {"batch_size": 5}, "train": {"epochs": 3, "accumulation": 2}}
    path = write_config(folder, clip, toy_pool, run="two", **sections)
    done = torchrun(2, "train", str(path))
    assert done.returncode == 0, done.stderr
    ours, theirs = losses_of(folder / "two"), losses_of(folder / "alone")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=2e-4)
    tensors, others = (load_file(folder / name / "prompts.safetensors") for name in ("two", "alone"))
    for name in others:
        torch.testing.assert_close(tensors[name], others[name], rtol=2e-3, atol=2e-4)
    assert done.stdout.count("results:") == 1, "one rank alone prints"


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.long), 3])
def test_several_ranks_score_to_the_bytes_of_one_process(
    folder: Path, clip: Path, toy_pool: Path, alone: TrainConfig, ranks: int
) -> None:
    checkpoint = folder / "alone" / "prompts.safetensors"
    # blocks of 5: base_to_novel/val_novel has two, few_shot/val three, so that some ranks have none
    manifests = ["base_to_novel/val_novel", "few_shot/val"]
    sections = {"data": {"batch_size": 5}, "train": {"epochs": 3}, "eval": {"manifests": manifests}}
    here = write_config(folder, clip, toy_pool, run="one", **sections)
    there = write_config(folder, clip, toy_pool, run=f"ranks{ranks}", **sections)
    run_evaluation(load_config(here), ALONE, checkpoint=checkpoint)
    done = torchrun(ranks, "eval", str(there), "--checkpoint", str(checkpoint))
    assert done.returncode == 0, done.stderr
    names = ("predictions/base_to_novel.val_novel.parquet", "predictions/few_shot.val.parquet", "results.json")
    for name in names:
        assert (folder / f"ranks{ranks}" / name).read_bytes() == (folder / "one" / name).read_bytes(), name


def test_a_mistake_is_one_line_of_one_rank_and_ends_all(folder: Path, clip: Path, toy_pool: Path) -> None:
    path = write_config(folder, clip, toy_pool, run="wrong", data={"batch_size": 1})
    done = torchrun(2, "train", str(path))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: data.batch_size is 1, but there are 2 ranks; give each at least one clip"]


def test_sigterm_saves_the_state_and_exits_0_and_two_ranks_go_on_with_it(
    folder: Path, clip: Path, toy_pool: Path
) -> None:
    path = write_config(folder, clip, toy_pool, run="stopped", train={"epochs": 40})
    unbroken = make_config(folder, clip, toy_pool, run="unbroken", train={"epochs": 40})
    process = subprocess.Popen(
        [sys.executable, "-m", "bmpt", "train", str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        metrics = folder / "stopped" / "metrics.jsonl"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= 5:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "the state is saved in" in said
    before = losses_of(folder / "stopped")
    assert 5 <= len(before) < 80
    assert not (folder / "stopped" / "results.json").exists()
    done = torchrun(2, "train", str(path))
    assert done.returncode == 0, done.stderr
    run_training(unbroken, ALONE)
    ours, theirs = losses_of(folder / "stopped"), losses_of(folder / "unbroken")
    assert before == theirs[: len(before)] == ours[: len(before)]
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-2, abs=1e-3)


def test_ctrl_c_in_training_is_one_line_and_exit_130(folder: Path, clip: Path, toy_pool: Path) -> None:
    path = write_config(folder, clip, toy_pool, run="interrupted", train={"epochs": 2000})
    command = [sys.executable, "-m", "bmpt", "train", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = folder / "interrupted" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted; run the same command again" in errors
