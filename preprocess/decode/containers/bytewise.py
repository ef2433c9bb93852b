"""What the checks of all containers share: the bytes they read and what they find."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

Buffer = bytes | mmap.mmap
_MAPPED_BYTES = 1 << 24


@dataclass(frozen=True)
class Structure:
    """What a container's structure says of its file, in words; None where nothing is wrong.

    missing: what is stated beyond the end of the file; inside: what contradicts itself within it
    num_blocks: in Matroska the blocks of the only track that has any, which are its packets; else
        None"""

    missing: str | None = None
    inside: str | None = None
    num_blocks: int | None = None


class Notes:
    """Collects the first finding of each kind while a container is walked."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.missing: str | None = None
        self.inside: str | None = None

    def cut(self, end: int, where: str) -> None:
        """Note that `where` ends at byte `end`, behind the end of the file."""
        self.lack(f"the file has {self.size} bytes, {where} needs {end}")

    def lack(self, text: str) -> None:
        """Note that something at the end is not there."""
        self.missing = self.missing or text

    def contradict(self, text: str) -> None:
        """Note something inside that cannot be."""
        self.inside = self.inside or text

    def result(self) -> Structure:
        """Both findings."""
        return Structure(self.missing, self.inside)


class Pages:
    """Gives mapped pages back every 16 MB: while they are mapped they count as the worker's own
    memory (USS)."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._next = _MAPPED_BYTES

    def give_back(self, at: int) -> None:
        """Call where nothing before `at` is looked at again soon."""
        if at >= self._next and isinstance(self._data, mmap.mmap):
            self._data.madvise(mmap.MADV_DONTNEED)
            self._next = at + _MAPPED_BYTES


def show_name(name: bytes) -> str:
    """A four-character code as it is written in messages."""
    return repr(name.decode("latin-1"))
