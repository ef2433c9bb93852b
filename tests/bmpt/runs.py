"""Start, stop and compare runs of the tiny CLIP on toy pools."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bmpt.config import TrainConfig
from bmpt.engine.run import RunOutcome, run_training
from shards.reader import open_pool
from tests.bmpt.tiny import ALONE, losses_of, metrics_of

VAL = ("base_to_novel/val_base", "base_to_novel/val_novel")


def run(settings: TrainConfig, *, fresh: bool = False) -> RunOutcome:
    return run_training(settings, ALONE, fresh=fresh)


def folder_of(settings: TrainConfig) -> Path:
    return Path(str(settings.run.dir))


def checkpoint_of(settings: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(folder_of(settings) / "prompts.safetensors")


def assert_same_run(one: TrainConfig, other: TrainConfig, *, tolerance: float) -> None:
    """The same steps, losses and trained tensors up to a tolerance."""
    first, second = losses_of(folder_of(one)), losses_of(folder_of(other))
    assert [step for step, _ in first] == [step for step, _ in second]
    assert [loss for _, loss in first] == pytest.approx([loss for _, loss in second], rel=tolerance, abs=tolerance)
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


def stop_early(settings: TrainConfig) -> int:
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


def results_of(settings: TrainConfig) -> dict[str, Any]:
    return json.loads((folder_of(settings) / "results.json").read_text(encoding="utf-8"))
