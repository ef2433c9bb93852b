"""Test the manifests that are written into a pool."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.protocols import ManifestPlan, PlannedRow, ProtocolPlan, write_manifests
from preprocess.protocols.records import ClassNames, ListSource, ManifestSpec
from shards.format.schema import MANIFEST_SCHEMA, SAMPLES_SCHEMA, fingerprint, manifest_info
from shards.maintenance.pool_report import report_manifest
from shards.storage.open import open_store

PLAN = ManifestPlan(
    ManifestSpec("few_shot", "train_k2", "train", shot=2),
    ClassNames(["golf", "kick ball"], "csv", "2" * 64),
    ListSource("ViFi-CLIP datasets_splits/hmdb_splits/train1_few_shot_2.txt", "1" * 64),
    rows=[
        PlannedRow(key, label)
        for key, label in (("e", 1), ("a", 0), ("b", 1), ("c", 0), ("d", 0), ("z", 1))
    ],
    missing=["gone.avi"],
)
VERDICTS = {"a": "ok", "b": "short", "c": "damaged", "d": "undecodable", "e": "ok"}


def sample(key: str, verdict: str) -> dict[str, Any]:
    row = dict.fromkeys(SAMPLES_SCHEMA.names) | {
        "key": key,
        "verdict": verdict,
        "rotation_degrees": 0,
        "num_frames_decoded": 0,
        "num_decoder_errors": 0,
    }
    if verdict == "undecodable":
        return row
    number = ord(key)
    return row | {
        "num_frames_decoded": number,
        "source_index": [0, number],
        "shard": "shards/hmdb51-000000.tar",
        "offset": number * 512,
        "size": 512,
        "frame_offset": [0, 100],
        "frame_size": [100, 200],
        "frame_crc32": [number, 2**32 - 1],
        "sha256": key * 64,
    }


def samples() -> pa.Table:
    return pa.Table.from_pylist(
        [sample(key, verdict) for key, verdict in VERDICTS.items()], schema=SAMPLES_SCHEMA
    )


def plan_of(*manifests: ManifestPlan) -> ProtocolPlan:
    return ProtocolPlan(list(manifests), [], [], [], 0, 0)


def test_stored_samples_are_rows_in_the_order_of_the_list(tmp_path: Path) -> None:
    (report,) = write_manifests(
        plan_of(PLAN), samples(), open_store(tmp_path), dataset="hmdb51", pool_id="p"
    )
    table = pq.read_table(tmp_path / "manifests/few_shot/train_k2.parquet")
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert table["key"].to_pylist() == ["e", "a", "b", "c"]
    assert table["label"].to_pylist() == [1, 0, 1, 0]
    assert table["class_name"].to_pylist() == ["kick ball", "golf", "kick ball", "golf"]
    assert table["verdict"].to_pylist() == ["ok", "ok", "short", "damaged"]
    for row in table.to_pylist():
        stored = sample(row["key"], row["verdict"])
        assert {name: stored[name] for name in row if name not in ("label", "class_name")} == {
            name: value for name, value in row.items() if name not in ("label", "class_name")
        }
    info = manifest_info(table, where="")
    assert (info.dataset, info.pool_id, info.path, info.shot) == (
        "hmdb51",
        "p",
        "few_shot/train_k2",
        2,
    )
    assert report == report_manifest(info, table["label"].to_pylist())


def test_planned_rows_without_a_stored_sample_count_as_missing(tmp_path: Path) -> None:
    (report,) = write_manifests(
        plan_of(PLAN), samples(), open_store(tmp_path), dataset="hmdb51", pool_id="p"
    )
    info = report.info
    assert (info.expected, info.found, info.short, info.damaged, info.missing) == (7, 4, 1, 1, 3)
    assert report.classes.samples == {"golf": 2, "kick ball": 2}


def test_the_fingerprint_is_of_path_classes_and_rows(tmp_path: Path) -> None:
    (report,) = write_manifests(
        plan_of(PLAN), samples(), open_store(tmp_path), dataset="hmdb51", pool_id="p"
    )
    rows = [("e", 1, "e" * 64), ("a", 0, "a" * 64), ("b", 1, "b" * 64), ("c", 0, "c" * 64)]
    assert report.info.fingerprint == fingerprint("few_shot/train_k2", ["golf", "kick ball"], rows)


def test_a_list_without_any_video_is_a_manifest_without_rows(tmp_path: Path) -> None:
    nothing = replace(PLAN, rows=[])
    (report,) = write_manifests(
        plan_of(nothing), samples(), open_store(tmp_path), dataset="hmdb51", pool_id="p"
    )
    table = pq.read_table(tmp_path / "manifests/few_shot/train_k2.parquet")
    assert (table.num_rows, report.info.found, report.info.missing) == (0, 0, 1)
    assert table.schema.equals(MANIFEST_SCHEMA)


@pytest.mark.parametrize("cuts", [(), (1,), (2, 4)])
def test_equal_input_gives_equal_bytes_however_the_table_is_chunked(
    tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    edges = [0, *cuts, len(VERDICTS)]
    whole = samples()
    chunked = pa.concat_tables([whole.slice(a, b - a) for a, b in pairwise(edges)])
    other = replace(PLAN, spec=ManifestSpec("few_shot", "val", "val"))
    for name, table in (("a", whole), ("b", chunked)):
        write_manifests(
            plan_of(PLAN, other), table, open_store(tmp_path / name), dataset="hmdb51", pool_id="p"
        )
    for file in ("train_k2", "val"):
        path = f"manifests/few_shot/{file}.parquet"
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_manifests_are_compressed_with_zstd(tmp_path: Path) -> None:
    write_manifests(plan_of(PLAN), samples(), open_store(tmp_path), dataset="hmdb51", pool_id="p")
    facts = pq.ParquetFile(tmp_path / "manifests/few_shot/train_k2.parquet").metadata
    assert facts.row_group(0).column(0).compression == "ZSTD"
