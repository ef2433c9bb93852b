"""What a pool holds: each manifest with its counts and its list, the verdicts, and the videos that
failed and why."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shards.format.schema import ManifestInfo
from shards.reader import Pool, open_pool

_FAILED = ("short", "damaged", "undecodable")
_MAX_FAILED_LINES = 20


@dataclass(frozen=True)
class ClassHistogram:
    """Samples a class of one manifest; `samples` has all classes in the order of their labels."""

    num_classes: int
    minimum: int
    median: float
    maximum: int
    samples: dict[str, int]


@dataclass(frozen=True)
class ManifestReport:
    """One manifest.

    expected: lines of the list; found = stored samples, short and damaged ones among them; missing:
        the others"""

    path: str
    expected: int
    found: int
    short: int
    damaged: int
    missing: int
    classes: ClassHistogram
    source: str
    source_sha256: str
    labels: str
    fingerprint: str


@dataclass(frozen=True)
class FailedRow:
    """A video that was read and is not ok."""

    key: str
    verdict: str
    reason: str | None


@dataclass(frozen=True)
class PoolReport:
    """A pool; `counts` as in pool.json."""

    pool: str
    dataset: str
    pool_id: str
    num_shards: int
    counts: dict[str, int]
    manifests: list[ManifestReport]
    failed: list[FailedRow]


def report_pool(uri: str | Path) -> PoolReport:
    """Read the tables of a pool; no shard is opened. Raises: FormatError if it is not a finished
    pool."""
    pool = open_pool(uri)
    samples = pool.samples().select(["key", "verdict", "reason"])
    failed = samples.filter(pc.is_in(samples["verdict"], value_set=pa.array(_FAILED)))
    return PoolReport(
        pool=str(uri),
        dataset=pool.card.dataset,
        pool_id=pool.card.pool_id,
        num_shards=len(pool.card.shards),
        counts=pool.card.counts,
        manifests=[_read_manifest(pool, path) for path in pool.manifest_names()],
        failed=[FailedRow(**row) for row in failed.to_pylist()],
    )


def report_text(report: PoolReport) -> str:
    """A table for people; the sha256 and fingerprints are cut to 12 digits, `--json` has them
    whole."""
    counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    lines = [
        f"{report.pool}: {report.dataset}, {report.num_shards} shards, pool_id {report.pool_id}",
        f"  {counts}",
    ]
    lines += manifest_lines(report.manifests, with_source=True)
    lines += [
        f"  {row.verdict}: {row.key}: {row.reason}" for row in report.failed[:_MAX_FAILED_LINES]
    ]
    if len(report.failed) > _MAX_FAILED_LINES:
        lines.append(
            f"  ... and {len(report.failed) - _MAX_FAILED_LINES} more; --json has all reasons"
        )
    return "\n".join(lines)


def _read_manifest(pool: Pool, path: str) -> ManifestReport:
    manifest = pool.manifest(path)
    return report_manifest(manifest.info, manifest.table["label"].to_pylist())


def report_manifest(info: ManifestInfo, labels: Sequence[int]) -> ManifestReport:
    """Count one manifest; `labels` are those of its samples, in any order."""
    held = Counter(labels)
    numbers = {name: held[label] for label, name in enumerate(info.classes)}
    return ManifestReport(
        path=info.path,
        expected=info.expected,
        found=info.found,
        short=info.short,
        damaged=info.damaged,
        missing=info.missing,
        classes=ClassHistogram(
            num_classes=len(numbers),
            minimum=min(numbers.values(), default=0),
            median=statistics.median(numbers.values()) if numbers else 0.0,
            maximum=max(numbers.values(), default=0),
            samples=numbers,
        ),
        source=info.source,
        source_sha256=info.source_sha256,
        labels=info.labels,
        fingerprint=info.fingerprint,
    )


def manifest_lines(manifests: Sequence[ManifestReport], *, with_source: bool) -> list[str]:
    """A line a manifest under a heading; `with_source` a second one with the list that it was made
    from."""
    width = max((len(manifest.path) for manifest in manifests), default=8)
    names = ("expected", "found", "short", "damaged", "missing", "classes")
    heads = "".join(f" {name:>8}" for name in names)
    lines = [f"  {'manifest':<{width}}{heads}  list's sha256  clips a class: min/median/max"]
    for manifest in manifests:
        of_class = manifest.classes
        numbers = (
            manifest.expected,
            manifest.found,
            manifest.short,
            manifest.damaged,
            manifest.missing,
        )
        cells = "".join(f" {number:>8,}" for number in (*numbers, of_class.num_classes))
        num_empty = sum(not number for number in of_class.samples.values())
        without = f", {num_empty} classes without a clip" if num_empty else ""
        spread = f"{of_class.minimum}/{of_class.median:g}/{of_class.maximum}{without}"
        lines.append(
            f"  {manifest.path:<{width}}{cells}  {manifest.source_sha256[:12]:<13}  {spread}"
        )
        if with_source:
            source = f"{manifest.source}, labels {manifest.labels}, fingerprint {manifest.fingerprint[:12]}"
            lines.append(f"  {'':<{width}} {source}")
    return lines
