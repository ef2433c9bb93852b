"""The stream of clips: where it stands, and its stages, which make up a `webdataset.DataPipeline`.

    plan -> read (byte ranges of the wanted frames) -> decode -> cut and resize -> batch

Every stage is a frozen value that a loader worker can unpickle and a generator once it is called. All randomness
of a sample comes from (seed, epoch, key), so that a clip is the same whoever makes it."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from shards import jpeg
from shards.clip_sampling import Sampling, clip_positions
from shards.config import Settings
from shards.crops import CropKind, choose_crop, cut_and_resize
from shards.errors import FormatError, SampleError, StorageError
from shards.fetch import FrameReader, ReadStats
from shards.orders import Order
from shards.plan import MicroPlan, Place
from shards.reader import Manifest
from shards.storage import Store

if TYPE_CHECKING:
    import torch
    from webdataset import DataPipeline

STATE_VERSION = 1
_STUCK_SECONDS = 30.0


class ClipSettings(Settings):
    """How a clip is made from a sample.

    frames: T; size_px: side of the square
    sampling: even | vifi, see `clip_sampling.segment_bounds`
    crop, flip: in training; an evaluation takes the centre crop (or the whole frame) and never flips"""

    frames: int = Field(ge=1)
    size_px: int = Field(ge=1)
    sampling: Sampling = "even"
    crop: CropKind = "multi_scale"
    flip: bool = True


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
        """Refuse a state of another stream. Raises: FormatError that says which one it belongs to."""
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
class ClipBatch:
    """B clips of one view each.

    frames_BVTCHW: uint8 RGB, channels last in memory: whoever makes floats of it turns it over in the same pass
    labels_B: int64, index into the manifest's classes
    weights_B: float32, 1; 0 for an empty place, whose frames are black
    positions_B: int64, row in the manifest
    keys: of the samples
    failures: why a place is empty, None for the others"""

    frames_BVTCHW: torch.Tensor
    labels_B: torch.Tensor
    weights_B: torch.Tensor
    positions_B: torch.Tensor
    keys: list[str]
    failures: list[str | None]


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes at once: micro-batch `micro` of optimiser step `step` of `epoch`, all from 0.

    reads: what reading its samples took"""

    clips: ClipBatch
    epoch: int
    step: int
    micro: int
    reads: ReadStats


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
    images: list[jpeg.Image] | None = None
    clip_TCHW: torch.Tensor | None = None
    failure: str | None = None
    reads: ReadStats | None = None


@dataclass(frozen=True)
class PlanStage:
    """Turn the plan of this loader worker into items. `seed` None is an evaluation."""

    manifest: Manifest
    clip: ClipSettings
    plan: Callable[..., Iterator[MicroPlan]]
    rank: int
    world_size: int
    seed: int | None

    def __call__(self) -> Iterator[Item]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        for plan in self.plan(place=Place(self.rank, self.world_size, worker, num_workers)):
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
    """Read the JPEG bytes of the wanted frames and check their CRC; many samples at once where a request takes long.

    in_flight: samples that are asked for at a time, 0 reads one after the other"""

    reader: FrameReader
    in_flight: int

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        if self.in_flight == 0:
            yield from map(self._read, items)
            return
        with ThreadPoolExecutor(self.in_flight) as threads:
            asked: deque[tuple[Item, Future[Item]]] = deque()
            try:
                for item in items:
                    asked.append((item, threads.submit(self._read, item)))
                    if len(asked) > self.in_flight:
                        yield self._wait(*asked.popleft())
                while asked:
                    yield self._wait(*asked.popleft())
            finally:
                threads.shutdown(cancel_futures=True)

    def _read(self, item: Item) -> Item:
        stats = ReadStats()
        try:
            return replace(item, blocks=self.reader.read(item.index, item.row, item.frames, stats), reads=stats)
        except (SampleError, StorageError) as error:
            return replace(item, failure=str(error), reads=stats)

    def _wait(self, item: Item, answer: Future[Item]) -> Item:
        """Wait for an answer; says now and then for which object, so that a stuck server has a name."""
        begun = time.monotonic()
        while True:
            try:
                read = answer.result(timeout=_STUCK_SECONDS)
                break
            except FutureTimeoutError:  # another class in Python 3.10
                if answer.done():  # it is what the reading itself raised
                    raise
                where = f"{self.reader.store.uri(item.row['shard'])}: {item.row['key']}"
                print(f"{where}: no answer for {time.monotonic() - begun:.0f} s, still waiting", file=sys.stderr)
        assert read.reads is not None
        read.reads.waited_seconds += time.monotonic() - begun
        return read


@dataclass(frozen=True)
class DecodeStage:
    """Decode each wanted frame once."""

    store: Store

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.blocks is None:
                yield item
                continue
            try:
                yield replace(item, blocks=None, images=self._decode(item, item.blocks))
            except SampleError as error:
                yield replace(item, blocks=None, failure=str(error))

    def _decode(self, item: Item, blocks: list[bytes]) -> list[jpeg.Image]:
        images: dict[int, jpeg.Image] = {}  # a clip of few frames repeats them
        for frame, block in zip(item.frames, blocks, strict=True):
            if frame not in images:
                where = f"{self.store.uri(item.row['shard'])}: frame {frame} of {item.row['key']}"
                images[frame] = jpeg.decode(block, where=where)
        shapes = {image.shape for image in images.values()}
        if len(shapes) > 1:
            where = f"{self.store.uri(item.row['shard'])}: {item.row['key']}"
            raise SampleError(f"{where} has frames of different sizes: {sorted(shapes)}; run `bmpt verify`")
        return [images[frame] for frame in item.frames]


@dataclass(frozen=True)
class CropStage:
    """Cut the same rectangle out of all frames of a clip and scale it to the square."""

    clip: ClipSettings

    def __call__(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.images is None:
                yield item
                continue
            height, width = item.images[0].shape[:2]
            crop = choose_crop(self.clip.crop, height, width, flip=self.clip.flip, rng=item.rng)
            yield replace(item, images=None, clip_TCHW=cut_and_resize(item.images, crop, size_px=self.clip.size_px))


@dataclass(frozen=True)
class BatchStage:
    """Collect the items of a micro-batch; a sample that could not be read leaves its place black, of weight 0."""

    clip: ClipSettings

    def __call__(self, items: Iterable[Item]) -> Iterator[MicroBatch]:
        collected: list[Item] = []
        for item in items:
            collected.append(item)
            if len(collected) == len(item.plan.rows):
                plan, reads = item.plan, ReadStats()
                for done in collected:
                    reads.add(done.reads or ReadStats())
                yield MicroBatch(self._stack(collected), plan.epoch, plan.step, plan.micro, reads)
                collected = []

    def _stack(self, items: list[Item]) -> ClipBatch:
        import torch
        from torch.utils.data import default_collate  # in a worker it stacks into shared memory: one copy less

        black = torch.zeros((self.clip.frames, 3, self.clip.size_px, self.clip.size_px), dtype=torch.uint8)
        clips = [black if item.clip_TCHW is None else item.clip_TCHW for item in items]
        frames_BTHWC = default_collate([clip.permute(0, 2, 3, 1) for clip in clips])  # as they lie in memory
        return ClipBatch(
            frames_BVTCHW=frames_BTHWC.permute(0, 1, 4, 2, 3).unsqueeze(1),
            labels_B=torch.tensor([item.row["label"] for item in items], dtype=torch.int64),
            weights_B=torch.tensor([float(item.failure is None) for item in items], dtype=torch.float32),
            positions_B=torch.tensor([item.index for item in items], dtype=torch.int64),
            keys=[item.row["key"] for item in items],
            failures=[item.failure for item in items],
        )


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The random numbers of one sample in one epoch, the same on every machine (12 us)."""
    digest = hashlib.blake2b(f"sample/{seed}/{epoch}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))


def make_pipeline(plan: PlanStage, reader: FrameReader, *, in_flight: int) -> DataPipeline:
    """Put the stages one after the other: an iterable of `MicroBatch`; for `in_flight` see `ReadStage`."""
    from webdataset import DataPipeline  # brings torch, 2 s: only who streams pays it

    read, decode = ReadStage(reader, in_flight), DecodeStage(reader.store)
    return DataPipeline(plan, read, decode, CropStage(plan.clip), BatchStage(plan.clip))
