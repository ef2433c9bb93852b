"""The process that decodes: it reads videos from a pipe and answers with rows and JPEG bytes.

It can be killed at any time. It imports libav, numpy and the JPEG library, but never torch or
webdataset, which would cost 2 s and 225 MB per worker.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.sources import SourceVideo
from shards.files import hash_file, one_line
from shards.format.schema import Encoding, SampleRow

if TYPE_CHECKING:
    from preprocess.decode.video import ReadVideo

READY = "ready"
"""The first message of a worker: its imports work."""

_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class DecodeOptions:
    """The settings that a worker gets before its first video."""

    encoding: Encoding

    timeout_seconds: float
    """Time limit per video."""

    hwaccel: str | None = None
    """FFmpeg's name of a hardware decoder; only with `encoding.decoder` set to ffmpeg."""


@dataclass(frozen=True)
class Decoded:
    """The answer of a worker for one video."""

    row: SampleRow
    """The row of `samples.parquet`, without its placement in a shard."""

    frames: list[bytes]
    """The kept frames as JPEG bytes; none if the video is undecodable."""


def open_reader(options: DecodeOptions) -> Callable[[Path], ReadVideo]:
    """Create the function that reads videos; call it once per process.

    Returns:
        A function that reads one video at a time, with PyAV in this process or with one FFmpeg
        process per video. It raises OSError, SampleError or an error of libav if the file cannot
        be read.

    Raises:
        ConfigError: if there is no FFmpeg, or it cannot use the requested hardware decoder.
    """
    from preprocess.decode.pixels import FrameEncoder
    from preprocess.decode.pyav_reader import read_video, set_up_logging

    # For FFmpeg too, since its reader surveys the container with PyAV.
    set_up_logging()

    if options.encoding.decoder == "ffmpeg":
        from preprocess.decode.ffmpeg_reader import FfmpegReader

        return FfmpegReader(options.encoding, options.hwaccel).read

    encoder = FrameEncoder(options.encoding)
    return lambda path: read_video(path, encoder, options.encoding)


def decode_video(video: SourceVideo, read_file: Callable[[Path], ReadVideo]) -> Decoded:
    """Read one video with a function of `open_reader`.

    This is the boundary of one sample: it never raises, since an unreadable video must not end a
    build. Every error becomes the reason in the row of an undecodable video.
    """
    from preprocess.records.expected import mark
    from preprocess.records.rows import read_row, undecodable_row

    # The hash first: it reads the file into the cache, and is known even if decoding fails.
    source_sha256 = None
    try:
        source_sha256 = hash_file(video.path)
        read = read_file(video.path)
    # Includes the errors of libav. Their text may name another file, strerror does not.
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Decoded(undecodable_row(video, f"cannot be read: {reason}", source_sha256), [])
    # A malformed file can make a library raise anything.
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        return Decoded(undecodable_row(video, f"cannot be read: {reason}", source_sha256), [])

    return Decoded(mark(read_row(video, read, source_sha256), video.expected), read.frames)


def serve(connection_fd: int) -> None:
    """Decode the videos of a pipe until the coordinator closes its end, or dies."""
    connection = Connection(connection_fd)
    _exit_with_coordinator(connection_fd)

    try:
        options: DecodeOptions = connection.recv()
        read_file = open_reader(options)
        connection.send(READY)

        while True:
            video = connection.recv()

            # The coordinator kills this process at the deadline. If the coordinator is gone,
            # SIGALRM ends even a decoder that holds Python's global lock.
            signal.setitimer(signal.ITIMER_REAL, options.timeout_seconds + _GRACE_SECONDS)
            answer = decode_video(video, read_file)
            signal.setitimer(signal.ITIMER_REAL, 0)

            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _exit_with_coordinator(connection_fd: int) -> None:
    """Exit as soon as the coordinator's end of the pipe closes, even in the middle of a video."""
    hung_up = select.poll()
    hung_up.register(connection_fd, 0)

    def watch() -> None:
        hung_up.poll()
        os._exit(1)

    # A thread, since a decoder may hold the main thread for minutes.
    threading.Thread(target=watch, daemon=True).start()
