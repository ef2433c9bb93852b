"""Render clips whose class is their motion, not their appearance, with numpy alone.

A clip shows one shape on a background. Pixel coordinates are in [-1, 1]. They are rotated and
scaled into the coordinates of the shape, whose signed distance gives an antialiased mask, and the
mask blends the colour of the shape with the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MOTIONS = (
    "blinking",
    "bouncing",
    "circling clockwise",
    "circling counterclockwise",
    "growing",
    "moving down",
    "moving left",
    "moving right",
    "moving up",
    "pulsing",
    "shaking",
    "shrinking",
    "spinning clockwise",
    "spinning counterclockwise",
    "staying still",
    "zigzagging",
)
# RGB, 0..255
COLORS = {
    "red": (230, 40, 40),
    "green": (50, 200, 60),
    "blue": (60, 90, 240),
    "yellow": (235, 220, 50),
    "cyan": (60, 220, 220),
    "magenta": (220, 60, 220),
    "orange": (245, 150, 40),
    "white": (240, 240, 240),
}


@dataclass(frozen=True)
class Look:
    """The appearance of a clip, apart from its shape and motion."""

    background_max: float = 130.0
    """Largest value of a flat background, 0..255."""

    noise_max: float = 14.0
    """Largest standard deviation of the pixel noise, in grey levels."""

    strength: float = 0.0
    """Scale of drift, texture and camera shake; 0 for a flat background."""

    is_faded: bool = False
    """Show 110 + x / 2. The shift is the same in all clips, so tuning can learn it."""


PLAIN_DARK = Look(background_max=40.0, noise_max=0.0)
PLAIN = Look()
FADED = Look(background_max=110.0, noise_max=8.0, strength=0.6, is_faded=True)


@dataclass(frozen=True)
class Clip:
    """A rendered clip and its labels."""

    frames_THWC: npt.NDArray[np.uint8]

    motion: str
    color: str
    shape: str


# Each shape is a signed distance in its own coordinates, negative inside.


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(0.866 * np.abs(x) + 0.5 * y, -y) - 0.55


def _bar(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) - 1.1, np.abs(y) - 0.4)


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1.0, y - 0.35), np.maximum(x - 0.35, y - 1.0))


def _half_disc(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y + 0.3) - 0.95, -(y + 0.3))


# No shape has full rotational symmetry, so spinning is visible for each of them.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "square": _square,
    "triangle": _triangle,
    "bar": _bar,
    "cross": _cross,
    "half disc": _half_disc,
}


def render_clip(
    motion: str, look: Look, rng: np.random.Generator, *, num_frames: int = 8, size_px: int = 32
) -> Clip:
    """Render one clip of a motion; colour and shape are drawn.

    Args:
        motion: one of MOTIONS.
        look: the appearance.
        rng: the same generator state gives the same pixels.
        num_frames: T.
        size_px: height and width.

    Returns:
        A clip with frames uint8 [T, size_px, size_px, 3].

    Raises:
        ValueError: if the motion is unknown.
    """
    # The order of the draws in this module is fixed: it decides the pixels of the demo's videos.
    color = str(rng.choice(list(COLORS)))
    shape = str(rng.choice(list(SHAPES)))
    time_T = (np.arange(num_frames) + rng.uniform(0.25, 0.75)) / num_frames
    x_T, y_T, scale_T, angle_T, visible_T = trajectory(motion, time_T, rng)

    # Camera shake moves the shape in each frame.
    if look.strength:
        x_T = x_T + rng.normal(0, 0.06 * look.strength, num_frames)
        y_T = y_T + rng.normal(0, 0.06 * look.strength, num_frames)

    axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    dx = axis[None, None, :] - x_T[:, None, None]
    dy = axis[None, :, None] - y_T[:, None, None]
    cos, sin = np.cos(angle_T)[:, None, None], np.sin(angle_T)[:, None, None]
    scale = scale_T[:, None, None]
    distance = SHAPES[shape]((cos * dx + sin * dy) / scale, (-sin * dx + cos * dy) / scale) * scale

    # The edge of the mask is one pixel wide, which is 2 / size_px in these coordinates.
    mask = np.clip(0.5 - distance * size_px / 2, 0, 1) * visible_T[:, None, None]
    background = _background(look, rng, time_T, axis)
    frames = background + mask[..., None] * (np.array(COLORS[color], float) - background)

    # Without noise nothing is drawn.
    if look.noise_max:
        sigma = rng.uniform(0, look.noise_max)
        frames = frames + sigma * rng.standard_normal(frames.shape, dtype=np.float32)
    if look.is_faded:
        frames = 110 + frames / 2

    return Clip(np.clip(frames, 0, 255).astype(np.uint8), motion, color, shape)


def trajectory(
    motion: str, time_T: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array, Array]:
    """Draw the path of a shape. Clockwise is meant as seen on the screen.

    Args:
        motion: one of MOTIONS.
        time_T: times of the frames in [0, 1).
        rng: draws the start, the size and the speed.

    Returns:
        x, y (pointing down), scale, angle (rad) and visibility (0 or 1), each [T].

    Raises:
        ValueError: if the motion is unknown.
    """
    if motion not in MOTIONS:
        raise ValueError(f"unknown motion {motion!r}; known: {', '.join(MOTIONS)}")

    still = np.zeros_like(time_T)
    x, y = still + rng.uniform(-0.35, 0.35), still + rng.uniform(-0.35, 0.35)
    scale, angle = still + rng.uniform(0.26, 0.38), still + rng.uniform(0, 2 * np.pi)
    visible = still + 1.0
    phase = rng.uniform(0, 2 * np.pi)

    direction, rule = motion.rsplit(" ", 1)[-1], motion.split(" ", 1)[0]
    # y points down, so a growing angle turns clockwise on the screen.
    turn = -1.0 if direction == "counterclockwise" else 1.0

    if rule == "moving":
        sign = 1.0 if direction in ("right", "down") else -1.0
        path = (time_T - 0.5) * rng.uniform(0.9, 1.3) * sign + rng.uniform(-0.1, 0.1)
        if direction in ("left", "right"):
            x = path
        else:
            y = path

    elif rule == "circling":
        sweep = phase + turn * rng.uniform(4.0, 6.0) * time_T
        radius = rng.uniform(0.4, 0.55)
        x, y = 0.3 * x + radius * np.cos(sweep), 0.3 * y + radius * np.sin(sweep)

    elif rule == "spinning":
        # At most 32 degrees per frame at 8 frames: a square would alias beyond 45.
        angle, scale = angle + turn * rng.uniform(2.4, 4.4) * time_T, scale * 1.35

    elif rule in ("growing", "shrinking"):
        progress = time_T
        if rule == "shrinking":
            progress = 1 - time_T
        scale = rng.uniform(0.1, 0.16) + progress * rng.uniform(0.45, 0.6)

    elif rule == "pulsing":
        scale = scale * (1 + 0.5 * np.sin(phase + 2 * np.pi * rng.uniform(1.7, 2.3) * time_T))

    elif rule == "blinking":
        visible = (np.sin(phase + 2 * np.pi * rng.uniform(1.5, 2.5) * time_T) > 0).astype(float)

    elif rule == "bouncing":
        # The absolute sine bounces on the ground, at y = 0.55.
        height = rng.uniform(0.8, 1.1)
        y = 0.55 - height * np.abs(np.sin(phase + np.pi * rng.uniform(1.8, 2.4) * time_T))

    elif rule == "shaking":
        x = x + rng.uniform(0.08, 0.14) * rng.choice([-1.0, 1.0], len(time_T))
        y = y + rng.uniform(0.08, 0.14) * rng.choice([-1.0, 1.0], len(time_T))

    elif rule == "zigzagging":
        x = (time_T - 0.5) * rng.uniform(0.9, 1.3) * rng.choice([-1.0, 1.0])
        # The arcsine of a sine is a triangle wave.
        wave = np.arcsin(np.sin(phase + 2 * np.pi * rng.uniform(1.6, 2.1) * time_T))
        y = y + 0.4 * (2 / np.pi) * wave

    return x, y, scale, angle, visible


def _background(look: Look, rng: np.random.Generator, time_T: Array, axis: Array) -> Array:
    """Return a flat colour [1, 1, 1, 3], or with `strength` a drifting low-frequency pattern
    [T, H, W, 3]."""
    flat = rng.uniform(0, look.background_max, 3)[None, None, None, :]
    if not look.strength:
        return flat

    # The sum of three random plane waves, which move with time.
    waves = np.zeros((len(time_T), len(axis), len(axis), 1))
    for _ in range(3):
        fx, fy, drift = rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(-3, 3)
        wave = fx * axis[None, None, :] + fy * axis[None, :, None] + drift * time_T[:, None, None]
        waves += np.sin(wave + rng.uniform(0, 2 * np.pi))[..., None]

    return flat + 30 * look.strength * waves * rng.uniform(0.5, 1, 3)
