"""Batches of clips for training and evaluation, from the stages of `stream.py`, in loader processes
or in this one.

A loader worker makes whole micro-batches and hands them over as uint8 in shared memory; this
process does no work a sample. The batches are the same for any number of workers. `bmpt bench
loader` says what a clip costs."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from math import ceil
from typing import Any

from shards.errors import ConfigError
from shards.fetching.frames import ReadSettings, make_reader
from shards.reader import Manifest, Pool
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import OrderKind, make_order
from shards.sampling.plan import check_batch, eval_blocks, eval_plan, num_steps, train_plan
from shards.storage.open import LocalStore
from shards.stream.batch_buffers import BatchBuffers
from shards.stream.batches import ClipBatch, MicroBatch
from shards.stream.failures import MAX_FAILURES_IN_A_ROW, failure_limit, stop_at_failures
from shards.stream.pipeline import PlanStage, StreamState, make_pipeline
from shards.stream.shared_memory import share_manifest

GROUP_SHARDS = 16
_PREFETCHED = 2  # batches that a loader worker is ahead


class TrainLoader:
    """The training stream of one rank; made by `build_train_loader`.

    Each `iter()` gives one epoch, the first one from the state it was built with. The workers live
    as long as the loader and read ahead over the end of an epoch. An epoch that is broken off goes
    on at the next `iter()`.

    fingerprint: of the manifest
    num_steps: optimiser steps of a whole epoch
    epoch: the one that is running"""

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
        self._begun = False
        self._begin(state)

    @property
    def epoch(self) -> int:
        return self._start.epoch

    @property
    def first_step(self) -> int:
        """The step of the epoch that this loader started with; 0 unless it goes on from a state."""
        return self._start.position // self._batch_size

    def state(self, step: int) -> StreamState:
        """The state to save when `step` steps of the running epoch are done; after the last one,
        the next epoch's."""
        if step >= self._end_step:
            return self._start.model_copy(update={"epoch": self.epoch + 1, "position": 0})
        done = (step - self.first_step) * self._batch_size
        return self._start.model_copy(update={"position": self._start.position + done})

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._left == 0 and self._begun:
            self._begin(self.state(self._end_step))
        self._begun = True
        for batch in islice(self._batches, self._left):
            self._left -= 1
            yield batch

    def _begin(self, start: StreamState) -> None:
        self._start = start
        self._end_step = self.first_step + num_steps(
            self._num_samples - start.position, self._batch_size
        )
        self._left = (self._end_step - self.first_step) * self._accumulation


class EvalLoader:
    """The fixed blocks of one rank, in manifest order; made by `build_eval_loader`. Each `iter()`
    gives all of them.

    num_blocks: of this rank"""

    def __init__(
        self, source: Iterable[MicroBatch], *, num_blocks: int, max_failures_in_a_row: int | None
    ) -> None:
        self.num_blocks = num_blocks
        self._source = source
        self._max_failures_in_a_row = max_failures_in_a_row

    def __len__(self) -> int:
        return self.num_blocks

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in stop_at_failures(iter(self._source), self._max_failures_in_a_row):
            yield batch.clips


def build_train_loader(
    pool: Pool,
    manifest: Manifest,
    clip: ClipSettings,
    *,
    batch_size: int,
    accumulation: int,
    num_workers: int,
    seed: int,
    epochs: int | None = None,
    order: OrderKind = "global",
    group_shards: int = GROUP_SHARDS,
    state: StreamState | None = None,
    rank: int = 0,
    world_size: int = 1,
    reading: ReadSettings | None = None,
    max_failures_in_a_row: int | None = MAX_FAILURES_IN_A_ROW,
) -> TrainLoader:
    """Stream the training clips of one rank, from `state` or from the start.

    Args: batch_size: clips of one optimiser step over all ranks and micro-batches; num_workers:
        processes, 0 for none,
    with the environment of when this process started its first; epochs: of the run, so that nothing
    is read ahead over its end, None for no end;
    order, group_shards: see `shards.sampling.orders`; reading: of pools in object storage;
        max_failures_in_a_row: of this rank,
    None where the caller counts over all ranks.
    Raises: ConfigError for an empty manifest or a batch that does not fit, FormatError for a state
        of another
    stream; while it runs, StorageError after `max_failures_in_a_row` samples that cannot be
    read."""
    _require_samples(manifest)
    check_batch(
        len(manifest), batch_size=batch_size, accumulation=accumulation, world_size=world_size
    )
    ordered = make_order(manifest.table["shard"], order, seed=seed, group_shards=group_shards)
    if state is None:
        state = StreamState(fingerprint=manifest.info.fingerprint, order=ordered.name, seed=seed)
    state.check(manifest, ordered)
    plan = partial(
        train_plan,
        ordered,
        epoch=state.epoch,
        position=state.position,
        batch_size=batch_size,
        accumulation=accumulation,
        epochs=epochs,
    )
    micro_clips = ceil(ceil(batch_size / world_size) / accumulation)
    source = _Source(
        PlanStage(_shared(manifest, num_workers), clip, plan, rank, world_size, seed),
        pool,
        reading or ReadSettings(),
        group_shards=group_shards if order == "grouped" else None,
        num_workers=num_workers,
        max_clips=micro_clips,
        batches_held=2 * accumulation,  # a step, and the one before it while this one is collected
    )
    batches = iter(source)
    return TrainLoader(
        stop_at_failures(batches, failure_limit(max_failures_in_a_row, manifest, world_size)),
        num_samples=len(manifest),
        batch_size=batch_size,
        accumulation=accumulation,
        state=state,
    )


def build_eval_loader(
    pool: Pool,
    manifest: Manifest,
    clip: ClipSettings,
    *,
    block_size: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    reading: ReadSettings | None = None,
    max_failures_in_a_row: int | None = MAX_FAILURES_IN_A_ROW,
) -> EvalLoader:
    """Stream the evaluation blocks of one rank: over all ranks each sample once, the last block
    short.

    Raises: ConfigError for an empty manifest; while it runs, StorageError as in training."""
    _require_samples(manifest)
    plan = partial(eval_plan, len(manifest), block_size=block_size)
    source = _Source(
        PlanStage(_shared(manifest, num_workers), clip, plan, rank, world_size, seed=None),
        pool,
        reading or ReadSettings(),
        num_workers=num_workers,
        max_clips=min(block_size, len(manifest)),
        batches_held=2,
    )
    return EvalLoader(
        source,
        num_blocks=len(eval_blocks(len(manifest), block_size, rank, world_size)),
        max_failures_in_a_row=failure_limit(max_failures_in_a_row, manifest, world_size),
    )


class _Source:
    """The stages in loader processes or in this one, and their batches unpacked here; iterable
    again and again."""

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
        producers = max(1, num_workers)
        self._clip = plan.clip
        self._buffers = BatchBuffers(
            producers=producers,
            places=_PREFETCHED + ceil(batches_held / producers),
            batch_bytes=max_clips * plan.clip.clip_bytes,
        )
        in_flight = 0 if isinstance(pool.store, LocalStore) else reading.requests_in_flight
        reader = make_reader(pool.store, plan.manifest, reading, group_shards=group_shards)
        self._packed = _in_processes(
            make_pipeline(plan, reader, self._buffers, in_flight=in_flight), num_workers
        )
        self._round = 0

    def __iter__(self) -> Iterator[MicroBatch]:
        """Raises: ConfigError in an iteration that goes on after a later one has begun: workers
        serve one at a time."""
        self._round += 1
        this_round = self._round
        self._buffers.begin_round()  # what an iteration that was broken off has packed is nobody's
        packed = iter(self._packed)
        while True:
            if self._round != this_round:
                raise ConfigError(
                    "this loader is being read a second time; build one loader for each reader"
                )
            batch = next(packed, None)
            if batch is None:
                return
            yield batch.unpack(self._clip, self._buffers)


def _shared(manifest: Manifest, num_workers: int) -> Manifest:
    return share_manifest(manifest) if num_workers else manifest


def _require_samples(manifest: Manifest) -> None:
    if len(manifest):
        return
    info = manifest.info
    raise ConfigError(
        f"{info.path}: has no sample to read (expected {info.expected}, found {info.found}, missing {info.missing}; "
        f"from {info.source}); build the pool with these videos, or choose another manifest or data.verdicts"
    )


def _in_processes(pipeline: Any, num_workers: int) -> Any:
    """Run a pipeline in worker processes; worker w gives items w, w + num_workers, ... of the joint
    stream."""
    if num_workers == 0:
        return pipeline
    import multiprocessing

    import torch
    from torch.utils.data import DataLoader

    # Not fork: the object store's runtime and CUDA do not survive it. The server imports torch once
    # for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "shards.stream.pipeline"])
    return DataLoader(
        pipeline,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=_leave_interrupts_to_the_coordinator,
        prefetch_factor=_PREFETCHED,
        # its own, so that the global one is the same for any number of workers
        generator=torch.Generator(),
        persistent_workers=True,
    )


def _leave_interrupts_to_the_coordinator(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the coordinator ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
