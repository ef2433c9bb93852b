"""Damage is found at the level that promises it, and the sample that it hits is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import ConfigError, FormatError
from shards.maintenance.verify import verify_pool
from shards.maintenance.verify_tables import Finding
from shards.reader import open_pool
from tests.pools import make_pool
from tests.updates import Updates

FLIPS = 40
MANIFEST = "manifests/few_shot/val.parquet"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool"
    make_pool(path)
    return path


@pytest.fixture
def pool(reference: Path, tmp_path: Path) -> Path:
    """A copy of the pool that a test may damage."""
    return Path(shutil.copytree(reference, tmp_path / "pool"))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def change_row(pool: Path, file: str, number: int, **values: Any) -> str:
    """Change a row of a table; returns its key."""
    table = pq.read_table(pool / file)
    rows = table.to_pylist()
    rows[number].update(values)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), pool / file)
    return str(rows[number]["key"])


def change_card(pool: Path, **values: Any) -> None:
    card = json.loads((pool / "pool.json").read_text())
    (pool / "pool.json").write_text(json.dumps({**card, **values}))


@pytest.mark.parametrize("level", ["quick", "full", "deep"])
def test_a_sound_pool_has_no_finding(reference: Path, level: str) -> None:
    progress = Updates()
    found = verify_pool(reference, level=level, progress=progress)
    assert found.is_clean
    assert (found.num_shards, found.num_samples) == (3, 12)
    assert progress.all == [("samples", done, 12, "") for done in (0, 5, 10, 12)]


def check_flips(pool: Path, seed: int, count: int) -> None:
    """Flip single bits anywhere in a tar: each is found at level full, and the sample that holds it
    is named."""
    rng = np.random.default_rng(seed)
    rows = open_pool(pool).samples().to_pylist()
    for entry in open_pool(pool).card.shards:
        path = pool / entry.name
        for bit in rng.choice(entry.size * 8, size=count, replace=False).tolist():
            hit = [
                row["key"]
                for row in rows
                if row["shard"] == entry.name
                and row["offset"] <= bit // 8 < row["offset"] + row["size"]
            ]
            flip(path, bit)
            found = verify_pool(pool, level="full").findings
            flip(path, bit)
            assert [(finding.file, finding.key) for finding in found] == [
                (entry.name, hit[0] if hit else None)
            ], bit
    assert verify_pool(pool, level="full").is_clean


def test_a_flipped_bit_anywhere_in_a_tar_is_found_and_its_sample_is_named(pool: Path) -> None:
    check_flips(pool, seed=0, count=FLIPS)


@pytest.mark.long
def test_thousands_of_flipped_bits_are_all_found(pool: Path) -> None:
    check_flips(pool, seed=1, count=1500)


@pytest.mark.parametrize("file", ["samples.parquet", MANIFEST])
def test_a_flipped_bit_of_a_table_is_found_unless_every_value_reads_as_before(
    pool: Path, file: str
) -> None:
    before = pq.read_table(pool / file)
    num_found = 0
    for bit in (
        np.random.default_rng(2)
        .choice((pool / file).stat().st_size * 8, size=FLIPS, replace=False)
        .tolist()
    ):
        flip(pool / file, bit)
        if file in verify_pool(pool, level="quick").damaged_files():
            num_found += 1
        else:
            assert pq.read_table(pool / file).to_pylist() == before.to_pylist(), bit
        flip(pool / file, bit)
    assert num_found > FLIPS / 4, "the rest hits statistics and what readers do not look at"


def test_bits_in_the_end_of_a_tar_and_in_a_header_are_found(pool: Path) -> None:
    name = "shards/toy-000000.tar"
    size = (pool / name).stat().st_size
    flip(pool / name, size * 8 - 1)
    what = "the end of the tar is not two blocks of zeros"
    assert verify_pool(pool).findings == [Finding(name, None, what)]
    assert verify_pool(pool, level="quick").is_clean
    flip(pool / name, size * 8 - 1)
    flip(pool / name, 8 * 3)  # in the name of the first member
    assert [found.key for found in verify_pool(pool, level="quick").findings] == [
        "Class00/Class00_00"
    ]
    assert [found.key for found in verify_pool(pool, level="deep").findings] == [
        "Class00/Class00_00"
    ] * 1


def test_a_cut_tar_names_the_samples_that_are_gone(pool: Path) -> None:
    path = pool / "shards" / "toy-000002.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:5000])
    found = verify_pool(pool, level="quick").findings
    assert found[0] == Finding(
        "shards/toy-000002.tar", None, f"holds 5000 bytes, pool.json states {size}"
    )
    assert [finding.key for finding in found[1:]] == ["Class03/Class03_01", "Class03/Class03_02"]
    assert verify_pool(pool, level="full").damaged_files() == ["shards/toy-000002.tar"]
    path.write_bytes(b"")
    assert verify_pool(pool, level="deep").damaged_files() == ["shards/toy-000002.tar"]


def test_missing_and_foreign_files_are_named(pool: Path) -> None:
    (pool / "shards" / "toy-000001.tar").rename(pool / "shards" / "toy-000007.tar")
    found = {finding.file: finding.what for finding in verify_pool(pool, level="quick").findings}
    assert "no such file" in found["shards/toy-000001.tar"]
    assert found["shards/toy-000007.tar"] == "is not a file of this pool"
    (pool / "samples.parquet").unlink()
    assert (
        Finding("samples.parquet", None, "is missing") in verify_pool(pool, level="full").findings
    )


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"verdict": "fine"}, "verdict is 'fine', expected one of ok, short"),
        ({"verdict": "missing"}, "verdict is missing, but shard is shards/toy-000000.tar"),
        ({"sha256": None}, "sha256 is null"),
        ({"frame_crc32": [1]}, "lists of different lengths"),
        ({"size": 1024}, "or later, size is 1024"),
    ],
)
def test_a_row_that_cannot_be_is_named(pool: Path, values: dict[str, Any], what: str) -> None:
    key = change_row(pool, "samples.parquet", 1, **values)
    found = verify_pool(pool, level="quick").findings
    assert any(
        finding.file == "samples.parquet" and finding.key == key and what in finding.what
        for finding in found
    )


def test_a_wrong_place_and_a_wrong_crc_are_errors_of_the_table(pool: Path) -> None:
    rows = open_pool(pool).samples().to_pylist()
    key = change_row(pool, "samples.parquet", 1, offset=rows[1]["offset"] + 512)
    found = verify_pool(pool, level="quick").findings
    assert ("samples.parquet", key) in {(finding.file, finding.key) for finding in found}
    change_row(pool, "samples.parquet", 1, offset=rows[1]["offset"], frame_crc32=[7] * 12)
    found = verify_pool(pool, level="full").findings
    assert Finding("samples.parquet", key, "frame_crc32 of frame 0 is wrong") in found


def test_deep_finds_frames_of_another_size_than_recorded(pool: Path) -> None:
    key = change_row(pool, "samples.parquet", 0, stored_width=63)
    assert verify_pool(pool, level="full").is_clean
    found = verify_pool(pool, level="deep").findings
    assert found[0] == Finding(
        "shards/toy-000000.tar", key, "frame 0 is 64x48 px, recorded are 63x48"
    )


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"label": 3}, "has another class_name than its label"),
        ({"verdict": "short"}, "differs from samples.parquet"),
    ],
)
def test_a_manifest_that_disagrees_with_the_samples_is_named(
    pool: Path, values: dict[str, Any], what: str
) -> None:
    key = change_row(pool, MANIFEST, 0, **values)
    found = verify_pool(pool, level="quick").findings
    assert {finding.file for finding in found} == {MANIFEST}
    assert Finding(MANIFEST, key, what) in found
    assert any("is " in finding.what and ", expected " in finding.what for finding in found), (
        "counts or fingerprint"
    )


def test_a_card_that_disagrees_with_the_samples_is_named(pool: Path) -> None:
    card = open_pool(pool).card
    change_card(pool, pool_id="0" * 64, counts={**card.counts, "ok": 11})
    whats = [
        finding.what
        for finding in verify_pool(pool, level="quick").findings
        if finding.file == "pool.json"
    ]
    assert whats == [
        f"pool_id is {'0' * 64}, the samples give {card.pool_id}",
        "counts.ok is 11, samples.parquet gives 12",
    ]
    entries = [entry.model_dump() for entry in card.shards]
    change_card(
        pool,
        pool_id=card.pool_id,
        counts=card.counts,
        shards=[{**entries[0], "sha256": "00"}, *entries[1:]],
    )
    found = verify_pool(pool, level="full").findings
    what = "sha256 of shards/toy-000000.tar is wrong, its samples are all right"
    assert found == [Finding("pool.json", None, what)]


def test_a_card_that_cannot_be_read_is_a_finding_and_no_card_an_error(pool: Path) -> None:
    (pool / "pool.json").write_text("{")
    (found,) = verify_pool(pool).findings
    assert found.file == "pool.json"
    assert found.what.startswith("is not JSON")
    (pool / "pool.json").unlink()
    with pytest.raises(FormatError, match="this is not a finished pool"):
        verify_pool(pool)


def test_an_unknown_level_is_an_error(reference: Path) -> None:
    with pytest.raises(
        ConfigError, match="--level slow: unknown level; choose one of quick, full, deep"
    ):
        verify_pool(reference, level="slow")
