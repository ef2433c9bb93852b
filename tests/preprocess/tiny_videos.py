"""Tiny real videos for tests.

Each frame is one grey level above the previous one, so that its index can be read from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FIRST_GREY, GREY_STEP = 40, 8
_CODECS = {
    ".avi": "mpeg4",
    ".mp4": "libx264",
    ".webm": "libvpx-vp9",
    ".mov": "libx264",
    ".mkv": "libx264",
}


def make_video(
    path: Path,
    *,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    pixel_format: str = "yuv420p",
    seed: int = 0,
    codec: str | None = None,
    options: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
) -> Path:
    """Write a video of `frames` frames at 10/s; the suffix chooses the codec. Corner noise makes
    packets real.

    options: of the container; times: of each frame in hundredths of a second, for a variable frame
        rate"""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w", container_options=dict(options or {})) as container:
        stream = container.add_stream(codec or _CODECS[path.suffix], rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        stream.bit_rate = 2_000_000
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for index in range(frames):
            image = np.full((size[1], size[0], 3), grey_of(index), np.uint8)
            image[: size[1] // 4, : size[0] // 4] = rng.integers(
                0, 256, (size[1] // 4, size[0] // 4, 1), np.uint8
            )
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 100)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def make_audio(path: Path) -> Path:
    """Write a second of silence with no video stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def grey_of(index: int) -> int:
    """The grey level of frame `index`, away from its corner."""
    return FIRST_GREY + GREY_STEP * (index % 24)


def index_of(image_HWC: np.ndarray) -> int:
    """The frame that an image was, by its grey level (24 frames at most can be told apart)."""
    return round((float(image_HWC[image_HWC.shape[0] // 2 :].mean()) - FIRST_GREY) / GREY_STEP)
