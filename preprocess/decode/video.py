"""Record types for a video: the facts of its stream, the video as it is stored, and its survey."""

from __future__ import annotations

from dataclasses import dataclass, field

from preprocess.decode.verdicts import Evidence, Verdict


@dataclass(frozen=True)
class StreamFacts:
    """The facts that a file states about its video stream."""

    codec: str | None = None
    fps: float | None = None
    duration_seconds: float | None = None
    width: int | None = None
    """In pixels, before rotation."""
    height: int | None = None
    """In pixels, before rotation."""
    rotation_degrees: int = 0
    """The counter-clockwise rotation that shows the frames upright: 0, 90, 180 or 270."""
    num_frames_stated: int | None = None


@dataclass(frozen=True)
class ReadVideo:
    """One video as it will be stored; without frames if it is undecodable."""

    stream: StreamFacts
    verdict: Verdict
    num_frames_decoded: int = 0
    """Frames that were decoded without an error."""
    num_decoder_errors: int = 0
    frames: list[bytes] = field(default_factory=list)
    """The kept frames as JPEG bytes."""
    source_index: list[int] = field(default_factory=list)
    """Index of each kept frame among the frames decoded without an error, ascending."""
    source_time_seconds: list[float] = field(default_factory=list)
    """Presentation time of each kept frame."""
    stored_size: tuple[int, int] | None = None
    """(width, height) of the JPEGs, after rotation."""


@dataclass(frozen=True)
class Survey:
    """The result of demuxing a file without decoding it, for a decoder in another process."""

    stream: StreamFacts
    stream_index: int
    """Index of the video stream in its container."""
    num_frames_expected: int
    """The number of frames that an undamaged file decodes to."""
    evidence: Evidence
    """Container structure, packet counts and messages of the demuxer; no decoded frames."""
