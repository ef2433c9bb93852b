"""Batches of clips for training and evaluation, from the stages of `stream.py`, in loader processes or in this one.

A loader worker makes whole micro-batches and hands them over as uint8 in shared memory; this process does no
work a sample. The batches are the same for any number of workers.

A training clip of 8 frames, 256x340 to 224 px, takes 4.0 ms of a core in this process and 4.5 ms in a worker (the
pages of new shared memory), where decoding, cutting and resizing alone take 3.0 ms (2-core virtual machine)."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ConfigError, StorageError
from shards.fetch import ReadSettings, make_reader
from shards.orders import OrderKind, make_order
from shards.plan import check_batch, eval_blocks, eval_plan, num_steps, train_plan
from shards.reader import Manifest, Pool
from shards.schema import STORED_VERDICTS, fingerprint
from shards.storage import LocalStore
from shards.stream import ClipBatch, ClipSettings, MicroBatch, PlanStage, StreamState, make_pipeline

MAX_FAILURES_IN_A_ROW = 32
GROUP_SHARDS = 16

__all__ = [
    "ClipBatch",
    "ClipSettings",
    "EvalLoader",
    "MicroBatch",
    "ReadSettings",
    "StreamState",
    "TrainLoader",
    "build_eval_loader",
    "build_train_loader",
    "select",
]


class TrainLoader:
    """The training stream of one rank; made by `build_train_loader`.

    Each `iter()` gives one epoch, the first one from the state it was built with. The workers live as long as
    the loader and read ahead over the end of an epoch. An epoch that is broken off goes on at the next `iter()`.

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
        """The state to save when `step` steps of the running epoch are done; after the last one, the next epoch's."""
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
        self._end_step = self.first_step + num_steps(self._num_samples - start.position, self._batch_size)
        self._left = (self._end_step - self.first_step) * self._accumulation


class EvalLoader:
    """The fixed blocks of one rank, in manifest order; made by `build_eval_loader`. Each `iter()` gives all of them.

    num_blocks: of this rank"""

    def __init__(self, source: Any, *, num_blocks: int, max_failures_in_a_row: int) -> None:
        self.num_blocks = num_blocks
        self._source = source
        self._max_failures_in_a_row = max_failures_in_a_row

    def __len__(self) -> int:
        return self.num_blocks

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in _stop_at_failures(iter(self._source), self._max_failures_in_a_row):
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
    order: OrderKind = "global",
    group_shards: int = GROUP_SHARDS,
    state: StreamState | None = None,
    rank: int = 0,
    world_size: int = 1,
    reading: ReadSettings | None = None,
    max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
) -> TrainLoader:
    """Stream the training clips of one rank, from `state` or from the start.

    Args: batch_size: clips of one optimiser step over all ranks and micro-batches; num_workers: processes, 0 for none;
    order, group_shards: see `shards.orders`; reading: of pools in object storage.
    Raises: ConfigError for an empty manifest or a batch that does not fit, FormatError for a state of another
    stream; while it runs, StorageError after `max_failures_in_a_row` samples that cannot be read."""
    _require_samples(manifest)
    check_batch(len(manifest), batch_size=batch_size, accumulation=accumulation, world_size=world_size)
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
    )
    stage = PlanStage(manifest, clip, plan, rank, world_size, seed)
    batches = iter(_in_processes(_pipeline(stage, pool, reading), num_workers))
    return TrainLoader(
        _stop_at_failures(batches, _limit(max_failures_in_a_row, manifest, world_size)),
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
    max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
) -> EvalLoader:
    """Stream the evaluation blocks of one rank: over all ranks each sample once, the last block short.

    Raises: ConfigError for an empty manifest; while it runs, StorageError as in training."""
    _require_samples(manifest)
    plan = partial(eval_plan, len(manifest), block_size=block_size)
    stage = PlanStage(manifest, clip, plan, rank, world_size, seed=None)
    return EvalLoader(
        _in_processes(_pipeline(stage, pool, reading), num_workers),
        num_blocks=len(eval_blocks(len(manifest), block_size, rank, world_size)),
        max_failures_in_a_row=_limit(max_failures_in_a_row, manifest, world_size),
    )


def select(manifest: Manifest, verdicts: Sequence[str]) -> Manifest:
    """Keep the rows with one of these verdicts (`data.verdicts`); the fingerprint is that of the rows that stay.

    Raises: ConfigError for a verdict that no stored sample can have."""
    for verdict in verdicts:
        if verdict not in STORED_VERDICTS:
            raise ConfigError(f"data.verdicts: {verdict!r} is not one of {', '.join(STORED_VERDICTS)}")
    table = manifest.table.filter(pc.is_in(manifest.table["verdict"], value_set=pa.array(list(verdicts), pa.string())))
    rows = zip(*(table[name].to_pylist() for name in ("key", "label", "sha256")), strict=True)
    identity = fingerprint(manifest.info.path, manifest.info.classes, rows)
    return Manifest(manifest.info.model_copy(update={"fingerprint": identity}), table)


def _pipeline(stage: PlanStage, pool: Pool, reading: ReadSettings | None) -> Any:
    reading = reading or ReadSettings()
    in_flight = 0 if isinstance(pool.store, LocalStore) else reading.requests_in_flight
    return make_pipeline(stage, make_reader(pool.store, stage.manifest, reading), in_flight=in_flight)


def _require_samples(manifest: Manifest) -> None:
    if len(manifest):
        return
    info = manifest.info
    raise ConfigError(
        f"{info.path}: has no sample to read (expected {info.expected}, found {info.found}, missing {info.missing}; "
        f"from {info.source}); build the pool with these videos, or choose another manifest or data.verdicts"
    )


def _limit(max_failures_in_a_row: int, manifest: Manifest, world_size: int) -> int:
    """No more than a rank's share of the manifest, so that a small one that cannot be read stops the run too."""
    return min(max_failures_in_a_row, max(1, len(manifest) // world_size))


def _in_processes(pipeline: Any, num_workers: int) -> Any:
    """Run a pipeline in worker processes; worker w gives items w, w + num_workers, ... of the joint stream."""
    if num_workers == 0:
        return pipeline
    import multiprocessing

    import torch
    from torch.utils.data import DataLoader

    # Not fork: the object store's runtime and CUDA do not survive it. The server imports torch once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "shards.stream"])
    return DataLoader(
        pipeline,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=_leave_interrupts_to_the_coordinator,
        generator=torch.Generator(),  # its own, so that the global one is the same for any number of workers
        persistent_workers=True,
    )


def _leave_interrupts_to_the_coordinator(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the coordinator ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop_at_failures(batches: Iterator[MicroBatch], max_in_a_row: int) -> Iterator[MicroBatch]:
    """Pass batches on. Raises: StorageError once that many samples in a row could not be read."""
    in_a_row = 0
    for batch in batches:
        for failure in batch.clips.failures:
            in_a_row = in_a_row + 1 if failure is not None else 0
            if in_a_row >= max_in_a_row:
                raise StorageError(f"{in_a_row} samples in a row could not be read; the last: {failure}")
        yield batch
