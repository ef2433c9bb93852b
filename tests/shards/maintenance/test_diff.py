"""What two pools have in common and what not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.maintenance.diff import diff_pools, diff_samples, diff_text
from tests.pools import make_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a") / "pool"
    make_pool(path)
    return path


def test_a_pool_equals_itself(pool: Path) -> None:
    found = diff_pools(pool, pool)
    assert found.is_equal
    assert diff_text(found) == "equal in content, the same pool_id"


def test_another_layout_is_said_and_is_no_difference_in_content(pool: Path, tmp_path: Path) -> None:
    make_pool(tmp_path / "b", samples_per_shard=4)
    found = diff_pools(pool, tmp_path / "b")
    assert found.is_equal
    assert found.num_elsewhere > 0
    assert diff_text(found).startswith(
        f"layout: {found.num_elsewhere} samples with the same bytes are in another shard "
        "or at another offset\n"
    )


def test_other_samples_classes_bytes_and_manifests_are_counted_and_named(
    pool: Path, tmp_path: Path
) -> None:
    make_pool(tmp_path / "b", classes=3, seed=1)
    (tmp_path / "b" / "manifests" / "few_shot" / "train_k2.parquet").unlink()
    card = json.loads((tmp_path / "b" / "pool.json").read_text())
    card["encoding"]["jpeg_quality"] = 95
    (tmp_path / "b" / "pool.json").write_text(json.dumps(card))
    found = diff_pools(pool, tmp_path / "b")
    assert not found.is_equal
    assert found.fields == {"encoding.jpeg_quality": [90, 95]}
    assert {name: keys.count for name, keys in found.keys.items()} == {
        "only_in_a": 3,
        "only_in_b": 0,
        "other_bytes": 9,
        "other_verdict": 0,
    }
    assert found.classes == {"only_in_a": ["Class03"], "only_in_b": []}
    assert found.manifests["only_in_a"] == ["few_shot/train_k2"]
    assert "few_shot/val" in found.manifests["other_fingerprint"]
    text = diff_text(found)
    assert (
        "samples only in A: 3 (Class03/Class03_00, Class03/Class03_01, Class03/Class03_02)" in text
    )
    assert "samples with other bytes: 9 (Class00/Class00_00, " in text
    assert text.endswith("different in content, another pool_id")


def test_diff_of_50000_rows_looks_up_each_key_a_few_times() -> None:
    num_rows, lookups_per_row = 50_000, 20
    budget = num_rows * lookups_per_row

    class CountedKey(str):
        """A key whose lookups in dicts and sets are counted; it raises beyond the budget."""

        num_lookups = 0

        def __hash__(self) -> int:
            CountedKey.num_lookups += 1
            if CountedKey.num_lookups > budget:
                raise AssertionError(
                    f"more than {lookups_per_row} lookups per row: diff is not linear"
                )
            return super().__hash__()

    def row(index: int, *, sha256: str, shard: int = 0) -> dict[str, Any]:
        verdict = "ok" if index % 100 else "damaged"
        return {"verdict": verdict, "sha256": sha256, "shard": shard, "offset": 512 * index}

    def key(index: int) -> str:
        return CountedKey(f"Class/{index:06d}")

    rows_a = {key(index): row(index, sha256=f"{index}") for index in range(num_rows)}
    rows_b = {}
    for index in range(10, num_rows + 20):
        changed = "x" if index % 2 else ""
        rows_b[key(index)] = row(index, sha256=f"{index}{changed}", shard=index % 4)
    rows_b["Class/000100"]["verdict"] = "ok"

    keys, num_elsewhere = diff_samples(rows_a, rows_b)
    assert keys["only_in_a"] == [f"Class/{index:06d}" for index in range(10)]
    assert keys["only_in_b"] == [f"Class/{index:06d}" for index in range(num_rows, num_rows + 20)]
    assert keys["other_bytes"] == [f"Class/{index:06d}" for index in range(11, num_rows, 2)]
    assert keys["other_verdict"] == ["Class/000100"]
    # equal bytes: the even indices from 10 on; those not divisible by 4 are in another shard
    assert num_elsewhere == len(range(10, num_rows, 4))
    assert CountedKey.num_lookups > num_rows, "the lookups were not counted"
