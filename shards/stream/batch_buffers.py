"""Memory for batches that is reused, shared by loader processes and the training process."""

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

# State of a slot, one byte; every other value is the generation in which the slot was taken.
_FREE, _HANDED_OUT = 0, 255
_take_lock = threading.Lock()


class BatchBuffers:
    """Slots for batches, `slots` of them for each producer.

    A producer is a loader process, or the training process if there is none. It takes a free slot
    and fills it. The training process hands it out as a tensor, and the slot is free again when
    the tensor and all views of it are gone. Slots that an earlier generation filled but never
    handed out are free, too.

    Fresh pages for every batch would cost a third of the clips per second (2 loader processes,
    8 frames, 224 px).
    """

    def __init__(self, *, producers: int, slots: int, batch_bytes: int) -> None:
        self._slots_per_producer = slots
        num_slots = producers * slots

        # The generation and a state byte per slot come first; slots begin at page boundaries.
        self._first_slot = _whole_pages(1 + num_slots)
        self._slot_bytes = _whole_pages(batch_bytes)
        self._memory = SharedMemory(self._first_slot + num_slots * self._slot_bytes)
        self.start_generation()

    def start_generation(self) -> None:
        """Release the slots that earlier iterations filled but never handed out."""
        self._memory.bytes[0] = self._memory.bytes[0] % (_HANDED_OUT - 1) + 1

    def take(self, producer: int) -> int | None:
        """Take the first free slot of a producer; None if the training process holds all of them.

        At most the 254 generations of a byte are told apart: a slot that was filled 254 generations
        ago and never handed out counts as taken.
        """
        start = producer * self._slots_per_producer
        with _take_lock:
            generation = self._memory.bytes[0]
            for slot in range(start, start + self._slots_per_producer):
                if self._memory.bytes[1 + slot] not in (generation, _HANDED_OUT):
                    self._memory.bytes[1 + slot] = generation
                    return slot
        return None

    def writable(self, slot: int, num_bytes: int) -> torch.Tensor:
        """Return the first bytes of a slot to its producer: uint8 [num_bytes]."""
        return _as_tensor(self._view(slot, num_bytes))

    def hand_out(self, slot: int, num_bytes: int) -> torch.Tensor:
        """Return the same bytes to the training process; the slot is free once they are gone."""
        self._memory.bytes[1 + slot] = _HANDED_OUT
        view = self._view(slot, num_bytes)
        weakref.finalize(view, _freeing(self._memory, slot)).atexit = False
        return _as_tensor(view)

    def _view(self, slot: int, num_bytes: int) -> memoryview:
        start = self._first_slot + slot * self._slot_bytes
        return memoryview(self._memory.bytes)[start : start + num_bytes]


def _freeing(memory: SharedMemory, slot: int) -> Callable[[], None]:
    owner = os.getpid()

    def free() -> None:
        # Not in a process that was forked while the tensor existed: its copy frees nothing.
        if os.getpid() == owner:
            memory.bytes[1 + slot] = _FREE

    return free


def _as_tensor(view: memoryview) -> torch.Tensor:
    """Return a tensor that keeps `view` alive as long as its storage."""
    import torch

    return torch.frombuffer(view, dtype=torch.uint8)


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
