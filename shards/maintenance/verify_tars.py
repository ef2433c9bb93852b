"""Check the content of a tar: its size, headers, bytes and frames."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import SampleError, StorageError
from shards.format import jpeg
from shards.format.schema import POOL_CARD, SAMPLES, ShardEntry
from shards.maintenance.verify_tables import BLOCK_BYTES, Finding, padded
from shards.storage.base import Store

Row = dict[str, Any]
# Two zero blocks end a tar.
_END_BYTES = 2 * BLOCK_BYTES
_READ_BYTES = 1 << 23
_WRONG_HEADERS = "its tar headers are not those of its members"


@dataclass(frozen=True)
class _TarContents:
    """The result of reading a tar once."""

    sha256: str
    wrong_crc: dict[str, int]
    """By key: the first frame whose CRC is not the recorded one."""
    misplaced: list[str]
    """Keys of samples whose headers do not name them."""


def check_size(
    store: Store, entry: ShardEntry, rows: Sequence[Row]
) -> tuple[list[Finding], int | None]:
    """Compare the size of a tar with the card and with its samples.

    Returns:
        The findings, and the size in bytes, or None if there is no tar.
    """
    try:
        size = store.size(entry.name)
    except StorageError as error:
        return [Finding(entry.name, None, _without_address(error, store, entry.name))], None

    findings = []
    if size != entry.size:
        problem = f"holds {size} bytes, {POOL_CARD} states {entry.size}"
        findings.append(Finding(entry.name, None, problem))

    end = 0
    for row in rows:
        if row["offset"] != end:
            problem = f"is at byte {row['offset']} of {entry.name}, expected {end}"
            findings.append(Finding(SAMPLES, row["key"], problem))
        end = _end([row])
        if end > size:
            problem = f"is truncated: it ends at byte {end} of {size}"
            findings.append(Finding(entry.name, row["key"], problem))

    if rows and end + _END_BYTES != entry.size:
        problem = f"states {entry.size} bytes for {entry.name}, its samples give {end + _END_BYTES}"
        findings.append(Finding(POOL_CARD, None, problem))
    return findings, size


def check_headers(store: Store, name: str, size: int, rows: Sequence[Row]) -> list[Finding]:
    """Check the headers of the first frame and of `<key>.json` of each sample.

    The frames between them are placed block by block in a table that has been checked;
    `check_bytes` checks their content.
    """
    whole = [row for row in rows if _end([row]) <= size]
    if not whole:
        return []

    # Two ranges per sample: up to the first frame, and behind the last frame.
    starts, lengths = [], []
    for row in whole:
        end_of_frames = _end_of_frames(row)
        starts += [row["offset"], row["offset"] + end_of_frames]
        lengths += [row["frame_offset"][0], row["size"] - end_of_frames]

    try:
        blocks = store.read_ranges(name, starts, lengths)
    except StorageError as error:
        return [Finding(name, None, _without_address(error, store, name))]

    findings = []
    for row, head, tail in zip(whole, blocks[::2], blocks[1::2], strict=True):
        if not _names_sample(row, head, tail):
            findings.append(Finding(name, row["key"], _WRONG_HEADERS))
    return findings


def check_bytes(store: Store, entry: ShardEntry, size: int, rows: Sequence[Row]) -> list[Finding]:
    """Hash a tar and check every CRC; if its hash is wrong, hash every sample."""
    try:
        contents = _hash_tar(store, entry.name, size, rows)
    except StorageError as error:
        return [Finding(entry.name, None, _without_address(error, store, entry.name))]

    findings = []
    if contents.sha256 == entry.sha256:
        # The bytes are those that were written, so that the table is wrong.
        for key, frame in contents.wrong_crc.items():
            findings.append(Finding(SAMPLES, key, f"frame_crc32 of frame {frame} is wrong"))
        for key in contents.misplaced:
            findings.append(Finding(entry.name, key, _WRONG_HEADERS))
        return findings

    for row, data in _read_samples(store, entry.name, size, rows):
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            findings.append(_wrong_bytes(entry.name, row["key"], contents.wrong_crc))
    findings += _check_end(store, entry.name, size, rows)

    if not findings and size == entry.size:
        problem = f"sha256 of {entry.name} is wrong, its samples are all right"
        findings.append(Finding(POOL_CARD, None, problem))
    return findings


def check_frames(store: Store, name: str, size: int, rows: Sequence[Row]) -> list[Finding]:
    """Hash every sample, decode every frame and compare its size with the recorded one."""
    findings = []
    for row, data in _read_samples(store, name, size, rows):
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            findings.append(_wrong_bytes(name, row["key"], {}))

        height, width = row["stored_height"], row["stored_width"]
        ranges = zip(row["frame_offset"], row["frame_size"], strict=True)
        for frame, (start, length) in enumerate(ranges):
            try:
                shape = jpeg.decode(data[start : start + length], where=f"frame {frame}").shape
            except SampleError as error:
                findings.append(Finding(name, row["key"], str(error)))
                continue
            if shape != (height, width, 3):
                problem = (
                    f"frame {frame} is {shape[1]}x{shape[0]} px, recorded are {width}x{height}"
                )
                findings.append(Finding(name, row["key"], problem))
    return findings


def _hash_tar(store: Store, name: str, size: int, rows: Sequence[Row]) -> _TarContents:
    """Read every byte of a tar once, one chunk per sample."""
    known: list[Row] = []
    for row in rows:
        # A wrong table or a truncated tar: the rest has no known frames.
        if row["offset"] != _end(known) or _end([row]) > size:
            break
        known.append(row)

    num_rest = size - _end(known)
    chunk_sizes = [row["size"] for row in known]
    chunk_sizes += [min(_READ_BYTES, num_rest - at) for at in range(0, num_rest, _READ_BYTES)]

    digest = hashlib.sha256()
    wrong_crc: dict[str, int] = {}
    misplaced: list[str] = []

    for number, data in enumerate(store.read_chunks(name, chunk_sizes)):
        digest.update(data)
        if number >= len(known):
            continue

        row = known[number]
        frame = _first_wrong_frame(row, data)
        if frame is not None:
            wrong_crc[row["key"]] = frame

        head, tail = data[: row["frame_offset"][0]], data[_end_of_frames(row) :]
        if not _names_sample(row, bytes(head), bytes(tail)):
            misplaced.append(row["key"])
    return _TarContents(digest.hexdigest(), wrong_crc, misplaced)


def _end(rows: Sequence[Row]) -> int:
    """Return the first byte behind the last of some samples."""
    return rows[-1]["offset"] + rows[-1]["size"] if rows else 0


def _first_wrong_frame(row: Row, data: memoryview) -> int | None:
    frames = zip(row["frame_offset"], row["frame_size"], row["frame_crc32"], strict=True)
    for frame, (start, length, crc) in enumerate(frames):
        if zlib.crc32(data[start : start + length]) != crc:
            return frame
    return None


def _read_samples(
    store: Store, name: str, size: int, rows: Sequence[Row]
) -> Iterator[tuple[Row, bytes]]:
    """Yield the bytes of each sample that is not truncated."""
    for row in rows:
        if _end([row]) <= size:
            (data,) = store.read_ranges(name, [row["offset"]], [row["size"]])
            yield row, data


def _check_end(store: Store, name: str, size: int, rows: Sequence[Row]) -> list[Finding]:
    """Check the two zero blocks behind the last sample."""
    end = _end(rows)
    if end >= size:
        return []

    (data,) = store.read_ranges(name, [end], [size - end])
    if data == bytes(_END_BYTES):
        return []
    return [Finding(name, None, "the end of the tar is not two blocks of zeros")]


def _wrong_bytes(name: str, key: str, wrong_crc: dict[str, int]) -> Finding:
    frame = f" (frame {wrong_crc[key]} at least)" if key in wrong_crc else ""
    return Finding(name, key, f"its bytes are not those that were written{frame}")


def _end_of_frames(row: Row) -> int:
    return row["frame_offset"][-1] + padded(row["frame_size"][-1])


def _names_sample(row: Row, head: bytes, tail: bytes) -> bool:
    """Return whether the headers of the first frame and of `<key>.json` are this sample's."""
    first, last = _first_member(head), _first_member(tail)
    if first is None or last is None:
        return False

    try:
        facts = json.loads(tail[last.offset_data : last.offset_data + last.size])
    except ValueError:
        return False

    expected = (f"{row['key']}.000.jpg", row["frame_size"][0], len(head))
    if (first.name, first.size, first.offset_data) != expected:
        return False
    has_key = isinstance(facts, dict) and facts.get("key") == row["key"]
    return last.name == f"{row['key']}.json" and has_key


def _first_member(part: bytes) -> tarfile.TarInfo | None:
    """Return the first member of a part of a tar, whose content may be truncated."""
    try:
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as tar:
            return tar.next()
    except (tarfile.TarError, ValueError, OverflowError):
        # A damaged header can hold any number.
        return None


def _without_address(error: Exception, store: Store, name: str) -> str:
    return str(error).removeprefix(f"{store.uri(name)}: ")
