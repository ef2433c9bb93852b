"""The training loop: one optimiser step is `data.batch_size` clips, however they are spread over ranks."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from bmpt.augment import normalize
from bmpt.config import TrainConfig
from bmpt.engine import run_folder
from bmpt.engine.checkpoint import (
    CheckpointInfo,
    config_sha256,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from bmpt.engine.distributed import World, from_main, sum_over_ranks
from bmpt.engine.optim import build_optimizer, lr_share, set_lr
from bmpt.engine.progress import ProgressBars
from bmpt.evaluation.evaluate import evaluate
from bmpt.losses import cross_entropy_sum
from bmpt.task import Task, open_task
from shards.errors import ConfigError
from shards.loader import MicroBatch, TrainLoader, build_train_loader
from shards.stream import StreamState


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended: results on the main rank, None elsewhere or after a stop signal."""

    folder: Path
    results: dict[str, Any] | None
    was_stopped: bool = False


def run_training(config: TrainConfig, world: World, *, fresh: bool = False) -> RunOutcome:
    """Train, go on from state.pt if the folder has one, then score; a finished run is read, not redone.

    Raises: ConfigError, FormatError, StorageError: each names the file or key, the value and the cure."""
    task = open_task(config, world, trains=True)
    folder = Path(str(config.run.dir))
    if world.is_main:
        run_folder.claim(config, fresh=fresh)
    from_main(None, world)  # the folder is claimed, or the main rank has raised
    finished = from_main(_finished_results(folder, task) if world.is_main else None, world)
    if finished is not None:
        return RunOutcome(folder, finished if world.is_main else None)
    with ProgressBars(enabled=world.is_main) as bars:
        trainer = Trainer(task, folder)
        if not trainer.run(bars):
            return RunOutcome(folder, None, was_stopped=True)
        checkpoint = trainer.save_checkpoint()
        results = evaluate(task, folder=folder, checkpoint=checkpoint, progress=bars.update)
    return RunOutcome(folder, results)


def run_evaluation(config: TrainConfig, world: World, *, checkpoint: Path | None) -> RunOutcome:
    """Score the manifests of a config, with a checkpoint unless the method trains nothing."""
    task = open_task(config, world, trains=False)
    if checkpoint is None and task.method.trained_groups():
        raise ConfigError(
            f"method.name={config.method.name}: trains, so scoring it needs --checkpoint FILE (prompts.safetensors)"
        )
    info = None if checkpoint is None else load_checkpoint(checkpoint, task.method, task.backbone, config)
    folder = Path(str(config.run.dir))
    with ProgressBars(enabled=world.is_main) as bars:
        results = evaluate(task, folder=folder, checkpoint=info, progress=bars.update)
    return RunOutcome(folder, results)


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
        self.loader = self._build_loader(self._resume())
        self.model: torch.nn.Module = self.method
        if self.world.size > 1:
            gpu = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.method, device_ids=gpu)
        self.num_steps = self.loader.num_steps * self.config.train.epochs
        self.warmup_steps = round(self.loader.num_steps * self.config.train.warmup_epochs)

    def run(self, bars: ProgressBars) -> bool:
        """Train to the end; False if SIGTERM asked to stop, with the state saved."""
        with _StopSignal() as stop:
            while self.step < self.num_steps:
                for step, batches in _steps(self.loader):
                    row, wants_stop = self._train_step(batches, wants_stop=stop.is_set)
                    state = self.loader.state(step + 1)
                    ends_epoch = state.position == 0
                    every = self.config.run.save_every_steps
                    if self.world.is_main:  # before the state: what a kill leaves too much is dropped, see _resume
                        run_folder.append_metrics(self.folder, row)
                        bars.update("train", self.step, self.num_steps, f"loss {row['loss']:.4f}")
                    if ends_epoch or wants_stop or (every is not None and self.step % every == 0):
                        self._save_state(state)
                    if wants_stop:
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

    def _train_step(self, batches: list[MicroBatch], *, wants_stop: bool) -> tuple[dict[str, Any], bool]:
        """One optimiser step. The loss is a sum over the valid clips of the global batch divided by their number,
        times the number of ranks for DDP's mean: it does not depend on how the clips are spread."""
        started = time.perf_counter()
        valid_here = float(sum(batch.clips.weights_B.sum().item() for batch in batches))
        valid, stops = sum_over_ranks([valid_here, float(wants_stop)], self.world)
        set_lr(self.optimizer, lr_share(self.step, num_steps=self.num_steps, warmup_steps=self.warmup_steps))
        self.method.train()
        loss_here = 0.0
        for batch in batches:
            is_last = batch is batches[-1]
            sync = nullcontext() if is_last or self.world.size == 1 else self.model.no_sync()  # type: ignore[operator]
            with sync:
                loss_here += self._backward(batch, share=self.world.size / max(1.0, valid))
        if valid > 0:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        (loss,) = sum_over_ranks([loss_here / self.world.size], self.world)
        row = {
            "step": self.step,
            "epoch": batches[0].epoch,
            "loss": loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "valid_clips": int(valid),
            "seconds": round(time.perf_counter() - started, 4),
        }
        return row, stops > 0

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
        stream = StreamState.model_validate(saved["stream"])
        stream.check(self.split.manifest, seed=self.config.seed)
        with torch.no_grad():
            for name, value in saved["trained"].items():
                self.method.get_parameter(name).copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]
        if self.world.is_main:
            run_folder.drop_metrics_after(self.folder, self.step)
        return stream


class _StopSignal:
    """Notes SIGTERM (as schedulers send it) while training, so that the step in hand is finished and saved."""

    def __enter__(self) -> _StopSignal:
        self.is_set = False
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True


def _steps(loader: TrainLoader) -> Iterator[tuple[int, list[MicroBatch]]]:
    """(step within the epoch, its micro-batches) of one epoch."""
    for step, batches in groupby(loader, key=lambda batch: batch.step):
        yield step, list(batches)


def _finished_results(folder: Path, task: Task) -> dict[str, Any] | None:
    """The results of this config, this pool and the checkpoint that lies there, if the run is through."""
    path, checkpoint = folder / run_folder.RESULTS, folder / run_folder.CHECKPOINT
    if not path.exists() or not checkpoint.exists():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    ours = {"config_sha256": config_sha256(task.config), "pool_id": task.pool.card.pool_id}
    is_ours = ours.items() <= results.items() and results.get("checkpoint") is not None
    is_whole = is_ours and results["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return results if is_whole else None
