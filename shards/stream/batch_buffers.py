"""Memory for batches that is used again and again, shared by loader workers and the process that
trains."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from shards.stream.shared_memory import SharedMemory

if TYPE_CHECKING:
    import torch

_FREE, _LENT = 0, 255  # what the byte of a place says; else the round in which it was taken
_taking = threading.Lock()


class BatchBuffers:
    """Places for batches. A producer (a loader worker, or this process) takes a free one and fills
    it; who trains lends it out as a tensor, and the place is free again when the tensor and all
    views of it are gone. Places that were filled in an earlier round and never lent are free too.

    Fresh pages for every batch cost a third of the clips a second (2 loader processes, 8 frames,
    224 px).

    producers; places: of each; batch_bytes: room of each place"""

    def __init__(self, *, producers: int, places: int, batch_bytes: int) -> None:
        self._places = places
        self._first_byte = _whole_pages(
            1 + producers * places
        )  # before it the round, and a byte a place
        self._stride = _whole_pages(batch_bytes)
        self._memory = SharedMemory(self._first_byte + producers * places * self._stride)
        self.begin_round()

    def begin_round(self) -> None:
        """Say, before an iteration begins, that what earlier ones have packed and not lent will not
        be asked for."""
        self._memory.bytes[0] = self._memory.bytes[0] % (_LENT - 1) + 1

    def take(self, producer: int) -> int | None:
        """Take a producer's first free place; None if whoever trains holds all of them."""
        start = producer * self._places
        with _taking:
            this_round = self._memory.bytes[0]
            for place in range(start, start + self._places):
                if self._memory.bytes[1 + place] not in (this_round, _LENT):
                    self._memory.bytes[1 + place] = this_round
                    return place
        return None

    def fill(self, place: int, num_bytes: int) -> torch.Tensor:
        """The first bytes of a place, for its producer: uint8 [num_bytes]."""
        return _as_tensor(self._view(place, num_bytes))

    def lend(self, place: int, num_bytes: int) -> torch.Tensor:
        """The same for whoever trains; letting go of it frees the place."""
        self._memory.bytes[1 + place] = _LENT
        view = self._view(place, num_bytes)
        weakref.finalize(view, _freeing(self._memory, place)).atexit = False
        return _as_tensor(view)

    def _view(self, place: int, num_bytes: int) -> memoryview:
        start = self._first_byte + place * self._stride
        return memoryview(self._memory.bytes)[start : start + num_bytes]


def _freeing(memory: SharedMemory, place: int) -> Callable[[], None]:
    lender = os.getpid()

    def free() -> None:
        if (
            os.getpid() == lender
        ):  # not in a process that was forked from it while the tensor was there
            memory.bytes[1 + place] = _FREE

    return free


def _as_tensor(view: memoryview) -> torch.Tensor:
    import torch

    return torch.frombuffer(
        view, dtype=torch.uint8
    )  # keeps `view` for as long as its storage lives


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
