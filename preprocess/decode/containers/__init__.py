"""Cheap structural checks of AVI, MP4/MOV and Matroska/WebM, mostly under 0.5 ms per clip.

There is one file per container; each check is a pure function from the bytes of a file to the
errors in its structure. libav is not used.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

from preprocess.decode.containers.avi import check_avi
from preprocess.decode.containers.bytewise import Buffer, Structure
from preprocess.decode.containers.matroska import EBML_HEADER, check_matroska
from preprocess.decode.containers.mp4 import FIRST_BOXES, check_mp4

__all__ = ["Structure", "check_bytes", "check_container"]

_NUM_HEAD_BYTES = 16


def check_container(path: Path) -> Structure:
    """Check a file; other containers and empty files have no errors.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        if _checker(file.read(_NUM_HEAD_BYTES)) is None:
            return Structure()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return check_bytes(data)


def check_bytes(data: Buffer) -> Structure:
    """Check the bytes of a whole file."""
    check = _checker(bytes(data[:_NUM_HEAD_BYTES]))
    return check(data) if check else Structure()


def _checker(head: bytes) -> Callable[[Buffer], Structure] | None:
    """Return the check for a file that begins with these bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return check_avi
    if head[4:8] in FIRST_BOXES:
        return check_mp4
    if head[:4] == EBML_HEADER:
        return check_matroska
    return None
