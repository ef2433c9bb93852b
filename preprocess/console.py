"""The closing table of a build and its warnings, as plain text."""

from __future__ import annotations

import sys

from preprocess.coordinator.estimate import Estimate
from preprocess.coordinator.report import BuildReport
from shards.cli import show_duration
from shards.maintenance.pool_report import manifest_lines

_MAX_FAILED_LINES = 20


def print_report(report: BuildReport) -> None:
    """Print the closing table to stdout: plain text, so that it reads the same in a pipe."""
    print(
        f"{report.kind} of {report.dataset} in {show_duration(report.seconds)}, {report.num_decoded} videos decoded"
    )
    if report.kind == "dry run":
        print(
            f"  would decode {report.num_to_decode} videos; the pool would have {report.num_shards} shards"
        )
    if report.estimate is not None:
        print(f"  {_estimate_text(report.estimate)}")
    for name, count in report.counts.items():
        if count or name in ("videos", "samples", "ok"):
            print(f"  {name:<12} {count:>12,}")
    if report.planned:
        width = max(len(manifest.path) for manifest in report.planned)
        print(f"  {'manifest':<{width}} {'expected':>9} {'files':>9}")
        for manifest in report.planned:
            print(f"  {manifest.path:<{width}} {manifest.expected:>9,} {manifest.num_files:>9,}")
    if report.manifests:
        print("\n".join(manifest_lines(report.manifests, with_source=False)))
    if report.num_audited or report.num_not_audited:
        print(
            f"  labels of {report.num_audited:,} list lines audited, {report.num_not_audited:,} without a source"
        )
    if report.expected_sources is not None:
        check = report.expected_sources
        print(
            f"  sources: {check.num_compared:,} compared with --expect-sources, {check.num_different:,} differ, "
            f"{check.num_not_named:,} not named there"
        )
    if report.duplicates:
        num_videos = sum(len(group.keys) for group in report.duplicates)
        print(
            f"  duplicates: {num_videos:,} videos have only {len(report.duplicates):,} different files"
        )
    for overlap in report.overlaps:
        print(f"  {overlap.val}: {len(overlap.keys):,} of its videos are in {overlap.train} too")
    for video in report.failed[:_MAX_FAILED_LINES]:
        print(f"  {video.verdict}: {video.key}: {video.reason}")
    if len(report.failed) > _MAX_FAILED_LINES:
        print(
            f"  ... and {len(report.failed) - _MAX_FAILED_LINES} more; samples.parquet has all reasons"
        )
    if report.kind == "build":
        print(f"  pool_id {report.pool_id}")
        print(
            f"  {report.out}: pool.json, samples.parquet, shards/ ({report.num_shards}), manifests/"
        )
    elif report.kind == "part":
        print(
            f"  {report.out}: {report.num_shards} shards of this part; `--merge` makes the pool of all parts"
        )


def print_warnings(report: BuildReport) -> None:
    """One line each on stderr."""
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _estimate_text(estimate: Estimate) -> str:
    """`would read 84.1 MB, write 61.3 MB, take about 12.0 s with 2 workers (from 23 videos decoded
    in 2.0 s)`."""
    text = f"would read {_size(estimate.bytes_in)}"
    if estimate.bytes_out is None or estimate.seconds is None:
        return f"{text}; no video could be decoded within {estimate.probe_seconds:.1f} s, so no more can be said"
    workers = f"{estimate.num_workers} worker{'s' if estimate.num_workers > 1 else ''}"
    text += f", write {_size(estimate.bytes_out)}, take about {show_duration(estimate.seconds)} with {workers}"
    if not estimate.num_probed:
        return text
    here = " on this machine alone" if estimate.engine != "local" else ""
    return f"{text} (from {estimate.num_probed:,} videos decoded{here} in {estimate.probe_seconds:.1f} s)"


def _size(num_bytes: int) -> str:
    """`61.3 MB`; powers of 1000."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    value = float(num_bytes)
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} bytes" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"
