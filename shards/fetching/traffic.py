"""`bmpt plan`: the bytes and requests that a run will ask of a pool, counted before it begins.

The same functions that a run reads by are played through: the order of each epoch, the frames of
each clip, what is joined into one request, what an empty cache keeps from an earlier epoch. A cache
that other runs fill at the same time keeps less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shards.fetching.cache import room_bytes
from shards.fetching.extents import Extents, Retention, group_bytes, plan_retention
from shards.fetching.frames import FrameReader, ReadSettings, make_reader, merge_ranges
from shards.reader import Manifest
from shards.sampling.clip_sampling import clip_positions
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import IndexArray, OrderKind, make_order
from shards.sampling.plan import num_steps
from shards.sampling.sample_rng import sample_rng
from shards.storage.base import Store
from shards.storage.local import LocalStore

# that are read without the cache; later passes are taken to be like those that were counted
_COUNTED_CLIPS = 250_000
_SAMPLED_CLIPS = 1000  # for the comparison of two orders


@dataclass(frozen=True)
class Traffic:
    """What is asked of a store."""

    num_bytes: int = 0
    requests: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.num_bytes + other.num_bytes, self.requests + other.requests)

    def scaled(self, part: int, whole: int) -> Traffic:
        """The same a clip for `part` clips as for `whole`."""
        return Traffic(round(self.num_bytes * part / whole), round(self.requests * part / whole))


@dataclass(frozen=True)
class ReadPlan:
    """What the passes over one manifest read.

    clips: of a pass; needed_bytes: its samples with every frame
    first_bytes, first_requests: of the first pass; all_bytes, all_requests: of all passes
    cached: whether a cache is used; kept_bytes: what of extent_bytes it keeps from pass to pass;
        passing_bytes: its
    room for the others, see `shards.fetching.extents.Retention`
    seconds: of reading alone, at the stated cost of a request; None for a folder
    advised_order: the `data.order` that reads fastest, None for scoring; advice: why, in a sentence
        or two"""

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
    extent_bytes: int
    kept_bytes: int
    passing_bytes: int
    seconds: float | None
    advised_order: OrderKind | None
    advice: str


def plan_training(
    store: Store,
    manifest: Manifest,
    clip: ClipSettings,
    reading: ReadSettings,
    *,
    order: OrderKind,
    group_shards: int,
    seed: int,
    batch_size: int,
    epochs: int,
    num_processes: int = 1,
) -> ReadPlan:
    """Count what training reads; `num_processes` loaders ask at once.

    Exact, but for what more than 250,000 clips read without the cache; so many take about half a
    minute."""
    ordered = make_order(manifest.table["shard"], order, seed=seed, group_shards=group_shards)
    clips = num_steps(len(manifest), batch_size) * batch_size
    reader = make_reader(
        store, manifest, reading, group_shards=group_shards if order == "grouped" else None
    )
    passes = _count(
        reader, clip, (ordered.rows(np.arange(clips), epoch) for epoch in range(epochs)), seed
    )
    advised, advice = _advise_order(
        reader, clip, reading, group_shards, passes=epochs, num_processes=num_processes
    )
    return _plan(reader, reading, passes, ordered.name, clips, advised, advice, num_processes)


def plan_scoring(
    store: Store,
    manifest: Manifest,
    clip: ClipSettings,
    reading: ReadSettings,
    *,
    num_processes: int = 1,
) -> ReadPlan:
    """Count what one evaluation of a manifest reads; exact."""
    reader = make_reader(store, manifest, reading)
    clips = len(manifest)
    passes = _count(reader, clip, [np.arange(clips)], seed=None)
    return _plan(
        reader, reading, passes, "as listed", clips, None, _advise_scoring(reader), num_processes
    )


def plan_text(plan: ReadPlan) -> str:
    """A plan for people."""
    lines = [
        f"{plan.manifest}: {plan.samples:,} samples of {plan.shards:,} shards, {plan.needed_bytes:,} bytes",
        f"  {plan.clips:,} clips a pass, order: {plan.order}",
    ]
    if plan.cached:
        lines.append(f"  cache: {_cache_text(plan)}")
    lines.append(
        f"  first pass    {plan.first_bytes:>18,} bytes {plan.first_requests:>12,} requests"
    )
    if plan.passes > 1:
        lines.append(
            f"  {plan.passes:>4} passes   {plan.all_bytes:>18,} bytes {plan.all_requests:>12,} requests"
        )
    if plan.seconds is not None:
        lines.append(f"  reading alone: about {plan.seconds:,.1f} s")
    return "\n".join([*lines, f"  {plan.advice}"])


def _cache_text(plan: ReadPlan) -> str:
    if plan.kept_bytes == plan.extent_bytes:
        return f"keeps all {plan.extent_bytes:,} bytes"
    kept = f"keeps {plan.kept_bytes:,} of {plan.extent_bytes:,} bytes"
    if plan.passing_bytes:
        return f"{kept}, the others pass through {plan.passing_bytes:,} bytes of it group by group"
    too_large = (
        ", since two groups of shards do not fit" if plan.order.startswith("grouped/") else ""
    )
    return f"{kept}, the others are read clip by clip{too_large}"


def _plan(
    reader: FrameReader,
    reading: ReadSettings,
    passes: list[Traffic],
    order: str,
    clips: int,
    advised_order: OrderKind | None,
    advice: str,
    num_processes: int,
) -> ReadPlan:
    table, extents, retention = reader.manifest.table, reader.extents, reader.retention
    everything = sum(passes, Traffic())
    first = passes[0] if passes else Traffic()
    is_local = isinstance(reader.store, LocalStore)
    return ReadPlan(
        manifest=reader.manifest.info.path,
        order=order,
        samples=len(reader.manifest),
        clips=clips,
        shards=len(set(table["shard"].to_pylist())),
        passes=len(passes),
        needed_bytes=sum(table["size"].to_pylist()),
        first_bytes=first.num_bytes,
        first_requests=first.requests,
        all_bytes=everything.num_bytes,
        all_requests=everything.requests,
        cached=extents is not None,
        extent_bytes=0 if extents is None else extents.total_bytes,
        kept_bytes=0
        if extents is None or retention is None
        else int(extents.sizes[retention.kept].sum()),
        passing_bytes=0 if retention is None else retention.passing_bytes,
        seconds=None if is_local else _seconds(reader, everything, reading, num_processes),
        advised_order=advised_order,
        advice=advice,
    )


def _seconds(
    reader: FrameReader, traffic: Traffic, reading: ReadSettings, num_processes: int
) -> float:
    return reader.cost.seconds(traffic.num_bytes, traffic.requests) / (
        num_processes * reading.requests_in_flight
    )


def _count(
    reader: FrameReader, clip: ClipSettings, passes: Iterable[IndexArray], seed: int | None
) -> list[Traffic]:
    """What each pass asks for; the frames of later ones are not drawn any more once very many
    were."""
    traffic: list[Traffic] = []
    counted, counted_clips = Traffic(), 0
    loaded = np.zeros(0 if reader.extents is None else len(reader.extents), bool)
    for epoch, rows in enumerate(passes):
        cached, direct = _split(reader, rows)
        if counted_clips + len(direct) <= max(_COUNTED_CLIPS, len(direct)):
            of_clips = _count_clips(reader, direct, clip, seed, epoch)
            counted, counted_clips = counted + of_clips, counted_clips + len(direct)
        else:
            of_clips = counted.scaled(len(direct), counted_clips)
        traffic.append(of_clips + _load(reader, cached, loaded))
    return traffic


def _split(reader: FrameReader, rows: IndexArray) -> tuple[IndexArray, IndexArray]:
    """The rows that are read through the cache, and those that are not."""
    if reader.extents is None or reader.retention is None:
        return rows[:0], rows
    if reader.retention.passing_bytes:
        return rows, rows[:0]
    is_kept = reader.retention.kept[reader.extents.of_row[rows]]
    return rows[is_kept], rows[~is_kept]


def _load(
    reader: FrameReader, rows: IndexArray, loaded: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> Traffic:
    """What a pass over rows loads into the cache, which is marked in `loaded`, bool [E]."""
    if reader.extents is None or reader.retention is None:
        return Traffic()
    touched = np.unique(reader.extents.of_row[rows])
    missing = touched[~(loaded[touched] & reader.retention.kept[touched])]
    loaded[touched] = True
    return Traffic(int(reader.extents.sizes[missing].sum()), len(missing))


def _count_clips(
    reader: FrameReader, rows: IndexArray, clip: ClipSettings, seed: int | None, epoch: int
) -> Traffic:
    """The requests for the frames of the clips alone, as one epoch draws them."""
    is_local = isinstance(reader.store, LocalStore)
    num_bytes = num_requests = 0
    for index in rows.tolist():
        row = reader.manifest.row(index)
        rng = None if seed is None else sample_rng(seed, epoch, row["key"])
        frames = clip_positions(
            row["source_index"],
            row["num_frames_decoded"],
            clip.frames,
            sampling=clip.sampling,
            rng=rng,
        )
        places = [
            (row["frame_offset"][frame], row["frame_size"][frame])
            for frame in sorted(set(frames.tolist()))
        ]
        spans = merge_ranges(places, 0 if is_local else reader.cost.gap_bytes)
        num_bytes += sum(stop - start for start, stop, _ in spans)
        num_requests += 1 if is_local else len(spans)
    return Traffic(num_bytes, num_requests)


def _advise_order(
    reader: FrameReader,
    clip: ClipSettings,
    reading: ReadSettings,
    group_shards: int,
    *,
    passes: int,
    num_processes: int,
) -> tuple[OrderKind, str]:
    """Which order training should take, and why; `reader` may be of either."""
    if isinstance(reader.store, LocalStore):
        return "global", "a folder: frames are read where they lie, data.order=global costs no more"
    if reader.extents is None or reader.retention is None:
        why = "data.order=global: without a cache each clip is asked for alone, in any order"
        if passes > 1:
            needed = sum(reader.manifest.table["size"].to_pylist())
            why += f"; data.cache=DIR would keep {needed:,} bytes and ask once"
        return "global", why
    extents, total = reader.extents, reader.extents.total_bytes
    if reader.retention.keeps_all:
        return (
            "global",
            f"data.order=global: the cache holds all {total:,} bytes, later passes ask for nothing",
        )
    room = room_bytes(reading.cache_bytes)
    alone = plan_retention(extents, room)
    grouped = plan_retention(extents, room, group_shards=group_shards)
    if not grouped.passing_bytes:
        return "global", (
            f"data.order=global: the cache holds neither all {total:,} bytes nor two groups of {group_shards} shards "
            f"({2 * group_bytes(extents, group_shards):,}); raise data.cache_bytes or lower data.group_shards"
        )
    clips = np.linspace(
        0, len(reader.manifest) - 1, min(len(reader.manifest), _SAMPLED_CLIPS)
    ).astype(np.int64)
    sampled = _count_clips(reader, clips, clip, None, 0)
    left_out = int(np.count_nonzero(~alone.kept[extents.of_row]))
    one_by_one = _kept_traffic(extents, alone) + sampled.scaled(passes * left_out, len(clips))
    by_groups = _kept_traffic(extents, grouped) + _passing_traffic(extents, grouped, passes)
    slow, fast = (
        _seconds(reader, traffic, reading, num_processes) for traffic in (one_by_one, by_groups)
    )
    if fast < slow:
        return "grouped", (
            f"data.order=grouped: about {fast:,.1f} s of reading, global {slow:,.1f} s; the cache is too small for all "
            "and whole samples, which pass through it group by group, take fewer requests than clips"
        )
    return "global", (
        f"data.order=global: about {slow:,.1f} s of reading, grouped {fast:,.1f} s; the cache is too small for all and "
        "the frames of a clip cost less than the whole sample in every pass"
    )


def _kept_traffic(extents: Extents, retention: Retention) -> Traffic:
    return Traffic(int(extents.sizes[retention.kept].sum()), int(np.count_nonzero(retention.kept)))


def _passing_traffic(extents: Extents, retention: Retention, passes: int) -> Traffic:
    passing = ~retention.kept
    return Traffic(
        passes * int(extents.sizes[passing].sum()), passes * int(np.count_nonzero(passing))
    )


def _advise_scoring(reader: FrameReader) -> str:
    if isinstance(reader.store, LocalStore):
        return "a folder: frames are read where they lie"
    if reader.extents is None or reader.retention is None:
        return "no cache: scoring again asks again"
    if reader.retention.keeps_all:
        return "the cache holds all of it: scoring again asks for nothing"
    return "the cache is smaller than that: scoring again asks again for what it does not keep"
