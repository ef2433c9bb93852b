"""The order that reads a manifest fastest, and the reason in a sentence or two."""

from __future__ import annotations

import numpy as np

from shards.fetching.cache import usable_bytes
from shards.fetching.extents import Extents, Retention, group_bytes, plan_retention
from shards.fetching.frames import CachePlan, FrameReader, ReadSettings
from shards.fetching.traffic import Traffic, count_clips, reading_seconds
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import OrderKind
from shards.storage.local import LocalStore

# Clips of which the comparison of two orders counts the requests.
_NUM_SAMPLED_CLIPS = 1000


def advise_order(
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
    global_seconds = reading_seconds(reader, global_traffic, reading, num_processes)
    grouped_seconds = reading_seconds(reader, grouped_traffic, reading, num_processes)

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
    sampled = count_clips(reader, spread.astype(np.int64), clip, None, 0)

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


def advise_scoring(reader: FrameReader) -> str:
    """Return what a second evaluation will read."""
    if isinstance(reader.store, LocalStore):
        return "a folder: frames are read directly"
    if reader.cache_plan is None:
        return "no cache: a second evaluation requests everything again"
    if reader.cache_plan.retention.keeps_all:
        return "the cache holds all bytes: a second evaluation requests nothing"
    return "the cache is too small for all bytes: a second evaluation requests the others again"
