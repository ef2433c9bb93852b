"""The bytes that the checks of all containers read, and the errors that they find."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

Buffer = bytes | mmap.mmap
_MAX_MAPPED_BYTES = 1 << 24


@dataclass(frozen=True)
class Structure:
    """The errors in the structure of a container, in words; None where there is none."""

    missing: str | None = None
    """Something that the structure states beyond the end of the file."""

    inside: str | None = None
    """A contradiction inside the file."""

    num_blocks: int | None = None
    """In Matroska, the blocks of the only track that has any: its packets. Otherwise None."""


class Notes:
    """Collects the first error of each kind while a container is read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.missing: str | None = None
        self.inside: str | None = None

    def cut(self, end: int, where: str) -> None:
        """Note that `where` ends at byte `end`, after the end of the file."""
        self.lack(f"the file has {self.size} bytes, {where} needs {end}")

    def lack(self, text: str) -> None:
        """Note that something at the end is missing."""
        self.missing = self.missing or text

    def contradict(self, text: str) -> None:
        """Note a contradiction inside the file."""
        self.inside = self.inside or text

    def result(self) -> Structure:
        """Return both errors."""
        return Structure(self.missing, self.inside)


class Pages:
    """Releases mapped pages every 16 MB: mapped pages count as the worker's own memory (USS)."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._next = _MAX_MAPPED_BYTES

    def release(self, position: int) -> None:
        """Release the pages read so far; nothing before `position` should be read again soon."""
        if position >= self._next and isinstance(self._data, mmap.mmap):
            self._data.madvise(mmap.MADV_DONTNEED)
            self._next = position + _MAX_MAPPED_BYTES


def show_name(name: bytes) -> str:
    """Return a four-character code as messages show it."""
    return repr(name.decode("latin-1"))
