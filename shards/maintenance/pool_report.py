"""A summary of a pool: verdicts, manifests with their counts and lists, and failed videos."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.format.schema import FAILED_VERDICTS, ManifestInfo
from shards.reader import Pool, open_pool

_MAX_FAILED_LINES = 20


@dataclass(frozen=True)
class ClassHistogram:
    """Samples per class of one manifest."""

    num_classes: int
    minimum: int
    median: float
    maximum: int
    samples: dict[str, int]
    """Samples by class name, in the order of the labels."""


@dataclass(frozen=True)
class ManifestReport:
    """The metadata of one manifest and its samples per class."""

    info: ManifestInfo
    classes: ClassHistogram

    @property
    def path(self) -> str:
        """Return the name of the manifest, `<protocol>/<name>`."""
        return self.info.path

    def as_json(self) -> dict[str, Any]:
        """Return the fields that `--json` prints."""
        info = self.info
        return {
            "path": info.path,
            "expected": info.expected,
            "found": info.found,
            "short": info.short,
            "damaged": info.damaged,
            "missing": info.missing,
            "classes": asdict(self.classes),
            "source": info.source,
            "source_sha256": info.source_sha256,
            "labels": info.labels,
            "fingerprint": info.fingerprint,
        }


@dataclass(frozen=True)
class FailedVideo:
    """A video that was read and is not ok."""

    key: str
    verdict: str
    reason: str | None


@dataclass(frozen=True)
class PoolReport:
    """The tables of a pool, summarised."""

    pool: str
    dataset: str
    pool_id: str
    num_shards: int
    counts: dict[str, int]
    """As in pool.json."""
    manifests: list[ManifestReport]
    failed: list[FailedVideo]

    def as_json(self) -> dict[str, Any]:
        """Return the fields that `--json` prints."""
        fields = asdict(replace(self, manifests=[]))
        return {**fields, "manifests": [manifest.as_json() for manifest in self.manifests]}


def report_pool(uri: str | Path) -> PoolReport:
    """Summarise the tables of a pool; no shard is opened.

    Raises:
        FormatError: if it is not a finished pool.
    """
    pool = open_pool(uri)

    return PoolReport(
        pool=str(uri),
        dataset=pool.card.dataset,
        pool_id=pool.card.pool_id,
        num_shards=len(pool.card.shards),
        counts=pool.card.counts,
        manifests=[_read_manifest(pool, path) for path in pool.manifest_names()],
        failed=failed_videos(pool.samples()),
    )


def failed_videos(samples: pa.Table) -> list[FailedVideo]:
    """Return the rows of `samples.parquet` whose video was read and is not ok."""
    columns = samples.select(["key", "verdict", "reason"])
    is_failed = pc.is_in(columns["verdict"], value_set=pa.array(FAILED_VERDICTS))
    return [FailedVideo(**row) for row in columns.filter(is_failed).to_pylist()]


def report_text(report: PoolReport) -> str:
    """Return the report as a table.

    A sha256 or a fingerprint is shortened to 12 digits; `--json` has all digits.
    """
    counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    lines = [
        f"{report.pool}: {report.dataset}, {report.num_shards} shards, pool_id {report.pool_id}",
        f"  {counts}",
    ]
    lines += manifest_lines(report.manifests, with_source=True)

    for video in report.failed[:_MAX_FAILED_LINES]:
        lines.append(f"  {video.verdict}: {video.key}: {video.reason}")
    num_more = len(report.failed) - _MAX_FAILED_LINES
    if num_more > 0:
        lines.append(f"  ... and {num_more} more; --json has all reasons")
    return "\n".join(lines)


def _read_manifest(pool: Pool, path: str) -> ManifestReport:
    manifest = pool.manifest(path)
    return report_manifest(manifest.info, manifest.table["label"].to_pylist())


def report_manifest(info: ManifestInfo, labels: Sequence[int]) -> ManifestReport:
    """Return the report of one manifest.

    Args:
        info: its metadata.
        labels: of its samples, in any order.
    """
    num_samples = Counter(labels)
    numbers = {name: num_samples[label] for label, name in enumerate(info.classes)}
    classes = ClassHistogram(
        num_classes=len(numbers),
        minimum=min(numbers.values(), default=0),
        median=statistics.median(numbers.values()) if numbers else 0.0,
        maximum=max(numbers.values(), default=0),
        samples=numbers,
    )
    return ManifestReport(info, classes)


def manifest_lines(manifests: Sequence[ManifestReport], *, with_source: bool) -> list[str]:
    """Return a heading and one line per manifest.

    Args:
        manifests: in the order of the lines.
        with_source: whether a second line per manifest names its list.
    """
    width = max((len(manifest.path) for manifest in manifests), default=8)
    names = ("expected", "found", "short", "damaged", "missing", "classes")
    heads = "".join(f" {name:>8}" for name in names)
    lines = [f"  {'manifest':<{width}}{heads}  list's sha256  clips per class: min/median/max"]

    for manifest in manifests:
        info, of_class = manifest.info, manifest.classes
        numbers = (info.expected, info.found, info.short, info.damaged, info.missing)
        cells = "".join(f" {number:>8,}" for number in (*numbers, of_class.num_classes))

        spread = f"{of_class.minimum}/{of_class.median:g}/{of_class.maximum}"
        num_empty = list(of_class.samples.values()).count(0)
        if num_empty:
            spread += f", {num_empty} classes without a clip"

        lines.append(f"  {info.path:<{width}}{cells}  {info.source_sha256[:12]:<13}  {spread}")
        if with_source:
            source = f"{info.source}, labels {info.labels}, fingerprint {info.fingerprint[:12]}"
            lines.append(f"  {'':<{width}} {source}")
    return lines
