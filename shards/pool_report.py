"""What a pool holds: each manifest with its counts and its list, the verdicts, and the videos that failed and why."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shards.reader import Manifest, open_pool

_FAILED = ("short", "damaged", "undecodable")
_MAX_FAILED_LINES = 20


@dataclass(frozen=True)
class ClassHistogram:
    """Samples a class of one manifest; `empty` are the classes without one."""

    num_classes: int
    minimum: int
    median: float
    maximum: int
    empty: list[str]


@dataclass(frozen=True)
class ManifestReport:
    """One manifest.

    expected: lines of the list; found = stored samples, short and damaged ones among them; missing: the others"""

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
    """Read the tables of a pool; no shard is opened. Raises: FormatError if it is not a finished pool."""
    pool = open_pool(uri)
    samples = pool.samples().select(["key", "verdict", "reason"])
    failed = samples.filter(pc.is_in(samples["verdict"], value_set=pa.array(_FAILED)))
    return PoolReport(
        pool=str(uri),
        dataset=pool.card.dataset,
        pool_id=pool.card.pool_id,
        num_shards=len(pool.card.shards),
        counts=pool.card.counts,
        manifests=[_manifest(pool.manifest(path)) for path in pool.manifest_names()],
        failed=[FailedRow(**row) for row in failed.to_pylist()],
    )


def report_text(report: PoolReport) -> str:
    """A table for people; the sha256 and fingerprints are cut to 12 digits, `--json` has them whole."""
    counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    lines = [f"{report.pool}: {report.dataset}, {report.num_shards} shards, pool_id {report.pool_id}", f"  {counts}"]
    width = max((len(manifest.path) for manifest in report.manifests), default=8)
    names = ("expected", "found", "short", "damaged", "missing", "classes")
    lines.append(
        f"  {'manifest':<{width}}" + "".join(f" {name:>8}" for name in names) + "  clips a class: min/median/max"
    )
    for manifest in report.manifests:
        of_class = manifest.classes
        numbers = (manifest.expected, manifest.found, manifest.short, manifest.damaged, manifest.missing)
        cells = "".join(f" {number:>8,}" for number in (*numbers, of_class.num_classes))
        spread = f"{of_class.minimum}/{of_class.median:g}/{of_class.maximum}"
        without = f", {len(of_class.empty)} classes without a clip" if of_class.empty else ""
        lines.append(f"  {manifest.path:<{width}}{cells}  {spread}{without}")
        lines.append(
            f"  {'':<{width}} {manifest.source} (sha256 {manifest.source_sha256[:12]}), labels {manifest.labels}, "
            f"fingerprint {manifest.fingerprint[:12]}"
        )
    lines += [f"  {row.verdict}: {row.key}: {row.reason}" for row in report.failed[:_MAX_FAILED_LINES]]
    if len(report.failed) > _MAX_FAILED_LINES:
        lines.append(f"  ... and {len(report.failed) - _MAX_FAILED_LINES} more; --json has all reasons")
    return "\n".join(lines)


def _manifest(manifest: Manifest) -> ManifestReport:
    info = manifest.info
    held = Counter(manifest.table["label"].to_pylist())
    numbers = [held[label] for label in range(len(info.classes))] or [0]
    return ManifestReport(
        path=info.path,
        expected=info.expected,
        found=info.found,
        short=info.short,
        damaged=info.damaged,
        missing=info.missing,
        classes=ClassHistogram(
            num_classes=len(info.classes),
            minimum=min(numbers),
            median=statistics.median(numbers),
            maximum=max(numbers),
            empty=[name for label, name in enumerate(info.classes) if not held[label]],
        ),
        source=info.source,
        source_sha256=info.source_sha256,
        labels=info.labels,
        fingerprint=info.fingerprint,
    )
