"""Compare a pool's card, `samples.parquet` and manifests with each other; no shard is opened."""

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
    PLACEMENT_COLUMNS,
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
# Columns of a manifest that do not come from `samples.parquet`: other lists may give the same
# video another label.
_OWN_COLUMNS = ("label", "class_name")
_FRAME_LISTS = ("frame_offset", "frame_size", "frame_crc32", "source_index", "source_time_seconds")
# Rows are turned into Python values in batches, since one takes 10 kB.
_ROWS_PER_BATCH = 4096


@dataclass(frozen=True)
class Finding:
    """One problem of a pool."""

    file: str
    """Relative to the pool."""
    key: str | None
    """The sample, if the problem is of one sample."""
    what: str
    """The problem in words."""


def check_card(pool: Pool, samples: pa.Table) -> list[Finding]:
    """Compare `pool.json` with `samples.parquet` and with the names below `shards/`."""
    card = pool.card
    findings = []
    stored = samples.filter(pc.is_valid(samples["sha256"]))

    identity = pool_id(zip(stored["key"].to_pylist(), stored["sha256"].to_pylist(), strict=True))
    if identity != card.pool_id:
        problem = f"pool_id is {card.pool_id}, the samples give {identity}"
        findings.append(Finding(POOL_CARD, None, problem))

    for name, count in count_samples(samples).items():
        if card.counts.get(name) != count:
            problem = f"counts.{name} is {card.counts.get(name)}, {SAMPLES} gives {count}"
            findings.append(Finding(POOL_CARD, None, problem))

    in_table = Counter(stored["shard"].to_pylist())
    in_card = {entry.name: entry.samples for entry in card.shards}
    for name in sorted({*in_table, *in_card}, key=str):
        if in_card.get(name, 0) != in_table[name]:
            problem = f"states {in_card.get(name, 0)} samples in {name}, {SAMPLES} has"
            findings.append(Finding(POOL_CARD, None, f"{problem} {in_table[name]}"))

    for name in pool.store.names("shards/"):
        if name.endswith((".tar", ".part", ".jsonl")) and name not in in_card:
            findings.append(Finding(name, None, "is not a file of this pool"))
    return findings


def check_samples(samples: pa.Table) -> list[Finding]:
    """Check each row of `samples.parquet` by itself, and that no key has two rows."""
    findings = []
    for key, count in Counter(samples["key"].to_pylist()).items():
        if count > 1:
            findings.append(Finding(SAMPLES, key, "has two rows"))

    columns = ["key", "verdict", "source_index", "source_time_seconds", *PLACEMENT_COLUMNS]
    for batch in samples.select(columns).to_batches(max_chunksize=_ROWS_PER_BATCH):
        for row in batch.to_pylist():
            problem = wrong_in_row(row)
            if problem is not None:
                findings.append(Finding(SAMPLES, row["key"], problem))
    return findings


def wrong_in_row(row: Mapping[str, Any]) -> str | None:
    """Return the problem of a row of `samples.parquet`, or None."""
    if row["verdict"] not in VERDICTS:
        return f"verdict is {row['verdict']!r}, expected one of {', '.join(VERDICTS)}"

    is_stored = row["shard"] is not None
    if (row["verdict"] in STORED_VERDICTS) != is_stored:
        return f"verdict is {row['verdict']}, but shard is {row['shard']}"
    return wrong_in_place(row) if is_stored else None


def wrong_in_place(row: Mapping[str, Any]) -> str | None:
    """Return the problem of a stored sample's placement, or None.

    The frames must follow each other in tar blocks, each behind its header.
    """
    empty = [name for name in PLACEMENT_COLUMNS if row[name] is None]
    if empty:
        return f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} null"
    if row["offset"] < 0:
        return f"offset is {row['offset']}"

    lengths = {name: len(row[name]) for name in _FRAME_LISTS if row.get(name) is not None}
    if len(set(lengths.values())) > 1 or not row["frame_offset"]:
        return f"lists of different lengths or without a frame: {lengths}"

    end = 0
    frames = zip(row["frame_offset"], row["frame_size"], strict=True)
    for position, (start, size) in enumerate(frames):
        is_behind_header = start >= end + BLOCK_BYTES
        is_aligned = start % BLOCK_BYTES == 0 and row["offset"] % BLOCK_BYTES == 0
        if size < 1 or not is_behind_header or not is_aligned:
            return f"frame {position} cannot be at byte {start} with {size} bytes"
        end = start + padded(size)

    # Behind the frames: the header and the content of `<key>.json`.
    if end + 2 * BLOCK_BYTES > row["size"]:
        return f"ends at byte {end} or later, size is {row['size']}"
    return None


def check_manifest(pool: Pool, path: str, samples: pa.Table | None) -> list[Finding]:
    """Check a manifest by itself, and its rows against `samples.parquet` unless that is None."""
    name = f"manifests/{path}.parquet"
    try:
        manifest = pool.manifest(path)
    except FormatError as error:
        return [Finding(name, None, str(error).removeprefix(f"{pool.store.uri(name)}: "))]

    problems: list[tuple[str | None, str]] = []
    problems += [(None, problem) for problem in _wrong_in_info(manifest, path, pool.card.pool_id)]
    problems += [(key, "has another class_name than its label") for key in _mislabelled(manifest)]
    if samples is not None:
        keys = _differing_rows(manifest.table, samples)
        problems += [(key, f"differs from {SAMPLES}") for key in keys]
    return [Finding(name, key, problem) for key, problem in problems]


def padded(size: int) -> int:
    """Return a size rounded up to whole tar blocks."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _wrong_in_info(manifest: Manifest, path: str, identity: str) -> list[str]:
    """Return the problems of a manifest's metadata."""
    info, table = manifest.info, manifest.table
    verdicts = table["verdict"].to_pylist()
    columns = (table[name].to_pylist() for name in ("key", "label", "sha256"))
    own_fingerprint = fingerprint(info.path, info.classes, zip(*columns, strict=True))

    stated_and_expected = {
        "protocol/name": (info.path, path),
        "pool_id": (info.pool_id, identity),
        "found": (info.found, len(manifest)),
        "short": (info.short, verdicts.count("short")),
        "damaged": (info.damaged, verdicts.count("damaged")),
        "missing": (info.missing, info.expected - len(manifest)),
        "fingerprint": (info.fingerprint, own_fingerprint),
    }

    problems = []
    for name, (stated, expected) in stated_and_expected.items():
        if stated != expected:
            problems.append(f"{name} is {stated}, expected {expected}")
    return problems


def _mislabelled(manifest: Manifest) -> list[str]:
    """Return the keys of rows whose class name is not that of their label."""
    classes = dict(enumerate(manifest.info.classes))
    columns = (manifest.table[name].to_pylist() for name in ("key", "label", "class_name"))
    return [key for key, label, name in zip(*columns, strict=True) if classes.get(label) != name]


def _differing_rows(table: pa.Table, samples: pa.Table) -> list[str]:
    """Return the keys of a manifest whose rows differ from `samples.parquet` or are not in it."""
    row_of = {key: row for row, key in enumerate(samples["key"].to_pylist())}
    keys = table["key"].to_pylist()
    absent = [key for key in keys if key not in row_of]
    if absent:
        return absent

    names = [name for name in MANIFEST_SCHEMA.names if name not in _OWN_COLUMNS]
    rows = pa.array([row_of[key] for key in keys], pa.int64())
    expected = samples.select(names).take(rows)

    differing: set[str] = set()
    for name in names:
        values = zip(keys, table[name].to_pylist(), expected[name].to_pylist(), strict=True)
        differing.update(key for key, value, of_samples in values if value != of_samples)
    return sorted(differing)
