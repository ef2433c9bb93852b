"""The stages of the stream, which make up a `webdataset.DataPipeline`, and its saved state.

    plan -> read (byte ranges of the wanted frames) -> decode -> cut, resize and batch

Every stage is a frozen value that a loader process can unpickle, and a generator when it is called.
All randomness of a sample derives from (seed, epoch, key), so that a clip is the same in whichever
process it is made.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import TimeoutError as NoAnswerYetError
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from shards.config import Settings
from shards.errors import FormatError, SampleError, StorageError
from shards.fetching.frames import FrameReader, ReadStats
from shards.format import jpeg
from shards.format.schema import ManifestRow
from shards.reader import Manifest
from shards.sampling.clip_sampling import clip_positions
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.crops import Crop, choose_crop, cut_and_resize, largest_shrink
from shards.sampling.orders import Order
from shards.sampling.plan import MicroPlan, RankSlice, WorkerSlice
from shards.sampling.sample_rng import sample_rng
from shards.storage.base import Store
from shards.stream.batch_buffers import BatchBuffers
from shards.stream.batches import PackedBatch, as_clips

if TYPE_CHECKING:
    from webdataset import DataPipeline

STATE_VERSION = 1
_STALL_SECONDS = 30.0
# Samples whose reads are queued, as a multiple of the requests in flight. Reads from the cache end
# at once; with a factor of 1, requests behind them start too late and a run takes half again as
# long.
_QUEUED_READS = 4


class StreamState(Settings):
    """The position of a training stream, in less than 1 kB of JSON."""

    version: int = STATE_VERSION

    fingerprint: str
    """Fingerprint of the manifest."""

    order: str = "global"
    """Name of the order, see `shards.sampling.orders.Order`."""

    seed: int

    epoch: int = Field(default=0, ge=0)

    position: int = Field(default=0, ge=0)
    """Samples of the epoch that are done, in the global order over all ranks."""

    def check(self, manifest: Manifest, order: Order) -> None:
        """Check that the state belongs to the stream of a manifest in an order.

        Raises:
            FormatError: naming the stream that it belongs to.
        """
        if self.version != STATE_VERSION:
            raise FormatError(
                f"stream state: has version {self.version}, this code reads {STATE_VERSION}; "
                "start over with --fresh or check out the release that wrote it"
            )

        if self.fingerprint != manifest.info.fingerprint:
            raise FormatError(
                f"stream state: belongs to a manifest with fingerprint {self.fingerprint[:12]}, "
                f"but {manifest.info.path} has {manifest.info.fingerprint[:12]}; "
                "use that manifest or start over with --fresh"
            )

        if self.seed != order.seed:
            raise FormatError(
                f"stream state: was made with seed {self.seed}, this run has seed {order.seed}; "
                f"set seed={self.seed} or start over with --fresh"
            )

        if self.order != order.name:
            raise FormatError(
                f"stream state: was made with the order {self.order}, this run has {order.name}; "
                "set data.order and data.group_shards as they were or start over with --fresh"
            )


@dataclass(frozen=True)
class Item:
    """One sample on its way through the stages; a stage sets to None what it has consumed."""

    plan: MicroPlan
    """The micro-batch of the sample."""

    index: int
    """Row number of the sample in the manifest."""

    row: ManifestRow

    frames: list[int]
    """Positions of the clip's frames in the stored sample."""

    rng: np.random.Generator | None
    """Random numbers for the later stages; None in evaluation."""

    jpegs: list[bytes] | None = None
    """Encoded frames of the clip."""

    frames_THWC: jpeg.Image | None = None
    """Decoded frames of the clip, uint8 RGB."""

    crop: Crop | None = None

    failure: str | None = None
    """Why the sample could not be read."""

    reads: ReadStats | None = None


@dataclass(frozen=True)
class PlanStage:
    """Turn the plan of this loader process into items."""

    manifest: Manifest
    clip: ClipSettings

    plan: Callable[..., Iterator[MicroPlan]]
    """Yields the micro-batches of the argument `worker`."""

    rank_slice: RankSlice

    seed: int | None
    """None for evaluation."""

    def __call__(self) -> Iterator[Item]:
        worker, num_workers = _worker_number()
        rank, world_size = self.rank_slice.rank, self.rank_slice.world_size

        for plan in self.plan(worker=WorkerSlice(rank, world_size, worker, num_workers)):
            for index in plan.rows.tolist():
                row = self.manifest.row(index)
                # The stages draw from one generator in a fixed order: frames, crop, flip.
                rng = None
                if self.seed is not None:
                    rng = sample_rng(self.seed, plan.epoch, row["key"])
                frames = clip_positions(
                    row["source_index"],
                    row["num_frames_decoded"],
                    self.clip.frames,
                    sampling=self.clip.sampling,
                    rng=rng,
                )
                yield Item(plan, index, row, frames.tolist(), rng)


@dataclass(frozen=True)
class ReadStage:
    """Read the JPEG bytes of the wanted frames and check their CRC."""

    reader: FrameReader

    in_flight: int
    """Samples that are requested at the same time; 0 reads one after the other."""

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        if self.in_flight == 0:
            yield from map(self._read, items)
            return

        queued: deque[tuple[Item, AsyncResult[Item]]] = deque()
        # Leaving the pool does not wait for requests in flight, which may take minutes.
        with ThreadPool(self.in_flight) as threads:
            for item in items:
                queued.append((item, threads.apply_async(self._read, (item,))))
                if len(queued) > _QUEUED_READS * self.in_flight:
                    yield self._wait(*queued.popleft())
            while queued:
                yield self._wait(*queued.popleft())

    def _read(self, item: Item) -> Item:
        # Counts of its own, since reads of several threads overlap.
        stats = ReadStats()
        try:
            jpegs = self.reader.read(
                item.index, item.row, item.frames, stats, epoch=item.plan.epoch
            )
        except (SampleError, StorageError) as error:
            return replace(item, failure=str(error), reads=stats)
        return replace(item, jpegs=jpegs, reads=stats)

    def _wait(self, item: Item, result: AsyncResult[Item]) -> Item:
        """Wait for a read; every 30 s name the object on stderr, so that a stall can be traced."""
        started = time.monotonic()
        while True:
            try:
                read = result.get(timeout=_STALL_SECONDS)
                break
            except NoAnswerYetError:
                sample = f"{self.reader.store.uri(item.row['shard'])}: {item.row['key']}"
                seconds = time.monotonic() - started
                print(f"{sample}: no answer for {seconds:.0f} s, still waiting", file=sys.stderr)

        assert read.reads is not None
        # The time that the stream lost; reads in the background are not part of it.
        read.reads.waited_seconds += time.monotonic() - started
        return read


@dataclass(frozen=True)
class DecodeStage:
    """Choose the crop and decode each wanted frame.

    Frames are decoded into memory that the frames of the next item overwrite.
    """

    store: Store
    clip: ClipSettings

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        # Reused, since fresh pages for each clip cost a tenth of decoding.
        frames_THWC = np.empty(0, np.uint8)
        for item in items:
            if item.jpegs is None:
                yield item
                continue

            try:
                names = self._frame_names(item)
                crop, shrink, shape = self._choose_crop(item, item.jpegs, names)
                if frames_THWC.shape != shape:
                    frames_THWC = np.empty(shape, np.uint8)
                _decode(item.jpegs, names, shrink, frames_THWC)
                yield replace(item, jpegs=None, frames_THWC=frames_THWC, crop=crop)
            except SampleError as error:
                yield replace(item, jpegs=None, failure=str(error))

    def _frame_names(self, item: Item) -> list[str]:
        """Return the name of each frame of a clip, for error messages."""
        shard = self.store.uri(item.row["shard"])
        return [f"{shard}: frame {frame} of {item.row['key']}" for frame in item.frames]

    def _choose_crop(
        self, item: Item, jpegs: list[bytes], names: list[str]
    ) -> tuple[Crop, int, tuple[int, ...]]:
        """Choose the crop and the resolution at which the frames are decoded.

        Returns:
            The crop in pixels of the decoded frames; n, if they are decoded at 1/n; and the shape
            [T, H, W, 3] of the decoded frames.

        Raises:
            SampleError: if the frames have different sizes.
        """
        # The frames are decoded into one array, so that they need the same size.
        sizes = {jpeg.size_of(data, where=name) for name, data in zip(names, jpegs, strict=True)}
        if len(sizes) > 1:
            sample = f"{self.store.uri(item.row['shard'])}: {item.row['key']}"
            raise SampleError(
                f"{sample} has frames of different sizes: {sorted(sizes)}; run `bmpt verify`"
            )

        ((height, width),) = sizes
        crop = choose_crop(self.clip.crop, height, width, flip=self.clip.flip, rng=item.rng)
        shrink = largest_shrink(crop, self.clip.size_px) if self.clip.scaled_decode else 1
        shape = (len(jpegs), -(-height // shrink), -(-width // shrink), 3)
        return crop.shrunk(shrink), shrink, shape


def _decode(jpegs: list[bytes], names: list[str], shrink: int, out_THWC: jpeg.Image) -> None:
    """Decode the frames of a clip; a repeated frame is decoded once."""
    for position, (name, data) in enumerate(zip(names, jpegs, strict=True)):
        # The reader returns the same object for a repeated position.
        if position and data is jpegs[position - 1]:
            out_THWC[position] = out_THWC[position - 1]
        else:
            jpeg.decode(data, where=name, shrink=shrink, into=out_THWC[position])


@dataclass(frozen=True)
class BatchStage:
    """Cut and resize each clip directly into its position of the batch.

    The clip of an unreadable sample is black.
    """

    clip: ClipSettings
    buffers: BatchBuffers

    def __call__(self, items: Iterable[Item]) -> Iterator[PackedBatch]:
        producer, _ = _worker_number()
        items = iter(items)
        while (first := next(items, None)) is not None:
            others = islice(items, len(first.plan.rows) - 1)
            yield self._pack(first.plan, chain([first], others), producer)

    def _pack(self, plan: MicroPlan, items: Iterable[Item], producer: int) -> PackedBatch:
        import torch

        num_bytes = len(plan.rows) * self.clip.clip_bytes
        # If the training process holds all slots, the frames are sent as a tensor of their own.
        slot = self.buffers.take(producer)
        if slot is None:
            frames = torch.empty(num_bytes, dtype=torch.uint8)
        else:
            frames = self.buffers.writable(slot, num_bytes)

        clips_BTCHW = as_clips(frames, self.clip)
        rows, failures, reads = [], [], ReadStats()
        for clip_TCHW, item in zip(clips_BTCHW, items, strict=True):
            if item.frames_THWC is None or item.crop is None:
                clip_TCHW.zero_()  # the slot holds the frames of an earlier batch
            else:
                cut_and_resize(item.frames_THWC, item.crop, out_TCHW=clip_TCHW)
            rows.append(item.row)
            failures.append(item.failure)
            reads.add(item.reads or ReadStats())

        return PackedBatch(
            plan=plan,
            slot=slot,
            frames=frames if slot is None else None,
            labels=[row["label"] for row in rows],
            keys=[row["key"] for row in rows],
            failures=failures,
            reads=reads,
        )


def make_pipeline(
    plan: PlanStage, reader: FrameReader, buffers: BatchBuffers, *, in_flight: int
) -> DataPipeline:
    """Chain the stages to an iterable of `PackedBatch`; for `in_flight` see `ReadStage`."""
    from webdataset import DataPipeline  # it imports torch (2 s), which only a stream needs

    read, decode = ReadStage(reader, in_flight), DecodeStage(reader.store, plan.clip)
    return DataPipeline(plan, read, decode, BatchStage(plan.clip, buffers))


def _worker_number() -> tuple[int, int]:
    """Return the number of this loader process and their count; (0, 1) outside of one."""
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
