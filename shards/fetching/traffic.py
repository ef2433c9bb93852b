"""The bytes and requests that a run will ask of a pool, counted before it begins (`bmpt plan`).

The functions that a run reads by are simulated: the order of each epoch, the frames of each clip,
the requests that ranges are merged into, and what an initially empty cache keeps from an earlier
epoch. A cache that other runs fill at the same time keeps less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.fetching.cache import usable_bytes
from shards.fetching.extents import Extents, Retention, group_bytes, plan_retention
from shards.fetching.frames import CachePlan, FrameReader, ReadSettings, make_reader, merge_ranges
from shards.reader import Manifest
from shards.sampling.clip_sampling import clip_positions
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import IndexArray, OrderKind, make_order
from shards.sampling.plan import num_steps
from shards.sampling.sample_rng import sample_rng
from shards.storage.base import Store
from shards.storage.local import LocalStore

# Uncached clips that are counted exactly; later epochs are extrapolated from them.
_NUM_COUNTED_CLIPS = 250_000
# Clips of which the comparison of two orders counts the requests.
_NUM_SAMPLED_CLIPS = 1000


@dataclass(frozen=True)
class Traffic:
    """Bytes and requests that are asked of a store."""

    num_bytes: int = 0
    requests: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.num_bytes + other.num_bytes, self.requests + other.requests)

    def scaled(self, part: int, whole: int) -> Traffic:
        """Return the traffic of `part` clips, given this traffic of `whole` clips."""
        return Traffic(round(self.num_bytes * part / whole), round(self.requests * part / whole))


@dataclass(frozen=True)
class ReadPlan:
    """The traffic of all passes over one manifest; its fields are those of `bmpt plan --json`."""

    manifest: str
    order: str

    samples: int
    """Rows of the manifest."""

    clips: int
    """Clips of one pass."""

    shards: int
    """Shards that hold the samples."""

    passes: int
    """Epochs of training; 1 for scoring."""

    needed_bytes: int
    """Bytes of all samples with every frame."""

    first_bytes: int
    """Bytes that the first pass requests."""

    first_requests: int
    """Requests of the first pass."""

    all_bytes: int
    """Bytes that all passes request."""

    all_requests: int
    """Requests of all passes."""

    cached: bool
    """Whether a cache is used."""

    extent_bytes: int
    """Bytes of all extents; 0 without a cache."""

    kept_bytes: int
    """Bytes of the extents that the cache keeps from pass to pass."""

    passing_bytes: int
    """Budget for the other extents, see `shards.fetching.extents.Retention.transient_bytes`."""

    seconds: float | None
    """Time of the requests alone, at the stated cost of a request; None for a folder."""

    advised_order: OrderKind | None
    """The `data.order` that reads fastest; None for scoring."""

    advice: str
    """The reason for it, in a sentence or two."""


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
    """Count what training reads.

    The counts are exact for the cache and for 250,000 clips that are read without it (about half a
    minute); further epochs are extrapolated. The number of pixels in `clip` has no influence.

    Args:
        num_processes: loader processes that send requests at the same time, over all ranks.
    """
    ordered = make_order(manifest.table["shard"], order, seed=seed, group_shards=group_shards)
    num_clips = num_steps(len(manifest), batch_size) * batch_size
    reader = make_reader(
        store, manifest, reading, group_shards=group_shards if order == "grouped" else None
    )

    # A generator below, so that only the rows of one epoch are in memory.
    positions = np.arange(num_clips)
    passes = _count_passes(
        reader, clip, (ordered.rows(positions, epoch) for epoch in range(epochs)), seed
    )
    advised_order, advice = _advise_order(
        reader, clip, reading, group_shards, passes=epochs, num_processes=num_processes
    )

    return _make_plan(
        reader,
        reading,
        passes,
        order=ordered.name,
        num_clips=num_clips,
        advised_order=advised_order,
        advice=advice,
        num_processes=num_processes,
    )


def plan_scoring(
    store: Store,
    manifest: Manifest,
    clip: ClipSettings,
    reading: ReadSettings,
    *,
    num_processes: int = 1,
) -> ReadPlan:
    """Count exactly what one evaluation of a manifest reads; see `plan_training`."""
    reader = make_reader(store, manifest, reading)
    passes = _count_passes(reader, clip, [np.arange(len(manifest))], seed=None)
    return _make_plan(
        reader,
        reading,
        passes,
        order="as listed",
        num_clips=len(manifest),
        advised_order=None,
        advice=_advise_scoring(reader),
        num_processes=num_processes,
    )


def plan_text(plan: ReadPlan) -> str:
    """Return a plan as lines to print."""
    lines = [
        f"{plan.manifest}: {plan.samples:,} samples of {plan.shards:,} shards, "
        f"{plan.needed_bytes:,} bytes",
        f"  {plan.clips:,} clips per pass, order: {plan.order}",
    ]
    if plan.cached:
        lines.append(f"  cache: {_cache_text(plan)}")

    lines.append(_traffic_line("first pass ", plan.first_bytes, plan.first_requests))
    if plan.passes > 1:
        lines.append(_traffic_line(f"{plan.passes:>4} passes", plan.all_bytes, plan.all_requests))
    if plan.seconds is not None:
        lines.append(f"  reading alone: about {plan.seconds:,.1f} s")

    return "\n".join([*lines, f"  {plan.advice}"])


def _traffic_line(name: str, num_bytes: int, requests: int) -> str:
    return f"  {name:<13} {num_bytes:>18,} bytes {requests:>12,} requests"


def _cache_text(plan: ReadPlan) -> str:
    """Return the part of the extents that the cache keeps, and what happens to the others."""
    if plan.kept_bytes == plan.extent_bytes:
        return f"keeps all {plan.extent_bytes:,} bytes"

    kept = f"keeps {plan.kept_bytes:,} of {plan.extent_bytes:,} bytes"
    if plan.passing_bytes:
        return f"{kept}, the others use {plan.passing_bytes:,} bytes of it group by group"

    is_grouped = plan.order.startswith("grouped/")
    reason = ", since two groups of shards do not fit" if is_grouped else ""
    return f"{kept}, the others are read clip by clip{reason}"


def _make_plan(
    reader: FrameReader,
    reading: ReadSettings,
    passes: list[Traffic],
    *,
    order: str,
    num_clips: int,
    advised_order: OrderKind | None,
    advice: str,
    num_processes: int,
) -> ReadPlan:
    table, cache_plan = reader.manifest.table, reader.cache_plan
    total = sum(passes, Traffic())
    first = passes[0] if passes else Traffic()

    seconds = None
    if not isinstance(reader.store, LocalStore):
        seconds = _seconds(reader, total, reading, num_processes)

    extent_bytes = kept_bytes = transient_bytes = 0
    if cache_plan is not None:
        extent_bytes = cache_plan.extents.total_bytes
        kept_bytes = int(cache_plan.extents.sizes[cache_plan.retention.kept].sum())
        transient_bytes = cache_plan.retention.transient_bytes

    return ReadPlan(
        manifest=reader.manifest.info.path,
        order=order,
        samples=len(reader.manifest),
        clips=num_clips,
        shards=len(set(table["shard"].to_pylist())),
        passes=len(passes),
        needed_bytes=sum(table["size"].to_pylist()),
        first_bytes=first.num_bytes,
        first_requests=first.requests,
        all_bytes=total.num_bytes,
        all_requests=total.requests,
        cached=cache_plan is not None,
        extent_bytes=extent_bytes,
        kept_bytes=kept_bytes,
        passing_bytes=transient_bytes,
        seconds=seconds,
        advised_order=advised_order,
        advice=advice,
    )


def _seconds(
    reader: FrameReader, traffic: Traffic, reading: ReadSettings, num_processes: int
) -> float:
    """Return the time of the requests over all connections of all processes."""
    seconds = reader.cost.seconds(traffic.num_bytes, traffic.requests)
    return seconds / (num_processes * reading.requests_in_flight)


def _count_passes(
    reader: FrameReader, clip: ClipSettings, passes: Iterable[IndexArray], seed: int | None
) -> list[Traffic]:
    """Return the traffic of each pass.

    Once very many uncached clips were counted, later passes are extrapolated.

    Args:
        reader: of the manifest.
        clip: how clips are made.
        passes: the rows of each pass.
        seed: None for evaluation.
    """
    traffic: list[Traffic] = []
    counted, num_counted = Traffic(), 0
    num_extents = 0 if reader.cache_plan is None else len(reader.cache_plan.extents)
    # A run is planned with an empty cache.
    loaded = np.zeros(num_extents, bool)

    for epoch, rows in enumerate(passes):
        cached_rows, uncached_rows = _split_rows(reader.cache_plan, rows)
        num_uncached = len(uncached_rows)

        # The first pass is always counted, however large it is.
        if num_counted + num_uncached <= max(_NUM_COUNTED_CLIPS, num_uncached):
            uncached = _count_clips(reader, uncached_rows, clip, seed, epoch)
            counted, num_counted = counted + uncached, num_counted + num_uncached
        else:
            uncached = counted.scaled(num_uncached, num_counted)

        cached = Traffic()
        if reader.cache_plan is not None:
            cached = _load_extents(reader.cache_plan, cached_rows, loaded)
        traffic.append(uncached + cached)

    return traffic


def _split_rows(plan: CachePlan | None, rows: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Return the rows that are read through the cache, and the others."""
    if plan is None:
        return rows[:0], rows
    # With a budget for transient entries, every extent goes through the cache.
    if plan.retention.transient_bytes:
        return rows, rows[:0]
    is_kept = plan.retention.kept[plan.extents.of_row[rows]]
    return rows[is_kept], rows[~is_kept]


def _load_extents(plan: CachePlan, rows: IndexArray, loaded: npt.NDArray[np.bool_]) -> Traffic:
    """Return what a pass over rows loads into the cache, and mark it in `loaded`, bool [E]."""
    # A transient entry is loaded again in each pass, a kept one only in the first.
    used = np.unique(plan.extents.of_row[rows])
    is_stored = loaded[used] & plan.retention.kept[used]
    missing = used[~is_stored]
    loaded[used] = True
    return Traffic(int(plan.extents.sizes[missing].sum()), len(missing))


def _count_clips(
    reader: FrameReader, rows: IndexArray, clip: ClipSettings, seed: int | None, epoch: int
) -> Traffic:
    """Return the traffic of the frames of clips, read without the cache."""
    is_local = isinstance(reader.store, LocalStore)
    gap_bytes = 0 if is_local else reader.cost.gap_bytes
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
        # Offsets within the sample are enough: only the gaps between frames matter.
        ranges = [
            (row["frame_offset"][frame], row["frame_size"][frame])
            for frame in sorted(set(frames.tolist()))
        ]
        spans = merge_ranges(ranges, gap_bytes)
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
    """Return the order that training should take, and why; `reader` may be of either order."""
    if isinstance(reader.store, LocalStore):
        return "global", "a folder: frames are read directly, so data.order=global costs no more"

    plan = reader.cache_plan
    if plan is None:
        reason = "data.order=global: without a cache each clip is requested alone, in either order"
        if passes > 1:
            needed = sum(reader.manifest.table["size"].to_pylist())
            reason += f"; data.cache=DIR would keep {needed:,} bytes and request them once"
        return "global", reason

    total = plan.extents.total_bytes
    if plan.retention.keeps_all:
        return (
            "global",
            f"data.order=global: the cache holds all {total:,} bytes, later passes request nothing",
        )

    return _advise_for_small_cache(
        reader, plan, clip, reading, group_shards, passes=passes, num_processes=num_processes
    )


def _advise_for_small_cache(
    reader: FrameReader,
    plan: CachePlan,
    clip: ClipSettings,
    reading: ReadSettings,
    group_shards: int,
    *,
    passes: int,
    num_processes: int,
) -> tuple[OrderKind, str]:
    """Compare the orders for a cache that does not hold all extents."""
    total = plan.extents.total_bytes
    usable = usable_bytes(reading.cache_bytes)
    grouped = plan_retention(plan.extents, usable, group_shards=group_shards)
    if not grouped.transient_bytes:
        two_groups = 2 * group_bytes(plan.extents, group_shards)
        return "global", (
            f"data.order=global: the cache holds neither all {total:,} bytes nor two groups of "
            f"{group_shards} shards ({two_groups:,}); raise data.cache_bytes or lower "
            "data.group_shards"
        )

    global_traffic = _estimate_global(reader, plan.extents, usable, clip, passes)
    grouped_traffic = _kept_traffic(plan.extents, grouped)
    grouped_traffic += _transient_traffic(plan.extents, grouped, passes)
    global_seconds = _seconds(reader, global_traffic, reading, num_processes)
    grouped_seconds = _seconds(reader, grouped_traffic, reading, num_processes)

    if grouped_seconds < global_seconds:
        return "grouped", (
            f"data.order=grouped: about {grouped_seconds:,.1f} s of reading, global "
            f"{global_seconds:,.1f} s; the cache is too small for all samples, and reading "
            "whole samples group by group takes fewer requests than reading clips"
        )
    return "global", (
        f"data.order=global: about {global_seconds:,.1f} s of reading, grouped "
        f"{grouped_seconds:,.1f} s; the cache is too small for all samples, and the frames of a "
        "clip cost less than the whole sample in every pass"
    )


def _estimate_global(
    reader: FrameReader, extents: Extents, usable: int, clip: ClipSettings, passes: int
) -> Traffic:
    """Estimate the traffic of the global order from clips spread over the manifest."""
    num_samples = len(reader.manifest)
    # Evenly over the manifest, since the samples of a class are neighbours in most lists.
    spread = np.linspace(0, num_samples - 1, min(num_samples, _NUM_SAMPLED_CLIPS))
    sampled = _count_clips(reader, spread.astype(np.int64), clip, None, 0)

    retention = plan_retention(extents, usable)
    num_uncached = int(np.count_nonzero(~retention.kept[extents.of_row]))
    return _kept_traffic(extents, retention) + sampled.scaled(passes * num_uncached, len(spread))


def _kept_traffic(extents: Extents, retention: Retention) -> Traffic:
    """Return the traffic of the extents that stay in the cache: each is loaded once."""
    return Traffic(int(extents.sizes[retention.kept].sum()), int(np.count_nonzero(retention.kept)))


def _transient_traffic(extents: Extents, retention: Retention, passes: int) -> Traffic:
    """Return the traffic of the other extents: each is loaded once per pass."""
    is_transient = ~retention.kept
    num_bytes = passes * int(extents.sizes[is_transient].sum())
    return Traffic(num_bytes, passes * int(np.count_nonzero(is_transient)))


def _advise_scoring(reader: FrameReader) -> str:
    """Return what a second evaluation will read."""
    if isinstance(reader.store, LocalStore):
        return "a folder: frames are read directly"
    if reader.cache_plan is None:
        return "no cache: a second evaluation requests everything again"
    if reader.cache_plan.retention.keeps_all:
        return "the cache holds all bytes: a second evaluation requests nothing"
    return "the cache is too small for all bytes: a second evaluation requests the others again"
