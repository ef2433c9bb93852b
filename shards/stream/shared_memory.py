"""Memory that a process shares with its loader processes, and manifests that are stored in it."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import pyarrow as pa

from shards.format.schema import ManifestInfo
from shards.reader import Manifest


class SharedMemory:
    """A block of bytes that is freed when the last process releases it.

    Pages cost nothing before they are written. The block is not in /dev/shm, which containers keep
    small (64 MB in Docker). It can be pickled only on the way to a child process.
    """

    bytes: mmap.mmap

    def __init__(self, num_bytes: int) -> None:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("bmpt")
        else:
            descriptor = _unnamed_file()
        # The file is sparse: a page is allocated when it is written.
        os.ftruncate(descriptor, num_bytes)
        self._attach(descriptor, num_bytes)

    def __getstate__(self) -> tuple[Any, int]:
        return reduction.DupFd(self._descriptor), len(self.bytes)

    def __setstate__(self, state: tuple[Any, int]) -> None:
        sent, num_bytes = state
        self._attach(sent.detach(), num_bytes)

    def _attach(self, descriptor: int, num_bytes: int) -> None:
        self.bytes = mmap.mmap(descriptor, num_bytes)
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True)
class SharedManifest(Manifest):
    """A manifest whose rows exist once for all loader processes.

    A row takes 1.1 kB; the rows of Kinetics-400 take 270 MB.
    """

    memory: SharedMemory

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_manifest, (self.info, self.memory)


def share_manifest(manifest: Manifest) -> SharedManifest:
    """Copy the rows of a manifest into shared memory."""
    # A first pass, which writes nothing, finds the size.
    sized = pa.MockOutputStream()
    _write(manifest.table, sized)

    memory = SharedMemory(sized.size())
    _write(manifest.table, pa.FixedSizeBufferWriter(pa.py_buffer(memory.bytes)))
    return _open_manifest(manifest.info, memory)


def _open_manifest(info: ManifestInfo, memory: SharedMemory) -> SharedManifest:
    """Return a manifest whose columns point into the shared bytes."""
    return SharedManifest(info, pa.ipc.open_file(pa.py_buffer(memory.bytes)).read_all(), memory)


def _write(table: pa.Table, sink: Any) -> None:
    # The IPC format can be read in place; one chunk, so that a row is found without a search.
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _unnamed_file() -> int:
    """Return a file without a name, where the system has no memory files (macOS)."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
