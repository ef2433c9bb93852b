"""The process that decodes: reads tasks from a pipe, answers rows and JPEG bytes, can be killed at any time.

Imports libav, numpy and the JPEG library; never torch or webdataset (2 s and 225 MB a worker)."""

from __future__ import annotations

import hashlib
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from preprocess.sources import SourceVideo
from shards.schema import Encoding

READY = "ready"  # a worker's first message: its imports work
_GRACE_SECONDS = 10.0
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Decoded:
    """A worker's answer: the row without a place in a shard, and the frames as JPEG (none if undecodable)."""

    row: dict[str, Any]
    frames: list[bytes]


def decode_video(video: SourceVideo, encoder: Any, encoding: Encoding) -> Decoded:
    """Read one video. Never raises: this is the sample boundary, an unreadable video must not end a build."""
    from preprocess.expected import mark
    from preprocess.readers import read_video
    from preprocess.rows import read_row, undecodable_row

    source_sha256 = None
    try:
        source_sha256 = hash_file(video.path)
        read = read_video(video.path, encoder, encoding)
    except OSError as error:  # libav's errors are among them; their text may name another file, strerror does not
        reason = error.strerror or type(error).__name__
        return Decoded(undecodable_row(video, f"cannot be read: {reason}", source_sha256), [])
    except Exception as error:  # whatever a malformed file makes a library raise; named, counted, never hidden
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Decoded(undecodable_row(video, f"cannot be read: {reason}", source_sha256), [])
    return Decoded(mark(read_row(video, read, source_sha256), video.expected), read.frames)


def hash_file(path: Path) -> str:
    """sha256 of a file as 64 hex digits; 2.1 GB/s a core. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def serve(connection_fd: int) -> None:
    """Answer tasks until the coordinator closes its end, or dies."""
    from preprocess.pixels import FrameEncoder
    from preprocess.readers import set_up_logging

    connection = Connection(connection_fd)
    try:
        encoding, timeout_seconds = connection.recv()
        set_up_logging()
        encoder = FrameEncoder(encoding)
        connection.send(READY)
        while True:
            video = connection.recv()
            # the coordinator kills at the deadline; if it is gone, SIGALRM ends even a decoder that hangs in C
            signal.setitimer(signal.ITIMER_REAL, timeout_seconds + _GRACE_SECONDS)
            answer = decode_video(video, encoder, encoding)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
