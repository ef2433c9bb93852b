"""The training loop: one optimiser step is `data.batch_size` clips, however they are spread over
ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from bmpt.augment import augment
from bmpt.checkpoints.checkpoint import CheckpointInfo, load_state, save_checkpoint, save_state
from bmpt.clip.normalize import standardize, to_unit_range
from bmpt.engine.global_batch import GlobalBatch, digest_of, share_batch
from bmpt.engine.optim import build_optimizer, lr_share, set_lr
from bmpt.engine.step import StepGradient, class_encoder, draw_sentences, seed_dropout
from bmpt.engine.step_log import StepLog
from bmpt.methods.base import ClipInputs, Targets
from bmpt.runtime import run_folder
from bmpt.runtime.distributed import errors_of_main, from_main, saying_memory, sum_over_ranks
from bmpt.runtime.failures import failure_limit, name_failures
from bmpt.sample_features import take_rows
from bmpt.task import Task
from shards.errors import ConfigError, FormatError, StorageError
from shards.loader import TrainLoader, build_train_loader
from shards.progress import ProgressBars
from shards.sampling.orders import make_order
from shards.sampling.plan import RankSlice
from shards.stream.batches import MicroBatch
from shards.stream.failures import FailureRule
from shards.stream.pipeline import StreamState
from shards.stream.settings import StreamSettings


class Trainer:
    """One run on one rank: the task, its optimiser and stream, and where they stand."""

    def __init__(self, task: Task, folder: Path) -> None:
        """Take up state.pt where there is one. Raises: FormatError for a state of another
        stream."""
        if task.train is None:
            raise ValueError("the task was opened without a training split")
        self.task, self.folder = task, folder
        self.config, self.world, self.method, self.split = (
            task.config,
            task.world,
            task.method,
            task.train,
        )
        self.optimizer = build_optimizer(self.method, self.config.train)
        self.scaler = torch.amp.GradScaler(
            self.world.device.type, enabled=self.config.train.precision == "fp16"
        )
        self.step = 0
        self._log: StepLog | None = None  # of the main rank
        self._write_error: StorageError | None = (
            None  # of the main rank; all raise it before the next step
        )
        self.failure_rule = FailureRule(limit=None)
        self.loader = self._build_loader(self._resume())
        num_samples = self.loader.num_steps * self.config.data.batch_size
        self.failure_rule.limit = failure_limit(self.config.data.max_failures, num_samples)
        self.gradient = StepGradient(
            self.method,
            self.split.texts,
            self.world,
            classes=class_encoder(self.method, self.split.texts, self.world),
            autocast=task.autocast,
            scaler=self.scaler,
        )
        self.num_steps = self.loader.num_steps * self.config.train.epochs
        self.warmup_steps = round(self.loader.num_steps * self.config.train.warmup_epochs)

    def run(self, bars: ProgressBars, *, wants_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end; False if some rank wanted to stop, with the state saved.

        Raises: StorageError on all ranks at one step, when `data.max_failures` samples in a row
            could not be read,
        or when the main rank cannot write; ConfigError likewise, when the loss is not finite, or of
        one rank, whose GPU has no memory."""
        with errors_of_main(self.world):
            self._log = self._open_log()
        with closing(self._log) if self._log is not None else nullcontext():
            stops = False
            while self.step < self.num_steps and not stops:
                for batches, wait_seconds in steps_of(self.loader, self.config.train.accumulation):
                    row, stops = self._train_step(batches, wait_seconds, wants_stop)
                    self._check_loss(row)
                    self._keep(row, self.loader.state(batches[0].step + 1), stops=stops)
                    bars.update("train", self.step, self.num_steps, _note(row))
                    if stops:
                        break
            with errors_of_main(self.world):
                if self._write_error is not None:
                    raise self._write_error
                if self._log is not None:
                    self._log.close()
            if not stops:
                self._name_failures()
        return not stops

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
            "text_files": dict(self.task.text_files),
        }
        path = self.folder / run_folder.CHECKPOINT
        return save_checkpoint(
            path,
            self.method,
            self.task.backbone,
            self.config,
            step=self.step,
            provenance=provenance,
        )

    def _train_step(
        self, batches: list[MicroBatch], wait_seconds: float, wants_stop: Callable[[], bool]
    ) -> tuple[dict[str, Any], bool]:
        """One optimiser step. The loss is a sum over the valid clips of the global batch divided by
        their number, times the number of ranks for DDP's mean: it does not depend on how the clips
        are spread."""
        started = time.perf_counter()
        whole = share_batch(
            batches,
            wait_seconds,
            batch_size=self.config.data.batch_size,
            world=self.world,
            write_failed=self._write_error is not None,
        )
        if whole.write_failed:
            raise from_main(self._write_error, self.world)
        self._count_failures(whole, epoch=batches[0].epoch)
        rate_share = lr_share(self.step, num_steps=self.num_steps, warmup_steps=self.warmup_steps)
        set_lr(self.optimizer, rate_share)
        self.method.train()
        sentence_K = draw_sentences(self.split.texts, seed=self.config.seed, step=self.step).to(
            self.world.device
        )
        num_clips = max(len(batch.clips.labels_B) for batch in batches)
        with saying_memory(num_clips, self._memory_cure(num_clips)):
            loss_here = self.gradient.add(
                (self._inputs(batch) for batch in batches),
                num_batches=len(batches),
                sentence_K=sentence_K,
                share=self.world.size / max(1, whole.num_valid),
            )
        if whole.num_valid > 0:
            with saying_memory(
                num_clips, "AdamW keeps two values a weight: tune less (method.tune)"
            ):
                self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        loss, stops = sum_over_ranks([loss_here / self.world.size, float(wants_stop())], self.world)
        seconds = time.perf_counter() - started
        row = {
            "step": self.step,
            "epoch": batches[0].epoch,
            "loss": loss,
            "lr": self.config.train.lr * rate_share,
            **({"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}),
            **self._clips_of(whole),
            "seconds": round(seconds, 4),
            **whole.reading(wait_seconds + seconds),
        }
        return row, stops > 0

    def _memory_cure(self, num_clips: int) -> str:
        """How a step takes less memory than with so many clips at once."""
        if num_clips == 1:
            return "lower data.frames"
        if self.method.settings.traits.compares_clips:
            return f"{self.config.method.name} compares them: lower data.batch_size or start more ranks"
        return f"raise train.accumulation, it is {self.config.train.accumulation}"

    def _check_loss(self, row: dict[str, Any]) -> None:
        """Raises: ConfigError on all ranks for a loss that is not finite; the log then has the
        step, no state has.

        A gradient alone may be: under fp16 the scaler leaves such a step out."""
        if math.isfinite(row["loss"]):
            return
        if self._log is not None:
            self._log.write(row)
        train = self.config.train
        rates = [
            f"train.{key}={value:g}"
            for key, value in train
            if key.startswith("lr") and value is not None
        ]
        raise ConfigError(
            f"training diverged: the loss of step {row['step']} is {row['loss']}, "
            f"at train.precision={train.precision}; lower {', '.join(rates)}"
            f"{', or set train.precision=bf16,' if train.precision == 'fp16' else ''} and start over with --fresh"
        )

    def _count_failures(self, whole: GlobalBatch, *, epoch: int) -> None:
        """Raises: StorageError at the limit; the log then has the step's clips, though it is not
        done."""
        try:
            self.failure_rule.count(whole.failures)
        except StorageError:
            if self._log is not None:
                self._log.write({"step": self.step + 1, "epoch": epoch, **self._clips_of(whole)})
            self._name_failures()
            raise

    def _name_failures(self) -> None:
        if self._log is not None:
            manifest, reasons = self.split.manifest, self.folder / run_folder.METRICS
            name_failures(
                manifest.info.path,
                self._log.failed,
                num_samples=len(manifest),
                reasons=reasons,
                repeats=True,
            )

    def _clips_of(self, whole: GlobalBatch) -> dict[str, Any]:
        """Which clips a step saw: their number and order, and why some could not be read."""
        keys = self.split.manifest.table["key"].take(pa.array(whole.rows_B)).to_pylist()
        failed = {
            key: why for key, why in zip(keys, whole.failures, strict=True) if why is not None
        }
        return {
            "valid_clips": whole.num_valid,
            "batch": digest_of(keys),
            **({"failed": failed} if failed else {}),
        }

    def _inputs(self, batch: MicroBatch) -> tuple[ClipInputs, Targets]:
        """Normalised frames and targets of a micro-batch, on the device."""
        device, clips, backbone, split = (
            self.world.device,
            batch.clips,
            self.task.backbone,
            self.split,
        )
        seed_dropout(seed=self.config.seed, step=self.step, rank=self.world.rank, micro=batch.micro)
        frames = augment(
            to_unit_range(clips.frames_BVTCHW.to(device)),
            self.config.data.augment,
            seed=self.config.seed,
            epoch=batch.epoch,
            keys=clips.keys,
        )
        frames = standardize(frames, backbone.image_mean, backbone.image_std)
        weights_B = clips.weights_B.to(device)
        features = take_rows(split.sample_features, clips.positions_B, device)
        targets = Targets(
            clips.labels_B.to(device),
            weights_B,
            self.config.train.label_smoothing,
            features,
        )
        return ClipInputs(frames, weights_B, features), targets

    def _build_loader(self, state: StreamState | None) -> TrainLoader:
        data = self.config.data
        settings = StreamSettings(
            batch_size=data.batch_size,
            accumulation=self.config.train.accumulation,
            order=data.order,
            group_shards=data.group_shards,
            seed=self.config.seed,
            epochs=self.config.train.epochs,
            num_workers=data.num_workers,
            max_failures=None,  # counted over all ranks, see `_count_failures`
            reading=data.reading,
        )
        return build_train_loader(
            self.task.pool,
            self.split.manifest,
            self.task.clip,
            settings,
            RankSlice(self.world.rank, self.world.size),
            state,
        )

    def _open_log(self) -> StepLog | None:
        if not self.world.is_main:
            return None
        return StepLog(self.folder, step=self.step, tensorboard=self.config.run.tensorboard)

    def _keep(self, row: dict[str, Any], state: StreamState, *, stops: bool) -> None:
        """Log a step and save the state where one is due; the main rank alone, which notes what
        fails."""
        if self._log is None:
            return
        every = self.config.run.save_every_steps
        try:
            self._log.write(
                row
            )  # before the state: what a kill leaves too much is dropped, see `StepLog`
            if state.position == 0 or stops or (every is not None and self.step % every == 0):
                self._log.flush()
                self._save_state(state)
        except StorageError as error:
            self._write_error = error

    def _save_state(self, state: StreamState) -> None:
        save_state(
            self.folder / run_folder.STATE,
            {
                "step": self.step,
                "stream": state.model_dump(),
                "failures_in_a_row": self.failure_rule.in_a_row,
                "inputs": self._inputs_of_run(),
                "trained": self.method.trained_state(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def _inputs_of_run(self) -> dict[str, str]:
        """Hashes of what a run reads beside its pool, and what a config names by its place
        alone."""
        found = {"model.pretrained": self.task.backbone.weights_sha256}
        found |= {f"text.{key}": value for key, value in self.task.text_files.items()}
        if self.config.method.traits.depends_on_batch:
            found["number of ranks"] = str(self.world.size)
        return found

    def _resume(self) -> StreamState | None:
        """Take up state.pt where there is one."""
        path = self.folder / run_folder.STATE
        if not path.exists():
            return None
        saved = load_state(path)
        try:
            changed = [
                key
                for key, value in self._inputs_of_run().items()
                if saved["inputs"].get(key) != value
            ]
            if changed:
                raise FormatError(
                    f"{path}: was written with another {', '.join(changed)}; put back what was there, or start over "
                    "with --fresh"
                )
            stream = StreamState.model_validate(saved["stream"])
            with torch.no_grad():
                for name, value in saved["trained"].items():
                    self.method.get_parameter(name).copy_(value)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            self.step, self.failure_rule.in_a_row = (
                int(saved["step"]),
                int(saved["failures_in_a_row"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = " ".join(str(error).split())[:120]
            raise FormatError(
                f"{path}: is not a state of this run ({what}); start over with --fresh"
            ) from None
        manifest, data = self.split.manifest, self.config.data
        order = make_order(
            manifest.table["shard"],
            data.order,
            seed=self.config.seed,
            group_shards=data.group_shards,
        )
        stream.check(manifest, order)
        return stream


def steps_of(
    epoch: Iterable[MicroBatch], accumulation: int
) -> Iterator[tuple[list[MicroBatch], float]]:
    """(micro-batches of a step, seconds that they were waited for); never asks for more before they
    are used."""
    stream = iter(epoch)
    while True:
        started = time.perf_counter()
        batches = list(islice(stream, accumulation))
        if not batches:
            return
        yield batches, time.perf_counter() - started


def _note(row: dict[str, Any]) -> str:
    """What a progress line says of a step."""
    speed = f", {row['mb_per_second']:.0f} MB/s" if "mb_per_second" in row else ""
    return f"loss {row['loss']:.4f}, waited {row['wait_seconds']:.2f} s{speed}"
