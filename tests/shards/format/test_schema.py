"""The card, the manifest's metadata and the two hashes, as the format states them."""

from __future__ import annotations

import hashlib
import json
from typing import get_type_hints

import pyarrow as pa
import pytest

from shards.errors import FormatError
from shards.format.schema import (
    MANIFEST_METADATA_KEY,
    MANIFEST_SCHEMA,
    SAMPLES_SCHEMA,
    Encoding,
    ManifestInfo,
    ManifestRow,
    PoolCard,
    SampleRow,
    ShardEntry,
    fingerprint,
    manifest_info,
    manifest_table,
    parse_card,
    pool_id,
)
from shards.reader import Pool

CARD = PoolCard(
    format_version=1,
    dataset="toy",
    pool_id="ab",
    classes=["größe", "Archery"],
    encoding=Encoding(),
    libraries={"av": "18.1.0"},
    counts={"videos": 1},
    shards=[ShardEntry(name="shards/toy-000000.tar", size=1024, samples=1, sha256="00")],
)
INFO = ManifestInfo(
    dataset="toy",
    protocol="base_to_novel",
    name="val_novel",
    part="novel",
    split="val",
    classes=["a"],
    labels="csv",
    source="novel_val.txt",
    source_sha256="00",
    classes_sha256="11",
    expected=3,
    found=1,
    short=0,
    damaged=0,
    missing=2,
    pool_id="ab",
    fingerprint="cd",
)
PYTHON_TYPES = {
    pa.string(): str,
    pa.int32(): int,
    pa.int64(): int,
    pa.float64(): float,
    pa.list_(pa.int32()): list[int],
    pa.list_(pa.uint32()): list[int],
    pa.list_(pa.float64()): list[float],
}


def test_every_column_states_its_meaning() -> None:
    for field in (*SAMPLES_SCHEMA, *MANIFEST_SCHEMA):
        assert field.metadata[b"meaning"], field.name


def test_the_columns_of_the_format_are_there_in_its_order() -> None:
    placement = ["shard", "offset", "size", "frame_offset", "frame_size", "frame_crc32", "sha256"]
    assert SAMPLES_SCHEMA.names[-7:] == placement
    start = ["key", "label", "class_name", "verdict", "num_frames_decoded", "source_index"]
    assert MANIFEST_SCHEMA.names == [*start, *placement]
    assert not any(field.nullable for field in MANIFEST_SCHEMA)


@pytest.mark.parametrize(
    ("row", "schema"), [(SampleRow, SAMPLES_SCHEMA), (ManifestRow, MANIFEST_SCHEMA)]
)
def test_row_types_have_the_names_types_and_nulls_of_the_schema(
    row: type, schema: pa.Schema
) -> None:
    hints = get_type_hints(row)
    assert list(hints) == schema.names
    for field in schema:
        hint = PYTHON_TYPES[field.type]
        assert hints[field.name] == (hint | None if field.nullable else hint), field.name


def test_a_card_reads_back_and_its_text_is_canonical() -> None:
    text = CARD.to_json()
    assert parse_card(text, where="pool.json") == CARD
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert "größe" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"x/pool.json: is not JSON .* build the pool again"),
        ("[]", "has format_version None, this code reads 1"),
        (
            '{"format_version": 2, "news": true}',
            "has format_version 2, this code reads 1; .* check out the release",
        ),
        (
            '{"format_version": 1}',
            "field dataset: Field required; remove the folder and build the pool again",
        ),
    ],
)
def test_a_card_of_another_form_is_refused_with_the_cure(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_card(text, where="x/pool.json")


def test_a_card_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(FormatError, match=r"field encoding.qualty"):
        parse_card(json.dumps({**CARD.model_dump(), "encoding": {"qualty": 3}}), where="pool.json")


def test_a_manifest_carries_its_metadata() -> None:
    table = manifest_table(INFO, [])
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert manifest_info(table, where="x") == INFO
    assert INFO.path == "base_to_novel/val_novel"


def test_a_table_without_metadata_is_no_manifest() -> None:
    with pytest.raises(FormatError, match=r"m.parquet: is not a manifest \(no `bmpt` metadata\)"):
        manifest_info(pa.table({"key": ["a"]}), where="m.parquet")


def test_a_manifest_of_another_version_is_refused() -> None:
    text = json.dumps({**INFO.model_dump(), "format_version": 9}).encode()
    table = pa.table({"key": ["a"]}).replace_schema_metadata({MANIFEST_METADATA_KEY: text})
    with pytest.raises(
        FormatError, match=r"m.parquet: has format_version 9, .*build the pool again"
    ):
        manifest_info(table, where="m.parquet")


def test_pool_id_is_the_hash_of_the_sorted_lines_whatever_their_order() -> None:
    expected = hashlib.sha256(b"a\t11\nb\t22\n").hexdigest()
    assert pool_id([("a", "11"), ("b", "22")]) == pool_id([("b", "22"), ("a", "11")]) == expected


def test_a_fingerprint_knows_path_classes_and_rows_in_their_order() -> None:
    rows = [("a", 0, "11"), ("b", 1, "22")]
    changed = [
        fingerprint("p/n", ["x", "y"], rows),
        fingerprint("p/m", ["x", "y"], rows),
        fingerprint("p/n", ["y", "x"], rows),
        fingerprint("p/n", ["x", "y"], rows[::-1]),
        fingerprint("p/n", ["x", "y"], [("a", 1, "11"), rows[1]]),
        fingerprint("p/n", ["x", "y"], [("a", 0, "12"), rows[1]]),
        fingerprint("p/n", ["x", "y"], rows[:1]),
    ]
    assert len(set(changed)) == len(changed)
    assert all(len(value) == 64 for value in changed)


def test_the_hashes_of_a_written_pool_are_those_of_its_tables(pool: Pool) -> None:
    rows = pool.samples().select(["key", "sha256"]).to_pylist()
    assert pool.card.pool_id == pool_id((row["key"], row["sha256"]) for row in rows)
    manifest = pool.manifest("few_shot/val")
    rows = manifest.table.to_pylist()
    expected = fingerprint(
        "few_shot/val", manifest.info.classes, ((r["key"], r["label"], r["sha256"]) for r in rows)
    )
    assert manifest.info.fingerprint == expected
