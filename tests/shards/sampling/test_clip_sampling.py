"""The frames of a clip: as in the reference implementations, and all of them stored in a pool."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sampling.clip_sampling import Sampling, center_indices, clip_positions, segment_bounds

SAMPLINGS = st.sampled_from(get_args(Sampling))


def lattice(num_frames: int, max_stored: int = 64) -> np.ndarray:
    """Return the source indices that a pool stores."""
    if num_frames <= max_stored:
        return np.arange(num_frames)
    return np.arange(max_stored) * num_frames // max_stored


@pytest.mark.parametrize(
    ("num_frames", "num_segments", "expected"),
    [
        (300, 8, [18, 56, 93, 131, 168, 206, 243, 281]),
        (75, 16, [2, 7, 11, 16, 21, 25, 30, 35, 39, 44, 49, 53, 58, 63, 67, 72]),
    ],
)
def test_an_evaluation_clip_has_the_frames_of_the_reference(
    num_frames: int, num_segments: int, expected: list[int]
) -> None:
    assert center_indices(num_frames, num_segments).tolist() == expected
    assert clip_positions(np.arange(num_frames), num_frames, num_segments).tolist() == expected


def test_the_stored_lattice_holds_every_evaluation_frame_for_all_lengths_up_to_1999() -> None:
    for num_frames in range(1, 2000):
        stored = lattice(num_frames)
        for num_segments in (1, 2, 4, 8, 16, 32):
            positions = clip_positions(stored, num_frames, num_segments)
            assert stored[positions].tolist() == center_indices(num_frames, num_segments).tolist()


def test_a_wanted_frame_that_is_not_stored_becomes_the_nearest_earlier_frame() -> None:
    # n = 10, T = 2 wants frames 2 and 7
    assert clip_positions([0, 1, 6, 8], 10, 2).tolist() == [1, 2]


def test_a_wanted_frame_before_the_first_stored_frame_becomes_the_first() -> None:
    assert clip_positions([5, 9], 10, 2).tolist() == [0, 0]


@given(
    num_frames=st.integers(1, 400),
    num_segments=st.integers(1, 40),
    sampling=SAMPLINGS,
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_a_training_clip_has_one_stored_frame_of_each_segment(
    num_frames: int, num_segments: int, sampling: Sampling, seed: int
) -> None:
    stored = lattice(num_frames)
    rng = np.random.default_rng(seed)
    positions = clip_positions(stored, num_frames, num_segments, sampling=sampling, rng=rng)
    assert positions.shape == (num_segments,)
    assert ((positions >= 0) & (positions < len(stored))).all()
    if num_frames < num_segments and sampling == "vifi":
        return  # another rule, tested below
    low, high = segment_bounds(num_frames, num_segments, sampling=sampling)
    assert (np.diff(positions) >= 0).all()
    for position, first, end in zip(positions, low, high, strict=True):
        inside = (stored >= first) & (stored < end)
        if inside.any():
            assert inside[position]
        else:
            distance = np.abs(2 * stored - (first + end - 1))
            assert distance[position] == distance.min()


def test_every_stored_frame_of_a_segment_is_drawn_equally_often() -> None:
    rng = np.random.default_rng(0)
    drawn = [clip_positions(np.arange(10), 10, 2, rng=rng) for _ in range(4000)]
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert counts.sum() == 8000
    assert np.abs(counts - 800).max() < 4 * np.sqrt(800)


def test_even_segments_cover_the_video_and_vifi_leaves_out_the_tail() -> None:
    assert [bound.tolist() for bound in segment_bounds(11, 4, sampling="even")] == [
        [0, 3, 6, 9],
        [3, 6, 9, 11],
    ]
    assert [bound.tolist() for bound in segment_bounds(11, 4, sampling="vifi")] == [
        [0, 2, 4, 6],
        [2, 4, 6, 8],
    ]


def test_a_segment_without_a_stored_frame_takes_the_nearest() -> None:
    # Segments [0, 4), [4, 8), [8, 12). The middle one lost its frames to damage; 3 and 8 are
    # equally near to 5.5.
    positions = clip_positions([0, 1, 2, 3, 8, 9, 10, 11], 12, 3, rng=np.random.default_rng(0))
    assert positions[1] == 3


def test_a_short_video_repeats_its_frames_in_order() -> None:
    for seed in range(5):
        positions = clip_positions([0, 1, 2], 3, 8, rng=np.random.default_rng(seed))
        assert positions.tolist() == sorted(positions.tolist())
        assert set(positions.tolist()) == {0, 1, 2}
    assert clip_positions([0, 1, 2], 3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_vifi_sampling_of_a_short_video_equals_the_reference() -> None:
    # round_half_even(i * 3 / 8) = 0 0 1 1 2 2 2 3, modulo 3
    positions = clip_positions([0, 1, 2], 3, 8, sampling="vifi", rng=np.random.default_rng(0))
    assert positions.tolist() == [0, 0, 1, 1, 2, 2, 2, 0]


@pytest.mark.parametrize(
    ("stored", "num_frames", "num_segments"), [([], 0, 8), ([], 4, 8), ([0], 1, 0)]
)
def test_no_frame_or_no_segment_is_an_error(
    stored: list[int], num_frames: int, num_segments: int
) -> None:
    with pytest.raises(ValueError, match="no clip of"):
        clip_positions(stored, num_frames, num_segments)
