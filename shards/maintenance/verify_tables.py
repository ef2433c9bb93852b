"""What a pool's card, `samples.parquet` and manifests say about each other; no shard is opened
here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import FormatError
from shards.format.schema import (
    MANIFEST_SCHEMA,
    POOL_CARD,
    SAMPLES,
    STORED_VERDICTS,
    VERDICTS,
    count_samples,
    fingerprint,
    pool_id,
)
from shards.reader import Manifest, Pool

BLOCK_BYTES = 512
PLACEMENT = ("shard", "offset", "size", "frame_offset", "frame_size", "frame_crc32", "sha256")
_OF_MANIFESTS_ALONE = (
    "label",
    "class_name",
)  # not the sample's: the same video has other labels in other lists


@dataclass(frozen=True)
class Finding:
    """One damage: the file (relative to the pool), the sample if it concerns one, and what is
    wrong."""

    file: str
    key: str | None
    what: str


def check_card(pool: Pool, samples: pa.Table) -> list[Finding]:
    """Compare `pool.json` with `samples.parquet` and with the names below `shards/`."""
    card, found = pool.card, []
    stored = samples.filter(pc.is_valid(samples["sha256"]))
    identity = pool_id(zip(stored["key"].to_pylist(), stored["sha256"].to_pylist(), strict=True))
    if identity != card.pool_id:
        found.append(
            Finding(POOL_CARD, None, f"pool_id is {card.pool_id}, the samples give {identity}")
        )
    counts = count_samples(samples)
    found += [
        Finding(
            POOL_CARD, None, f"counts.{name} is {card.counts.get(name)}, {SAMPLES} gives {count}"
        )
        for name, count in counts.items()
        if card.counts.get(name) != count
    ]
    held = Counter(stored["shard"].to_pylist())
    known = {entry.name: entry.samples for entry in card.shards}
    for name in sorted({*held, *known}, key=str):
        if known.get(name, 0) != held[name]:
            what = f"states {known.get(name, 0)} samples in {name}, {SAMPLES} has {held[name]}"
            found.append(Finding(POOL_CARD, None, what))
    files = [
        name for name in pool.store.names("shards/") if name.endswith((".tar", ".part", ".jsonl"))
    ]
    found += [
        Finding(name, None, "is not a file of this pool") for name in files if name not in known
    ]
    return found


def check_samples(samples: pa.Table) -> list[Finding]:
    """Check each row of `samples.parquet` by itself, and that no key stands there twice."""
    keys = samples["key"].to_pylist()
    found = [
        Finding(SAMPLES, key, "has two rows") for key, count in Counter(keys).items() if count > 1
    ]
    columns = ["key", "verdict", "source_index", "source_time_seconds", *PLACEMENT]
    for batch in samples.select(columns).to_batches(
        max_chunksize=4096
    ):  # rows of Python values take 10 kB each
        found += [
            Finding(SAMPLES, row["key"], what)
            for row in batch.to_pylist()
            if (what := wrong_in_row(row))
        ]
    return found


def wrong_in_row(row: Mapping[str, Any]) -> str | None:
    """What is wrong in a row of `samples.parquet`, None if nothing is."""
    if row["verdict"] not in VERDICTS:
        return f"verdict is {row['verdict']!r}, expected one of {', '.join(VERDICTS)}"
    if (row["verdict"] in STORED_VERDICTS) != (row["shard"] is not None):
        return f"verdict is {row['verdict']}, but shard is {row['shard']}"
    return None if row["shard"] is None else wrong_in_place(row)


def wrong_in_place(row: Mapping[str, Any]) -> str | None:
    """What is wrong in the placement of a stored sample: the frames must lie one after the other in
    tar blocks."""
    empty = [name for name in PLACEMENT if row[name] is None]
    if empty:
        return f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} null"
    if row["offset"] < 0:
        return f"offset is {row['offset']}"
    lists = ("frame_offset", "frame_size", "frame_crc32", "source_index", "source_time_seconds")
    lengths = {name: len(row[name]) for name in lists if row.get(name) is not None}
    if len(set(lengths.values())) > 1 or not row["frame_offset"]:
        return f"lists of different lengths or without a frame: {lengths}"
    end = 0
    for position, (start, size) in enumerate(
        zip(row["frame_offset"], row["frame_size"], strict=True)
    ):
        if (
            size < 1
            or start < end + BLOCK_BYTES
            or start % BLOCK_BYTES
            or row["offset"] % BLOCK_BYTES
        ):
            return f"frame {position} cannot lie at byte {start} with {size} bytes"
        end = start + padded(size)
    return (
        f"ends at byte {end} or later, size is {row['size']}"
        if end + 2 * BLOCK_BYTES > row["size"]
        else None
    )


def check_manifest(pool: Pool, path: str, samples: pa.Table | None) -> list[Finding]:
    """Check a manifest by itself, and that its rows are those of `samples.parquet` (unless that is
    None)."""
    name = f"manifests/{path}.parquet"
    try:
        manifest = pool.manifest(path)
    except FormatError as error:
        return [Finding(name, None, str(error).removeprefix(f"{pool.store.uri(name)}: "))]
    found = [
        Finding(name, None, what) for what in _wrong_in_info(manifest, path, pool.card.pool_id)
    ]
    found += [
        Finding(name, key, "has another class_name than its label")
        for key in _mislabelled(manifest)
    ]
    if samples is not None:
        found += [
            Finding(name, key, f"is not as {SAMPLES} has it")
            for key in _other_rows(manifest.table, samples)
        ]
    return found


def padded(size: int) -> int:
    """Up to the next tar block."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _wrong_in_info(manifest: Manifest, path: str, identity: str) -> list[str]:
    info, table = manifest.info, manifest.table
    verdicts = table["verdict"].to_pylist()
    rows = (table[name].to_pylist() for name in ("key", "label", "sha256"))
    is_or_should_be = {
        "protocol/name": (info.path, path),
        "pool_id": (info.pool_id, identity),
        "found": (info.found, len(manifest)),
        "short": (info.short, verdicts.count("short")),
        "damaged": (info.damaged, verdicts.count("damaged")),
        "missing": (info.missing, info.expected - len(manifest)),
        "fingerprint": (
            info.fingerprint,
            fingerprint(info.path, info.classes, zip(*rows, strict=True)),
        ),
    }
    return [
        f"{name} is {is_}, expected {should}"
        for name, (is_, should) in is_or_should_be.items()
        if is_ != should
    ]


def _mislabelled(manifest: Manifest) -> list[str]:
    classes = dict(enumerate(manifest.info.classes))
    columns = (manifest.table[name].to_pylist() for name in ("key", "label", "class_name"))
    return [key for key, label, name in zip(*columns, strict=True) if classes.get(label) != name]


def _other_rows(table: pa.Table, samples: pa.Table) -> list[str]:
    """Keys of the rows of a manifest that `samples.parquet` has otherwise, or not at all."""
    position = {key: row for row, key in enumerate(samples["key"].to_pylist())}
    keys = table["key"].to_pylist()
    absent = [key for key in keys if key not in position]
    if absent:
        return absent
    names = [name for name in MANIFEST_SCHEMA.names if name not in _OF_MANIFESTS_ALONE]
    taken = samples.select(names).take(pa.array([position[key] for key in keys], pa.int64()))
    other: set[str] = set()
    for name in names:
        left, right = (column.combine_chunks().to_pylist() for column in (table[name], taken[name]))
        other.update(key for key, one, two in zip(keys, left, right, strict=True) if one != two)
    return sorted(other)
