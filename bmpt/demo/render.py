"""Render clips whose class is their motion, not their appearance. Pure numpy: a function of a
random generator.

A clip is one shape on a background. Pixel coordinates run over [-1, 1]; they are rotated and scaled
into the shape's own, a signed distance gives an antialiased mask, and the mask blends colour and
background."""

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
    """How a clip appears.

    background_max: brightest flat background, 0..255
    noise_max: largest sigma of the pixel noise, grey levels
    strength: 0 = flat background; otherwise scales drift, texture and camera shake
    is_faded: show 110 + x / 2, washed out: a shift that is the same in all clips, so that tuning
        can learn it"""

    background_max: float = 130.0
    noise_max: float = 14.0
    strength: float = 0.0
    is_faded: bool = False


PLAIN_DARK = Look(background_max=40.0, noise_max=0.0)
PLAIN = Look()
FADED = Look(background_max=110.0, noise_max=8.0, strength=0.6, is_faded=True)


@dataclass(frozen=True)
class Clip:
    """One rendered clip and what is true of it."""

    frames_THWC: npt.NDArray[np.uint8]
    motion: str
    color: str
    shape: str


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


# No full rotational symmetry, so that spinning stays visible.
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
    """Render one clip of a motion: frames uint8 [T, size, size, 3]; colour and shape are drawn."""
    color = str(rng.choice(list(COLORS)))
    shape = str(rng.choice(list(SHAPES)))
    time_T = (np.arange(num_frames) + rng.uniform(0.25, 0.75)) / num_frames
    x_T, y_T, scale_T, angle_T, visible_T = trajectory(motion, time_T, rng)
    if look.strength:
        x_T = x_T + rng.normal(0, 0.06 * look.strength, num_frames)
        y_T = y_T + rng.normal(0, 0.06 * look.strength, num_frames)
    axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    dx = axis[None, None, :] - x_T[:, None, None]
    dy = axis[None, :, None] - y_T[:, None, None]
    cos, sin, scale = (a[:, None, None] for a in (np.cos(angle_T), np.sin(angle_T), scale_T))
    distance = SHAPES[shape]((cos * dx + sin * dy) / scale, (-sin * dx + cos * dy) / scale) * scale
    mask = np.clip(0.5 - distance * size_px / 2, 0, 1) * visible_T[:, None, None]
    background = _background(look, rng, time_T, axis)
    frames = background + mask[..., None] * (np.array(COLORS[color], float) - background)
    sigma = rng.uniform(0, look.noise_max) if look.noise_max else 0.0
    if sigma:
        frames = frames + sigma * rng.standard_normal(frames.shape, dtype=np.float32)
    if look.is_faded:
        frames = 110 + frames / 2
    return Clip(np.clip(frames, 0, 255).astype(np.uint8), motion, color, shape)


def trajectory(
    motion: str, time_T: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array, Array]:
    """Where the shape is at times in [0, 1): x, y (y points down), scale, angle (rad), visibility,
    each [T].

    Clockwise is as one sees it on the screen. Turns stay below a step that would alias at 8 frames.
    Raises: ValueError for an unknown motion."""
    if motion not in MOTIONS:
        raise ValueError(f"unknown motion {motion!r}; known: {', '.join(MOTIONS)}")
    still = np.zeros_like(time_T)
    x, y = still + rng.uniform(-0.35, 0.35), still + rng.uniform(-0.35, 0.35)
    scale, angle, visible = (
        still + rng.uniform(0.26, 0.38),
        still + rng.uniform(0, 2 * np.pi),
        still + 1.0,
    )
    phase = rng.uniform(0, 2 * np.pi)
    way, rule = motion.rsplit(" ", 1)[-1], motion.split(" ", 1)[0]
    turn = -1.0 if way == "counterclockwise" else 1.0
    if rule == "moving":
        path = (time_T - 0.5) * rng.uniform(0.9, 1.3) * (1.0 if way in ("right", "down") else -1.0)
        center = rng.uniform(-0.1, 0.1)
        x, y = (path + center, y) if way in ("left", "right") else (x, path + center)
    elif rule == "circling":
        sweep = phase + turn * rng.uniform(4.0, 6.0) * time_T
        radius = rng.uniform(0.4, 0.55)
        x, y = 0.3 * x + radius * np.cos(sweep), 0.3 * y + radius * np.sin(sweep)
    elif rule == "spinning":
        angle, scale = angle + turn * rng.uniform(2.4, 4.4) * time_T, scale * 1.35
    elif rule in ("growing", "shrinking"):
        progress = time_T if rule == "growing" else 1 - time_T
        scale = rng.uniform(0.1, 0.16) + progress * rng.uniform(0.45, 0.6)
    elif rule == "pulsing":
        scale = scale * (1 + 0.5 * np.sin(phase + 2 * np.pi * rng.uniform(1.7, 2.3) * time_T))
    elif rule == "blinking":
        visible = (np.sin(phase + 2 * np.pi * rng.uniform(1.5, 2.5) * time_T) > 0).astype(float)
    elif rule == "bouncing":
        y = 0.55 - rng.uniform(0.8, 1.1) * np.abs(
            np.sin(phase + np.pi * rng.uniform(1.8, 2.4) * time_T)
        )
    elif rule == "shaking":
        x, y = (a + rng.uniform(0.08, 0.14) * rng.choice([-1.0, 1.0], len(time_T)) for a in (x, y))
    elif rule == "zigzagging":
        x = (time_T - 0.5) * rng.uniform(0.9, 1.3) * rng.choice([-1.0, 1.0])
        y = y + 0.4 * (2 / np.pi) * np.arcsin(
            np.sin(phase + 2 * np.pi * rng.uniform(1.6, 2.1) * time_T)
        )
    return x, y, scale, angle, visible


def _background(look: Look, rng: np.random.Generator, time_T: Array, axis: Array) -> Array:
    """Flat colour [1, 1, 1, 3], or with strength a drifting low-frequency pattern [T, H, W, 3]."""
    flat = rng.uniform(0, look.background_max, 3)[None, None, None, :]
    if not look.strength:
        return flat
    waves = np.zeros((len(time_T), len(axis), len(axis), 1))
    for _ in range(3):
        fx, fy, drift = rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(-3, 3)
        wave = fx * axis[None, None, :] + fy * axis[None, :, None] + drift * time_T[:, None, None]
        waves += np.sin(wave + rng.uniform(0, 2 * np.pi))[..., None]
    return flat + 30 * look.strength * waves * rng.uniform(0.5, 1, 3)
