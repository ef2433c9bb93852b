"""Start, stop and compare runs of the tiny CLIP on toy pools."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from bmpt.config import RunConfig
from bmpt.run import RunOutcome, run_training
from shards.cli import RANK_WAIT_VARIABLE
from shards.reader import open_pool
from tests.bmpt.tiny import ALONE, losses_of, metrics_of
from tests.process_memory import children_of

VAL = ("base_to_novel/val_base", "base_to_novel/val_novel")
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300  # for a process that hangs; on a loaded machine a start takes 40 s


def torchrun_command(ranks: int, *arguments: str, module: str = "bmpt") -> list[str]:
    """A module (`bmpt`) with these arguments under torchrun on this machine."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    return [sys.executable, *launcher, "-m", module, *arguments]


def torchrun(
    ranks: int, *arguments: str, module: str = "bmpt", timeout_seconds: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a module (`bmpt`) under torchrun and wait for its end.

    Higher ranks wait so long before they print an error that torchrun ends them first, on a slow
    machine too."""
    return subprocess.run(
        torchrun_command(ranks, *arguments, module=module),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        cwd=ROOT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", RANK_WAIT_VARIABLE: str(TIMEOUT_SECONDS)},
    )


def run_ranks(ranks: int, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Run the ranks as torchrun starts them, but let each end by itself; torchrun ends all after
    the first.

    The store through which they meet is held here, as torchrun holds it, so that its port cannot be
    taken before rank 0 is there."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        RANK_WAIT_VARIABLE: "0.1",  # nothing ends the higher ranks here
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bmpt", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    try:
        ended = []
        for process in processes:
            out, errors = process.communicate(timeout=TIMEOUT_SECONDS)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, errors))
        return ended
    finally:
        for process in processes:
            process.kill()
            process.wait()


def error_lines(ended: list[subprocess.CompletedProcess[str]]) -> list[str]:
    """The different mistakes that ranks have stated, without the number of one that torchrun would
    have ended."""
    said = [
        line for rank in ended for line in rank.stderr.splitlines() if line.startswith("error: ")
    ]
    return list(dict.fromkeys(re.sub(r"^error: rank \d+: ", "error: ", line) for line in said))


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that it started; torchrun gives each rank a session of its own."""
    tree = [pid]
    for parent in tree:
        tree += children_of(parent)
    for each in tree:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def run(settings: RunConfig, *, fresh: bool = False) -> RunOutcome:
    return run_training(settings, ALONE, fresh=fresh)


def folder_of(settings: RunConfig) -> Path:
    return Path(str(settings.run.dir))


def checkpoint_of(settings: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(folder_of(settings) / "prompts.safetensors")


def assert_same_run(one: RunConfig, other: RunConfig, *, tolerance: float) -> None:
    """The same steps, losses and trained tensors up to a tolerance."""
    first, second = losses_of(folder_of(one)), losses_of(folder_of(other))
    assert [step for step, _ in first] == [step for step, _ in second]
    assert [loss for _, loss in first] == pytest.approx(
        [loss for _, loss in second], rel=tolerance, abs=tolerance
    )
    tensors, others = checkpoint_of(one), checkpoint_of(other)
    assert tensors.keys() == others.keys()
    for name in tensors:
        torch.testing.assert_close(tensors[name], others[name], rtol=tolerance, atol=tolerance)


@contextmanager
def sigterm_after(steps: int, run_dir: Path) -> Iterator[None]:
    """Send SIGTERM to this process once metrics.jsonl has that many lines."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should the run be over by then
    done = threading.Event()

    def watch() -> None:
        path = run_dir / "metrics.jsonl"
        while not done.is_set():
            if path.exists() and path.read_bytes().count(b"\n") >= steps:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


def stop_early(settings: RunConfig) -> int:
    """Run until a SIGTERM after the third step; returns the number of steps that were done."""
    with sigterm_after(3, folder_of(settings)):
        outcome = run(settings)
    assert outcome.was_stopped
    assert outcome.results is None
    steps = len(metrics_of(folder_of(settings)))
    assert 3 <= steps < 40, "the run was over before the signal came"
    return steps


def damage_a_sample(pool: Path, manifest: str, index: int) -> str:
    """Flip one byte in every stored frame of one sample, in the tar itself; returns its key."""
    row = open_pool(pool).manifest(manifest).row(index)
    data = bytearray((pool / row["shard"]).read_bytes())
    for offset, size in zip(row["frame_offset"], row["frame_size"], strict=True):
        data[row["offset"] + offset + size // 2] ^= 0xFF
    (pool / row["shard"]).write_bytes(data)
    return row["key"]


def results_of(settings: RunConfig) -> dict[str, Any]:
    return json.loads((folder_of(settings) / "results.json").read_text(encoding="utf-8"))
