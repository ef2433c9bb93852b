"""The training loop: one optimiser step is `data.batch_size` clips, however they are spread over ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from bmpt.augment import normalize
from bmpt.engine import run_folder
from bmpt.engine.checkpoint import CheckpointInfo, load_state, save_checkpoint, save_state
from bmpt.engine.distributed import sum_over_ranks
from bmpt.engine.optim import build_optimizer, lr_share, set_lr
from bmpt.engine.progress import ProgressBars
from bmpt.losses import cross_entropy_sum
from bmpt.task import Task
from shards.errors import FormatError
from shards.fetch import ReadStats
from shards.loader import MicroBatch, TrainLoader, build_train_loader
from shards.orders import make_order
from shards.stream import StreamState


class Trainer:
    """One run on one rank: the task, its optimiser and stream, and where they stand."""

    def __init__(self, task: Task, folder: Path) -> None:
        """Take up state.pt where there is one. Raises: FormatError for a state of another stream."""
        if task.train is None:
            raise ValueError("the task was opened without a training split")
        self.task, self.folder = task, folder
        self.config, self.world, self.method, self.split = task.config, task.world, task.method, task.train
        self.optimizer = build_optimizer(self.method, self.config.train)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.config.train.precision == "fp16")
        self.step = 0
        self._failed: set[str] = set()
        self.loader = self._build_loader(self._resume())
        self.model: torch.nn.Module = self.method
        if self.world.size > 1:
            gpu = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.method, device_ids=gpu)
        self.num_steps = self.loader.num_steps * self.config.train.epochs
        self.warmup_steps = round(self.loader.num_steps * self.config.train.warmup_epochs)

    def run(self, bars: ProgressBars, *, wants_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end; False if some rank wanted to stop, with the state saved."""
        every = self.config.run.save_every_steps
        while self.step < self.num_steps:
            for step, batches, wait_seconds in _steps(self.loader):
                row, stops = self._train_step(batches, wants_stop)
                row |= _reading_of(batches, wait_seconds)
                state = self.loader.state(step + 1)
                if self.world.is_main:  # before the state: what a kill leaves too much is dropped, see _resume
                    run_folder.append_metrics(self.folder, row)
                    bars.update("train", self.step, self.num_steps, f"loss {row['loss']:.4f}")
                ends_epoch = state.position == 0
                if ends_epoch or stops or (every is not None and self.step % every == 0):
                    self._save_state(state)
                if stops:
                    return False
        return True

    def save_checkpoint(self) -> CheckpointInfo | None:
        """Write the trained tensors; the main rank alone, which alone knows the file's hash."""
        if not self.world.is_main:
            return None
        info = self.split.manifest.info
        provenance = {
            "classes": info.classes,
            "pool_id": info.pool_id,
            "manifest": info.path,
            "fingerprint": info.fingerprint,
        }
        path = self.folder / run_folder.CHECKPOINT
        return save_checkpoint(
            path, self.method, self.task.backbone, self.config, step=self.step, provenance=provenance
        )

    def _train_step(self, batches: list[MicroBatch], wants_stop: Callable[[], bool]) -> tuple[dict[str, Any], bool]:
        """One optimiser step. The loss is a sum over the valid clips of the global batch divided by their number,
        times the number of ranks for DDP's mean: it does not depend on how the clips are spread."""
        started = time.perf_counter()
        self._name_failures(batches)
        valid_here = float(sum(batch.clips.weights_B.sum().item() for batch in batches))
        (valid,) = sum_over_ranks([valid_here], self.world)
        set_lr(self.optimizer, lr_share(self.step, num_steps=self.num_steps, warmup_steps=self.warmup_steps))
        self.method.train()
        loss_here = 0.0
        for batch in batches:
            is_last = batch is batches[-1]
            joint = self.model if isinstance(self.model, DistributedDataParallel) else None
            with nullcontext() if is_last or joint is None else joint.no_sync():
                loss_here += self._backward(batch, share=self.world.size / max(1.0, valid))
        if valid > 0:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        loss, stops = sum_over_ranks([loss_here / self.world.size, float(wants_stop())], self.world)
        row = {
            "step": self.step,
            "epoch": batches[0].epoch,
            "loss": loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "valid_clips": int(valid),
            "seconds": round(time.perf_counter() - started, 4),
        }
        return row, stops > 0

    def _name_failures(self, batches: list[MicroBatch]) -> None:
        """Say once which samples could not be read; their places are empty and weigh nothing."""
        for batch in batches:
            for key, failure in zip(batch.clips.keys, batch.clips.failures, strict=True):
                if failure is not None and key not in self._failed:
                    self._failed.add(key)
                    print(f"warning: {key} is left out of training: {failure}", file=sys.stderr, flush=True)

    def _backward(self, batch: MicroBatch, *, share: float) -> float:
        """Add one micro-batch's gradient; returns its part of the loss."""
        device, clips, backbone = self.world.device, batch.clips, self.task.backbone
        with self.task.autocast():
            frames = normalize(
                clips.frames_BVTCHW.to(device, non_blocking=True), backbone.image_mean, backbone.image_std
            )
            logits_BK = self.model(frames, self.split.ids_KS)
            loss = share * cross_entropy_sum(
                logits_BK,
                clips.labels_B.to(device),
                clips.weights_B.to(device),
                label_smoothing=self.config.train.label_smoothing,
            )
        self.scaler.scale(loss).backward()
        return loss.item()

    def _build_loader(self, state: StreamState | None) -> TrainLoader:
        return build_train_loader(
            self.task.pool,
            self.split.manifest,
            self.task.clip,
            batch_size=self.config.data.batch_size,
            accumulation=self.config.train.accumulation,
            num_workers=self.config.data.num_workers,
            seed=self.config.seed,
            order=self.config.data.order,
            group_shards=self.config.data.group_shards,
            reading=self.config.data.reading,
            state=state,
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def _save_state(self, state: StreamState) -> None:
        if self.world.is_main:
            save_state(
                self.folder / run_folder.STATE,
                {
                    "step": self.step,
                    "stream": state.model_dump(),
                    "trained": self.method.trained_state(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                },
            )

    def _resume(self) -> StreamState | None:
        """Take up state.pt where there is one."""
        path = self.folder / run_folder.STATE
        if not path.exists():
            if self.world.is_main:
                run_folder.drop_metrics_after(self.folder, 0)
            return None
        saved = load_state(path, self.world.device)
        try:
            stream = StreamState.model_validate(saved["stream"])
            with torch.no_grad():
                for name, value in saved["trained"].items():
                    self.method.get_parameter(name).copy_(value)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            self.step = int(saved["step"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = " ".join(str(error).split())[:120]
            raise FormatError(f"{path}: is not a state of this run ({what}); start over with --fresh") from None
        manifest, data = self.split.manifest, self.config.data
        order = make_order(manifest.table["shard"], data.order, seed=self.config.seed, group_shards=data.group_shards)
        stream.check(manifest, order)
        if self.world.is_main:
            run_folder.drop_metrics_after(self.folder, self.step)
        return stream


def _steps(loader: TrainLoader) -> Iterator[tuple[int, list[MicroBatch], float]]:
    """(step within the epoch, its micro-batches, seconds that they were waited for) of one epoch."""
    groups = groupby(loader, key=lambda batch: batch.step)
    while True:
        started = time.perf_counter()
        step, group = next(groups, (None, ()))
        batches = list(group)
        if step is None:
            return
        yield step, batches, time.perf_counter() - started


def _reading_of(batches: list[MicroBatch], wait_seconds: float) -> dict[str, Any]:
    """What the samples of a step took to read on this rank, for the log; requests only where there are any."""
    reads = ReadStats()
    for batch in batches:
        reads.add(batch.reads)
    row: dict[str, Any] = {"wait_seconds": round(wait_seconds, 4)}
    if reads.requests or reads.hits:
        row["requests"], row["bytes"] = reads.requests, reads.bytes
        row["cache_hits"], row["cache_misses"] = reads.hits, reads.misses
        row["request_ms_p99"] = reads.latency_ms(0.99)
    return row
