"""Batches from real shards: the same clips for any workers and ranks, and placeholders for damaged
samples."""

from __future__ import annotations

import hashlib
import json
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from shards.errors import ConfigError, FormatError, StorageError
from shards.format.writer import ShardWriter, encode_sample
from shards.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader
from shards.reader import Manifest, Pool, read_frames, select
from shards.sampling.clip_sampling import center_indices
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.crops import center_crop, resized
from shards.sampling.orders import permute
from shards.sampling.plan import RankSlice
from shards.stream.batches import ClipBatch, MicroBatch
from shards.stream.pipeline import StreamState
from shards.stream.settings import BlockSettings, StreamSettings
from tests.pools import make_pool, smooth_frames

CLIP = ClipSettings(frames=4, size_px=32)
TRAIN = "base_to_novel/val_novel"  # 12 samples: the longest manifest of the small pool


def train_loader(
    pool: Pool,
    *,
    rank: int = 0,
    world_size: int = 1,
    state: StreamState | None = None,
    **settings: Any,
) -> TrainLoader:
    return build_train_loader(
        pool,
        pool.manifest(TRAIN),
        CLIP,
        StreamSettings(**{"batch_size": 5, "seed": 3, **settings}),
        RankSlice(rank, world_size),
        state,
    )


def eval_loader(
    pool: Pool,
    manifest: Manifest | None = None,
    *,
    clip: ClipSettings = CLIP,
    rank: int = 0,
    world_size: int = 1,
    **settings: Any,
) -> EvalLoader:
    return build_eval_loader(
        pool,
        pool.manifest(TRAIN) if manifest is None else manifest,
        clip,
        BlockSettings(**settings),
        RankSlice(rank, world_size),
    )


def facts_of(batch: ClipBatch) -> list[tuple[Any, ...]]:
    """Return everything about each clip of a batch, its pixels as a digest."""
    digests = [
        hashlib.sha256(frames.numpy().tobytes()).hexdigest() for frames in batch.frames_BVTCHW
    ]
    columns = (batch.labels_B.tolist(), batch.weights_B.tolist(), batch.positions_B.tolist())
    return list(zip(batch.keys, digests, *columns, batch.failures, strict=True))


def numbered(batches: list[MicroBatch]) -> list[tuple[Any, ...]]:
    return [(batch.epoch, batch.step, batch.micro, facts_of(batch.clips)) for batch in batches]


def with_row(manifest: Manifest, index: int, **changes: Any) -> Manifest:
    """Return a manifest with other values in one row."""
    rows = manifest.table.to_pylist()
    rows[index].update(changes)
    return Manifest(manifest.info, pa.Table.from_pylist(rows, schema=manifest.table.schema))


def flip_byte(pool: Pool, manifest: Manifest, index: int, *, frame: int) -> None:
    """Damage one byte in the middle of a stored frame, in the tar itself."""
    row = manifest.row(index)
    path = Path(pool.store.uri(row["shard"]))
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["frame_offset"][frame] + row["frame_size"][frame] // 2] ^= 0x40
    path.write_bytes(data)


def test_a_batch_has_the_stated_shapes_types_and_values(pool: Pool) -> None:
    manifest = pool.manifest(TRAIN)
    batch = next(iter(train_loader(pool))).clips
    assert batch.frames_BVTCHW.shape == (5, 1, 4, 3, 32, 32)
    assert batch.frames_BVTCHW.dtype == torch.uint8
    assert batch.frames_BVTCHW.permute(0, 1, 2, 4, 5, 3).is_contiguous()
    assert (batch.labels_B.dtype, batch.weights_B.dtype, batch.positions_B.dtype) == (
        torch.int64,
        torch.float32,
        torch.int64,
    )
    rows = [manifest.row(index) for index in batch.positions_B.tolist()]
    assert batch.keys == [row["key"] for row in rows]
    assert batch.labels_B.tolist() == [row["label"] for row in rows]
    assert batch.weights_B.tolist() == [1.0] * 5
    assert batch.failures == [None] * 5
    assert batch.positions_B.tolist() == permute(np.arange(5), 12, seed=3, epoch=0).tolist()


def test_two_loader_processes_make_the_same_batches_as_none(
    pool: Pool,
) -> None:
    options = {"accumulation": 2, "rank": 1, "world_size": 2}
    alone = train_loader(pool, **options)
    expected = [numbered(list(alone)) for _ in range(3)]
    before = torch.get_rng_state()
    together = train_loader(pool, num_workers=2, **options)
    assert [numbered(list(together)) for _ in range(3)] == expected
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 3), (2, 2), (3, 1), (5, 1)])
def test_the_clips_of_a_step_are_the_same_for_any_ranks_and_accumulation(
    pool: Pool, world_size: int, accumulation: int
) -> None:
    def of_epoch(**topology: int) -> list[tuple[Any, ...]]:
        ranks = [
            list(train_loader(pool, rank=rank, **topology))
            for rank in range(topology["world_size"])
        ]
        steps = range(len(ranks[0]) // topology["accumulation"])
        batches = [
            batch for step in steps for rank in ranks for batch in rank if batch.step == step
        ]
        return [clip for batch in batches for clip in facts_of(batch.clips)]

    whole = of_epoch(world_size=1, accumulation=1)
    assert of_epoch(world_size=world_size, accumulation=accumulation) == whole
    assert len(whole) == len({clip[0] for clip in whole}) == 10


def test_each_iteration_is_the_next_epoch_in_another_order(pool: Pool) -> None:
    loader = train_loader(pool)
    assert loader.num_steps == 2
    epochs = []
    for epoch in range(3):
        batches = list(loader)
        assert loader.epoch == epoch
        assert [(batch.epoch, batch.step, batch.micro) for batch in batches] == [
            (epoch, 0, 0),
            (epoch, 1, 0),
        ]
        epochs.append(tuple(key for batch in batches for key in batch.clips.keys))
    assert len(set(epochs)) == 3


def test_an_interrupted_epoch_continues_at_the_next_iteration(pool: Pool) -> None:
    loader = train_loader(pool)
    for _ in loader:
        break
    assert [(batch.epoch, batch.step) for batch in loader] == [(0, 1)]
    assert [(batch.epoch, batch.step) for batch in loader] == [(1, 0), (1, 1)]


def test_the_state_counts_samples_and_moves_to_the_next_epoch(pool: Pool) -> None:
    loader = train_loader(pool)
    states = [loader.state(batch.step + 1) for batch in loader]
    assert [(state.epoch, state.position) for state in states] == [(0, 5), (1, 0)]
    assert (loader.state(0).epoch, loader.state(0).position) == (0, 0)
    assert loader.state(2) == states[-1]
    assert loader.fingerprint == states[0].fingerprint == pool.manifest(TRAIN).info.fingerprint


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3])
def test_a_run_resumed_from_a_state_equals_an_uninterrupted_run(
    pool: Pool, killed_after: int
) -> None:
    uninterrupted, first = train_loader(pool), train_loader(pool)
    expected = [clip for _ in range(3) for batch in uninterrupted for clip in facts_of(batch.clips)]
    state, done = first.state(0), 0
    for _ in range(2):
        for batch in first:
            if done == killed_after:
                break
            state, done = first.state(batch.step + 1), done + 1
    ranks = [
        train_loader(pool, state=state, rank=rank, world_size=2, accumulation=2)
        for rank in range(2)
    ]
    resumed: list[tuple[Any, ...]] = []
    for _ in range(state.epoch, 3):
        by_rank = [list(rank) for rank in ranks]
        for step in sorted({batch.step for batch in by_rank[0]}):
            batches = [batch for rank in by_rank for batch in rank if batch.step == step]
            resumed.extend(clip for batch in batches for clip in facts_of(batch.clips))
    assert resumed == expected[5 * killed_after :]


def test_a_state_with_less_than_a_batch_left_starts_with_an_empty_epoch(
    pool: Pool,
) -> None:
    state = StreamState(
        fingerprint=pool.manifest(TRAIN).info.fingerprint, seed=3, epoch=1, position=9
    )
    loader = train_loader(pool, state=state)
    assert list(loader) == []
    assert [batch.epoch for batch in loader] == [2, 2]


def test_the_clip_of_a_sample_differs_between_epochs(pool: Pool) -> None:
    loader = train_loader(pool, batch_size=12)
    clips = [
        {clip[0]: clip[1] for batch in loader for clip in facts_of(batch.clips)} for _ in range(2)
    ]
    assert clips[0].keys() == clips[1].keys()
    assert all(clips[0][key] != clips[1][key] for key in clips[0])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_an_evaluation_has_the_same_blocks_at_any_world_size(pool: Pool, world_size: int) -> None:
    def blocks_of(world_size: int) -> dict[int, list[tuple[Any, ...]]]:
        blocks = {}
        for rank in range(world_size):
            loader = eval_loader(pool, block_size=5, rank=rank, world_size=world_size)
            batches = list(loader)
            assert len(loader) == len(batches)
            for batch in batches:
                assert int(batch.positions_B[0]) not in blocks
                blocks[int(batch.positions_B[0])] = facts_of(batch)
        return blocks

    blocks = blocks_of(world_size)
    assert [len(blocks[start]) for start in sorted(blocks)] == [5, 5, 2]
    assert blocks == blocks_of(1)


def test_an_evaluation_with_loader_processes_can_be_repeated(pool: Pool) -> None:
    options: dict[str, Any] = {"block_size": 5, "rank": 0, "world_size": 2}
    alone = eval_loader(pool, num_workers=0, **options)
    together = eval_loader(pool, num_workers=1, **options)
    expected = [facts_of(batch) for batch in alone]
    for _ in range(2):
        assert [facts_of(batch) for batch in together] == expected


def test_an_evaluation_clip_has_the_frames_at_the_segment_centres(pool: Pool) -> None:
    manifest = pool.manifest(TRAIN)
    batch = next(iter(eval_loader(pool, manifest, block_size=12)))
    images = read_frames(pool.store, manifest.row(7), center_indices(12, 4).tolist())
    expected = resized(images, center_crop(48, 64), size_px=32)
    assert torch.equal(batch.frames_BVTCHW[7, 0], expected)


def test_a_clip_of_a_short_sample_repeats_frames(pool: Pool) -> None:
    clip = ClipSettings(frames=16, size_px=16)
    batch = next(iter(eval_loader(pool, clip=clip, block_size=2)))
    frames_TCHW = batch.frames_BVTCHW[0, 0]
    assert len({frame.numpy().tobytes() for frame in frames_TCHW}) == 12
    assert all(int(frame.sum()) > 0 for frame in frames_TCHW)


def test_a_flipped_byte_makes_a_placeholder_with_the_reason(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    manifest = pool.manifest("few_shot/train_k2")
    wanted = center_indices(12, 4).tolist()
    flip_byte(pool, manifest, 2, frame=wanted[1])
    # Not a frame of this clip, so it is never read.
    flip_byte(pool, manifest, 3, frame=wanted[1] + 1)
    batch = next(iter(eval_loader(pool, manifest, block_size=8)))
    assert batch.weights_B.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert int(batch.frames_BVTCHW[2].max()) == 0
    assert batch.positions_B.tolist() == list(range(8))
    assert batch.keys[2] == manifest.row(2)["key"]
    assert batch.failures[2] is not None
    assert (
        f"toy-000000.tar: frame {wanted[1]} of {batch.keys[2]} has a wrong CRC" in batch.failures[2]
    )
    assert [failure for index, failure in enumerate(batch.failures) if index != 2] == [None] * 7


def test_bytes_that_are_no_jpeg_make_a_placeholder(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    manifest = pool.manifest("few_shot/train_k2")
    row = manifest.row(1)
    start = row["offset"] + row["frame_offset"][1]
    path = Path(pool.store.uri(row["shard"]))
    data = bytearray(path.read_bytes())
    garbage = bytes(row["frame_size"][1])
    data[start : start + len(garbage)] = garbage
    path.write_bytes(data)
    crcs = [
        zlib.crc32(garbage) if index == 1 else crc for index, crc in enumerate(row["frame_crc32"])
    ]
    damaged = with_row(manifest, 1, frame_crc32=crcs)
    batch = next(iter(eval_loader(pool, damaged, block_size=3)))
    assert batch.weights_B.tolist() == [1, 0, 1]
    assert "frame 1 of Class00/Class00_01: is not a readable JPEG" in (batch.failures[1] or "")


def test_frames_of_different_sizes_make_a_placeholder(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    manifest = pool.manifest("few_shot/train_k2")
    small, large = manifest.row(0), _append_larger_sample(tmp_path)
    row = with_row(manifest, 0, **{name: large[name] for name in large if name in small})
    batch = next(iter(eval_loader(pool, row, block_size=2)))
    assert batch.weights_B.tolist() == [0, 1]
    assert "has frames of different sizes" in (batch.failures[0] or "")


def _append_larger_sample(folder: Path) -> dict[str, Any]:
    """Write a shard with one sample of frames of two sizes; return its placement."""
    from shards.format.jpeg import encode_rgb

    rng = np.random.default_rng(0)
    frames = [
        encode_rgb(image, quality=90)
        for height in (48, 50)
        for image in smooth_frames(rng, num_frames=6, height=height, width=64)
    ]
    writer = ShardWriter(folder / "shards", "odd-000000")
    writer.append({"key": "odd"}, encode_sample("odd", frames, {}))
    writer.finish()
    return {name: value for name, value in writer.rows[0].items() if name != "key"}


def test_a_truncated_shard_makes_placeholders(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    manifest = pool.manifest("few_shot/train_k2")
    row = manifest.row(1)
    path = Path(pool.store.uri(row["shard"]))
    path.write_bytes(path.read_bytes()[: row["offset"] + row["frame_offset"][9]])
    batch = next(iter(eval_loader(pool, manifest, block_size=2)))
    assert batch.weights_B.tolist() == [1, 0]
    assert "toy-000000.tar: holds" in (batch.failures[1] or "")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_missing_shard_makes_placeholders(tmp_path: Path, num_workers: int) -> None:
    pool = make_pool(tmp_path)
    manifest = pool.manifest("few_shot/train_k2")
    Path(pool.store.uri(manifest.row(0)["shard"])).unlink()
    batches = list(eval_loader(pool, manifest, block_size=4, num_workers=num_workers))
    assert [batch.weights_B.tolist() for batch in batches] == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert "toy-000000.tar: no such file" in (batches[0].failures[0] or "")


def test_too_many_failures_in_a_row_end_an_evaluation_with_one_line(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    manifest = pool.manifest("few_shot/train_k2")
    Path(pool.store.uri(manifest.row(0)["shard"])).unlink()
    options: dict[str, Any] = {
        "block_size": 3,
    }
    assert len(list(eval_loader(pool, manifest, max_failures=5, **options))) == 3
    with pytest.raises(
        StorageError, match=r"^4 samples in a row could not be read; the last: .*no such file"
    ) as caught:
        list(eval_loader(pool, manifest, max_failures=4, **options))
    assert "\n" not in str(caught.value)


def test_too_many_failures_in_a_row_end_training(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.unlink()
    loader = build_train_loader(
        pool,
        pool.manifest("few_shot/train_k2"),
        CLIP,
        StreamSettings(batch_size=8, seed=0, max_failures=6),
    )
    with pytest.raises(StorageError, match="6 samples in a row"):
        list(loader)


def test_an_unreadable_small_manifest_ends_the_run_below_the_usual_limit(
    tmp_path: Path,
) -> None:
    pool = make_pool(tmp_path)
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.unlink()
    manifest = pool.manifest("few_shot/train_k2")
    loader = build_train_loader(pool, manifest, CLIP, StreamSettings(batch_size=4, seed=0))
    with pytest.raises(StorageError, match=f"{len(manifest)} samples in a row"):
        list(chain.from_iterable(loader for _ in range(3)))


def test_a_manifest_without_samples_is_refused_with_its_counts(pool: Pool) -> None:
    manifest = pool.manifest(TRAIN)
    counts = {"expected": 1695, "found": 0, "missing": 1695, "source": "novel_val.txt"}
    empty = Manifest(manifest.info.model_copy(update=counts), manifest.table.slice(0, 0))
    message = (
        r"base_to_novel/val_novel: has no sample to read "
        r"\(expected 1695, found 0, missing 1695; from novel_val.txt\)"
    )
    with pytest.raises(ConfigError, match=message):
        eval_loader(pool, empty, block_size=4)
    with pytest.raises(ConfigError, match=message):
        build_train_loader(pool, empty, CLIP, StreamSettings(batch_size=4, seed=0))


def test_a_batch_larger_than_the_manifest_is_refused(pool: Pool) -> None:
    with pytest.raises(
        ConfigError, match=r"data.batch_size is 13, but the training manifest has 12 samples"
    ):
        train_loader(pool, batch_size=13)


def test_the_state_of_another_run_is_refused_before_anything_is_read(pool: Pool) -> None:
    state = train_loader(pool).state(1)
    with pytest.raises(FormatError, match="was made with seed 3, this run has seed 4"):
        train_loader(pool, state=state, seed=4)
    with pytest.raises(FormatError, match="belongs to a manifest with fingerprint"):
        train_loader(pool, state=state.model_copy(update={"fingerprint": "f" * 64}))


def test_select_keeps_rows_by_verdict_and_changes_the_fingerprint(pool: Pool) -> None:
    manifest = with_row(pool.manifest(TRAIN), 4, verdict="damaged")
    assert select(manifest, ("ok", "short", "damaged")).info == manifest.info
    chosen = select(manifest, ("ok",))
    assert len(chosen) == 11
    assert manifest.row(4)["key"] not in chosen.table["key"].to_pylist()
    assert chosen.info.fingerprint != manifest.info.fingerprint
    assert chosen.info.expected == manifest.info.expected
    assert len(select(manifest, ("damaged",))) == 1
    assert len(select(manifest, ())) == 0
    with pytest.raises(
        ConfigError, match=r"data.verdicts: 'missing' is not one of ok, short, damaged"
    ):
        select(manifest, ("missing",))


def test_a_state_survives_json(pool: Pool) -> None:
    state = train_loader(pool).state(1)
    assert StreamState(**json.loads(json.dumps(state.model_dump()))) == state


def test_scaled_decoding_changes_pixels_only_where_the_crop_allows_it(pool: Pool) -> None:
    """A centre crop of 42 px can be decoded at one half for 21 px, not for 22."""
    for size_px, differs in ((22, False), (21, True)):
        clips = []
        for scaled_decode in (False, True):
            clip = ClipSettings(frames=4, size_px=size_px, scaled_decode=scaled_decode)
            loader = eval_loader(pool, clip=clip, block_size=12)
            clips.append(next(iter(loader)).frames_BVTCHW.float())
        assert torch.equal(clips[0], clips[1]) != differs


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_interrupted_evaluation_can_be_repeated_but_not_read_twice_at_once(
    pool: Pool, num_workers: int
) -> None:
    loader = eval_loader(pool, block_size=3, num_workers=num_workers)
    expected = [facts_of(batch) for batch in loader]
    for _ in range(8):
        assert facts_of(next(iter(loader))) == expected[0]
    first, second = iter(loader), iter(loader)
    next(first)
    assert facts_of(next(second)) == expected[0]
    with pytest.raises(ConfigError, match="read a second time"):
        next(first)
    assert [facts_of(batch) for batch in second] == expected[1:]


def test_no_batch_is_made_beyond_the_last_epoch(pool: Pool) -> None:
    loader = train_loader(pool, epochs=2, num_workers=1)
    assert [len(list(loader)) for _ in range(3)] == [2, 2, 0]
