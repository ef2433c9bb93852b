"""MP4 and MOV: boxes of big-endian sizes; `moov` holds the tables that say where in the file each
sample lies."""

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
_TABLES = {b"stts": 8, b"stsc": 12, b"stsz": 4, b"stco": 4, b"co64": 8}  # bytes of an entry
_HEADERS = {b"stsz": 12}  # bytes before the entries; 8 in the others
_Table = npt.NDArray[np.int64]


@dataclass
class _Track:
    """The tables of one `stbl`; `fixed_size` is that of all samples, 0 if `stsz` lists them."""

    tables: dict[bytes, _Table] = field(default_factory=dict)
    fixed_size: int = 0
    num_samples: int | None = None


def check_mp4(data: Buffer) -> Structure:
    """Check that boxes end in the file and in their parents, that tables agree, and that no sample
    lies behind it."""
    notes = Notes(len(data))
    moov, moov_is_cut = _walk_top_level(data, notes)
    if moov is None:
        notes.lack("there is no 'moov' box, without which nothing can be decoded")
        return notes.result()
    inner = Notes(notes.size)
    tracks: list[_Track] = []
    _walk_moov(data, *moov, tracks, inner)
    for track in tracks:
        _check_track(track, inner)
    if inner.inside:
        if moov_is_cut:
            notes.lack(inner.inside)
        else:
            notes.contradict(inner.inside)
    if inner.missing:  # with every box whole the tables are wrong, not the end of the file
        (notes.lack if notes.missing else notes.contradict)(inner.missing)
    return notes.result()


def _walk_top_level(data: Buffer, notes: Notes) -> tuple[tuple[int, int] | None, bool]:
    """Returns: the content of `moov` and whether it is cut. Junk behind a whole `moov` and `mdat`
    is no finding."""
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
    """Name, first byte of the content, and end of a box."""
    length, name = struct.unpack_from(">I4s", data, start)
    if length == 1 and start + 16 <= size:
        return name, start + 16, start + struct.unpack_from(">Q", data, start + 8)[0]
    return name, start + 8, start + length if length else size


def _children(data: Buffer, start: int, end: int, notes: Notes) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a box; QuickTime may end a list of boxes with a zero."""
    while start + 8 <= end and data[start : start + 4] != b"\0\0\0\0":
        name, content, after = _read_box(data, start, end)
        if after > end or after < content:
            notes.contradict(
                f"byte {start}: the {show_name(name)} box does not fit into its parent"
            )
            return
        yield name, content, after
        start = after


def _walk_moov(data: Buffer, start: int, end: int, tracks: list[_Track], notes: Notes) -> None:
    for name, content, after in _children(data, start, end, notes):
        if name in _CONTAINERS:
            if name == b"stbl":
                tracks.append(_Track())
            _walk_moov(data, content, after, tracks, notes)
        elif name in _TABLES and tracks:
            _read_table(data, name, content, after, tracks[-1], notes)


def _read_table(
    data: Buffer, name: bytes, start: int, end: int, track: _Track, notes: Notes
) -> None:
    """Read the entries of a table as integers, one row an entry."""
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
    kind, columns = (">u8", 1) if name == b"co64" else (">u4", entry_bytes // 4)
    values = np.frombuffer(data[start + header : start + header + count * entry_bytes], kind)
    key = b"stco" if name == b"co64" else name
    track.tables[key] = values.astype(np.int64).reshape(-1, columns)


def _check_track(track: _Track, notes: Notes) -> None:
    """The tables state the same number of samples, and the last sample of every chunk ends in the
    file."""
    times, chunks, starts = (track.tables.get(name) for name in (b"stts", b"stsc", b"stco"))
    if track.num_samples is None or times is None or chunks is None or starts is None:
        return  # a compact table, or one that was found broken
    if int(times[:, 0].sum()) != track.num_samples:
        notes.contradict(f"'stts' states {times[:, 0].sum()} samples, 'stsz' {track.num_samples}")
    runs = np.diff(np.append(chunks[:, 0], len(starts) + 1))
    if (runs < 0).any() or (len(chunks) and chunks[0, 0] != 1):
        notes.contradict("the chunk numbers of 'stsc' do not ascend from 1")
        return
    per_chunk = np.repeat(chunks[:, 1], runs)
    if len(per_chunk) != len(starts) or int(per_chunk.sum()) != track.num_samples:
        notes.contradict(f"'stsc' states {per_chunk.sum()} samples, 'stsz' {track.num_samples}")
        return
    ends = starts[:, 0] + _chunk_bytes(track, per_chunk)
    if len(ends) and int(ends.max()) > notes.size:
        notes.cut(int(ends.max()), "the last sample")


def _chunk_bytes(track: _Track, per_chunk: _Table) -> _Table:
    if track.fixed_size:
        return per_chunk * track.fixed_size
    total = np.concatenate([[0], np.cumsum(track.tables[b"stsz"][:, 0])])
    last = np.cumsum(per_chunk)
    return total[last] - total[last - per_chunk]
