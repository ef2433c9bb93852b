"""The report of a build or a dry run as plain data, for the closing table and for `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from preprocess.coordinator.estimate import Estimate
from preprocess.coordinator.overlaps import Duplicates, Overlap
from preprocess.records.expected import SourceCheck
from shards.maintenance.pool_report import FailedVideo, ManifestReport


@dataclass(frozen=True)
class PlannedManifest:
    """One manifest of a dry run."""

    path: str

    expected: int
    """Lines of its list."""

    num_files: int
    """Lines whose video has a file."""


@dataclass(frozen=True)
class BuildReport:
    """The result of a run; these fields are the JSON object that `--json` prints."""

    kind: str
    """build, part or dry run."""

    dataset: str
    out: str

    pool_id: str | None
    """None for a part, and for a dry run without a pool."""

    counts: dict[str, int]
    """As in pool.json; of a part, its own videos; of a dry run, `videos` and `missing` only."""

    manifests: list[ManifestReport] = field(default_factory=list)
    """Of a build."""

    planned: list[PlannedManifest] = field(default_factory=list)
    """Of a dry run."""

    failed: list[FailedVideo] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    duplicates: list[Duplicates] = field(default_factory=list)
    """Videos whose files have the same bytes."""

    overlaps: list[Overlap] = field(default_factory=list)
    """Videos that a protocol trains on and tests on."""

    expected_sources: SourceCheck | None = None
    """None without `--expect-sources`."""

    num_audited: int = 0
    """List lines whose label was compared with the class of the video."""

    num_not_audited: int = 0
    """List lines whose class no other source states."""

    num_shards: int = 0

    num_decoded: int = 0
    """Videos that this run decoded."""

    num_to_decode: int = 0
    """Videos that a build would decode; of a dry run."""

    estimate: Estimate | None = None
    """Of a dry run."""

    seconds: float = 0.0
    """Wall time of this run."""

    @property
    def has_findings(self) -> bool:
        """Whether `--strict` ends with 1: something is not ok, missing, or warned about."""
        return bool(self.failed or self.warnings or self.counts.get("missing"))

    def as_json(self) -> dict[str, Any]:
        """Return the fields that `--json` prints."""
        fields = asdict(replace(self, manifests=[]))
        return {**fields, "manifests": [manifest.as_json() for manifest in self.manifests]}
