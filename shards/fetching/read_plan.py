"""The plan of what a run will read from a pool (`bmpt plan`): its traffic, time and best order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.fetching.frames import FrameReader, ReadSettings, make_reader
from shards.fetching.order_advice import advise_order, advise_scoring
from shards.fetching.traffic import Traffic, count_passes, reading_seconds
from shards.reader import Manifest
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import OrderKind, make_order
from shards.sampling.plan import num_steps
from shards.storage.base import Store
from shards.storage.local import LocalStore


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
    passes = count_passes(
        reader, clip, (ordered.rows(positions, epoch) for epoch in range(epochs)), seed
    )
    advised_order, advice = advise_order(
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
    passes = count_passes(reader, clip, [np.arange(len(manifest))], seed=None)
    return _make_plan(
        reader,
        reading,
        passes,
        order="as listed",
        num_clips=len(manifest),
        advised_order=None,
        advice=advise_scoring(reader),
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
        seconds = reading_seconds(reader, total, reading, num_processes)

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
