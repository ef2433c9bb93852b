"""Cheap structural checks: does a file end before its container says it does? No libav, under 0.2 ms."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_MAX_TOP_LEVEL_BOXES = 100_000  # fragmented MP4 has two a fragment


def find_missing_end(path: Path) -> str | None:
    """Say in words what the container states beyond the end of the file; None if nothing or if it is unknown.

    Raises: OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(16)
        file.seek(0)
        check = _checker(head)
        return check(file, size) if check else None


def _checker(head: bytes) -> Callable[[IO[bytes], int], str | None] | None:
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _check_riff
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _check_boxes
    if head[:4] == _EBML.to_bytes(4, "big"):
        return _check_matroska
    return None


def _check_riff(file: IO[bytes], size: int) -> str | None:
    """AVI: the RIFF size, odd sizes padded. Bytes behind the end are legal (HMDB-51 pads 142 to 470)."""
    (stated,) = struct.unpack("<I", file.read(8)[4:])
    return _cut(stated + 8, size, "the RIFF header") if stated + 8 > size + 1 else None


def _check_boxes(file: IO[bytes], size: int) -> str | None:
    """MP4 and MOV: every top-level box ends within the file."""
    start = 0
    for _ in range(_MAX_TOP_LEVEL_BOXES):
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            return None
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
            return None  # 0: up to the end of the file; junk behind the last box is not a cut
        start += length
        if start > size:
            return _cut(start, size, f"the {name.decode('latin-1')!r} box")
    return None


def _check_matroska(file: IO[bytes], size: int) -> str | None:
    """Matroska and WebM: the segment's size; "unknown" is legal in live recordings."""
    for _ in range(2):
        element, _ = _read_vint(file, keep_marker=True)
        length, unknown = _read_vint(file, keep_marker=False)
        if element is None or length is None or unknown:
            return None
        end = file.tell() + length
        if element == _SEGMENT:
            return _cut(end, size, "the segment header") if end > size else None
        file.seek(end)
    return None


def _read_vint(file: IO[bytes], *, keep_marker: bool) -> tuple[int | None, bool]:
    """Read one EBML number: its value (None at the end or if malformed) and whether all its bits are ones."""
    first = file.read(1)
    if not first or not first[0]:
        return None, False
    num_bytes = 9 - first[0].bit_length()
    rest = file.read(num_bytes - 1)
    if len(rest) < num_bytes - 1:
        return None, False
    bits = 7 * num_bytes
    value = int.from_bytes(first + rest, "big")
    payload = value & ((1 << bits) - 1)
    return (value if keep_marker else payload), payload == (1 << bits) - 1


def _cut(stated: int, size: int, where: str) -> str:
    return f"the file has {size} bytes, {where} needs {stated}"
