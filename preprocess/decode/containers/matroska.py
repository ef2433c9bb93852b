"""Matroska and WebM: EBML elements (id, size, content); the segment holds clusters, these hold
blocks of frames."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

from preprocess.decode.containers.bytewise import Buffer, Notes, Pages, Structure

EBML_HEADER = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER, _CUES, _BLOCK_GROUP = 0x18538067, 0x1F43B675, 0x1C53BB6B, 0xA0
_VOID, _CRC32 = 0xEC, 0xBF
_CUE_POINT, _CUE_POSITIONS, _CUE_CLUSTER = 0xBB, 0xB7, 0xF1
_BLOCKS = frozenset({0xA3, 0xA1})  # simple, and in a block group
_ANYWHERE = frozenset({_VOID, _CRC32})
# SeekHead, Info, Tracks, Tags, Attachments, Chapters
_LEVEL_1 = _ANYWHERE | {
    _CLUSTER,
    _CUES,
    0x114D9B74,
    0x1549A966,
    0x1654AE6B,
    0x1254C367,
    0x1941A469,
    0x1043A770,
}
# Timestamp, SimpleBlock, PrevSize, Position, SilentTracks, EncryptedBlock
_IN_CLUSTER = _ANYWHERE | {_BLOCK_GROUP, 0xE7, 0xA3, 0xAB, 0xA7, 0x5854, 0xAF}
# Block, BlockDuration, ReferenceBlock, ReferencePriority, DiscardPadding, BlockAdditions,
# CodecState, Slices, old ones
_IN_BLOCK_GROUP = _ANYWHERE | {
    0xA1,
    0x9B,
    0xFB,
    0xFA,
    0x75A2,
    0x75A1,
    0xA4,
    0x8E,
    0xA2,
    0xFD,
    0xC8,
    0xAF,
}
_KNOWN = {_CLUSTER: _IN_CLUSTER, _BLOCK_GROUP: _IN_BLOCK_GROUP}
_NAMES = {
    _SEGMENT: "segment",
    _CLUSTER: "cluster",
    _CUES: "list of cues",
    _BLOCK_GROUP: "block group",
}


@dataclass(frozen=True)
class _Element:
    """`end` is None if the size is unknown, which live recordings have in segments and clusters."""

    id: int
    start: int
    content: int
    end: int | None


@dataclass
class _Walk:
    """What is known while one file is walked; `clusters` are their first bytes, `blocks` are
    counted by track."""

    data: Buffer
    notes: Notes
    clusters: set[int] = field(default_factory=set)
    cues: list[_Element] = field(default_factory=list)
    blocks: dict[int, int] = field(default_factory=dict)

    def count_block(self, content: int) -> None:
        """Count a block; the first byte of its content is its track (of up to 126)."""
        track = self.data[content] if content < self.notes.size else 0
        self.blocks[track] = self.blocks.get(track, 0) + 1

    def result(self) -> Structure:
        """The findings and, where one track alone has blocks, their number."""
        count = next(iter(self.blocks.values())) if len(self.blocks) == 1 else None
        return replace(self.notes.result(), num_blocks=count)


def check_matroska(data: Buffer) -> Structure:
    """Walk the segment down to its blocks; compare checksums and cues with what is there."""
    walk = _Walk(data, Notes(len(data)))
    header = _read_element(walk, 0)
    segment = _read_element(walk, header.end) if header and header.end else None
    if segment is None or segment.id != _SEGMENT:
        if not walk.notes.missing:
            walk.notes.contradict("no segment follows the header")
        return walk.result()
    if segment.end is not None and segment.end > walk.notes.size:
        walk.notes.cut(segment.end, "the segment header")
    _walk_segment(walk, segment)
    if walk.notes.missing is None:
        for cues in walk.cues:
            _check_cues(walk, cues, segment.content)
    return walk.result()


def _walk_segment(walk: _Walk, segment: _Element) -> None:
    """Level 1; a cluster of unknown size ends where the next element of level 1 begins."""
    end = walk.notes.size if segment.end is None else min(segment.end, walk.notes.size)
    at = segment.content
    pages = Pages(walk.data)
    while at < end:
        pages.give_back(at)
        element = _read_element(walk, at)
        if element is None:
            return
        if element.id not in _LEVEL_1:
            walk.notes.contradict(f"byte {at}: unknown element {element.id:X} in the segment")
            return
        if not _fits(walk, element, end, segment):
            if element.id == _CLUSTER:
                _walk_children(walk, element, end)
            return
        if element.id == _CLUSTER:
            walk.clusters.add(at)
            at = _walk_children(walk, element, end if element.end is None else element.end)
            if at < 0:
                return
            continue
        if element.end is None:
            walk.notes.contradict(f"byte {at}: element {element.id:X} has no size")
            return
        if element.id == _CUES:
            walk.cues.append(element)
        _check_crc(walk, element)
        at = element.end


def _walk_children(walk: _Walk, parent: _Element, end: int) -> int:
    """Walk a cluster or a block group; returns the byte behind it, -1 if the walk cannot go on."""
    known, at, data = _KNOWN[parent.id], parent.content, walk.data
    if parent.end is not None:
        _check_crc(walk, parent)
    while at < end:
        if (
            data[at] == 0xA3 and at + 4 < end and data[at + 1] & 0xF0
        ):  # a block, by far the most: inline
            first = data[at + 1]
            num_bytes = 9 - first.bit_length()
            length = int.from_bytes(data[at + 1 : at + 1 + num_bytes], "big") & (
                (1 << 7 * num_bytes) - 1
            )
            content = at + 1 + num_bytes
            if content + length <= end:
                walk.count_block(content)
                at = content + length
                continue
        element = _read_element(walk, at)
        if element is None:
            return -1
        if element.id not in known:
            if parent.end is None and element.id in _LEVEL_1:
                return at
            name = _NAMES[parent.id]
            walk.notes.contradict(f"byte {at}: unknown element {element.id:X} in a {name}")
            return -1
        if element.end is None:
            walk.notes.contradict(f"byte {at}: a block has no size")
            return -1
        if not _fits(walk, element, end, parent):
            return -1
        if element.id in _BLOCKS:
            walk.count_block(element.content)
        if element.id == _BLOCK_GROUP and _walk_children(walk, element, element.end) < 0:
            return -1
        at = element.end
    return at


def _fits(walk: _Walk, element: _Element, end: int, parent: _Element) -> bool:
    """Note an element that ends behind the file, or behind what holds it."""
    if element.end is None or element.end <= end:
        return True
    if element.end > walk.notes.size and (parent.end is None or parent.end > walk.notes.size):
        walk.notes.cut(
            element.end, f"the {_NAMES.get(element.id, 'element')} at byte {element.start}"
        )
    else:
        walk.notes.contradict(
            f"byte {element.start}: an element is longer than the {_NAMES[parent.id]} that holds it"
        )
    return False


def _check_crc(walk: _Walk, element: _Element) -> None:
    """Compare the checksum that may be the first child of an element."""
    data, at, end = walk.data, element.content, element.end
    if end is None or end > walk.notes.size or data[at : at + 2] != b"\xbf\x84" or at + 6 > end:
        return
    if zlib.crc32(data[at + 6 : end]) != int.from_bytes(data[at + 2 : at + 6], "little"):
        name = _NAMES.get(element.id, f"element {element.id:X}")
        walk.notes.contradict(f"byte {element.start}: the checksum of the {name} does not match")


def _check_cues(walk: _Walk, cues: _Element, base: int) -> None:
    """Each cue points at a cluster, counted from the content of the segment."""
    for point in _find(walk, cues, _CUE_POINT):
        for positions in _find(walk, point, _CUE_POSITIONS):
            for position in _find(walk, positions, _CUE_CLUSTER):
                target = base + int.from_bytes(walk.data[position.content : position.end], "big")
                if target not in walk.clusters:
                    walk.notes.contradict(f"a cue points at byte {target}, where no cluster begins")
                    return


def _find(walk: _Walk, parent: _Element, wanted: int) -> list[_Element]:
    """The children of one kind; stops at the first that does not fit."""
    found = []
    at, end = parent.content, parent.end or 0
    while at < end:
        element = _read_element(walk, at)
        if element is None or element.end is None or not _fits_in(element, end):
            walk.notes.contradict(f"byte {at}: the cues are broken")
            break
        if element.id == wanted:
            found.append(element)
        at = element.end
    return found


def _fits_in(element: _Element, end: int) -> bool:
    return element.end is not None and element.end <= end


def _read_element(walk: _Walk, at: int) -> _Element | None:
    """Read an id and a size; notes and returns None if they are cut off or cannot be."""
    data, size = walk.data, walk.notes.size
    after_id = _after_vint(data, at, size)
    after_size = _after_vint(data, after_id, size) if after_id > 0 else after_id
    if after_size == 0:
        walk.notes.cut(size + 1, f"the element at byte {at}")
        return None
    if after_size < 0:
        walk.notes.contradict(f"byte {at}: an element should begin here")
        return None
    bits = 7 * (after_size - after_id)
    length = int.from_bytes(data[after_id:after_size], "big") & ((1 << bits) - 1)
    end = None if length == (1 << bits) - 1 else after_size + length
    return _Element(int.from_bytes(data[at:after_id], "big"), at, after_size, end)


def _after_vint(data: Buffer, at: int, size: int) -> int:
    """The byte behind an EBML number; 0 if the file ends before, -1 if no number can begin so."""
    if at >= size:
        return 0
    first = data[at]
    if not first:
        return -1
    after = at + 9 - first.bit_length()
    return after if after <= size else 0
