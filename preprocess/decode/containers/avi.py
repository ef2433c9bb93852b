"""AVI: RIFF chunks with little-endian sizes, padded to even positions.

Frames are chunks of the list `movi`, and the index `idx1` lists them again. Bytes after the end of
the RIFF are legal: HMDB-51 pads its files with 142 to 470 of them.
"""

from __future__ import annotations

import re
import struct

from preprocess.decode.containers.bytewise import Buffer, Notes, Pages, Structure, show_name

_HAS_INDEX = 0x10  # flag in avih
_NESTED_LISTS = (b"hdrl", b"strl")
_FRAME_NAME = re.compile(rb"\d\d[0-9A-Za-z]{2}|ix\d\d|JUNK")
_CHUNK = struct.Struct("<4sI")
_INDEX_ENTRY = struct.Struct("<4s4xII")  # name, flags, offset, size

_FrameChunks = dict[int, tuple[bytes, int]]
"""(name, size) of the chunks of `movi` by position."""


def check_avi(data: Buffer) -> Structure:
    """Check the first RIFF: its lists, every chunk of `movi`, and every entry of `idx1`.

    Of later RIFFs (AVIX) only the size is checked.
    """
    notes = Notes(len(data))
    end = _check_riff_sizes(data, notes)
    chunks = _read_chunks(
        data, 12, min(end, notes.size), notes, is_riff_whole=end <= notes.size + 1
    )

    movi, index = chunks.get(b"movi"), chunks.get(b"idx1")
    if movi is None:
        notes.lack("there is no 'movi' list, where the frames are")
        return notes.result()
    if index is None and _flags(data, chunks) & _HAS_INDEX and b"indx" not in chunks:
        notes.lack("the header states an index at the end, there is none")

    frames = _read_movi(data, *movi, notes)
    # In a file that is cut or broken, entries without a chunk say nothing new.
    if index is not None and notes.inside is None and notes.missing is None:
        _check_index(data, index, movi[0], frames, notes)
    return notes.result()


def _check_riff_sizes(data: Buffer, notes: Notes) -> int:
    """Note each RIFF that ends after the file; return the end of the first."""
    first_end = start = 0
    while data[start : start + 4] == b"RIFF" and (
        start == 0 or data[start + 8 : start + 12] == b"AVIX"
    ):
        start += 8 + _CHUNK.unpack_from(data, start)[1]
        first_end = first_end or start
        # The padding byte of the last chunk may be absent.
        if start > notes.size + 1:
            notes.cut(start, "the RIFF header")
    return first_end


def _read_chunks(
    data: Buffer, start: int, end: int, notes: Notes, *, is_riff_whole: bool
) -> dict[bytes, tuple[int, int]]:
    """Return (start, end) of the content of chunks by name, and of lists by their type.

    The lists of the header are read too.
    """
    chunks: dict[bytes, tuple[int, int]] = {}

    while start + 8 <= end:
        name, length = _CHUNK.unpack_from(data, start)
        content, after = start + 8, start + 8 + length
        if name == b"LIST":
            name = bytes(data[content : content + 4])

        if after > end + 1:
            _note_past_end(name, after, notes, is_riff_whole=is_riff_whole)
            after = end

        chunks.setdefault(name, (content, after))
        if name in _NESTED_LISTS:
            nested = _read_chunks(data, content + 4, after, notes, is_riff_whole=is_riff_whole)
            chunks = {**nested, **chunks}
        start = after + (length & 1)
    return chunks


def _note_past_end(name: bytes, after: int, notes: Notes, *, is_riff_whole: bool) -> None:
    if after > notes.size and not is_riff_whole:
        notes.cut(after, f"the {show_name(name)} chunk")
    else:
        notes.contradict(f"the {show_name(name)} chunk is longer than what holds it")


def _read_movi(data: Buffer, start: int, end: int, notes: Notes) -> _FrameChunks:
    """Return the chunks of `movi` and of the `rec ` lists inside it.

    Args:
        data: the file.
        start: position of the word `movi`.
        end: end of the list.
        notes: receives the errors.
    """
    frames: _FrameChunks = {}
    pages = Pages(data)
    # Local names: a long video has 100,000 chunks.
    unpack, is_frame_name, size = _CHUNK.unpack_from, _FRAME_NAME.fullmatch, notes.size

    at = start + 4
    while at + 8 <= end:
        pages.release(at)
        name, length = unpack(data, at)

        if is_frame_name(name) is None:
            # A `rec ` list only groups chunks: skip its header.
            if name != b"LIST":
                notes.contradict(f"byte {at}: a frame's chunk should begin here")
                break
            at += 12
            continue

        frames[at] = (name, length)
        after = at + 8 + length
        if after > end:
            if after > size:
                notes.cut(after, f"the chunk at byte {at}")
            if end < size:
                notes.contradict(f"byte {at}: this chunk is longer than the 'movi' list")
            break
        at = after + (length & 1)
    return frames


def _check_index(
    data: Buffer, index: tuple[int, int], movi: int, frames: _FrameChunks, notes: Notes
) -> None:
    """Check that every entry of the index names a chunk that exists.

    Args:
        data: the file.
        index: (start, end) of the content of `idx1`.
        movi: position of the word `movi`. Offsets count from it, in some files from byte 0.
        frames: the chunks of `movi`.
        notes: receives the error.
    """
    start, end = index
    # Less than stated where the file is cut.
    content = data[start:end]
    num_whole = len(content) // _INDEX_ENTRY.size * _INDEX_ENTRY.size
    entries = list(_INDEX_ENTRY.iter_unpack(content[:num_whole]))
    if not entries:
        return

    name, offset, length = entries[0]
    base = 0 if frames.get(offset) == (name, length) else movi

    for position, (name, offset, length) in enumerate(entries):
        if frames.get(base + offset) != (name, length) and name != b"rec ":
            notes.contradict(f"index entry {position}: no such chunk at byte {base + offset}")
            return


def _flags(data: Buffer, chunks: dict[bytes, tuple[int, int]]) -> int:
    """Return the flags of the main header, 0 if it is cut."""
    start, end = chunks.get(b"avih", (0, 0))
    return int(struct.unpack_from("<I", data, start + 12)[0]) if end - start >= 16 else 0
