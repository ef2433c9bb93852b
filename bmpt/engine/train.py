"""The training loop: one optimiser step is `data.batch_size` clips, however they are spread over ranks."""

from __future__ import annotations

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
from bmpt.classes import class_texts
from bmpt.clip import Backbone, load_backbone
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
from bmpt.evaluation.evaluate import RESULTS, autocast, clip_settings, evaluate, manifests_to_score
from bmpt.losses import cross_entropy_sum
from bmpt.methods import build_method
from bmpt.methods.base import Method
from shards.errors import ConfigError
from shards.loader import MicroBatch, TrainLoader, build_train_loader, select
from shards.reader import Manifest, Pool, open_pool
from shards.stream import StreamState

STATE_VERSION = 1


@dataclass(frozen=True)
class RunOutcome:
    """How `run_training` ended: results on the main rank, None elsewhere or after a stop signal."""

    folder: Path
    results: dict[str, Any] | None
    was_stopped: bool = False


def run_training(config: TrainConfig, world: World, *, fresh: bool = False) -> RunOutcome:
    """Train, go on from state.pt if the folder has one, then score; a finished run is read, not redone.

    Raises: ConfigError, FormatError, StorageError: each names the file or key, the value and the cure."""
    pool, manifest, backbone, method = _prepare(config, world)
    folder = Path(str(config.run.dir))
    if world.is_main:
        run_folder.claim(config, fresh=fresh)
    from_main(None, world)  # the folder is claimed, or the main rank has raised
    finished = from_main(_finished_results(folder, config) if world.is_main else None, world)
    if finished is not None:
        return RunOutcome(folder, finished if world.is_main else None)
    with ProgressBars(enabled=world.is_main) as bars:
        trainer = Trainer(config, world, pool, manifest, backbone, method, folder)
        if not trainer.run(bars):
            return RunOutcome(folder, None, was_stopped=True)
        checkpoint = trainer.save_checkpoint()
        results = evaluate(
            method, backbone, pool, config, world, run_dir=folder, checkpoint=checkpoint, progress=bars.update
        )
    return RunOutcome(folder, results)


def run_evaluation(config: TrainConfig, world: World, *, checkpoint: Path | None) -> RunOutcome:
    """Score the manifests of a config, with a checkpoint unless the method trains nothing."""
    pool = open_pool(config.data.pool)
    for name in manifests_to_score(config):
        pool.manifest(name)
    backbone = load_backbone(config.model.name, config.model.pretrained, seed=config.seed)
    method = build_method(backbone, config.method, num_frames=config.data.frames, seed=config.seed)
    if checkpoint is None and method.trained_groups():
        raise ConfigError(
            f"method.name={config.method.name}: trains, so scoring it needs --checkpoint FILE (prompts.safetensors)"
        )
    info = None if checkpoint is None else load_checkpoint(checkpoint, method, backbone, config)
    method.to(world.device)
    folder = Path(str(config.run.dir))
    with ProgressBars(enabled=world.is_main) as bars:
        results = evaluate(method, backbone, pool, config, world, run_dir=folder, checkpoint=info, progress=bars.update)
    return RunOutcome(folder, results)


class Trainer:
    """One run on one rank: method, optimiser, stream, and where they stand."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        pool: Pool,
        manifest: Manifest,
        backbone: Backbone,
        method: Method,
        folder: Path,
    ) -> None:
        self.config, self.world, self.backbone, self.method, self.folder = config, world, backbone, method, folder
        self.manifest, self.pool = manifest, pool
        self.optimizer = build_optimizer(method, config.train)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "fp16")
        self.ids_KS = method.prepare_texts(class_texts(manifest.info.classes, config.text)).to(world.device)
        self.step = 0
        state = self._resume()
        self.loader = self._build_loader(state)
        self.model: torch.nn.Module = method
        if world.size > 1:
            self.model = DistributedDataParallel(
                method,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
            )
        self.num_steps = self.loader.num_steps * config.train.epochs
        self.warmup_steps = round(self.loader.num_steps * config.train.warmup_epochs)

    def run(self, bars: ProgressBars) -> bool:
        """Train to the end; False if SIGTERM or SIGINT asked to stop, with the state saved."""
        with _StopSignal() as stop:
            while self.step < self.num_steps:
                for step, batches in _steps(self.loader):
                    row, wants_stop = self._train_step(batches, wants_stop=stop.is_set)
                    state = self.loader.state(step + 1)
                    ends_epoch = state.position == 0
                    every = self.config.run.save_every_steps
                    if ends_epoch or wants_stop or (every is not None and self.step % every == 0):
                        self._save_state(state)
                    if self.world.is_main:
                        run_folder.append_metrics(self.folder, row)
                        bars.update("train", self.step, self.num_steps, f"loss {row['loss']:.4f}")
                    if wants_stop:
                        return False
        return True

    def save_checkpoint(self) -> CheckpointInfo | None:
        """Write the trained tensors; the main rank alone, which alone knows the file's hash."""
        if not self.world.is_main:
            return None
        info = self.manifest.info
        provenance = {
            "classes": info.classes,
            "pool_id": info.pool_id,
            "manifest": info.path,
            "fingerprint": info.fingerprint,
        }
        path = self.folder / run_folder.CHECKPOINT
        return save_checkpoint(path, self.method, self.backbone, self.config, step=self.step, provenance=provenance)

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
        device, clips = self.world.device, batch.clips
        with autocast(self.config, device):
            frames = normalize(
                clips.frames_BVTCHW.to(device, non_blocking=True), self.backbone.image_mean, self.backbone.image_std
            )
            logits_BK = self.model(frames, self.ids_KS)
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
            self.pool,
            self.manifest,
            clip_settings(self.config, self.backbone),
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
                    "version": STATE_VERSION,
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
            return None
        saved = load_state(path, self.world.device)
        stream = StreamState.model_validate(saved["stream"])
        stream.check(self.manifest, seed=self.config.seed)
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


def _prepare(config: TrainConfig, world: World) -> tuple[Pool, Manifest, Backbone, Method]:
    """Open everything that a mistake in the config could miss, before any folder is made."""
    pool = open_pool(config.data.pool)
    if config.data.train is None:
        raise ConfigError("data.train is not set: name a manifest, for example --set data.train=few_shot/train_k16")
    manifest = select(pool.manifest(config.data.train), config.data.verdicts)
    for name in manifests_to_score(config):
        pool.manifest(name)
    autocast(config, world.device)
    backbone = load_backbone(config.model.name, config.model.pretrained, seed=config.seed)
    method = build_method(backbone, config.method, num_frames=config.data.frames, seed=config.seed)
    if not method.trained_groups():
        raise ConfigError(f"method.name={config.method.name}: trains nothing; score it with `bmpt eval CONFIG`")
    return pool, manifest, backbone, method.to(world.device)


def _finished_results(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The results of this very config, if the run is through."""
    path = folder / RESULTS
    if not path.exists() or not (folder / run_folder.CHECKPOINT).exists():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    return results if results.get("config_sha256") == config_sha256(config) else None
