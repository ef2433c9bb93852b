"""MP4 and MOV: boxes with big-endian sizes; tables in `moov` locate every sample in the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocess.decode.containers.bytewise import Buffer, Notes, Structure, show_name

FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")
_TOP_LEVEL = {
    *FIRST_BOXES,
    *(b"moof", b"mfra", b"uuid", b"meta", b"meco", b"sidx", b"ssix"),
    *(b"pdin", b"udta", b"prft", b"emsg", b"PICT", b"junk"),
}
_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}

# Bytes of an entry of each table, and bytes before the entries where they are not 8.
_TABLES = {b"stts": 8, b"stsc": 12, b"stsz": 4, b"stco": 4, b"co64": 8}
_HEADERS = {b"stsz": 12}

_Table = npt.NDArray[np.int64]
"""One row per entry, one column per number."""


@dataclass
class _Track:
    """The tables of one `stbl`."""

    tables: dict[bytes, _Table] = field(default_factory=dict)

    fixed_size: int = 0
    """Size of every sample in bytes; 0 if `stsz` lists the sizes."""

    num_samples: int | None = None


def check_mp4(data: Buffer) -> Structure:
    """Check that boxes fit into the file and their parents, and that the tables agree.

    The tables must state the same number of samples, and no sample may lie after the end.
    """
    notes = Notes(len(data))
    moov, is_moov_cut = _read_top_level(data, notes)
    if moov is None:
        notes.lack("there is no 'moov' box, without which nothing can be decoded")
        return notes.result()

    # Collected apart: what an error in `moov` means depends on the boxes around it.
    inner = Notes(notes.size)
    tracks: list[_Track] = []
    _read_moov(data, *moov, tracks, inner)
    for track in tracks:
        _check_track(track, inner)

    if inner.inside and is_moov_cut:
        notes.lack(inner.inside)
    elif inner.inside:
        notes.contradict(inner.inside)

    if inner.missing and notes.missing:
        notes.lack(inner.missing)
    elif inner.missing:
        # Every box is whole, so the tables are wrong and not the end of the file.
        notes.contradict(inner.missing)
    return notes.result()


def _read_top_level(data: Buffer, notes: Notes) -> tuple[tuple[int, int] | None, bool]:
    """Check the boxes of the file; junk after a whole `moov` and `mdat` is no error.

    Returns:
        (start, end) of the content of `moov` or None, and whether `moov` is cut.
    """
    moov, is_cut, has_frames = None, False, False
    start = 0

    while start + 8 <= notes.size:
        name, content, end = _read_box(data, start, notes.size)
        if name not in _TOP_LEVEL or end < content:
            if moov is None or not has_frames:
                notes.contradict(f"byte {start}: {show_name(name)} is no box that can stand here")
            break

        if end > notes.size:
            notes.cut(end, f"the {show_name(name)} box")
        if name == b"moov" and moov is None:
            moov, is_cut = (content, min(end, notes.size)), end > notes.size
        has_frames = has_frames or name == b"mdat"
        start = end
    return moov, is_cut


def _read_box(data: Buffer, start: int, size: int) -> tuple[bytes, int, int]:
    """Return the name, the start of the content and the end of a box."""
    length, name = struct.unpack_from(">I4s", data, start)

    # 1: a 64-bit length follows; 0: the box reaches to the end of the file.
    if length == 1 and start + 16 <= size:
        return name, start + 16, start + struct.unpack_from(">Q", data, start + 8)[0]
    return name, start + 8, start + length if length else size


def _children(data: Buffer, start: int, end: int, notes: Notes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes inside a box; QuickTime may end a list of boxes with a zero."""
    while start + 8 <= end and data[start : start + 4] != b"\0\0\0\0":
        name, content, after = _read_box(data, start, end)
        if after > end or after < content:
            notes.contradict(
                f"byte {start}: the {show_name(name)} box does not fit into its parent"
            )
            return
        yield name, content, after
        start = after


def _read_moov(data: Buffer, start: int, end: int, tracks: list[_Track], notes: Notes) -> None:
    """Append a track with its tables for each `stbl` below."""
    for name, content, after in _children(data, start, end, notes):
        if name in _CONTAINERS:
            if name == b"stbl":
                tracks.append(_Track())
            _read_moov(data, content, after, tracks, notes)
        elif name in _TABLES and tracks:
            _read_table(data, name, content, after, tracks[-1], notes)


def _read_table(
    data: Buffer, name: bytes, start: int, end: int, track: _Track, notes: Notes
) -> None:
    """Read the entries of a table into the track."""
    header, entry_bytes = _HEADERS.get(name, 8), _TABLES[name]
    if start + header > end:
        notes.contradict(f"the table {show_name(name)} is shorter than its header")
        return

    (count,) = struct.unpack_from(">I", data, start + header - 4)
    if name == b"stsz":
        (track.fixed_size,) = struct.unpack_from(">I", data, start + 4)
        track.num_samples = count
        count = 0 if track.fixed_size else count

    if start + header + count * entry_bytes > end:
        notes.contradict(f"the table {show_name(name)} is longer than its box")
        return

    # co64 is stco with 64-bit offsets.
    is_64_bit = name == b"co64"
    kind, columns = (">u8", 1) if is_64_bit else (">u4", entry_bytes // 4)
    values = np.frombuffer(data[start + header : start + header + count * entry_bytes], kind)
    key = b"stco" if is_64_bit else name
    track.tables[key] = values.astype(np.int64).reshape(-1, columns)


def _check_track(track: _Track, notes: Notes) -> None:
    """Check that the tables agree and that the last sample of every chunk ends in the file."""
    times, chunks, starts = (track.tables.get(name) for name in (b"stts", b"stsc", b"stco"))
    if track.num_samples is None or times is None or chunks is None or starts is None:
        # A compact table, or one that is broken and noted.
        return

    num_by_times = int(times[:, 0].sum())
    if num_by_times != track.num_samples:
        notes.contradict(f"'stts' states {num_by_times} samples, 'stsz' {track.num_samples}")

    # Each row of stsc is valid for the chunks from its number (from 1) up to that of the next row.
    runs = np.diff(np.append(chunks[:, 0], len(starts) + 1))
    if (runs < 0).any() or (len(chunks) and chunks[0, 0] != 1):
        notes.contradict("the chunk numbers of 'stsc' do not ascend from 1")
        return

    samples_per_chunk = np.repeat(chunks[:, 1], runs)
    num_by_chunks = int(samples_per_chunk.sum())
    if len(samples_per_chunk) != len(starts) or num_by_chunks != track.num_samples:
        notes.contradict(f"'stsc' states {num_by_chunks} samples, 'stsz' {track.num_samples}")
        return

    ends = starts[:, 0] + _chunk_bytes(track, samples_per_chunk)
    if len(ends) and int(ends.max()) > notes.size:
        notes.cut(int(ends.max()), "the last sample")


def _chunk_bytes(track: _Track, samples_per_chunk: _Table) -> _Table:
    """Return the number of bytes of each chunk."""
    if track.fixed_size:
        return samples_per_chunk * track.fixed_size

    # Differences of cumulative sizes.
    total = np.concatenate([[0], np.cumsum(track.tables[b"stsz"][:, 0])])
    last = np.cumsum(samples_per_chunk)
    return total[last] - total[last - samples_per_chunk]
