"""`bmpt plan`: the bytes and requests that a run will ask of a pool, counted before it begins.

The same functions that a run reads by are played through: the order of each epoch, the frames of each clip, what is
joined into one request, what the cache holds already from an earlier epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.clip_sampling import clip_positions
from shards.fetch import FrameReader, ReadSettings, make_reader, merge_ranges
from shards.orders import IndexArray, Order
from shards.plan import num_steps
from shards.reader import Manifest
from shards.storage import LocalStore, Store
from shards.stream import ClipSettings, sample_rng


@dataclass(frozen=True)
class ReadPlan:
    """What the passes over one manifest read.

    clips: of a pass; needed_bytes: its samples with every frame
    first_bytes, first_requests: of the first pass; all_bytes, all_requests: of all passes
    cached: whether a cache keeps what is read, in all_bytes; fits: whether that is below its cap
    seconds: of reading alone, at the stated cost of a request; None for a folder"""

    manifest: str
    order: str
    samples: int
    clips: int
    shards: int
    passes: int
    needed_bytes: int
    first_bytes: int
    first_requests: int
    all_bytes: int
    all_requests: int
    cached: bool
    fits: bool
    seconds: float | None

    @property
    def advice(self) -> str:
        """What it means, and what to set, in a sentence."""
        if self.seconds is None:
            return "a folder: frames are read where they lie"
        if not self.cached:
            return (
                f"no cache: every pass asks again; data.cache=DIR would keep {self.needed_bytes:,} bytes and ask once"
            )
        if self.fits:
            return "the cache holds all of it: later passes ask for nothing"
        return "the cache is smaller than that, so pieces come again; raise data.cache_bytes or set data.order=grouped"


def plan_training(
    store: Store,
    manifest: Manifest,
    clip: ClipSettings,
    reading: ReadSettings,
    *,
    order: Order,
    batch_size: int,
    epochs: int,
    num_processes: int = 1,
) -> ReadPlan:
    """Count what training reads; `num_processes` loaders ask at once.

    Exact with a cache that holds everything; without one the first epoch is counted and the others, whose frames are
    drawn anew, are taken to be like it. 240,000 samples take about half a minute."""
    clips = num_steps(len(manifest), batch_size) * batch_size
    passes = [order.rows(np.arange(clips), epoch) for epoch in range(epochs)]
    reader = make_reader(store, manifest, reading)
    return _plan(reader, clip, reading, passes, order_name=order.name, seed=order.seed, num_processes=num_processes)


def plan_scoring(
    store: Store, manifest: Manifest, clip: ClipSettings, reading: ReadSettings, *, num_processes: int = 1
) -> ReadPlan:
    """Count what one evaluation of a manifest reads; exact."""
    reader = make_reader(store, manifest, reading)
    rows = [np.arange(len(manifest))]
    return _plan(reader, clip, reading, rows, order_name="as listed", seed=None, num_processes=num_processes)


def plan_text(plan: ReadPlan) -> str:
    """A plan for people."""
    lines = [
        f"{plan.manifest}: {plan.samples:,} samples of {plan.shards:,} shards, {plan.needed_bytes:,} bytes",
        f"  {plan.clips:,} clips a pass, order: {plan.order}",
        f"  first pass    {plan.first_bytes:>18,} bytes {plan.first_requests:>12,} requests",
    ]
    if plan.passes > 1:
        lines.append(f"  {plan.passes:>4} passes   {plan.all_bytes:>18,} bytes {plan.all_requests:>12,} requests")
    if plan.seconds is not None:
        lines.append(f"  reading alone: about {plan.seconds:,.1f} s")
    return "\n".join([*lines, f"  {plan.advice}"])


def _plan(
    reader: FrameReader,
    clip: ClipSettings,
    reading: ReadSettings,
    passes: list[IndexArray],
    *,
    order_name: str,
    seed: int | None,
    num_processes: int,
) -> ReadPlan:
    manifest = reader.manifest
    if reader.extents is None:
        first = _count_ranges(reader, passes[0], clip, seed) if passes else (0, 0)
        everything = first[0] * len(passes), first[1] * len(passes)
    else:
        first = _count_extents(reader, passes[:1])
        everything = _count_extents(reader, passes)
    is_local = isinstance(reader.store, LocalStore)
    connections = num_processes * reading.requests_in_flight
    busy_seconds = everything[1] * reading.latency_seconds + everything[0] / reading.bytes_per_second
    return ReadPlan(
        manifest=manifest.info.path,
        order=order_name,
        samples=len(manifest),
        clips=len(passes[0]) if passes else 0,
        shards=len(set(manifest.table["shard"].to_pylist())),
        passes=len(passes),
        needed_bytes=sum(manifest.table["size"].to_pylist()),
        first_bytes=first[0],
        first_requests=first[1],
        all_bytes=everything[0],
        all_requests=everything[1],
        cached=reader.extents is not None,
        fits=reader.extents is not None and everything[0] <= reading.cache_bytes,
        seconds=None if is_local else busy_seconds / connections,
    )


def _count_extents(reader: FrameReader, passes: list[IndexArray]) -> tuple[int, int]:
    """Bytes and number of the extents that some passes touch, each once."""
    extents = reader.extents
    assert extents is not None
    touched = np.unique(extents.of_row[np.concatenate(passes)]) if passes else np.empty(0, np.int64)
    return int((extents.stop - extents.start)[touched].sum()), len(touched)


def _count_ranges(reader: FrameReader, rows: IndexArray, clip: ClipSettings, seed: int | None) -> tuple[int, int]:
    """Bytes and number of the requests for the frames of one pass, the first epoch where frames are drawn."""
    is_local = isinstance(reader.store, LocalStore)
    num_bytes = num_requests = 0
    for index in rows.tolist():
        row = reader.manifest.row(index)
        rng = None if seed is None else sample_rng(seed, 0, row["key"])
        frames = clip_positions(
            row["source_index"], row["num_frames_decoded"], clip.frames, sampling=clip.sampling, rng=rng
        )
        places = [(row["frame_offset"][frame], row["frame_size"][frame]) for frame in sorted(set(frames.tolist()))]
        spans = merge_ranges(places, 0 if is_local else reader.cost.gap_bytes)
        num_bytes += sum(stop - start for start, stop, _ in spans)
        num_requests += 1 if is_local else len(spans)
    return num_bytes, num_requests
