"""Memory that loader processes share: bytes written in one process are read in another, and a slot
is free once its tensor is gone."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from shards.reader import Manifest, Pool
from shards.stream.batch_buffers import BatchBuffers
from shards.stream.shared_memory import SharedManifest, SharedMemory, share_manifest


def _write_into(buffers: BatchBuffers, manifest: Manifest, answers: Connection) -> None:
    slot = buffers.take(1)
    assert slot is not None
    buffers.writable(slot, 5)[:] = torch.arange(5, dtype=torch.uint8)
    answers.send((slot, manifest.row(3), isinstance(manifest, SharedManifest)))


def test_a_child_process_reads_the_shared_manifest_and_fills_a_slot(pool: Pool) -> None:
    buffers = BatchBuffers(producers=2, slots=2, batch_bytes=100)
    manifest = pool.manifest("few_shot/val")
    here, there = multiprocessing.Pipe()
    arguments = (buffers, share_manifest(manifest), there)
    process = multiprocessing.get_context("forkserver").Process(target=_write_into, args=arguments)
    process.start()
    slot, row, is_shared = here.recv()
    process.join()
    assert (row, is_shared) == (manifest.row(3), True)
    assert buffers.hand_out(slot, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_slot_is_free_when_the_last_view_of_its_tensor_is_gone() -> None:
    buffers = BatchBuffers(producers=2, slots=2, batch_bytes=100)
    assert [buffers.take(1), buffers.take(1), buffers.take(1)] == [2, 3, None]
    assert buffers.take(0) == 0  # each producer has slots of its own
    batch = buffers.hand_out(3, 60)
    part = batch.view(3, 20)[1]
    del batch
    gc.collect()
    assert buffers.take(1) is None
    del part
    gc.collect()
    assert buffers.take(1) == 3


def test_slots_do_not_overlap_and_keep_their_bytes_while_handed_out() -> None:
    buffers = BatchBuffers(producers=1, slots=3, batch_bytes=5000)
    handed_out = []
    for value in range(3):
        slot = buffers.take(0)
        assert slot is not None
        buffers.writable(slot, 5000)[:] = value
        handed_out.append(buffers.hand_out(slot, 5000))
    assert [set(batch.tolist()) for batch in handed_out] == [{0}, {1}, {2}]


def test_a_forked_process_that_drops_a_batch_does_not_free_its_slot() -> None:
    buffers = BatchBuffers(producers=1, slots=1, batch_bytes=10)
    slot = buffers.take(0)
    assert slot is not None
    batch = buffers.hand_out(slot, 10)
    child = os.fork()
    if child == 0:
        del batch
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert buffers.take(0) is None
    assert len(batch) == 10


def memory_descriptors() -> list[str]:
    """Return the open descriptors of this process that are anonymous memory.

    Others come and go meanwhile: the connections of the S3 clients of earlier tests."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return [link for link in links if link.startswith("/memfd:bmpt")]


def test_shared_memory_is_freed_with_its_last_user() -> None:
    before = memory_descriptors()
    memory = SharedMemory(10_000)
    memory.bytes[:3] = b"abc"
    assert len(memory_descriptors()) > len(before)
    del memory
    gc.collect()
    assert memory_descriptors() == before


@pytest.mark.parametrize("num_rows", [0, 1, 12])
def test_a_shared_manifest_has_the_same_rows(pool: Pool, num_rows: int) -> None:
    manifest = pool.manifest("base_to_novel/val_novel")
    part = Manifest(manifest.info, manifest.table.slice(0, num_rows))
    shared = share_manifest(part)
    assert shared.table.equals(part.table)
    assert shared.info == part.info


def test_a_new_generation_frees_filled_slots_but_not_handed_out_ones() -> None:
    buffers = BatchBuffers(producers=1, slots=3, batch_bytes=10)
    assert [buffers.take(0), buffers.take(0)] == [0, 1]
    handed_out = buffers.hand_out(0, 10)
    for _ in range(300):  # more generations than a byte can count
        buffers.start_generation()
        assert [buffers.take(0), buffers.take(0), buffers.take(0)] == [1, 2, None]
    assert len(handed_out) == 10
