"""The closing table of a build and its warnings, as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from preprocess.coordinator.estimate import Estimate
from preprocess.coordinator.report import BuildReport
from shards.cli import show_duration, warn
from shards.maintenance.pool_report import manifest_lines

_MAX_FAILED_LINES = 20
_ALWAYS_SHOWN = ("videos", "samples", "ok")  # counts that are shown even if they are 0


def print_report(report: BuildReport) -> None:
    """Print the closing table on stdout: plain text, which is the same in a pipe."""
    for line in _report_lines(report):
        print(line)


def print_warnings(report: BuildReport) -> None:
    """Print the warnings of a build on stderr, one line per warning."""
    for warning in report.warnings:
        warn(warning)


def _report_lines(report: BuildReport) -> Iterator[str]:
    yield (
        f"{report.kind} of {report.dataset} in {show_duration(report.seconds)}, "
        f"{report.num_decoded} videos decoded"
    )
    if report.kind == "dry run":
        yield (
            f"  would decode {report.num_to_decode} videos; the pool would have "
            f"{report.num_shards} shards"
        )
    if report.estimate is not None:
        yield f"  {_estimate_text(report.estimate)}"
    for name, count in report.counts.items():
        if count or name in _ALWAYS_SHOWN:
            yield f"  {name:<12} {count:>12,}"

    if report.planned:
        width = max(len(manifest.path) for manifest in report.planned)
        yield f"  {'manifest':<{width}} {'expected':>9} {'files':>9}"
        for manifest in report.planned:
            yield f"  {manifest.path:<{width}} {manifest.expected:>9,} {manifest.num_files:>9,}"
    if report.manifests:
        yield from manifest_lines(report.manifests, with_source=False)

    yield from _check_lines(report)
    yield from _failed_lines(report)
    if report.kind == "build":
        yield f"  pool_id {report.pool_id}"
        shards = f"shards/ ({report.num_shards})"
        yield f"  {report.out}: pool.json, samples.parquet, {shards}, manifests/"
    elif report.kind == "part":
        yield (
            f"  {report.out}: {report.num_shards} shards of this part; `--merge` makes the pool of "
            "all parts"
        )


def _check_lines(report: BuildReport) -> Iterator[str]:
    """Yield the results of the audit and of the comparisons of source files."""
    if report.num_audited or report.num_not_audited:
        yield (
            f"  labels of {report.num_audited:,} list lines audited, "
            f"{report.num_not_audited:,} without a source"
        )
    if report.expected_sources is not None:
        check = report.expected_sources
        yield (
            f"  sources: {check.num_compared:,} compared with --expect-sources, "
            f"{check.num_different:,} differ, {check.num_not_named:,} not named there"
        )
    if report.duplicates:
        num_videos = sum(len(group.keys) for group in report.duplicates)
        num_files = len(report.duplicates)
        yield f"  duplicates: {num_videos:,} videos have only {num_files:,} different files"
    for overlap in report.overlaps:
        yield f"  {overlap.val}: {len(overlap.keys):,} of its videos are in {overlap.train} too"


def _failed_lines(report: BuildReport) -> Iterator[str]:
    for video in report.failed[:_MAX_FAILED_LINES]:
        yield f"  {video.verdict}: {video.key}: {video.reason}"
    num_more = len(report.failed) - _MAX_FAILED_LINES
    if num_more > 0:
        yield f"  ... and {num_more} more; samples.parquet has all reasons"


def _estimate_text(estimate: Estimate) -> str:
    """Return a line such as `would read 84.1 MB, write 61.3 MB, take about 12.0 s with 2 workers
    (from 23 videos decoded in 2.0 s)`."""
    text = f"would read {_size(estimate.bytes_in)}"
    probed = f"{estimate.probe_seconds:.1f} s"
    if estimate.bytes_out is None or estimate.seconds is None:
        return f"{text}; no video could be decoded within {probed}, so no more can be said"

    workers = "1 worker" if estimate.num_workers == 1 else f"{estimate.num_workers} workers"
    duration = show_duration(estimate.seconds)
    text += f", write {_size(estimate.bytes_out)}, take about {duration} with {workers}"
    if not estimate.num_probed:
        return text
    where = "" if estimate.engine == "local" else " on this machine alone"
    return f"{text} (from {estimate.num_probed:,} videos decoded{where} in {probed})"


def _size(num_bytes: int) -> str:
    """Return a size such as `61.3 MB`, in powers of 1000."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    value = float(num_bytes)
    while value >= 999.95 and len(units) > 1:  # 999.95 would be shown as 1,000.0
        value /= 1000
        units.pop(0)
    return f"{value:.0f} bytes" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"
