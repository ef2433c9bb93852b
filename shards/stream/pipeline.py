"""The stream of clips: where it stands, and its stages, which make up a `webdataset.DataPipeline`.

    plan -> read (byte ranges of the wanted frames) -> decode -> cut, resize and batch

Every stage is a frozen value that a loader worker can unpickle and a generator once it is called.
All randomness of a sample comes from (seed, epoch, key), so that a clip is the same whoever makes
it."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import TimeoutError as NoAnswerYetError
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from shards.config import Settings
from shards.errors import FormatError, SampleError, StorageError
from shards.fetching.frames import FrameReader, ReadStats
from shards.format import jpeg
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
_STUCK_SECONDS = 30.0
# times the requests in flight: hits of the cache between them end at once (at 1 half as slow again)
_ASKED_AHEAD = 4


class StreamState(Settings):
    """Where a training stream stands, under 1 kB.

    fingerprint: of the manifest; order: `Order.name`
    position: samples of the epoch that are done, in the global order over all ranks"""

    version: int = STATE_VERSION
    fingerprint: str
    order: str = "global"
    seed: int
    epoch: int = Field(default=0, ge=0)
    position: int = Field(default=0, ge=0)

    def check(self, manifest: Manifest, order: Order) -> None:
        """Refuse a state of another stream. Raises: FormatError that says which one it belongs
        to."""
        if self.version != STATE_VERSION:
            raise FormatError(
                f"stream state: has version {self.version}, this code reads {STATE_VERSION}; start over with "
                "--fresh or check out the release that wrote it"
            )
        if self.fingerprint != manifest.info.fingerprint:
            raise FormatError(
                f"stream state: belongs to a manifest with fingerprint {self.fingerprint[:12]}, but "
                f"{manifest.info.path} has {manifest.info.fingerprint[:12]}; "
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
    """One sample on its way through the stages; what a stage has used up it sets to None.

    plan: the micro-batch it belongs to
    row: its row of the manifest; index: the number of that row
    frames: positions of the clip's frames in the stored sample
    rng: for the stages to come, None in evaluation"""

    plan: MicroPlan
    index: int
    row: Mapping[str, Any]
    frames: list[int]
    rng: np.random.Generator | None
    blocks: list[bytes] | None = None
    frames_THWC: jpeg.Image | None = None
    crop: Crop | None = None
    failure: str | None = None
    reads: ReadStats | None = None


@dataclass(frozen=True)
class PlanStage:
    """Turn the plan of this loader worker into items. `seed` None is an evaluation."""

    manifest: Manifest
    clip: ClipSettings
    plan: Callable[..., Iterator[MicroPlan]]
    rank_slice: RankSlice
    seed: int | None

    def __call__(self) -> Iterator[Item]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        rank, world_size = self.rank_slice.rank, self.rank_slice.world_size
        for plan in self.plan(worker=WorkerSlice(rank, world_size, worker, num_workers)):
            for index in plan.rows.tolist():
                row = self.manifest.row(index)
                rng = None if self.seed is None else sample_rng(self.seed, plan.epoch, row["key"])
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
    """Read the JPEG bytes of the wanted frames and check their CRC; many samples at once where a
    request takes long.

    in_flight: samples that are asked for at a time, 0 reads one after the other"""

    reader: FrameReader
    in_flight: int

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        if self.in_flight == 0:
            yield from map(self._read, items)
            return
        asked: deque[tuple[Item, AsyncResult[Item]]] = deque()
        with ThreadPool(
            self.in_flight
        ) as threads:  # leaving it waits for no request: one may take minutes
            for item in items:
                asked.append((item, threads.apply_async(self._read, (item,))))
                if len(asked) > _ASKED_AHEAD * self.in_flight:
                    yield self._wait(*asked.popleft())
            while asked:
                yield self._wait(*asked.popleft())

    def _read(self, item: Item) -> Item:
        stats = ReadStats()
        try:
            blocks = self.reader.read(
                item.index, item.row, item.frames, stats, epoch=item.plan.epoch
            )
            return replace(item, blocks=blocks, reads=stats)
        except (SampleError, StorageError) as error:
            return replace(item, failure=str(error), reads=stats)

    def _wait(self, item: Item, answer: AsyncResult[Item]) -> Item:
        """Wait for an answer; says now and then for which object, so that a stuck server has a
        name."""
        begun = time.monotonic()
        while True:
            try:
                read = answer.get(timeout=_STUCK_SECONDS)
                break
            except NoAnswerYetError:
                where = f"{self.reader.store.uri(item.row['shard'])}: {item.row['key']}"
                print(
                    f"{where}: no answer for {time.monotonic() - begun:.0f} s, still waiting",
                    file=sys.stderr,
                )
        assert read.reads is not None
        read.reads.waited_seconds += time.monotonic() - begun
        return read


@dataclass(frozen=True)
class DecodeStage:
    """Choose the crop and decode each wanted frame, into memory that the next item's frames take
    over."""

    store: Store
    clip: ClipSettings

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        kept = np.empty(0, np.uint8)
        for item in items:
            if item.blocks is None:
                yield item
                continue
            try:
                shard = self.store.uri(item.row["shard"])
                names = [f"{shard}: frame {frame} of {item.row['key']}" for frame in item.frames]
                crop, shrink, shape = self._choose(item, item.blocks, names)
                if kept.shape != shape:
                    kept = np.empty(
                        shape, np.uint8
                    )  # kept, since fresh pages for each clip cost a tenth of decoding
                for place, (name, block) in enumerate(zip(names, item.blocks, strict=True)):
                    if (
                        place and block is item.blocks[place - 1]
                    ):  # a clip of few frames repeats them
                        kept[place] = kept[place - 1]
                    else:
                        jpeg.decode(block, where=name, shrink=shrink, into=kept[place])
                yield replace(item, blocks=None, frames_THWC=kept, crop=crop)
            except SampleError as error:
                yield replace(item, blocks=None, failure=str(error))

    def _choose(
        self, item: Item, blocks: list[bytes], names: list[str]
    ) -> tuple[Crop, int, tuple[int, ...]]:
        """The crop, at which 1/n of the stored size it is decoded, and the shape [T, H, W, 3]
        then."""
        sizes = {jpeg.size_of(block, where=name) for name, block in zip(names, blocks, strict=True)}
        if len(sizes) > 1:
            where = f"{self.store.uri(item.row['shard'])}: {item.row['key']}"
            raise SampleError(
                f"{where} has frames of different sizes: {sorted(sizes)}; run `bmpt verify`"
            )
        ((height, width),) = sizes
        crop = choose_crop(self.clip.crop, height, width, flip=self.clip.flip, rng=item.rng)
        shrink = largest_shrink(crop, self.clip.size_px) if self.clip.scaled_decode else 1
        return (
            crop.shrunk(shrink),
            shrink,
            (len(blocks), -(-height // shrink), -(-width // shrink), 3),
        )


@dataclass(frozen=True)
class BatchStage:
    """Cut and scale each clip straight into its place of the batch; a sample that could not be read
    leaves it black."""

    clip: ClipSettings
    buffers: BatchBuffers

    def __call__(self, items: Iterable[Item]) -> Iterator[PackedBatch]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        items = iter(items)
        while (first := next(items, None)) is not None:
            rest = islice(items, len(first.plan.rows) - 1)
            yield self._pack(first.plan, chain([first], rest), producer=info.id if info else 0)

    def _pack(self, plan: MicroPlan, items: Iterable[Item], *, producer: int) -> PackedBatch:
        import torch

        num_clips = len(plan.rows)
        place = self.buffers.take(producer)
        if place is None:
            frames = torch.empty(num_clips * self.clip.clip_bytes, dtype=torch.uint8)
        else:
            frames = self.buffers.fill(place, num_clips * self.clip.clip_bytes)
        clips_BTCHW = as_clips(frames, self.clip)
        rows, failures, reads = [], [], ReadStats()
        for clip_TCHW, item in zip(clips_BTCHW, items, strict=True):
            if item.frames_THWC is None or item.crop is None:
                clip_TCHW.zero_()
            else:
                cut_and_resize(item.frames_THWC, item.crop, out_TCHW=clip_TCHW)
            rows.append(item.row)
            failures.append(item.failure)
            reads.add(item.reads or ReadStats())
        return PackedBatch(
            plan=plan,
            place=place,
            frames=frames if place is None else None,
            labels=[row["label"] for row in rows],
            keys=[row["key"] for row in rows],
            failures=failures,
            reads=reads,
        )


def make_pipeline(
    plan: PlanStage, reader: FrameReader, buffers: BatchBuffers, *, in_flight: int
) -> DataPipeline:
    """Put the stages one after the other: an iterable of `PackedBatch`; for `in_flight` see
    `ReadStage`."""
    from webdataset import DataPipeline  # brings torch, 2 s: only who streams pays it

    read, decode = ReadStage(reader, in_flight), DecodeStage(reader.store, plan.clip)
    return DataPipeline(plan, read, decode, BatchStage(plan.clip, buffers))
