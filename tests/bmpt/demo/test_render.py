"""Test that rendered motions match their names and that a seed fixes every pixel."""

from __future__ import annotations

import numpy as np
import pytest

from bmpt.demo import render
from bmpt.demo.render import (
    COLORS,
    MOTIONS,
    PLAIN,
    PLAIN_DARK,
    SHAPES,
    Clip,
    Look,
    render_clip,
    trajectory,
)

TIMES = (np.arange(8) + 0.5) / 8
SEEDS = range(8)


def clip_of(motion: str, *, look: Look = PLAIN_DARK, seed: int = 0, **sizes: int) -> Clip:
    """Render a clip with a generator of its own."""
    return render_clip(motion, look, np.random.default_rng(seed), **sizes)


def path_of(motion: str, seed: int) -> tuple[np.ndarray, ...]:
    """Return x, y, scale, angle and visibility at TIMES."""
    return trajectory(motion, TIMES, np.random.default_rng(seed))


def centre_of(frame_HWC: np.ndarray) -> tuple[float, float]:
    """Return (x, y) in pixels of the centre of all pixels that differ from the median colour."""
    background = np.median(frame_HWC.reshape(-1, 3), axis=0)
    weight = np.abs(frame_HWC.astype(float) - background).sum(axis=-1)

    y, x = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]]
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


def looks() -> list[Look]:
    """Return every look that the module defines."""
    return [value for value in vars(render).values() if isinstance(value, Look)]


def test_there_are_sixteen_motions_sorted_and_all_different() -> None:
    assert len(MOTIONS) == 16
    assert list(MOTIONS) == sorted(set(MOTIONS))


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_renders_in_every_look(motion: str) -> None:
    for look in looks():
        clip = clip_of(motion, look=look, num_frames=5, size_px=24)
        assert clip.frames_THWC.shape == (5, 24, 24, 3)
        assert clip.frames_THWC.dtype == np.uint8
        assert clip.motion == motion
        assert clip.color in COLORS
        assert clip.shape in SHAPES
        assert clip.frames_THWC.std() > 2, "the shape cannot be seen"


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_same_seed_renders_the_same_pixels_and_another_seed_other_ones(motion: str) -> None:
    for look in looks():
        first = clip_of(motion, look=look, seed=3).frames_THWC
        again = clip_of(motion, look=look, seed=3).frames_THWC
        other = clip_of(motion, look=look, seed=4).frames_THWC
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving left", 0, -1), ("moving right", 0, 1), ("moving up", 1, -1), ("moving down", 1, 1)],
)
def test_a_moving_shape_moves_in_the_direction_of_its_name(
    motion: str, axis: int, sign: int
) -> None:
    for seed in SEEDS:
        steps = np.diff(path_of(motion, seed)[axis])
        assert (sign * steps > 0).all()
        assert np.ptp(path_of(motion, seed)[1 - axis]) == 0

        # The pixels follow the path.
        clip = clip_of(motion, seed=seed).frames_THWC
        assert sign * (centre_of(clip[-1])[axis] - centre_of(clip[0])[axis]) > 5


@pytest.mark.parametrize(("direction", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_circling_turns_in_the_direction_of_its_name(direction: str, sign: int) -> None:
    for seed in SEEDS:
        x, y = path_of(f"circling {direction}", seed)[:2]
        dx, dy = np.diff(x), np.diff(y)

        # y points down, so a positive cross product of successive steps is clockwise on the screen.
        assert (sign * (dx[:-1] * dy[1:] - dy[:-1] * dx[1:]) > 0).all()


@pytest.mark.parametrize(("direction", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_spinning_turns_in_the_direction_of_its_name(direction: str, sign: int) -> None:
    for seed in SEEDS:
        angle = path_of(f"spinning {direction}", seed)[3]
        assert (sign * np.diff(angle) > 0).all()
        assert (np.abs(np.diff(angle)) < np.pi / 4).all(), "a larger step would alias for a square"


def test_growing_and_shrinking_change_only_the_scale() -> None:
    for seed in SEEDS:
        for motion, sign in (("growing", 1), ("shrinking", -1)):
            x, y, scale, angle, visible = path_of(motion, seed)
            assert (sign * np.diff(scale) > 0).all()
            assert [np.ptp(values) for values in (x, y, angle)] == [0, 0, 0]
            assert visible.tolist() == [1.0] * 8


def test_a_shape_that_stays_still_stays_still() -> None:
    for seed in SEEDS:
        assert [np.ptp(values) for values in path_of("staying still", seed)] == [0] * 5


def test_a_blinking_shape_is_visible_in_some_frames_and_hidden_in_others() -> None:
    for seed in SEEDS:
        assert set(path_of("blinking", seed)[4].tolist()) == {0.0, 1.0}


def test_opposite_motions_differ_only_in_the_order_of_frames() -> None:
    """A reversed path to the left is a path to the right, so no single frame shows the motion."""
    left, right = path_of("moving left", 1)[0], path_of("moving right", 1)[0]
    assert np.allclose(left + right, left[0] + right[0])


@pytest.mark.parametrize(
    "motion", ["dancing", "moving", "moving sideways", "circling", "spinning", "growing fast", ""]
)
def test_an_unknown_motion_is_refused_with_the_known_ones(motion: str) -> None:
    with pytest.raises(ValueError, match=r"unknown motion .*known: blinking, .*zigzagging"):
        clip_of(motion)


def test_rendering_leaves_the_global_generator_alone() -> None:
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    clip_of("shaking", look=PLAIN)
    assert np.random.rand() == expected
