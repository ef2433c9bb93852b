"""Batches of clips for training and evaluation.

The stages of `shards.stream.pipeline` run in loader processes or in the calling process. A loader
process makes whole micro-batches and passes them on as uint8 in shared memory, so that the training
process does no work per sample. The batches are the same for any number of loader processes.
`bmpt bench loader` measures the cost per clip.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from math import ceil
from typing import Any

from shards.errors import ConfigError
from shards.fetching.frames import ReadSettings, make_reader
from shards.reader import Manifest, Pool, require_samples
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import Order, make_order
from shards.sampling.plan import (
    ONE_RANK,
    RankSlice,
    check_batch,
    eval_blocks,
    eval_plan,
    num_steps,
    train_plan,
)
from shards.storage.local import LocalStore
from shards.stream.batch_buffers import BatchBuffers
from shards.stream.batches import ClipBatch, MicroBatch
from shards.stream.failures import failure_limit, stop_at_failures
from shards.stream.pipeline import PlanStage, StreamState, make_pipeline
from shards.stream.settings import BlockSettings, StreamSettings
from shards.stream.shared_memory import share_manifest

_PREFETCHED = 2  # batches that a loader process makes ahead of time


class TrainLoader:
    """The training stream of one rank; made by `build_train_loader`.

    Each `iter()` yields one epoch, the first one from the state that the loader was built with. An
    interrupted epoch continues at the next `iter()`. The loader processes live as long as the
    loader and read ahead beyond the end of an epoch.
    """

    fingerprint: str
    """Fingerprint of the manifest."""

    num_steps: int
    """Optimiser steps of a whole epoch."""

    def __init__(
        self,
        batches: Iterator[MicroBatch],
        *,
        num_samples: int,
        batch_size: int,
        accumulation: int,
        state: StreamState,
    ) -> None:
        self.fingerprint = state.fingerprint
        self.num_steps = num_steps(num_samples, batch_size)
        self._batches = batches
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._has_started = False
        self._start_epoch(state)

    @property
    def epoch(self) -> int:
        """The running epoch, from 0."""
        return self._start.epoch

    @property
    def first_step(self) -> int:
        """The step that the running epoch started at; 0 unless it was resumed from a state."""
        return self._start.position // self._batch_size

    def state(self, step: int) -> StreamState:
        """Return the state to save after `step` steps of the running epoch.

        After the last step it is the start of the next epoch.
        """
        if step >= self._end_step:
            return self._start.model_copy(update={"epoch": self.epoch + 1, "position": 0})

        done = (step - self.first_step) * self._batch_size
        return self._start.model_copy(update={"position": self._start.position + done})

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._num_left == 0 and self._has_started:
            self._start_epoch(self.state(self._end_step))
        self._has_started = True

        for batch in islice(self._batches, self._num_left):
            self._num_left -= 1
            yield batch

    def _start_epoch(self, start: StreamState) -> None:
        self._start = start
        steps_left = num_steps(self._num_samples - start.position, self._batch_size)
        self._end_step = self.first_step + steps_left
        self._num_left = steps_left * self._accumulation


class EvalLoader:
    """The blocks of one rank in manifest order; made by `build_eval_loader`.

    Each `iter()` yields all of them.
    """

    num_blocks: int
    """Blocks of this rank."""

    def __init__(
        self, batches: Iterable[MicroBatch], *, num_blocks: int, max_failures: int | None
    ) -> None:
        self.num_blocks = num_blocks
        self._batches = batches
        self._max_failures = max_failures

    def __len__(self) -> int:
        return self.num_blocks

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in stop_at_failures(iter(self._batches), self._max_failures):
            yield batch.clips


def build_train_loader(
    pool: Pool,
    manifest: Manifest,
    clip: ClipSettings,
    settings: StreamSettings,
    rank_slice: RankSlice = ONE_RANK,
    state: StreamState | None = None,
) -> TrainLoader:
    """Stream the training clips of one rank, from `state` or from the start.

    Loader processes inherit the environment that this process had when it started its first one.

    Raises:
        ConfigError: for an empty manifest, or a batch that samples and ranks cannot share.
        FormatError: for a state of another stream.
        StorageError: while iterating, after `max_failures` unreadable samples in a row.
    """
    require_samples(manifest)
    batch_size, accumulation = settings.batch_size, settings.accumulation
    check_batch(
        len(manifest),
        batch_size=batch_size,
        accumulation=accumulation,
        world_size=rank_slice.world_size,
    )

    order = _order_of(manifest, settings)
    state = state or StreamState(
        fingerprint=manifest.info.fingerprint, order=order.name, seed=settings.seed
    )
    # Before anything is read: a state of another stream would continue at a wrong sample.
    state.check(manifest, order)

    plan = partial(
        train_plan,
        order,
        epoch=state.epoch,
        position=state.position,
        batch_size=batch_size,
        accumulation=accumulation,
        epochs=settings.epochs,
    )
    batches = _BatchSource(
        PlanStage(_shared(manifest, settings.num_workers), clip, plan, rank_slice, settings.seed),
        pool,
        settings.reading,
        # Only a grouped order reads its shards in groups, which a small cache can hold for a while.
        group_shards=settings.group_shards if settings.order == "grouped" else None,
        num_workers=settings.num_workers,
        # Slices of ranks and micro-batches differ by at most one clip; a slot fits the largest.
        max_clips=ceil(ceil(batch_size / rank_slice.world_size) / accumulation),
        # A whole step, and the step before it while this one is collected.
        batches_held=2 * accumulation,
    )
    # This rank reads its part of an epoch only, and would not reach a larger limit.
    limit = failure_limit(settings.max_failures, len(manifest) // rank_slice.world_size)

    return TrainLoader(
        stop_at_failures(iter(batches), limit),
        num_samples=len(manifest),
        batch_size=batch_size,
        accumulation=accumulation,
        state=state,
    )


def _order_of(manifest: Manifest, settings: StreamSettings) -> Order:
    return make_order(
        manifest.table["shard"],
        settings.order,
        seed=settings.seed,
        group_shards=settings.group_shards,
    )


def build_eval_loader(
    pool: Pool,
    manifest: Manifest,
    clip: ClipSettings,
    settings: BlockSettings,
    rank_slice: RankSlice = ONE_RANK,
) -> EvalLoader:
    """Stream the evaluation blocks of one rank.

    Over all ranks every sample comes exactly once; the last block may be short.

    Raises:
        ConfigError: for an empty manifest.
        StorageError: while iterating, after `max_failures` unreadable samples in a row.
    """
    require_samples(manifest)
    num_samples, block_size = len(manifest), settings.block_size
    plan = partial(eval_plan, num_samples, block_size=block_size)
    batches = _BatchSource(
        PlanStage(_shared(manifest, settings.num_workers), clip, plan, rank_slice, seed=None),
        pool,
        settings.reading,
        num_workers=settings.num_workers,
        max_clips=min(block_size, num_samples),
        batches_held=2,
    )
    blocks = eval_blocks(num_samples, block_size, rank_slice.rank, rank_slice.world_size)

    return EvalLoader(
        batches,
        num_blocks=len(blocks),
        max_failures=failure_limit(settings.max_failures, num_samples // rank_slice.world_size),
    )


class _BatchSource:
    """Micro-batches of the stages, unpacked in this process; iterable any number of times."""

    def __init__(
        self,
        plan: PlanStage,
        pool: Pool,
        reading: ReadSettings,
        *,
        group_shards: int | None = None,
        num_workers: int,
        max_clips: int,
        batches_held: int,
    ) -> None:
        # The calling process is the producer where there are no loader processes.
        producers = max(1, num_workers)
        self._clip = plan.clip
        self._buffers = BatchBuffers(
            producers=producers,
            slots=_PREFETCHED + ceil(batches_held / producers),
            batch_bytes=max_clips * plan.clip.clip_bytes,
        )

        # A folder has no latency to hide: its samples are read one after the other.
        in_flight = 0 if isinstance(pool.store, LocalStore) else reading.requests_in_flight
        reader = make_reader(pool.store, plan.manifest, reading, group_shards=group_shards)
        pipeline = make_pipeline(plan, reader, self._buffers, in_flight=in_flight)
        self._packed_batches = _in_processes(pipeline, num_workers)
        self._iteration = 0

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the batches of one iteration.

        Raises:
            ConfigError: if a later iteration has started, since loader processes serve one at a
                time.
        """
        self._iteration += 1
        this_iteration = self._iteration
        self._buffers.start_generation()

        packed_batches = iter(self._packed_batches)
        while True:
            if self._iteration != this_iteration:
                raise ConfigError(
                    "this loader is being read a second time; build one loader for each reader"
                )
            packed = next(packed_batches, None)
            if packed is None:
                return
            yield packed.unpack(self._clip, self._buffers)


def _shared(manifest: Manifest, num_workers: int) -> Manifest:
    # Without shared memory, every loader process would have a copy of the rows.
    return share_manifest(manifest) if num_workers else manifest


def _in_processes(pipeline: Any, num_workers: int) -> Any:
    """Run a pipeline in loader processes.

    Process w yields the items w, w + num_workers, ... of the joint stream.
    """
    if num_workers == 0:
        return pipeline

    import multiprocessing

    import torch
    from torch.utils.data import DataLoader

    # Not fork: the threads of the object store and CUDA do not survive it. The fork server imports
    # torch once for all loader processes.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "shards.stream.pipeline"])

    return DataLoader(
        pipeline,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=_ignore_interrupts,
        prefetch_factor=_PREFETCHED,
        # Without a generator of its own, DataLoader draws from the global one, whose numbers would
        # then depend on whether there are loader processes.
        generator=torch.Generator(),
        persistent_workers=True,
    )


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the training process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
