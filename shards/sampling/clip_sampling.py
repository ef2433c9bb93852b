"""Which stored frames make a clip.

Wanted frames are indices into the n frames of the source video, of which a pool stores at most F.
Since stored frame j is source frame j*n//F, an evaluation with T = 1, 2, 4, ... F/2 frames finds
exactly the frames it wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from shards.sampling.orders import IndexArray

Sampling = Literal["even", "vifi"]


def clip_positions(
    source_index: Sequence[int] | IndexArray,
    num_frames: int,
    num_segments: int,
    *,
    sampling: Sampling = "even",
    rng: np.random.Generator | None = None,
) -> IndexArray:
    """Pick one stored frame per segment: its centre in evaluation, a random frame in training.

    A short video repeats frames; it is never padded with black.

    Args:
        source_index: source index of each stored frame, ascending.
        num_frames: n, the frames of the source.
        num_segments: T, the frames of the clip.
        sampling: rule for the bounds of the segments, see `segment_bounds`.
        rng: None for evaluation.

    Returns:
        int64 [num_segments], positions in the stored sample; ascending, except for vifi with n < T.

    Raises:
        ValueError: if there is no frame or no segment.
    """
    stored = np.asarray(source_index, dtype=np.int64)
    if num_frames < 1 or stored.size < 1 or num_segments < 1:
        raise ValueError(
            f"no clip of {num_segments} frames from {stored.size} stored of {num_frames} frames"
        )

    if rng is None:
        return _at_or_before(stored, center_indices(num_frames, num_segments))

    if sampling == "vifi" and num_frames < num_segments:
        # The rule of the released ViFi-CLIP for short videos: nothing is drawn, and an index that
        # rounds up to n becomes frame 0.
        wanted = np.rint(np.arange(num_segments) * num_frames / num_segments).astype(np.int64)
        return _at_or_before(stored, wanted % num_frames)

    low, high = segment_bounds(num_frames, num_segments, sampling=sampling)
    return _draw_from_segments(stored, low, high, rng)


def center_indices(num_frames: int, num_segments: int) -> IndexArray:
    """Return the source index at the centre of each segment, floor((i + 0.5) * n / T).

    Source: TSN (Wang et al. 2016); ViFi-CLIP, BDC-CLIP and BMPT evaluate these frames.

    Returns:
        int64 [num_segments].
    """
    return (2 * np.arange(num_segments, dtype=np.int64) + 1) * num_frames // (2 * num_segments)


def segment_bounds(
    num_frames: int, num_segments: int, *, sampling: Sampling
) -> tuple[IndexArray, IndexArray]:
    """Return the integer frames [low, high) of each segment.

    - even: the integers in the real-valued bounds [i*n/T, (i+1)*n/T), so that the segments cover
      the video; a segment may hold no frame if n < T.
    - vifi: [i*L, (i+1)*L) with L = n // T, which leaves out the last n mod T frames, as ViFi-CLIP
      does.

    Returns:
        low and high, int64 [num_segments] each.
    """
    edges = np.arange(num_segments + 1, dtype=np.int64)
    if sampling == "vifi":
        edges = edges * (num_frames // num_segments)
    else:
        # An integer is at or above a real-valued bound if it is at or above the bound's ceiling.
        edges = -(-edges * num_frames // num_segments)
    return edges[:-1], edges[1:]


def _draw_from_segments(
    stored: IndexArray, low: IndexArray, high: IndexArray, rng: np.random.Generator
) -> IndexArray:
    """Draw a stored frame uniformly from each [low, high).

    A segment without a stored frame takes the stored frame nearest to its middle.
    """
    # One number is drawn per segment, empty or not: later draws do not depend on damaged frames.
    first = np.searchsorted(stored, low, side="left")
    count = np.searchsorted(stored, high, side="left") - first
    drawn = first + np.floor(rng.random(len(low)) * count).astype(np.int64)
    return np.where(count > 0, drawn, _nearest(stored, low + high - 1))


def _nearest(stored: IndexArray, doubled: IndexArray) -> IndexArray:
    """Return the position of the stored frame nearest to doubled / 2, the earlier one of two."""
    # Doubled, since the middle of a segment with an even number of frames is half an index.
    after = np.searchsorted(2 * stored, doubled, side="left").clip(max=len(stored) - 1)
    before = (after - 1).clip(min=0)
    is_before = np.abs(doubled - 2 * stored[before]) <= np.abs(2 * stored[after] - doubled)
    return np.where(is_before, before, after)


def _at_or_before(stored: IndexArray, wanted: IndexArray) -> IndexArray:
    """Return the position of the last stored frame at or before each wanted one, else the first."""
    return (np.searchsorted(stored, wanted, side="right") - 1).clip(min=0)
