"""The bytes and requests of a pass over a manifest, counted without reading a sample.

The functions that a run reads by are simulated: the frames of each clip, the requests that ranges
are merged into, and what an initially empty cache keeps from an earlier epoch. A cache that other
runs fill at the same time keeps less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.fetching.frames import CachePlan, FrameReader, ReadSettings, merge_ranges
from shards.sampling.clip_sampling import clip_positions
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import IndexArray
from shards.sampling.sample_rng import sample_rng
from shards.storage.local import LocalStore

# Uncached clips that are counted exactly; later epochs are extrapolated from them.
_NUM_COUNTED_CLIPS = 250_000


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


def reading_seconds(
    reader: FrameReader, traffic: Traffic, reading: ReadSettings, num_processes: int
) -> float:
    """Return the time of the requests over all connections of all processes."""
    seconds = reader.cost.seconds(traffic.num_bytes, traffic.requests)
    return seconds / (num_processes * reading.requests_in_flight)


def count_passes(
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
            uncached = count_clips(reader, uncached_rows, clip, seed, epoch)
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


def count_clips(
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
