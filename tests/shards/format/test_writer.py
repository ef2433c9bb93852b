"""Tars that are the same bytes whatever happened while they were written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import resource
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import StorageError
from shards.format.writer import EncodedSample, ShardWriter, encode_sample

NAME = "toy-000000"
KEYS = ["-_a b#[1]", "(HQ)_" + "long!" * 24, "jump/clip 7", "empty", "zz é"]


def sample_of(key: str) -> EncodedSample | None:
    frames = [hashlib.sha512(f"{key}{index}".encode()).digest() * 9 for index in range(3)]
    return None if key == "empty" else encode_sample(key, frames, {"key": key, "verdict": "ok"})


SAMPLES = {key: sample_of(key) for key in KEYS}


def write_rest(folder: Path) -> ShardWriter:
    """Write what a shard lacks, finish it, and close it also after an error, as a build does."""
    with contextlib.closing(ShardWriter(folder, NAME)) as writer:
        if not writer.finished:
            for key in KEYS[len(writer.rows) :]:
                writer.append({"key": key, "shard": None}, SAMPLES[key])
        writer.finish()
    return writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """The bytes of the tar, of its journal, and the rows."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    writer = write_rest(folder)
    return writer.path.read_bytes(), (folder / f".{NAME}.jsonl").read_bytes(), writer.rows


def test_the_same_arguments_give_the_same_bytes_and_offsets_that_hold() -> None:
    first, second = sample_of(KEYS[1]), sample_of(KEYS[1])
    assert first == second
    assert first is not None
    assert len(first.data) % 512 == 0
    assert hashlib.sha256(first.data).hexdigest() == first.sha256
    for offset, size, crc in zip(
        first.frame_offset, first.frame_size, first.frame_crc32, strict=True
    ):
        assert zlib.crc32(first.data[offset : offset + size]) == crc


def test_tarfile_reads_the_members_in_order_without_owner_or_time(
    whole: tuple[bytes, bytes, list],
) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole[0])) as tar:
        members = tar.getmembers()
        facts = json.load(tar.extractfile("jump/clip 7.json"))
    stored = [key for key in KEYS if key != "empty"]
    suffixes = ("000.jpg", "001.jpg", "002.jpg", "json")
    assert [member.name for member in members] == [
        f"{key}.{suffix}" for key in stored for suffix in suffixes
    ]
    assert {(member.mtime, member.uname, member.gname, member.mode) for member in members} == {
        (0, "bmpt", "bmpt", 0o444)
    }
    assert facts == {"key": "jump/clip 7", "verdict": "ok"}
    offsets = [
        row["offset"] + frame for row in whole[2] if row["shard"] for frame in row["frame_offset"]
    ]
    assert offsets == [member.offset_data for member in members if member.name.endswith(".jpg")]


def test_stock_webdataset_reads_the_shard(whole: tuple[bytes, bytes, list], tmp_path: Path) -> None:
    import webdataset

    (tmp_path / "a.tar").write_bytes(whole[0])
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [key for key in KEYS if key != "empty"]
    assert {"000.jpg", "001.jpg", "002.jpg", "json"} <= set(samples[0])


def test_rows_say_where_the_samples_lie(whole: tuple[bytes, bytes, list]) -> None:
    for row in whole[2]:
        if row["key"] == "empty":
            assert row["shard"] is None
            continue
        assert row["shard"] == f"shards/{NAME}.tar"
        assert (
            hashlib.sha256(whole[0][row["offset"] : row["offset"] + row["size"]]).hexdigest()
            == row["sha256"]
        )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_kill_at_any_byte_of_tar_and_journal_changes_nothing(
    whole: tuple[bytes, bytes, list], data: st.DataObject
) -> None:
    tar, journal, _ = whole
    part_bytes = data.draw(st.integers(0, len(tar)))
    journal_bytes = data.draw(st.integers(0, len(journal)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        folder.mkdir()
        (folder / f".{NAME}.tar.part").write_bytes(tar[:part_bytes])
        (folder / f".{NAME}.jsonl").write_bytes(journal[:journal_bytes])
        assert write_rest(folder).path.read_bytes() == tar


def test_a_finished_shard_is_not_written_again(
    tmp_path: Path, whole: tuple[bytes, bytes, list]
) -> None:
    folder = tmp_path / "shards"
    entry = write_rest(folder).finish()
    before = (folder / f"{NAME}.tar").stat().st_mtime_ns
    again = ShardWriter(folder, NAME)
    assert (again.finished, again.rows) == (True, whole[2])
    assert again.finish() == entry
    assert (folder / f"{NAME}.tar").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="finished or closed"):
        again.append({"key": "x", "shard": None}, None)
    assert sorted(path.name for path in folder.iterdir()) == [f".{NAME}.jsonl", f"{NAME}.tar"]


@pytest.fixture
def _small_files_only() -> Iterator[None]:
    """No file may grow beyond 4 kB, which the kernel answers like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_small_files_only")
def test_a_disk_that_is_full_is_a_storage_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"toy-000000\.tar: cannot be written: .*; make room and run"
    ):
        write_rest(tmp_path / "shards")


def test_after_a_full_disk_the_same_writer_call_goes_on(
    tmp_path: Path, whole: tuple[bytes, bytes, list]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        with pytest.raises(StorageError):
            write_rest(tmp_path / "shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert write_rest(tmp_path / "shards").path.read_bytes() == whole[0]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        ShardWriter(tmp_path / "file" / "shards", NAME)
