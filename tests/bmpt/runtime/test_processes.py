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

from bmpt.config import RunConfig, load_config
from bmpt.run import run_evaluation, run_training
from shards.cli import RANK_WAIT_VARIABLE
from shards.errors import StorageError
from tests.bmpt.runs import ROOT, TIMEOUT_SECONDS, damage_a_sample, error_lines, run_ranks, torchrun
from tests.bmpt.tiny import ALONE, losses_of, make_config, metrics_of, write_config
from tests.pools import make_pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(folder: Path, clip: Path, toy_pool: Path) -> RunConfig:
    """A run of one process, here."""
    torch.set_num_threads(1)
    config = make_config(
        folder, clip, toy_pool, run="alone", data={"batch_size": 5}, train={"epochs": 3}
    )
    run_training(config, ALONE)
    return config


def test_two_ranks_give_the_losses_and_tensors_of_one_process(
    folder: Path, clip: Path, toy_pool: Path, alone: RunConfig
) -> None:
    # 5 clips over 2 ranks are 2 and 3, and 2 micro-batches of them 1, 1 and 1, 2
    sections = {"data": {"batch_size": 5}, "train": {"epochs": 3, "accumulation": 2}}
    path = write_config(folder, clip, toy_pool, run="two", **sections)
    done = torchrun(2, "train", str(path))
    assert done.returncode == 0, done.stderr
    ours, theirs = losses_of(folder / "two"), losses_of(folder / "alone")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=2e-4)
    tensors, others = (
        load_file(folder / name / "prompts.safetensors") for name in ("two", "alone")
    )
    for name in others:
        torch.testing.assert_close(tensors[name], others[name], rtol=2e-3, atol=2e-4)
    assert done.stdout.count("results:") == 1, "one rank alone prints"


@pytest.fixture(scope="module")
def damaged_pool(folder: Path) -> Path:
    """The toy pool with one sample that cannot be read."""
    make_pool(folder / "damaged", samples_per_class=5)
    damage_a_sample(folder / "damaged", "few_shot/val", 6)
    return folder / "damaged"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_several_ranks_score_to_the_bytes_of_one_process(
    folder: Path, clip: Path, damaged_pool: Path, alone: RunConfig, ranks: int
) -> None:
    checkpoint = folder / "alone" / "prompts.safetensors"
    # blocks of 5: base_to_novel/val_novel has two, few_shot/val three, so that some ranks have none
    manifests = ["base_to_novel/val_novel", "few_shot/val"]
    sections = {"data": {"batch_size": 5}, "train": {"epochs": 3}, "eval": {"manifests": manifests}}
    here = write_config(folder, clip, damaged_pool, run="one", **sections)
    there = write_config(folder, clip, damaged_pool, run=f"ranks{ranks}", **sections)
    results = run_evaluation(load_config(here), ALONE, checkpoint=checkpoint).results
    assert results is not None
    assert [(entry["scored"], entry["failed"]) for entry in results["evaluations"]] == [
        (9, 1),
        (11, 1),
    ]
    done = torchrun(ranks, "eval", str(there), "--checkpoint", str(checkpoint))
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count(
            "warning: few_shot/val: 1 of 12 samples could not be read and were left out: Class"
        )
        == 1
    )
    names = (
        "predictions/base_to_novel.val_novel.parquet",
        "predictions/few_shot.val.parquet",
        "results.json",
    )
    for name in names:
        assert (folder / f"ranks{ranks}" / name).read_bytes() == (
            folder / "one" / name
        ).read_bytes(), name


def test_samples_in_a_row_end_an_evaluation_in_the_order_of_the_manifest_at_any_number_of_ranks(
    folder: Path, clip: Path
) -> None:
    make_pool(folder / "torn", samples_per_class=5)
    for index in range(4, 8):
        damage_a_sample(folder / "torn", "few_shot/val", index)
    # in blocks of 2 no rank of three has more than two of them in a row
    sections = {
        "data": {"max_failures": 3},
        "eval": {"batch_size": 2},
        "method": {"name": "zero_shot"},
    }
    path = write_config(folder, clip, folder / "torn", run="torn", **sections)
    with pytest.raises(
        StorageError, match=r"^3 samples in a row could not be read; the last: .*wrong CRC"
    ) as caught:
        run_evaluation(load_config(path), ALONE, checkpoint=None)
    ended = run_ranks(3, "eval", str(path))
    assert [rank.returncode for rank in ended] == [2, 2, 2]
    assert error_lines(ended) == [f"error: {caught.value}"]
    assert not (folder / "torn" / "results.json").exists()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("tensorboard", 0),
        ("metrics.jsonl", 0),
        ("state.pt", 2),
        ("prompts.safetensors", 2),
        ("results.json", 2),
    ],
)
def test_a_write_error_of_the_main_rank_ends_all_ranks_with_one_line(
    folder: Path, clip: Path, toy_pool: Path, name: str, steps: int
) -> None:
    path = write_config(folder, clip, toy_pool, run=f"no-{name}", train={"epochs": 1})
    run_dir = folder / f"no-{name}"
    run_dir.mkdir()
    if name == "tensorboard":
        (run_dir / name).write_text("a file where a folder is needed")
    elif name == "metrics.jsonl":
        (run_dir / name).symlink_to(run_dir / "gone" / name)
    else:
        (run_dir / f".{name}.part").mkdir()
    ended = run_ranks(2, "train", str(path))
    assert [rank.returncode for rank in ended] == [2, 2], [rank.stderr for rank in ended]
    (said,) = error_lines(ended)
    assert said.startswith(f"error: {run_dir / name}: cannot be written: ")
    assert not any("Traceback" in rank.stderr for rank in ended)
    assert (len(losses_of(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0) == steps


def test_a_run_that_diverges_ends_all_ranks_at_one_step_with_one_line(
    folder: Path, clip: Path, toy_pool: Path
) -> None:
    path = write_config(folder, clip, toy_pool, run="diverged", train={"lr": 1e30})
    ended = run_ranks(2, "train", str(path))
    assert [rank.returncode for rank in ended] == [2, 2], [rank.stderr for rank in ended]
    (said,) = error_lines(ended)
    assert said.startswith(
        "error: training diverged: the loss of step 2 is nan, at train.precision=fp32; lower "
    )
    assert "train.lr=1e+30" in said
    assert said.endswith(" and start over with --fresh")
    assert [row["loss"] is None for row in metrics_of(folder / "diverged")] == [False, True]
    assert not any(
        (folder / "diverged" / name).exists() for name in ("state.pt", "prompts.safetensors")
    )


def test_a_locked_run_folder_ends_all_ranks_with_one_line(
    folder: Path, clip: Path, toy_pool: Path
) -> None:
    run_training(
        load_config(write_config(folder, clip, toy_pool, run="taken", train={"epochs": 1})), ALONE
    )
    path = write_config(folder, clip, toy_pool, run="taken", train={"epochs": 1, "lr": 1.0})
    ended = run_ranks(2, "train", str(path))
    assert [rank.returncode for rank in ended] == [2, 2], [rank.stderr for rank in ended]
    (said,) = error_lines(ended)
    assert "belongs to another config (train.lr is 0.001 there, 1.0 here)" in said


def test_a_mistake_is_one_line_of_one_rank_and_ends_all(
    folder: Path, clip: Path, toy_pool: Path
) -> None:
    path = write_config(folder, clip, toy_pool, run="wrong", data={"batch_size": 1})
    done = torchrun(2, "train", str(path))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: data.batch_size is 1, but there are 2 ranks; give each rank at least one clip"
    ]


def test_an_error_of_a_higher_rank_only_is_printed_with_its_number(
    folder: Path, clip: Path, toy_pool: Path
) -> None:
    (folder / "node0").mkdir()
    (folder / "node0" / "pool").symlink_to(toy_pool)
    for rank in (1, 2):
        (folder / f"node{rank}").mkdir()
    path = write_config(folder, clip, Path("pool"), run="one-node-has-no-pool")
    # rank 2 waits so long that torchrun ends it after rank 1, on a slow machine too
    waits = (
        f"case $RANK in 1) export {RANK_WAIT_VARIABLE}=0.5;; "
        f"*) export {RANK_WAIT_VARIABLE}={TIMEOUT_SECONDS};; esac"
    )
    start = f'{waits}; cd "{folder}/node$RANK" && exec "{sys.executable}" -m bmpt train "{path}"'
    launcher = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
        "--no-python",
    )
    done = subprocess.run(
        [*launcher, "bash", "-c", start],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith(f"error: rank 1: {folder}/node1/pool/pool.json: no such file")


def test_sigterm_saves_a_state_that_two_ranks_resume(
    folder: Path, clip: Path, toy_pool: Path
) -> None:
    rates = {"epochs": 40, "lr": 1e-4, "lr_prompts": 1e-3}
    path = write_config(folder, clip, toy_pool, run="stopped", train=rates)
    unbroken = make_config(folder, clip, toy_pool, run="unbroken", train=rates)
    process = subprocess.Popen(
        [sys.executable, "-m", "bmpt", "train", str(path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
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
    seen = [[row["batch"] for row in metrics_of(folder / name)] for name in ("stopped", "unbroken")]
    assert seen[0] == seen[1]
    # another topology rounds otherwise, and AdamW makes much of that: 1e-6 at first, 1e-2 and more
    # after 80 steps
    after = slice(len(before), len(before) + 5)
    assert [loss for _, loss in ours[after]] == pytest.approx(
        [loss for _, loss in theirs[after]], rel=1e-4
    )


def test_ctrl_c_in_training_is_one_line_and_exit_130(
    folder: Path, clip: Path, toy_pool: Path
) -> None:
    path = write_config(folder, clip, toy_pool, run="interrupted", train={"epochs": 2000})
    command = [sys.executable, "-m", "bmpt", "train", str(path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = folder / "interrupted" / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted; run the same command again" in errors
