"""A container opened with PyAV: its video stream, and the facts that it states about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import av.logging
from av.stream import Disposition

from preprocess.decode.decoders import ERR_DETECT
from preprocess.decode.video import StreamFacts


def open_container(path: Path) -> Any:
    """Open a container with PyAV.

    Raises:
        av.FFmpegError: if it cannot be opened.
    """
    # Generated times run backwards in AVI with packed B-frames (HMDB-51).
    options = {"err_detect": ERR_DETECT, "fflags": "-genpts"}
    return av.open(str(path), metadata_errors="ignore", options=options)


def expect_frames(path: Path) -> int:
    """Return the number of frames to expect: as stated, or else counted by demuxing.

    Returns 0 for a file that cannot be read: the decoding pass reports why.
    """
    try:
        with av.logging.Capture(local=True), open_container(path) as container:
            stream = video_stream(container)
            if stream is None:
                return 0
            num_stated = num_stated_frames(stream)
            if num_stated:
                return num_stated
            # WebM states no number.
            return sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, OSError):
        return 0


def num_stated_frames(stream: Any) -> int:
    """Return the number of frames that a stream states, 0 if it states none."""
    if not stream.frames:
        return 0

    # DivX with packed B-frames (HMDB-51) states one more than there are. A wrong number only costs
    # a second pass.
    return stream.frames - (stream.codec_context.codec_tag == "DX50")


def video_stream(container: Any) -> Any:
    """Return the first video stream that is no cover picture; None if it has no decoder."""
    streams = _moving_pictures(container)
    return streams[0] if streams and streams[0].codec_context is not None else None


def no_stream_reason(container: Any) -> str:
    """Return why a container has no video stream that can be decoded."""
    if _moving_pictures(container):
        return "no decoder for its video stream"
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    return "no video stream" + (f", only {' and '.join(kinds)}" if kinds else "")


def stream_facts(container: Any, stream: Any) -> StreamFacts:
    """Return the facts of a video stream; the rotation is known after the first frame only."""
    context = stream.codec_context

    # WebM states a duration for the container only.
    duration = None
    if stream.duration is not None and stream.time_base is not None:
        duration = round(float(stream.duration * stream.time_base), 6)
    elif container.duration is not None:
        duration = round(container.duration / av.time_base, 6)

    return StreamFacts(
        codec=context.name,
        fps=round(float(stream.average_rate), 6) if stream.average_rate else None,
        duration_seconds=duration,
        width=context.width or None,
        height=context.height or None,
        num_frames_stated=stream.frames or None,
    )


def _moving_pictures(container: Any) -> list[Any]:
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
