"""An opened pool with its tables and frames, and other programs that read the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PillowImage

from shards.errors import ConfigError, FormatError, SampleError
from shards.format.jpeg import decode, encode_rgb
from shards.format.schema import STORED_VERDICTS
from shards.reader import Pool, open_pool, read_frame_bytes, read_frames
from tests.pools import make_pool, smooth_frames


def test_a_pool_lists_its_samples_and_manifests(pool: Pool) -> None:
    assert pool.samples().num_rows == pool.card.counts["samples"] == 24
    assert pool.manifest_names() == [
        "base_to_novel/train_base_s1",
        "base_to_novel/val_base",
        "base_to_novel/val_novel",
        "few_shot/train_k2",
        "few_shot/val",
    ]


def test_a_manifest_has_its_info_and_rows(pool: Pool) -> None:
    manifest = pool.manifest("base_to_novel/val_novel")
    assert (manifest.info.part, manifest.info.split, len(manifest)) == ("novel", "val", 12)
    row = manifest.row(7)
    assert row["class_name"] == manifest.info.classes[row["label"]] == "Class03"
    assert row["verdict"] in STORED_VERDICTS
    assert row["source_index"] == list(range(12))


def test_base_and_novel_classes_are_disjoint_and_labels_start_at_zero(pool: Pool) -> None:
    base, novel = pool.manifest("base_to_novel/val_base"), pool.manifest("base_to_novel/val_novel")
    assert not set(base.info.classes) & set(novel.info.classes)
    assert sorted(set(novel.table["label"].to_pylist())) == [0, 1]


def test_frames_are_read_in_the_requested_order(pool: Pool) -> None:
    row = pool.manifest("few_shot/val").row(2)
    blocks = read_frame_bytes(pool.store, row, [5, 0, 5])
    assert blocks[0] == blocks[2] != blocks[1]
    images = read_frames(pool.store, row, [5, 0])
    assert images[0].shape == (48, 64, 3)
    assert np.array_equal(images[0], decode(blocks[0], where="here"))


def test_the_byte_ranges_of_frames_are_the_members_of_the_tar(pool: Pool) -> None:
    row = pool.manifest("few_shot/train_k2").row(3)
    with tarfile.open(pool.store.uri(row["shard"])) as tar:
        names = [name for name in tar.getnames() if name.startswith(row["key"] + ".")]
        members = [tar.extractfile(name).read() for name in names]
    assert names == [f"{row['key']}.{position:03d}.jpg" for position in range(12)] + [
        f"{row['key']}.json"
    ]
    assert read_frame_bytes(pool.store, row, range(12)) == members[:-1]
    assert json.loads(members[-1])["key"] == row["key"]


def test_the_sha256_of_a_sample_is_that_of_its_bytes_in_the_shard(pool: Pool) -> None:
    for row in pool.samples().to_pylist():
        data = Path(pool.store.uri(row["shard"])).read_bytes()[
            row["offset"] : row["offset"] + row["size"]
        ]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]


def test_stock_webdataset_reads_a_shard(pool: Pool) -> None:
    import webdataset

    shard = pool.store.uri(pool.card.shards[0].name)
    samples = list(webdataset.WebDataset(shard, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == pool.samples()["key"].to_pylist()[
        : len(samples)
    ]
    assert samples[0]["000.jpg"].size == (64, 48)


def test_system_tar_lists_a_shard(pool: Pool) -> None:
    shard = pool.store.uri(pool.card.shards[0].name)
    listing = subprocess.run(
        ["tar", "-tvf", shard], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(listing) == pool.card.shards[0].samples * 13
    assert "bmpt/bmpt" in listing[0]


def test_equal_arguments_give_an_equal_pool(tmp_path: Path) -> None:
    first, second = make_pool(tmp_path / "a"), make_pool(tmp_path / "b")
    assert first.card == second.card
    assert make_pool(tmp_path / "c", seed=1).card.pool_id != first.card.pool_id


def test_a_folder_without_a_card_is_refused_as_a_pool(tmp_path: Path) -> None:
    with pytest.raises(
        FormatError,
        match=r"pool.json: no such file, so this is not a finished pool; run `bmpt build`",
    ):
        open_pool(tmp_path)


def test_an_unknown_manifest_is_refused_with_the_known_ones(pool: Pool) -> None:
    with pytest.raises(
        ConfigError, match=r"train_k3.parquet: no such manifest; the pool has: base_to_novel/.*val$"
    ):
        pool.manifest("few_shot/train_k3")


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    (tmp_path / "samples.parquet").write_bytes(b"no table")
    with pytest.raises(FormatError, match=r"samples.parquet: is not Parquet"):
        pool.samples()
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "manifests" / "few_shot" / "val.parquet")
    with pytest.raises(FormatError, match=r"val.parquet: has column None, expected .*label: int32"):
        pool.manifest("few_shot/val")


def test_a_manifest_name_cannot_leave_the_manifests_folder(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    for path in ("../../pool.json", "few_shot/../few_shot/val", "/etc/passwd", "val"):
        with pytest.raises(
            ConfigError, match=r"no such manifest; the pool has: base_to_novel/train_base_s1"
        ):
            pool.manifest(path)


def test_a_wrong_crc_is_a_sample_error_that_names_shard_frame_and_key(pool: Pool) -> None:
    row = pool.manifest("few_shot/val").row(0)
    crcs = [crc ^ (index == 4) for index, crc in enumerate(row["frame_crc32"])]
    assert len(read_frame_bytes(pool.store, {**row, "frame_crc32": crcs}, [3, 5])) == 2
    with pytest.raises(
        SampleError, match=r"toy-\d+.tar: frame 4 of Class00/Class00_02 has a wrong CRC"
    ):
        read_frame_bytes(pool.store, {**row, "frame_crc32": crcs}, [3, 4])


def test_an_encoded_jpeg_has_little_loss_and_opens_in_pillow() -> None:
    image = smooth_frames(np.random.default_rng(0), num_frames=1, height=45, width=63)[0]
    data = encode_rgb(image, quality=90)
    decoded = decode(data, where="here")
    assert decoded.shape == (45, 63, 3)
    assert np.abs(decoded.astype(int) - image).mean() < 3
    other = np.asarray(PillowImage.open(io.BytesIO(data)))
    assert np.abs(other.astype(int) - decoded).mean() < 1


@pytest.mark.parametrize("cut", [0, 20, -40])
def test_bytes_that_are_no_complete_jpeg_are_a_sample_error(cut: int) -> None:
    image = smooth_frames(np.random.default_rng(0), num_frames=1, height=45, width=63)[0]
    with pytest.raises(SampleError, match=r"there.tar: is not a readable JPEG"):
        decode(encode_rgb(image, quality=90)[:cut], where="there.tar")
