"""Check a finished pool at one of three levels.

`quick` compares the tables and the tar headers, `full` also hashes every byte, `deep` also decodes
every frame.

A shard whose sha256 is that of `pool.json` has the bytes that were written, and `pool_id` covers
the hashes of the samples. Therefore `full` hashes each byte once (1.1 GB per second and core), and
the samples one by one only if the hash of their shard is wrong. `deep` also hashes each sample.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from shards.errors import ConfigError, FormatError
from shards.format.schema import PLACEMENT_COLUMNS, POOL_CARD, SAMPLES, ShardEntry
from shards.maintenance.verify_tables import (
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
    """The result of a check."""

    pool: str
    level: str
    pool_id: str | None
    """Of the card; None if the card cannot be read."""
    num_shards: int
    num_samples: int
    num_bytes: int
    """Bytes of the shards that were read; 0 for `quick`."""
    findings: list[Finding]
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Return whether there is no finding."""
        return not self.findings

    def damaged_files(self) -> list[str]:
        """Return the files with a finding, sorted."""
        return sorted({finding.file for finding in self.findings})


def verify_pool(
    uri: str | Path, *, level: str = "full", progress: Progress = NullProgress()
) -> Verification:
    """Check a pool. Damage is a finding, never an exception.

    Args:
        uri: folder or address of the pool.
        level: one of `LEVELS`.
        progress: shows the samples that were checked.

    Raises:
        ConfigError: for an unknown level.
        FormatError: if there is no finished pool.
    """
    if level not in LEVELS:
        raise ConfigError(f"--level {level}: unknown level; choose one of {', '.join(LEVELS)}")

    started = time.monotonic()
    store = open_store(uri)
    try:
        pool = open_pool(uri)
    except FormatError as error:
        if not store.exists(POOL_CARD):
            raise
        # Without a readable card nothing else can be checked.
        finding = Finding(POOL_CARD, None, _without_address(error, store.uri(POOL_CARD)))
        seconds = time.monotonic() - started
        return Verification(str(uri), level, None, 0, 0, 0, [finding], seconds)

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


def verification_text(verification: Verification) -> str:
    """Return one line per finding (file, key, problem), and a closing line."""
    lines = []
    for finding in verification.findings:
        parts = (finding.file, finding.key, finding.what)
        lines.append(": ".join(part for part in parts if part))

    state = "sound"
    if not verification.is_clean:
        num_files = len(verification.damaged_files())
        state = f"{len(verification.findings)} findings in {num_files} files"

    checked = f"{verification.num_shards} shards, {verification.num_samples} samples"
    if verification.num_bytes:
        checked += f", {verification.num_bytes / 1e9:.2f} GB"
    checked += f" in {verification.seconds:.1f} s"
    lines.append(f"{verification.pool}: {state} ({verification.level}: {checked})")
    return "\n".join(lines)


def _samples(pool: Pool, findings: list[Finding]) -> pa.Table | None:
    """Return the table of samples, or None and append a finding."""
    if not pool.store.exists(SAMPLES):
        findings.append(Finding(SAMPLES, None, "is missing"))
        return None

    try:
        return pool.samples()
    except FormatError as error:
        problem = _without_address(error, pool.store.uri(SAMPLES))
        findings.append(Finding(SAMPLES, None, problem))
        return None


def _check_shards(
    pool: Pool, samples: pa.Table | None, level: str, progress: Progress
) -> list[Finding]:
    """Check every tar of the card in order."""
    findings: list[Finding] = []
    by_shard = _split(samples) if samples is not None else {}
    total = sum(table.num_rows for table in by_shard.values())
    done = 0
    progress.update("samples", done, total)

    for entry in pool.card.shards:
        table = by_shard.get(entry.name)
        rows = table.to_pylist() if table is not None else []
        # The placement of the others is wrong, which is a finding already.
        placed = [row for row in rows if wrong_in_place(row) is None]
        findings += _check_shard(pool, entry, placed, level)

        done += len(rows)
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
    """Return the stored rows of `samples.parquet` by shard, in the order of their offsets."""
    table = samples.select(["key", *PLACEMENT_COLUMNS, "stored_width", "stored_height"])
    members: dict[str, list[tuple[int, int]]] = {}
    shards, offsets = table["shard"].to_pylist(), table["offset"].to_pylist()

    for row, (shard, offset) in enumerate(zip(shards, offsets, strict=True)):
        if shard is not None and offset is not None:
            members.setdefault(shard, []).append((offset, row))
    return {shard: table.take([row for _, row in sorted(rows)]) for shard, rows in members.items()}


def _without_address(error: Exception, address: str) -> str:
    return str(error).removeprefix(f"{address}: ")
