"""The rendered motions are what their names say, and the same on every machine."""

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
    return render_clip(motion, look, np.random.default_rng(seed), **sizes)


def path_of(motion: str, seed: int) -> tuple[np.ndarray, ...]:
    return trajectory(motion, TIMES, np.random.default_rng(seed))


def centre_of(frame_HWC: np.ndarray) -> tuple[float, float]:
    """(x, y) of what stands out from the frame's commonest colour, px."""
    background = np.median(frame_HWC.reshape(-1, 3), axis=0)
    weight = np.abs(frame_HWC.astype(float) - background).sum(axis=-1)
    y, x = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]]
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


def looks() -> list[Look]:
    """Every look that the module defines."""
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
        assert clip.frames_THWC.std() > 2, "there is nothing to see"


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_same_seed_renders_the_same_pixels_and_another_one_others(motion: str) -> None:
    for look in looks():
        first, again, other = (
            clip_of(motion, look=look, seed=seed).frames_THWC for seed in (3, 3, 4)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving left", 0, -1), ("moving right", 0, 1), ("moving up", 1, -1), ("moving down", 1, 1)],
)
def test_a_moving_shape_goes_the_way_its_name_says(motion: str, axis: int, sign: int) -> None:
    for seed in SEEDS:
        steps = np.diff(path_of(motion, seed)[axis])
        assert (sign * steps > 0).all()
        assert np.ptp(path_of(motion, seed)[1 - axis]) == 0
        clip = clip_of(motion, seed=seed).frames_THWC
        assert sign * (centre_of(clip[-1])[axis] - centre_of(clip[0])[axis]) > 5, (
            "in the pixels too"
        )


@pytest.mark.parametrize(("way", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_circling_turns_the_way_its_name_says(way: str, sign: int) -> None:
    for seed in SEEDS:
        x, y = path_of(f"circling {way}", seed)[:2]
        dx, dy = np.diff(x), np.diff(y)
        # y points down, so a positive cross product of following steps is clockwise on the screen
        assert (sign * (dx[:-1] * dy[1:] - dy[:-1] * dx[1:]) > 0).all()


@pytest.mark.parametrize(("way", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_spinning_turns_the_way_its_name_says(way: str, sign: int) -> None:
    for seed in SEEDS:
        angle = path_of(f"spinning {way}", seed)[3]
        assert (sign * np.diff(angle) > 0).all()
        assert (np.abs(np.diff(angle)) < np.pi / 4).all(), "a larger step would alias for a square"


def test_growing_and_shrinking_change_the_scale_alone() -> None:
    for seed in SEEDS:
        for motion, sign in (("growing", 1), ("shrinking", -1)):
            x, y, scale, angle, visible = path_of(motion, seed)
            assert (sign * np.diff(scale) > 0).all()
            assert [np.ptp(values) for values in (x, y, angle)] == [0, 0, 0]
            assert visible.tolist() == [1.0] * 8


def test_a_shape_that_stays_still_stays_still() -> None:
    for seed in SEEDS:
        assert [np.ptp(values) for values in path_of("staying still", seed)] == [0] * 5


def test_a_blinking_shape_is_sometimes_there_and_sometimes_not() -> None:
    for seed in SEEDS:
        assert set(path_of("blinking", seed)[4].tolist()) == {0.0, 1.0}


def test_the_motion_is_in_the_order_of_frames_not_in_a_single_one() -> None:
    """Opposite motions share positions: the set of places of `left` reversed is one of `right`."""
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
