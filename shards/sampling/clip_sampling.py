"""Which stored frames make a clip. Wanted frames are source indices; a pool stores at most F of the
n frames.

With the pool's lattice (stored frame j is source frame j*n//F) an evaluation at T = 1, 2, 4, ...
F/2 frames finds exactly the frames it wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]
Sampling = Literal["even", "vifi"]


def clip_positions(
    source_index: Sequence[int] | IndexArray,
    num_frames: int,
    num_segments: int,
    *,
    sampling: Sampling = "even",
    rng: np.random.Generator | None = None,
) -> IndexArray:
    """Pick one stored frame per segment: centres if rng is None (evaluation), else one at random.

    Args: source_index: source index of each stored frame, ascending; num_frames: n, the frames of
        the source.
    Returns: int64 [num_segments], positions in the stored sample, ascending (but for vifi with n <
        T).
    Raises: ValueError if there is no frame. A short video repeats frames, it is never padded with
        black."""
    stored = np.asarray(source_index, dtype=np.int64)
    if num_frames < 1 or stored.size < 1 or num_segments < 1:
        raise ValueError(
            f"no clip of {num_segments} frames from {stored.size} stored of {num_frames} frames"
        )
    if rng is None:
        return _at_or_before(stored, center_indices(num_frames, num_segments))
    if sampling == "vifi" and num_frames < num_segments:
        # The reference's rule for short videos: not random, and what rounds up to n wraps round to
        # frame 0.
        wanted = (
            np.rint(np.arange(num_segments) * num_frames / num_segments).astype(np.int64)
            % num_frames
        )
        return _at_or_before(stored, wanted)
    return _one_in_each(stored, *segment_bounds(num_frames, num_segments, sampling=sampling), rng)


def center_indices(num_frames: int, num_segments: int) -> IndexArray:
    """Give the source index at the centre of each segment, floor((i + 0.5) * n / T): int64
    [num_segments].

    Source: TSN (Wang et al. 2016); ViFi-CLIP, BDC-CLIP and BMPT evaluate these frames."""
    return (2 * np.arange(num_segments, dtype=np.int64) + 1) * num_frames // (2 * num_segments)


def segment_bounds(
    num_frames: int, num_segments: int, *, sampling: Sampling
) -> tuple[IndexArray, IndexArray]:
    """Give the integer frames [low, high) of each segment, two int64 [num_segments].

    even: the real-valued bounds [i*n/T, (i+1)*n/T), so that the segments cover the video; one may
        hold no frame
    if n < T. vifi: [i*L, (i+1)*L) with L = n // T, which leaves out the last n mod T frames, as
    ViFi-CLIP does."""
    edges = np.arange(num_segments + 1, dtype=np.int64)
    if sampling == "vifi":
        edges = edges * (num_frames // num_segments)
    else:
        edges = -(
            -edges * num_frames // num_segments
        )  # an integer is >= a real bound if it is >= its ceiling
    return edges[:-1], edges[1:]


def _one_in_each(
    stored: IndexArray, low: IndexArray, high: IndexArray, rng: np.random.Generator
) -> IndexArray:
    """Draw a stored frame in each [low, high), uniformly; where none is stored take the nearest to
    its middle."""
    first = np.searchsorted(stored, low, side="left")
    count = np.searchsorted(stored, high, side="left") - first
    drawn = first + np.floor(rng.random(len(low)) * count).astype(np.int64)
    return np.where(count > 0, drawn, _nearest(stored, low + high - 1))


def _nearest(stored: IndexArray, doubled: IndexArray) -> IndexArray:
    """The stored frame nearest to doubled / 2, the earlier one of two: int64, the shape of
    `doubled`."""
    after = np.searchsorted(2 * stored, doubled, side="left").clip(max=len(stored) - 1)
    before = (after - 1).clip(min=0)
    return np.where(
        np.abs(doubled - 2 * stored[before]) <= np.abs(2 * stored[after] - doubled), before, after
    )


def _at_or_before(stored: IndexArray, wanted: IndexArray) -> IndexArray:
    """The stored frame with the wanted source index, else the nearest earlier one, else the
    first."""
    return (np.searchsorted(stored, wanted, side="right") - 1).clip(min=0)
