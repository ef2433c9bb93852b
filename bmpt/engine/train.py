"""The training loop. An optimiser step is `data.batch_size` clips, however they are spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa

from bmpt.augment import augment
from bmpt.checkpoints.checkpoint import CheckpointInfo, save_checkpoint
from bmpt.clip.normalize import standardize, to_unit_range
from bmpt.engine.global_batch import GlobalBatch, digest_of, share_batch
from bmpt.engine.optim import lr_fraction, set_lr
from bmpt.engine.run_log import RunLog
from bmpt.engine.step import (
    ClipsAndTargets,
    StepGradient,
    class_encoder,
    draw_sentences,
    seed_dropout,
)
from bmpt.engine.step_log import StepClips, StepRow
from bmpt.engine.train_state import TrainState
from bmpt.methods.base import ClipInputs, Targets
from bmpt.runtime import run_folder
from bmpt.runtime.distributed import (
    explain_out_of_memory,
    raise_main_errors_everywhere,
    sum_over_ranks,
)
from bmpt.sample_features import take_rows
from bmpt.task import Task
from shards.errors import ConfigError, StorageError
from shards.loader import TrainLoader, build_train_loader
from shards.progress import NullProgress, Progress
from shards.sampling.plan import RankSlice
from shards.stream.batches import MicroBatch
from shards.stream.failures import failure_limit
from shards.stream.pipeline import StreamState
from shards.stream.settings import StreamSettings


class Trainer:
    """The loop of one run on one rank."""

    state: TrainState
    """The tensors and counts that change with a step."""

    num_steps: int
    """Optimiser steps of the whole run."""

    def __init__(self, task: Task, folder: Path) -> None:
        """Prepare a run, and continue from state.pt if the folder has one.

        Args:
            task: A task that was opened for training.
            folder: The run folder.

        Raises:
            FormatError: state.pt belongs to another run.
        """
        if task.train_split is None:
            raise ValueError("the task was opened without a training split")
        self._task, self._folder = task, folder
        self._config, self._world = task.config, task.world
        self._method, self._split = task.method, task.train_split

        self.state = TrainState(task, self._split)
        stream = self.state.load(folder / run_folder.STATE)
        # The loader starts reading at once, from the position of the saved state.
        self._loader = self._build_loader(stream)
        steps_per_epoch = self._loader.num_steps
        self.num_steps = steps_per_epoch * self._config.train.epochs
        self._warmup_steps = round(steps_per_epoch * self._config.train.warmup_epochs)
        self.state.failure_rule.limit = failure_limit(
            self._config.data.max_failures, steps_per_epoch * self._config.data.batch_size
        )
        self._gradient = StepGradient(
            self._method,
            self._split.texts,
            self._world,
            classes=class_encoder(self._method, self._split.texts, self._world),
            autocast=task.autocast,
            scaler=self.state.scaler,
        )

    # --- the loop --------------------------------------------------------------------------------

    def run(
        self,
        progress: Progress = NullProgress(),
        *,
        wants_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end.

        Args:
            progress: Shows the steps.
            wants_stop: Asked in every step; if it is true on some rank, the run stops after it.

        Returns:
            Whether the run reached its end; if not, the state is saved.

        Raises:
            StorageError: On all ranks at the same step: `data.max_failures` samples in a row could
                not be read, or the main rank cannot write.
            ConfigError: On all ranks at the same step: the loss is not finite. On one rank: its GPU
                has too little memory.
        """
        with raise_main_errors_everywhere(self._world):
            # opened here and not in __init__: it drops lines of steps that this run repeats
            self._log = RunLog(
                self._folder,
                self._split.manifest,
                self._world,
                step=self.state.step,
                tensorboard=self._config.run.tensorboard,
            )
        with closing(self._log):
            stops = False
            while self.state.step < self.num_steps and not stops:
                stops = self._train_epoch(progress, wants_stop)
            with raise_main_errors_everywhere(self._world):
                self._log.finish()
            if not stops:
                self._log.name_failures()
        return not stops

    def _train_epoch(self, progress: Progress, wants_stop: Callable[[], bool]) -> bool:
        """Train to the end of the epoch; return whether some rank wants to stop before it."""
        for batches, wait_seconds in steps_of(self._loader, self._config.train.accumulation):
            row, stops = self._train_step(batches, wait_seconds, wants_stop)
            # A state of diverged weights must not be saved.
            self._check_loss(row)
            stream = self._loader.state(batches[0].step + 1)
            self._log.keep(row, self._save_if_due(stream, stops=stops))
            progress.update("train", self.state.step, self.num_steps, row.note())
            if stops:
                return True
        return False

    def _save_if_due(self, stream: StreamState, *, stops: bool) -> Callable[[], None] | None:
        """Return a function that saves the state, or None for a step that saves none."""
        every = self._config.run.save_every_steps
        is_epoch_end = stream.position == 0
        is_due = every is not None and self.state.step % every == 0
        if not (is_epoch_end or is_due or stops):
            return None
        return partial(self.state.save, self._folder / run_folder.STATE, stream)

    def save_checkpoint(self) -> CheckpointInfo | None:
        """Write the trained tensors on the main rank; None on the other ranks.

        Raises:
            StorageError: The file cannot be written.
        """
        if not self._world.is_main:
            return None
        info = self._split.manifest.info
        return save_checkpoint(
            self._folder / run_folder.CHECKPOINT,
            self._method,
            self._task.backbone,
            self._config,
            step=self.state.step,
            provenance={
                "classes": info.classes,
                "pool_id": info.pool_id,
                "manifest": info.path,
                "fingerprint": info.fingerprint,
                "text_files": dict(self._task.text_files),
            },
        )

    # --- a step ----------------------------------------------------------------------------------

    def _train_step(
        self, batches: list[MicroBatch], wait_seconds: float, wants_stop: Callable[[], bool]
    ) -> tuple[StepRow, bool]:
        """Do one optimiser step; return its row of the log, and whether some rank wants to stop.

        The loss is a sum over the valid clips of the global batch divided by their number: it does
        not depend on how the clips are spread.
        """
        started = time.perf_counter()
        epoch = batches[0].epoch

        whole = self._share_batch(batches, wait_seconds)
        clips = self._count_failures(whole, epoch)
        fraction = self._set_rate()
        loss_here = self._accumulate(batches, whole.num_valid)
        self._apply(batches, whole.num_valid)

        # One exchange for both: each costs a round trip per step.
        loss, stops = sum_over_ranks(
            [loss_here / self._world.size, float(wants_stop())], self._world
        )
        seconds = time.perf_counter() - started
        scaler = self.state.scaler
        row = StepRow(
            step=self.state.step,
            epoch=epoch,
            loss=loss,
            lr=self._config.train.lr * fraction,
            loss_scale=scaler.get_scale() if scaler.is_enabled() else None,
            clips=clips,
            seconds=seconds,
            reading=whole.reading_row(wait_seconds + seconds),
        )
        return row, stops > 0

    def _share_batch(self, batches: list[MicroBatch], wait_seconds: float) -> GlobalBatch:
        """Join the clips of all ranks; raise a write error of an earlier step on all of them."""
        whole = share_batch(
            batches,
            wait_seconds,
            batch_size=self._config.data.batch_size,
            world=self._world,
            write_failed=self._log.has_failed,
        )
        if whole.write_failed:
            self._log.raise_on_all_ranks()
        return whole

    def _count_failures(self, whole: GlobalBatch, epoch: int) -> StepClips:
        """Return the clips of the step; raise StorageError at the limit of failures in a row.

        The log then has the clips, though the step is not done.
        """
        keys = self._split.manifest.table["key"].take(pa.array(whole.rows_B)).to_pylist()
        failed = {
            key: why for key, why in zip(keys, whole.failures, strict=True) if why is not None
        }
        clips = StepClips(whole.num_valid, digest_of(keys), failed)
        try:
            self.state.failure_rule.count(whole.failures)
        except StorageError:
            self._log.write_clips(self.state.step + 1, epoch, clips)
            self._log.name_failures()
            raise
        return clips

    def _set_rate(self) -> float:
        """Set the rates of the step and return them as a fraction of the base rates."""
        fraction = lr_fraction(
            self.state.step, num_steps=self.num_steps, warmup_steps=self._warmup_steps
        )
        set_lr(self.state.optimizer, fraction)
        return fraction

    def _accumulate(self, batches: list[MicroBatch], num_valid: int) -> float:
        """Compute the gradient of the step and return the loss of this rank."""
        self._method.train()
        # A function of seed and step: all ranks, and a resumed run, read the same sentences.
        sentence_K = draw_sentences(
            self._split.texts, seed=self._config.seed, step=self.state.step
        ).to(self._world.device)
        num_clips = _largest(batches)
        with explain_out_of_memory(num_clips, self._memory_hint(num_clips)):
            return self._gradient.accumulate(
                # made one at a time, so that one micro-batch of floats is in memory
                (self._inputs(batch) for batch in batches),
                num_batches=len(batches),
                sentence_K=sentence_K,
                loss_scale=self._world.size / max(1, num_valid),
            )

    def _apply(self, batches: list[MicroBatch], num_valid: int) -> None:
        """Step the optimiser, unless no clip of the step could be read."""
        # Without a valid clip the gradient is zero, and AdamW's momentum would still move weights.
        if num_valid > 0:
            hint = "AdamW keeps two values per weight: tune less (method.tune)"
            with explain_out_of_memory(_largest(batches), hint):
                self.state.scaler.step(self.state.optimizer)
            self.state.scaler.update()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1

    def _inputs(self, batch: MicroBatch) -> ClipsAndTargets:
        """Return the clips and targets of a micro-batch on the device."""
        device, clips, backbone = self._world.device, batch.clips, self._task.backbone
        seed_dropout(
            seed=self._config.seed,
            step=self.state.step,
            rank=self._world.rank,
            micro=batch.micro,
        )
        # uint8 travels to the device, a quarter of the bytes of floats.
        frames = augment(
            to_unit_range(clips.frames_BVTCHW.to(device)),
            self._config.data.augment,
            seed=self._config.seed,
            epoch=batch.epoch,
            keys=clips.keys,
        )
        frames = standardize(frames, backbone.image_mean, backbone.image_std)

        weights_B = clips.weights_B.to(device)
        features = take_rows(self._split.sample_features, clips.positions_B, device)
        targets = Targets(
            clips.labels_B.to(device), weights_B, self._config.train.label_smoothing, features
        )
        return ClipInputs(frames, weights_B, features), targets

    # --- errors ----------------------------------------------------------------------------------

    def _memory_hint(self, num_clips: int) -> str:
        """Return how a step of this many clips at once takes less memory."""
        if num_clips == 1:
            return "lower data.frames"
        if self._method.traits.compares_clips:
            name = self._config.method.name
            return f"{name} compares them: lower data.batch_size or start more ranks"
        return f"raise train.accumulation, it is {self._config.train.accumulation}"

    def _check_loss(self, row: StepRow) -> None:
        """Raise ConfigError on all ranks for a loss that is not finite.

        The log then has the step, but no state has it. A gradient that is not finite is no error:
        under fp16 the scaler skips such a step.
        """
        if math.isfinite(row.loss):
            return
        self._log.write(row)
        train = self._config.train
        rates = []
        for key, value in train:
            if key.startswith("lr") and value is not None:
                rates.append(f"train.{key}={value:g}")
        or_bf16 = ", or set train.precision=bf16," if train.precision == "fp16" else ""
        raise ConfigError(
            f"training diverged: the loss of step {row.step} is {row.loss}, at "
            f"train.precision={train.precision}; lower {', '.join(rates)}{or_bf16} and start over "
            "with --fresh"
        )

    # --- the stream ------------------------------------------------------------------------------

    def _build_loader(self, state: StreamState | None) -> TrainLoader:
        data = self._config.data
        settings = StreamSettings(
            batch_size=data.batch_size,
            accumulation=self._config.train.accumulation,
            order=data.order,
            group_shards=data.group_shards,
            seed=self._config.seed,
            epochs=self._config.train.epochs,
            num_workers=data.num_workers,
            max_failures=None,  # counted over all ranks, see `_count_failures`
            reading=data.reading,
        )
        return build_train_loader(
            self._task.pool,
            self._split.manifest,
            self._task.clip_settings,
            settings,
            RankSlice(self._world.rank, self._world.size),
            state,
        )


def steps_of(
    epoch: Iterable[MicroBatch], accumulation: int
) -> Iterator[tuple[list[MicroBatch], float]]:
    """Yield the micro-batches of each step, and the seconds that they were waited for.

    Batches are asked for only when the ones before have been used.
    """
    stream = iter(epoch)
    while True:
        started = time.perf_counter()
        batches = list(islice(stream, accumulation))
        if not batches:
            return
        yield batches, time.perf_counter() - started


def _largest(batches: list[MicroBatch]) -> int:
    """Return the number of clips of the largest micro-batch."""
    return max(len(batch.clips.labels_B) for batch in batches)
