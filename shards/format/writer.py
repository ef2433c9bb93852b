"""Deterministic WebDataset tars that a killed process can resume at any point.

A pure function encodes a sample to bytes. A shard is these bytes in order and two zero blocks. An
open shard is `.<name>.tar.part` with a journal `.<name>.jsonl` beside it. The journal has one line
per video of the shard: its row of `samples.parquet` as JSON, written after the bytes of the sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import StorageError
from shards.files import hash_file, os_error_text
from shards.format.schema import SampleRow, ShardEntry

_BLOCK_BYTES = 512
_END_OF_ARCHIVE = bytes(2 * _BLOCK_BYTES)

# Fields of a tar header: type of the member, and octal digits of its size.
_TYPE_FIELD = slice(156, 157)
_SIZE_FIELD = slice(124, 135)


@dataclass(frozen=True)
class EncodedSample:
    """One sample as it is stored in a shard."""

    data: bytes
    """Tar members `<key>.000.jpg` ... `<key>.json`, up to the end of the last padding."""
    frame_offset: list[int]
    """First byte of each JPEG in `data`."""
    frame_size: list[int]
    """Bytes of each JPEG."""
    frame_crc32: list[int]
    """CRC-32 of each JPEG."""
    sha256: str
    """Of `data`, 64 hex digits."""


def encode_sample(key: str, frames: Sequence[bytes], facts: Mapping[str, Any]) -> EncodedSample:
    """Return the tar members of one sample; equal arguments give equal bytes on every machine.

    Args:
        key: stable sample id.
        frames: JPEGs in time order.
        facts: content of `<key>.json`.
    """
    # Imports torch, which takes 2 s: only a process that writes shards pays for it.
    from webdataset import TarWriter

    members: dict[str, Any] = {}
    for position, frame in enumerate(frames):
        members[f"{position:03d}.jpg"] = frame
    members["json"] = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()

    buffer = io.BytesIO()
    with TarWriter(
        buffer,
        encoder=False,
        compress=False,
        user="bmpt",
        group="bmpt",
        mode=0o444,
        mtime=0,
        format="PAX_FORMAT",
    ) as tar:
        tar.write({"__key__": key, **members})

    archive = buffer.getvalue()
    sizes = [len(content) for content in members.values()]
    *offsets, facts_offset = _content_offsets(archive, sizes)
    data = archive[: facts_offset + _padded(sizes[-1])]

    return EncodedSample(
        data=data,
        frame_offset=offsets,
        frame_size=[len(frame) for frame in frames],
        frame_crc32=[zlib.crc32(frame) for frame in frames],
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _content_offsets(archive: bytes, sizes: Sequence[int]) -> list[int]:
    """Return the first content byte of each member; 40 times as fast as `tarfile.getmembers`.

    124 names of HMDB-51 have more than 100 bytes. A PAX header with the name and its records comes
    before the header of such a member.
    """
    offsets = []
    header = 0

    for size in sizes:
        fields = archive[header : header + _BLOCK_BYTES]
        if fields[_TYPE_FIELD] == tarfile.XHDTYPE:
            header += _BLOCK_BYTES + _padded(int(fields[_SIZE_FIELD], 8))

        content = header + _BLOCK_BYTES
        offsets.append(content)
        header = content + _padded(size)
    return offsets


def _padded(size: int) -> int:
    """Return the bytes that content of this size takes in a tar."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


class ShardWriter:
    """One shard while it is written, also after a killed process has left it."""

    rows: list[SampleRow]
    """Rows of the journal in order; the shard is continued after them."""
    finished: bool
    """Whether the tar has its final name already."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open or resume `<folder>/<name>.tar`.

        Raises:
            StorageError: naming the file.
        """
        self.path = folder / f"{name}.tar"
        self._name = f"{folder.name}/{name}.tar"
        self._part_path = folder / f".{name}.tar.part"
        self._journal_path = folder / f".{name}.jsonl"
        self._part: IO[bytes] | None = None
        self._journal: IO[bytes] | None = None

        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.finished = self.path.exists()
            if self.finished:
                self._part_path.unlink(missing_ok=True)

            num_bytes = _size(self.path if self.finished else self._part_path)
            self.rows, journal_bytes = _read_journal(self._journal_path, available_bytes=num_bytes)
            if self.finished:
                return

            # The first free byte.
            self._end = max(map(_end_of, self.rows), default=0)
            self._part = _open_truncated(self._part_path, self._end)
            self._journal = _open_truncated(self._journal_path, journal_bytes)
        except OSError as error:
            raise self._failed(error) from None

    def append(self, row: SampleRow, sample: EncodedSample | None) -> None:
        """Append one video, and flush it to the operating system.

        A killed process loses only the video that it was writing.

        Args:
            row: the row of `samples.parquet`; its placement is filled in here.
            sample: None for a video without stored frames.

        Raises:
            StorageError: naming the file, for example when the disk is full.
        """
        if self._part is None or self._journal is None:
            raise ValueError(f"{self.path} is finished or closed")

        try:
            if sample is not None:
                row = self._placed(row, sample)
                self._part.write(sample.data)
                self._part.flush()
                self._end += len(sample.data)

            # After the sample: a line in the journal promises that the bytes are there.
            self._journal.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._journal.flush()
        except OSError as error:
            raise self._failed(
                error, "; make room and run the same command again, it resumes"
            ) from None
        self.rows.append(row)

    def finish(self) -> ShardEntry:
        """Complete the tar, give it its final name and return its entry of `pool.json`.

        The journal stays until the build is closed.

        Raises:
            StorageError: naming the file.
        """
        if not self.finished:
            if self._part is None:
                raise ValueError(f"{self.path} is closed")
            try:
                self._part.write(_END_OF_ARCHIVE)
                self._part.flush()
                os.fsync(self._part.fileno())
                self.close()
                self._part_path.replace(self.path)
            except OSError as error:
                raise self._failed(error) from None
            self.finished = True

        num_samples = sum(row["shard"] is not None for row in self.rows)
        num_bytes, sha256 = _size(self.path), hash_file(self.path)
        return ShardEntry(name=self._name, size=num_bytes, samples=num_samples, sha256=sha256)

    def close(self) -> None:
        """Close the files of an open shard; the next writer resumes it."""
        for file in (self._part, self._journal):
            if file is not None:
                # On a full disk: bytes that cannot be flushed are not in the journal either.
                with contextlib.suppress(OSError):
                    file.close()
        self._part = self._journal = None

    def _placed(self, row: SampleRow, sample: EncodedSample) -> SampleRow:
        return {
            **row,
            "shard": self._name,
            "offset": self._end,
            "size": len(sample.data),
            "frame_offset": sample.frame_offset,
            "frame_size": sample.frame_size,
            "frame_crc32": sample.frame_crc32,
            "sha256": sample.sha256,
        }

    def _failed(self, error: OSError, hint: str = "") -> StorageError:
        return StorageError(f"{self.path}: cannot be written: {os_error_text(error)}{hint}")


def _end_of(row: SampleRow) -> int:
    """Return the first byte behind a sample of the journal; 0 for a video without one."""
    if row["shard"] is None or row["offset"] is None or row["size"] is None:
        return 0
    return row["offset"] + row["size"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_journal(path: Path, *, available_bytes: int) -> tuple[list[SampleRow], int]:
    """Return the rows whose bytes are in the tar, and the bytes of the journal that they take.

    A killed process may leave an incomplete last line, or a line whose bytes did not reach the
    disk: the rows end before it.
    """
    rows: list[SampleRow] = []
    num_bytes = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []

    for line in lines:
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if row is None or _end_of(row) > available_bytes:
            break
        rows.append(row)
        num_bytes += len(line)
    return rows, num_bytes


def _open_truncated(path: Path, size: int) -> IO[bytes]:
    """Open a file for appending after its first `size` bytes; the bytes behind them are deleted."""
    with path.open("ab"):
        pass
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
