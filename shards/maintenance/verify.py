"""Check a finished pool: `quick` what the tables say, `full` every byte by its hash, `deep` every
frame decoded.

A shard with the sha256 of `pool.json` holds the bytes that were written, and `pool_id` covers the
samples' hashes; so `full` hashes each byte once (1.1 GB/s a core) and each sample by itself only
where the shard's hash is wrong. `deep` also hashes each sample."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from shards.errors import ConfigError, FormatError
from shards.format.schema import POOL_CARD, SAMPLES, ShardEntry
from shards.maintenance.verify_tables import (
    PLACEMENT,
    Finding,
    check_card,
    check_manifest,
    check_samples,
    wrong_in_place,
)
from shards.maintenance.verify_tars import check_bytes, check_frames, check_headers, check_size
from shards.progress import NullProgress, Progress
from shards.reader import Pool, open_pool
from shards.storage.open import open_store

Level = Literal["quick", "full", "deep"]
LEVELS: tuple[str, ...] = get_args(Level)


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found.

    pool_id: of the card; None if the card cannot be read
    num_bytes: of the shards, as far as the level read them; 0 for quick"""

    pool: str
    level: str
    pool_id: str | None
    num_shards: int
    num_samples: int
    num_bytes: int
    findings: list[Finding]
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def damaged_files(self) -> list[str]:
        """The files that a finding names, sorted."""
        return sorted({finding.file for finding in self.findings})


def verify_pool(
    uri: str | Path, *, level: str = "full", progress: Progress = NullProgress()
) -> Verification:
    """Verify a pool. Damage is a finding, never an exception.

    Raises: ConfigError for an unknown level; FormatError if there is no finished pool at all."""
    if level not in LEVELS:
        raise ConfigError(f"--level {level}: no such level; known: {', '.join(LEVELS)}")
    started = time.monotonic()
    store = open_store(uri)
    try:
        pool = open_pool(uri)
    except FormatError as error:
        if not store.exists(POOL_CARD):
            raise
        card = Finding(POOL_CARD, None, _without_place(error, store.uri(POOL_CARD)))
        return Verification(str(uri), level, None, 0, 0, 0, [card], time.monotonic() - started)
    findings: list[Finding] = []
    samples = _samples(pool, findings)
    if samples is not None:
        findings += check_card(pool, samples)
        findings += check_samples(samples)
    for path in pool.manifest_names():
        findings += check_manifest(pool, path, samples)
    findings += _check_shards(pool, samples, level, progress)
    return Verification(
        pool=str(uri),
        level=level,
        pool_id=pool.card.pool_id,
        num_shards=len(pool.card.shards),
        num_samples=pool.card.counts.get("samples", 0),
        num_bytes=0 if level == "quick" else sum(entry.size for entry in pool.card.shards),
        findings=list(dict.fromkeys(findings)),
        seconds=time.monotonic() - started,
    )


def verification_text(found: Verification) -> str:
    """One line a finding (file, key, what), and a closing line."""
    lines = [": ".join(filter(None, (item.file, item.key, item.what))) for item in found.findings]
    looked_at = f"{found.num_shards} shards, {found.num_samples} samples"
    if found.num_bytes:
        looked_at += f", {found.num_bytes / 1e9:.2f} GB"
    state = (
        "sound"
        if found.is_clean
        else f"{len(lines)} findings in {len(found.damaged_files())} files"
    )
    lines.append(f"{found.pool}: {state} ({found.level}: {looked_at} in {found.seconds:.1f} s)")
    return "\n".join(lines)


def _samples(pool: Pool, findings: list[Finding]) -> pa.Table | None:
    """`samples.parquet`, or None and a finding."""
    if not pool.store.exists(SAMPLES):
        findings.append(Finding(SAMPLES, None, "is not there"))
        return None
    try:
        return pool.samples()
    except FormatError as error:
        findings.append(Finding(SAMPLES, None, _without_place(error, pool.store.uri(SAMPLES))))
        return None


def _check_shards(
    pool: Pool, samples: pa.Table | None, level: str, progress: Progress
) -> list[Finding]:
    """Check every tar of the card, one after the other."""
    findings: list[Finding] = []
    by_shard = _split(samples) if samples is not None else {}
    total, done = sum(table.num_rows for table in by_shard.values()), 0
    progress.update("samples", 0, total)
    for entry in pool.card.shards:
        table = by_shard.get(entry.name)
        rows = (
            [row for row in table.to_pylist() if wrong_in_place(row) is None]
            if table is not None
            else []
        )
        findings += _check_shard(pool, entry, rows, level)
        done += table.num_rows if table is not None else 0
        progress.update("samples", done, total)
    return findings


def _check_shard(
    pool: Pool, entry: ShardEntry, rows: list[dict[str, Any]], level: str
) -> list[Finding]:
    findings, size = check_size(pool.store, entry, rows)
    if size is None:
        return findings
    if level == "quick":
        return findings + check_headers(pool.store, entry.name, size, rows)
    findings += check_bytes(pool.store, entry, size, rows)
    if level == "deep":
        findings += check_frames(pool.store, entry.name, size, rows)
    return findings


def _split(samples: pa.Table) -> dict[str, pa.Table]:
    """The stored rows of `samples.parquet` by shard, ascending in offset."""
    table = samples.select(["key", *PLACEMENT, "stored_width", "stored_height"])
    members: dict[str, list[tuple[int, int]]] = {}
    places = zip(table["shard"].to_pylist(), table["offset"].to_pylist(), strict=True)
    for row, (shard, offset) in enumerate(places):
        if shard is not None and offset is not None:
            members.setdefault(shard, []).append((offset, row))
    return {shard: table.take([row for _, row in sorted(rows)]) for shard, rows in members.items()}


def _without_place(error: Exception, place: str) -> str:
    return str(error).removeprefix(f"{place}: ")
