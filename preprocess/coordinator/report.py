"""What a build or a dry run has to say, as plain data: for the closing table and for `--json`."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.coordinator.estimate import Estimate
from preprocess.coordinator.overlaps import Duplicates, Overlap
from preprocess.records.expected import SourceCheck
from shards.maintenance.pool_report import ManifestReport

_FAILED = ["short", "damaged", "undecodable"]


@dataclass(frozen=True)
class PlannedManifest:
    """One manifest of a dry run: the lines of its list and how many of them have a file."""

    path: str
    expected: int
    num_files: int


@dataclass(frozen=True)
class FailedVideo:
    """A video that is not ok."""

    key: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class BuildReport:
    """The end of a run.

    kind: build | part | dry run
    counts: as in pool.json; of a part, its own videos; of a dry run, `videos` and `missing` alone
    manifests: of a build; planned: of a dry run
    num_audited, num_not_audited: list lines whose label was compared with the class of the video,
        and lines whose
    class nothing tells
    duplicates: videos with the same bytes; overlaps: videos that a protocol trains on and tests on
    expected_sources: None without `--expect-sources`
    num_decoded: videos decoded by this run; num_to_decode: by a build, if this was a dry run
    estimate: what that build would take; None unless this was a dry run
    seconds: wall time of this run"""

    kind: str
    dataset: str
    out: str
    pool_id: str | None
    counts: dict[str, int]
    manifests: list[ManifestReport] = field(default_factory=list)
    planned: list[PlannedManifest] = field(default_factory=list)
    failed: list[FailedVideo] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duplicates: list[Duplicates] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    expected_sources: SourceCheck | None = None
    num_audited: int = 0
    num_not_audited: int = 0
    num_shards: int = 0
    num_decoded: int = 0
    num_to_decode: int = 0
    estimate: Estimate | None = None
    seconds: float = 0.0

    @property
    def has_findings(self) -> bool:
        """Whether `--strict` ends with 1: something is not ok, missing, or warned about."""
        return bool(self.failed or self.warnings or self.counts.get("missing"))


def failed_videos(samples: pa.Table) -> list[FailedVideo]:
    """The rows of videos that were read and are not ok."""
    failed = samples.select(["key", "verdict", "reason"]).filter(
        pc.is_in(samples["verdict"], value_set=pa.array(_FAILED))
    )
    return [FailedVideo(**row) for row in failed.to_pylist()]
