"""AVI: RIFF chunks of little-endian sizes, padded to even; frames are chunks of `movi`, listed
again in `idx1`.

Bytes behind the end of the RIFF are legal: HMDB-51 pads its files with 142 to 470 of them."""

from __future__ import annotations

import re
import struct

from preprocess.decode.containers.bytewise import Buffer, Notes, Pages, Structure, show_name

_HAS_INDEX = 0x10  # flag of avih
_LISTS_WITH_LISTS = (b"hdrl", b"strl")
_FRAME_NAME = re.compile(rb"\d\d[0-9A-Za-z]{2}|ix\d\d|JUNK")
_CHUNK = struct.Struct("<4sI")
_INDEX_ENTRY = struct.Struct("<4s4xII")  # name, flags, offset, size

_Chunks = dict[int, tuple[bytes, int]]  # of movi: position -> (name, size)


def check_avi(data: Buffer) -> Structure:
    """Walk the first RIFF: its lists, every chunk of `movi`, every entry of `idx1`; of later ones
    (AVIX) the size."""
    notes = Notes(len(data))
    end = _check_riff_sizes(data, notes)
    top = _walk(data, 12, min(end, notes.size), notes, is_riff_whole=end <= notes.size + 1)
    movi, index = top.get(b"movi"), top.get(b"idx1")
    if movi is None:
        notes.lack("there is no 'movi' list, where the frames are")
        return notes.result()
    if index is None:
        if _flags(data, top) & _HAS_INDEX and b"indx" not in top:
            notes.lack("the header states an index at the end, there is none")
        _walk_movi(data, *movi, notes)
        return notes.result()
    chunks = _walk_movi(data, *movi, notes)
    if notes.inside is None and notes.missing is None:
        _check_index(data, index, movi[0], chunks, notes)
    return notes.result()


def _check_riff_sizes(data: Buffer, notes: Notes) -> int:
    """Note each RIFF that ends behind the file; returns where the first ends."""
    first_end = start = 0
    while data[start : start + 4] == b"RIFF" and (
        not start or data[start + 8 : start + 12] == b"AVIX"
    ):
        start += 8 + _CHUNK.unpack_from(data, start)[1]
        first_end = first_end or start
        if start > notes.size + 1:  # the padding byte of the last chunk may be absent
            notes.cut(start, "the RIFF header")
    return first_end


def _walk(
    data: Buffer, start: int, end: int, notes: Notes, *, is_riff_whole: bool
) -> dict[bytes, tuple[int, int]]:
    """Find chunks by name, lists by their type: (first byte of the content, its end); header lists
    are entered."""
    found: dict[bytes, tuple[int, int]] = {}
    while start + 8 <= end:
        name, length = _CHUNK.unpack_from(data, start)
        content, after = start + 8, start + 8 + length
        if name == b"LIST":
            name = bytes(data[content : content + 4])
        if after > end + 1:
            _note_past_end(name, after, notes, is_riff_whole=is_riff_whole)
            after = end
        found.setdefault(name, (content, after))
        if name in _LISTS_WITH_LISTS:
            found |= _walk(data, content + 4, after, notes, is_riff_whole=is_riff_whole) | found
        start = after + (length & 1)
    return found


def _note_past_end(name: bytes, after: int, notes: Notes, *, is_riff_whole: bool) -> None:
    if after > notes.size and not is_riff_whole:
        notes.cut(after, f"the {show_name(name)} chunk")
    else:
        notes.contradict(f"the {show_name(name)} chunk is longer than what holds it")


def _walk_movi(data: Buffer, start: int, end: int, notes: Notes) -> _Chunks:
    """The chunks of `movi`, those of its `rec ` lists too. `start` is the position of the word
    `movi`."""
    chunks: _Chunks = {}
    unpack, is_name, size = _CHUNK.unpack_from, _FRAME_NAME.fullmatch, notes.size
    pages = Pages(data)
    at = start + 4
    while at + 8 <= end:
        pages.give_back(at)
        name, length = unpack(data, at)
        if is_name(name) is None:
            if name != b"LIST":
                notes.contradict(f"byte {at}: a frame's chunk should begin here")
                break
            at += 12
            continue
        chunks[at] = (name, length)
        after = at + 8 + length
        if after > end:
            if after > size:
                notes.cut(after, f"the chunk at byte {at}")
            if end < size:
                notes.contradict(f"byte {at}: this chunk is longer than the 'movi' list")
            break
        at = after + (length & 1)
    return chunks


def _check_index(
    data: Buffer, index: tuple[int, int], movi: int, chunks: _Chunks, notes: Notes
) -> None:
    """Every entry names a chunk that is there; offsets count from the word `movi`, in some files
    from byte 0."""
    start, end = index
    held = data[start:end]  # less than stated where the file is cut
    entries = list(_INDEX_ENTRY.iter_unpack(held[: len(held) - len(held) % _INDEX_ENTRY.size]))
    if not entries:
        return
    name, offset, length = entries[0]
    base = 0 if chunks.get(offset) == (name, length) else movi
    for position, (name, offset, length) in enumerate(entries):
        if chunks.get(base + offset) != (name, length) and name != b"rec ":
            notes.contradict(f"index entry {position}: no such chunk at byte {base + offset}")
            return


def _flags(data: Buffer, top: dict[bytes, tuple[int, int]]) -> int:
    start, end = top.get(b"avih", (0, 0))
    return int(struct.unpack_from("<I", data, start + 12)[0]) if end - start >= 16 else 0
