"""The process that decodes: reads tasks from a pipe, answers rows and JPEG bytes, can be killed at
any time.

Imports libav, numpy and the JPEG library; never torch or webdataset (2 s and 225 MB a worker)."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.sources import SourceVideo
from shards.files import hash_file
from shards.format.schema import Encoding

if TYPE_CHECKING:
    from preprocess.decode.video import ReadVideo

READY = "ready"  # a worker's first message: its imports work
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class DecodeOptions:
    """All that a worker is told before its first video.

    timeout_seconds: for one video
    hwaccel: FFmpeg's name of a hardware decoder; only with `encoding.decoder` ffmpeg"""

    encoding: Encoding
    timeout_seconds: float
    hwaccel: str | None = None


@dataclass(frozen=True)
class Decoded:
    """A worker's answer: the row without a place in a shard, and the frames as JPEG (none if
    undecodable)."""

    row: dict[str, Any]
    frames: list[bytes]


def open_reader(options: DecodeOptions) -> Callable[[Path], ReadVideo]:
    """Make what reads videos, once a process: PyAV in this process, or one FFmpeg process a video.

    One video at a time; it raises OSError, SampleError or what libav raises if a file cannot be
    read.
    Raises: ConfigError if there is no FFmpeg, or it cannot use the hardware that was asked for."""
    from preprocess.decode.pixels import FrameEncoder
    from preprocess.decode.pyav_reader import read_video, set_up_logging

    set_up_logging()
    if options.encoding.decoder == "ffmpeg":
        from preprocess.decode.ffmpeg_reader import FfmpegReader

        return FfmpegReader(options.encoding, options.hwaccel).read
    encoder = FrameEncoder(options.encoding)
    return lambda path: read_video(path, encoder, options.encoding)


def decode_video(video: SourceVideo, read_file: Callable[[Path], ReadVideo]) -> Decoded:
    """Read one video with what `open_reader` gave.

    Never raises: this is the sample boundary, an unreadable video must not end a build."""
    from preprocess.records.expected import mark
    from preprocess.records.rows import read_row, undecodable_row

    source_sha256 = None
    try:
        source_sha256 = hash_file(video.path)
        read = read_file(video.path)
    # libav's errors are among them; their text may name another file, strerror does not
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Decoded(undecodable_row(video, f"cannot be read: {reason}", source_sha256), [])
    except (
        Exception
    ) as error:  # whatever a malformed file makes a library raise; named, counted, never hidden
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Decoded(undecodable_row(video, f"cannot be read: {reason}", source_sha256), [])
    return Decoded(mark(read_row(video, read, source_sha256), video.expected), read.frames)


def serve(connection_fd: int) -> None:
    """Answer tasks until the coordinator closes its end, or dies."""
    connection = Connection(connection_fd)
    _end_with_coordinator(connection_fd)
    try:
        options: DecodeOptions = connection.recv()
        read_file = open_reader(options)
        connection.send(READY)
        while True:
            video = connection.recv()
            # the coordinator kills at the deadline; if it is gone, SIGALRM ends even a decoder that
            # holds Python's lock
            signal.setitimer(signal.ITIMER_REAL, options.timeout_seconds + _GRACE_SECONDS)
            answer = decode_video(video, read_file)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _end_with_coordinator(connection_fd: int) -> None:
    """Watch for the coordinator's end of the pipe to be closed, and end at once, in the middle of a
    video too."""
    hung_up = select.poll()
    hung_up.register(connection_fd, 0)

    def watch() -> None:
        hung_up.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
