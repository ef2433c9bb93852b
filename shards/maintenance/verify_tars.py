"""What lies in a tar: its size, the headers at the recorded places, every byte by its hash, every
frame decoded."""

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
_END_BYTES = 2 * BLOCK_BYTES  # two zero blocks end a tar
_READ_BYTES = 1 << 23
_UNREADABLE_HEADER = "its tar headers are not those of its members"


@dataclass(frozen=True)
class _Contents:
    """What one pass over a tar gives.

    wrong_crc: the first frame whose CRC is not the recorded one, by key
    misplaced: keys that the headers do not name"""

    sha256: str
    wrong_crc: dict[str, int]
    misplaced: list[str]


def check_size(
    store: Store, entry: ShardEntry, rows: Sequence[Row]
) -> tuple[list[Finding], int | None]:
    """Compare a tar's size with the card and its samples; the size is None if there is no tar to
    look into."""
    try:
        size = store.size(entry.name)
    except StorageError as error:
        return [
            Finding(entry.name, None, str(error).removeprefix(f"{store.uri(entry.name)}: "))
        ], None
    found = []
    if size != entry.size:
        found.append(
            Finding(entry.name, None, f"holds {size} bytes, {POOL_CARD} states {entry.size}")
        )
    end = 0
    for row in rows:
        if row["offset"] != end:
            found.append(
                Finding(
                    SAMPLES,
                    row["key"],
                    f"lies at byte {row['offset']} of {entry.name}, expected {end}",
                )
            )
        end = row["offset"] + row["size"]
        if end > size:
            found.append(
                Finding(entry.name, row["key"], f"is cut off: it ends at byte {end} of {size}")
            )
    if rows and end + _END_BYTES != entry.size:
        what = f"states {entry.size} bytes for {entry.name}, its samples give {end + _END_BYTES}"
        found.append(Finding(POOL_CARD, None, what))
    return found, size


def check_headers(store: Store, name: str, size: int, rows: Sequence[Row]) -> list[Finding]:
    """Check that the first frame and the `<key>.json` of each sample lie where the table says, by
    their headers.

    The table has been checked to place the frames between them block by block; their bytes are for
    `check_bytes`."""
    whole = [row for row in rows if row["offset"] + row["size"] <= size]
    if not whole:
        return []
    starts = [
        start for row in whole for start in (row["offset"], row["offset"] + _end_of_frames(row))
    ]
    lengths = [
        length
        for row in whole
        for length in (row["frame_offset"][0], row["size"] - _end_of_frames(row))
    ]
    try:
        blocks = iter(store.read_ranges(name, starts, lengths))
    except StorageError as error:
        return [Finding(name, None, str(error).removeprefix(f"{store.uri(name)}: "))]
    pairs = zip(whole, zip(blocks, blocks, strict=True), strict=True)
    return [
        Finding(name, row["key"], _UNREADABLE_HEADER)
        for row, ends in pairs
        if not _names_sample(row, *ends)
    ]


def check_bytes(store: Store, entry: ShardEntry, size: int, rows: Sequence[Row]) -> list[Finding]:
    """Hash a whole tar and, if that is not the recorded hash, find out which samples differ; check
    every CRC."""
    try:
        contents = _hash_tar(store, entry.name, size, rows)
    except StorageError as error:
        return [Finding(entry.name, None, str(error).removeprefix(f"{store.uri(entry.name)}: "))]
    wrong_crc = contents.wrong_crc
    if contents.sha256 == entry.sha256:
        of_table = [
            Finding(SAMPLES, key, f"frame_crc32 of frame {at} is wrong")
            for key, at in wrong_crc.items()
        ]
        return of_table + [
            Finding(entry.name, key, _UNREADABLE_HEADER) for key in contents.misplaced
        ]
    found = [
        Finding(entry.name, row["key"], _what_differs(row["key"], wrong_crc))
        for row, data in _samples_of(store, entry.name, size, rows)
        if hashlib.sha256(data).hexdigest() != row["sha256"]
    ]
    found += _check_end(store, entry.name, size, rows)
    if not found and size == entry.size:
        found.append(
            Finding(POOL_CARD, None, f"sha256 of {entry.name} is wrong, its samples are all right")
        )
    return found


def check_frames(store: Store, name: str, size: int, rows: Sequence[Row]) -> list[Finding]:
    """Hash every sample by itself, decode every frame and compare its size with the recorded
    one."""
    found = []
    for row, data in _samples_of(store, name, size, rows):
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            found.append(Finding(name, row["key"], _what_differs(row["key"], {})))
        expected = (row["stored_height"], row["stored_width"], 3)
        for frame, (start, length) in enumerate(
            zip(row["frame_offset"], row["frame_size"], strict=True)
        ):
            try:
                shape = jpeg.decode(data[start : start + length], where=f"frame {frame}").shape
            except SampleError as error:
                found.append(Finding(name, row["key"], str(error)))
                continue
            if shape != expected:
                what = f"frame {frame} is {shape[1]}x{shape[0]} px, recorded are {expected[1]}x{expected[0]}"
                found.append(Finding(name, row["key"], what))
    return found


def _hash_tar(store: Store, name: str, size: int, rows: Sequence[Row]) -> _Contents:
    """Read every byte of a tar once."""
    known: list[Row] = []
    for row in rows:
        if row["offset"] != _end(known) or row["offset"] + row["size"] > size:
            break  # the table is wrong or the tar is cut: what is left has no known frames
        known.append(row)
    left = size - _end(known)
    pieces = [row["size"] for row in known] + [
        min(_READ_BYTES, left - at) for at in range(0, left, _READ_BYTES)
    ]
    digest = hashlib.sha256()
    wrong_crc: dict[str, int] = {}
    misplaced: list[str] = []
    for number, data in enumerate(store.read_chunks(name, pieces)):
        digest.update(data)
        if number >= len(known):
            continue
        row = known[number]
        frame = _first_wrong_frame(row, data)
        if frame is not None:
            wrong_crc[row["key"]] = frame
        if not _names_sample(
            row, bytes(data[: row["frame_offset"][0]]), bytes(data[_end_of_frames(row) :])
        ):
            misplaced.append(row["key"])
    return _Contents(digest.hexdigest(), wrong_crc, misplaced)


def _end(rows: Sequence[Row]) -> int:
    """The first byte after the last of some samples."""
    return rows[-1]["offset"] + rows[-1]["size"] if rows else 0


def _first_wrong_frame(row: Row, data: memoryview) -> int | None:
    places = zip(row["frame_offset"], row["frame_size"], row["frame_crc32"], strict=True)
    for frame, (start, length, crc) in enumerate(places):
        if zlib.crc32(data[start : start + length]) != crc:
            return frame
    return None


def _samples_of(
    store: Store, name: str, size: int, rows: Sequence[Row]
) -> Iterator[tuple[Row, bytes]]:
    """The bytes of each sample that is not cut off."""
    for row in rows:
        if row["offset"] + row["size"] <= size:
            (data,) = store.read_ranges(name, [row["offset"]], [row["size"]])
            yield row, data


def _check_end(store: Store, name: str, size: int, rows: Sequence[Row]) -> list[Finding]:
    """What follows the last sample must be the two zero blocks that end a tar."""
    end = _end(rows)
    if end >= size:
        return []
    (data,) = store.read_ranges(name, [end], [size - end])
    what = "the end of the tar, behind the last sample, is not two blocks of zeros"
    return [] if data == bytes(_END_BYTES) else [Finding(name, None, what)]


def _what_differs(key: str, wrong_crc: dict[str, int]) -> str:
    frame = f" (frame {wrong_crc[key]} at least)" if key in wrong_crc else ""
    return f"its bytes are not those that were written{frame}"


def _end_of_frames(row: Row) -> int:
    return row["frame_offset"][-1] + padded(row["frame_size"][-1])


def _names_sample(row: Row, head: bytes, tail: bytes) -> bool:
    """Whether the blocks before the first frame and those from `<key>.json` on are this
    sample's."""
    first, last = _header(head), _header(tail)
    if first is None or last is None:
        return False
    try:
        facts = json.loads(tail[last.offset_data : last.offset_data + last.size])
    except ValueError:
        return False
    return (
        (first.name, first.size, first.offset_data)
        == (f"{row['key']}.000.jpg", row["frame_size"][0], len(head))
        and last.name == f"{row['key']}.json"
        and isinstance(facts, dict)
        and facts.get("key") == row["key"]
    )


def _header(block: bytes) -> tarfile.TarInfo | None:
    """The first member of a piece of a tar; its data may be cut off."""
    try:
        with tarfile.open(fileobj=io.BytesIO(block), mode="r:") as tar:
            return tar.next()
    except (
        tarfile.TarError,
        ValueError,
        OverflowError,
    ):  # whatever a damaged header makes of its numbers
        return None
