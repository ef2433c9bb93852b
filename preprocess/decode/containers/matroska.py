"""Matroska and WebM: EBML elements of id, size and content.

The segment contains clusters, and clusters contain blocks of frames.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

from preprocess.decode.containers.bytewise import Buffer, Notes, Pages, Structure

EBML_HEADER = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER, _CUES, _BLOCK_GROUP = 0x18538067, 0x1F43B675, 0x1C53BB6B, 0xA0
_VOID, _CRC32 = 0xEC, 0xBF
_CUE_POINT, _CUE_POSITIONS, _CUE_CLUSTER = 0xBB, 0xB7, 0xF1
_SIMPLE_BLOCK, _BLOCK = 0xA3, 0xA1
_BLOCKS = frozenset({_SIMPLE_BLOCK, _BLOCK})

# The element ids that each parent may contain.
_ANYWHERE = frozenset({_VOID, _CRC32})
_IN_SEGMENT = _ANYWHERE | {
    _CLUSTER,
    _CUES,
    0x114D9B74,  # SeekHead
    0x1549A966,  # Info
    0x1654AE6B,  # Tracks
    0x1254C367,  # Tags
    0x1941A469,  # Attachments
    0x1043A770,  # Chapters
}
_IN_CLUSTER = _ANYWHERE | {
    _SIMPLE_BLOCK,
    _BLOCK_GROUP,
    0xE7,  # Timestamp
    0xAB,  # PrevSize
    0xA7,  # Position
    0x5854,  # SilentTracks
    0xAF,  # EncryptedBlock
}
_IN_BLOCK_GROUP = _ANYWHERE | {
    _BLOCK,
    0x9B,  # BlockDuration
    0xFB,  # ReferenceBlock
    0xFA,  # ReferencePriority
    0x75A2,  # DiscardPadding
    0x75A1,  # BlockAdditions
    0xA4,  # CodecState
    0x8E,  # Slices
    *(0xA2, 0xFD, 0xC8, 0xAF),  # of old files
}
_KNOWN = {_CLUSTER: _IN_CLUSTER, _BLOCK_GROUP: _IN_BLOCK_GROUP}
_NAMES = {
    _SEGMENT: "segment",
    _CLUSTER: "cluster",
    _CUES: "list of cues",
    _BLOCK_GROUP: "block group",
}

# Results of `_after_number` that are no position.
_CUT, _NO_NUMBER = 0, -1


@dataclass(frozen=True)
class _Element:
    """An element; all positions are bytes of the file."""

    id: int
    start: int
    content: int

    end: int | None
    """None if the size is unknown, as in segments and clusters of live recordings."""


@dataclass
class _Walk:
    """The state of reading one file."""

    data: Buffer
    notes: Notes

    clusters: set[int] = field(default_factory=set)
    """Start of each cluster."""

    cues: list[_Element] = field(default_factory=list)

    num_blocks: dict[int, int] = field(default_factory=dict)
    """Number of blocks by track."""

    def count_block(self, content: int) -> None:
        """Count a block; the first byte of its content is its track, up to track 126."""
        track = self.data[content] if content < self.notes.size else 0
        self.num_blocks[track] = self.num_blocks.get(track, 0) + 1

    def result(self) -> Structure:
        """Return the errors and, if only one track has blocks, their number."""
        counts = list(self.num_blocks.values())
        return replace(self.notes.result(), num_blocks=counts[0] if len(counts) == 1 else None)


def check_matroska(data: Buffer) -> Structure:
    """Check the elements of the segment down to its blocks, the checksums and the cues."""
    walk = _Walk(data, Notes(len(data)))

    header = _read_element(walk, 0)
    segment = _read_element(walk, header.end) if header and header.end else None
    if segment is None or segment.id != _SEGMENT:
        if not walk.notes.missing:
            walk.notes.contradict("no segment follows the header")
        return walk.result()

    if segment.end is not None and segment.end > walk.notes.size:
        walk.notes.cut(segment.end, "the segment header")
    _read_segment(walk, segment)

    # In a file that is cut, cues may point at clusters that are missing.
    if walk.notes.missing is None:
        for cues in walk.cues:
            _check_cues(walk, cues, segment.content)
    return walk.result()


def _read_segment(walk: _Walk, segment: _Element) -> None:
    """Read the elements of the segment until its end or the first error.

    A cluster of unknown size ends where the next element of the segment begins.
    """
    end = walk.notes.size if segment.end is None else min(segment.end, walk.notes.size)
    pages = Pages(walk.data)

    at = segment.content
    while at < end:
        pages.release(at)
        element = _read_element(walk, at)
        if element is None:
            return

        if element.id not in _IN_SEGMENT:
            walk.notes.contradict(f"byte {at}: unknown element {element.id:X} in the segment")
            return
        if not _fits(walk, element, end, segment):
            # The whole blocks of a cut cluster count.
            if element.id == _CLUSTER:
                _read_children(walk, element, end)
            return

        if element.id == _CLUSTER:
            walk.clusters.add(at)
            at = _read_children(walk, element, end if element.end is None else element.end)
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


def _read_children(walk: _Walk, parent: _Element, end: int) -> int:
    """Read the children of a cluster or a block group.

    Returns:
        The position after the last child, or -1 after an error.
    """
    known, data = _KNOWN[parent.id], walk.data
    if parent.end is not None:
        _check_crc(walk, parent)

    at = parent.content
    while at < end:
        # By far most children are simple blocks of up to four size bytes: read them in line.
        if data[at] == _SIMPLE_BLOCK and at + 4 < end and data[at + 1] & 0xF0:
            content = at + 1 + _num_bytes(data[at + 1])
            all_bits = (1 << 7 * (content - at - 1)) - 1
            after = content + (int.from_bytes(data[at + 1 : content], "big") & all_bits)
            if after <= end:
                walk.count_block(content)
                at = after
                continue

        element = _read_element(walk, at)
        if element is None:
            return -1
        if element.id not in known:
            if parent.end is None and element.id in _IN_SEGMENT:
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
        if element.id == _BLOCK_GROUP and _read_children(walk, element, element.end) < 0:
            return -1
        at = element.end
    return at


def _fits(walk: _Walk, element: _Element, end: int, parent: _Element) -> bool:
    """Return whether an element ends inside the file and its parent; note it if not."""
    if element.end is None or element.end <= end:
        return True

    is_file_cut = parent.end is None or parent.end > walk.notes.size
    if element.end > walk.notes.size and is_file_cut:
        name = _NAMES.get(element.id, "element")
        walk.notes.cut(element.end, f"the {name} at byte {element.start}")
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
    """Check that each cue points at a cluster; positions count from `base`, in the segment."""
    for point in _children_with_id(walk, cues, _CUE_POINT):
        for positions in _children_with_id(walk, point, _CUE_POSITIONS):
            for position in _children_with_id(walk, positions, _CUE_CLUSTER):
                target = base + int.from_bytes(walk.data[position.content : position.end], "big")
                if target not in walk.clusters:
                    walk.notes.contradict(f"a cue points at byte {target}, where no cluster begins")
                    return


def _children_with_id(walk: _Walk, parent: _Element, wanted: int) -> list[_Element]:
    """Return the children with an id, up to the first child that does not fit."""
    children = []
    at, end = parent.content, parent.end or 0

    while at < end:
        element = _read_element(walk, at)
        if element is None or element.end is None or element.end > end:
            walk.notes.contradict(f"byte {at}: the cues are broken")
            break
        if element.id == wanted:
            children.append(element)
        at = element.end
    return children


def _read_element(walk: _Walk, at: int) -> _Element | None:
    """Read the id and the size of an element; None after an error, which is noted."""
    data, size = walk.data, walk.notes.size
    after_id = _after_number(data, at, size)
    after_size = _after_number(data, after_id, size) if after_id > 0 else after_id

    if after_size == _CUT:
        walk.notes.cut(size + 1, f"the element at byte {at}")
        return None
    if after_size == _NO_NUMBER:
        walk.notes.contradict(f"byte {at}: an element should begin here")
        return None

    # All bits set means that the size is unknown.
    num_bits = 7 * (after_size - after_id)
    all_bits = (1 << num_bits) - 1
    length = int.from_bytes(data[after_id:after_size], "big") & all_bits
    end = None if length == all_bits else after_size + length
    return _Element(int.from_bytes(data[at:after_id], "big"), at, after_size, end)


def _after_number(data: Buffer, at: int, size: int) -> int:
    """Return the position after an EBML number, _CUT or _NO_NUMBER."""
    if at >= size:
        return _CUT
    if not data[at]:
        return _NO_NUMBER
    after = at + _num_bytes(data[at])
    return after if after <= size else _CUT


def _num_bytes(first: int) -> int:
    """Return the length of an EBML number, whose first byte is not 0.

    The number of zero bits before the first set bit is the number of bytes that follow.
    """
    return 9 - first.bit_length()
