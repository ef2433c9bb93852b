"""Rows of videos <-> Parquet bytes, shard by shard; `samples.parquet` and the files of parts are
such tables.

Arrow and not Python rows: 300,000 videos are 0.5 GB here and 3 GB as dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.planning import ShardPlan, sort_keys
from shards.errors import FormatError
from shards.format.parquet import read_parquet
from shards.format.schema import MANIFEST_METADATA_KEY, SAMPLES_SCHEMA, ShardEntry

_EMPTY_PLACES, _ENTRIES = "empty_places", "entries"


@dataclass(frozen=True)
class ShardRows:
    """A finished shard: its plan and the rows of all its videos, in the plan's order, undecodable
    ones too.

    entry: its line in `pool.json` where this run, or the run of a part, has hashed it, else None"""

    plan: ShardPlan
    table: pa.Table
    entry: ShardEntry | None = None


def rows_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make a table of rows."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SAMPLES_SCHEMA)


def join_tables(
    shards: Sequence[ShardRows], missing: pa.Table, *, with_entries: bool = False
) -> pa.Table:
    """One table sorted by key, with the places of videos that no shard holds in its metadata.

    An undecodable video counts in its shard's plan although no byte of it is there; a retry has to
    know where.
    with_entries: what `pool.json` will say of the shards is put beside them, while there is no
        `pool.json`"""
    table = pa.concat_tables([*(shard.table for shard in shards), missing])
    table = table.take(pc.sort_indices(table, sort_keys=[("key", "ascending")])).combine_chunks()
    places = {
        key: shard.plan.name
        for shard in shards
        for key in shard.table.filter(pc.is_null(shard.table["shard"]))["key"].to_pylist()
    }
    metadata: dict[str, Any] = {_EMPTY_PLACES: places}
    if with_entries:
        metadata[_ENTRIES] = {
            shard.plan.name: shard.entry.model_dump() for shard in shards if shard.entry
        }
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    return table.replace_schema_metadata({MANIFEST_METADATA_KEY: text.encode()})


def read_samples(data: bytes, *, where: str) -> pa.Table:
    """Read back. Raises: FormatError naming `where`."""
    table = read_parquet(data, where=where)
    if table.schema.names != SAMPLES_SCHEMA.names:
        raise FormatError(
            f"{where}: has other columns than this version writes; remove it and build again"
        )
    # reading renames the items of lists; cast, so that a table that was read is written as the same
    # bytes
    return table.cast(SAMPLES_SCHEMA.with_metadata(table.schema.metadata))


def split_by_shard(table: pa.Table) -> list[ShardRows]:
    """Undo `join_tables`: the shards by index; rows of missing videos are left out."""
    metadata = json.loads((table.schema.metadata or {}).get(MANIFEST_METADATA_KEY, b"{}"))
    places = metadata.get(_EMPTY_PLACES, {})
    entries = {name: ShardEntry(**entry) for name, entry in metadata.get(_ENTRIES, {}).items()}
    members: dict[str, dict[str, int]] = {}
    keys, shards = table["key"].to_pylist(), table["shard"].to_pylist()
    for row, (key, shard) in enumerate(zip(keys, shards, strict=True)):
        name = (
            places.get(key) if shard is None else shard.removeprefix("shards/").removesuffix(".tar")
        )
        if name is not None:
            members.setdefault(name, {})[key] = row
    plain = table.replace_schema_metadata(SAMPLES_SCHEMA.metadata)
    found = []
    for name, rows in members.items():
        ordered = sort_keys(rows)
        plan = ShardPlan(name, int(name.rsplit("-", 1)[1]), tuple(ordered))
        found.append(ShardRows(plan, plain.take([rows[key] for key in ordered]), entries.get(name)))
    return sorted(found, key=lambda shard: shard.plan.index)


def end_of_tar(table: pa.Table) -> int:
    """The size a shard's tar has: the last sample's end and two zero blocks."""
    ends = pc.max(pc.add(table["offset"], table["size"])).as_py()
    return (ends or 0) + 1024
