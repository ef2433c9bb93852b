"""Build a pool from raw videos: `run_build()` and `dry_run()`.

A run plans first, so that mistakes cost seconds, then decodes, then closes the pool. This process
coordinates and is the only one that writes tars; workers decode. After a run was killed, the same
command continues, and the pool is byte for byte that of an undisturbed run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

import pyarrow as pa

from preprocess.coordinator.closing import close_pool, read_parts, write_part
from preprocess.coordinator.estimate import estimate_build, videos_left
from preprocess.coordinator.job import Job, open_job
from preprocess.coordinator.overlaps import find_duplicates, find_overlaps, overlap_warnings
from preprocess.coordinator.report import BuildReport, PlannedManifest
from preprocess.coordinator.resume import Work, plan_layout, plan_work
from preprocess.coordinator.retry import check_classes, check_sources, drop_recovered
from preprocess.coordinator.workspace import Workspace
from preprocess.planning import ShardPlan
from preprocess.records.expected import SourceCheck, count_different
from preprocess.records.rows import sample_facts
from preprocess.records.state import PoolState, load_state, tar_name
from preprocess.records.tables import ShardRows, join_tables, rows_table
from preprocess.settings import BuildSettings
from preprocess.workers.child import Decoded
from shards.format.schema import count_samples
from shards.format.writer import encode_sample
from shards.maintenance.pool_report import failed_videos
from shards.progress import NullProgress, Progress


def run_build(settings: BuildSettings, *, progress: Progress = NullProgress()) -> BuildReport:
    """Build, continue, extend or close a pool; a finished pool is only checked.

    A video that cannot be read becomes a row with a verdict, never an error.

    Args:
        settings: of the build.
        progress: shows the step `clips`; its first update counts the videos of earlier runs.

    Raises:
        ConfigError: if a setting, a list or a source is wrong.
        FormatError: if a file of the pool is damaged.
        StorageError: if the pool cannot be read or written.
    """
    started = time.monotonic()
    job = open_job(settings, progress)

    with job.workspace.lock(settings):
        state = load_state(job.store, settings)
        check_classes(job, state)
        layout = plan_layout(state, job.source.videos, settings)

        if settings.merge:
            return _close(job, state, read_parts(job.store, layout, state), 0, started)

        # A retry drops shards, so the state of the pool is read again.
        num_decoded = 0
        if settings.retry_failed:
            num_decoded = drop_recovered(job, state)
            state = load_state(job.store, settings)
        else:
            check_sources(job, state)

        work = plan_work(job.workspace, state, layout, job.videos, settings)
        num_decoded += work.num_to_decode
        shards = write_shards(job, state, work)

        if settings.part is None:
            return _close(job, state, shards, num_decoded, started)
        return _end_part(job, state, layout, shards, num_decoded, started)


def dry_run(settings: BuildSettings) -> BuildReport:
    """Report what a build would do and how long it would take; nothing is written.

    About two seconds of decoding give the estimate.

    Raises:
        ConfigError: if a setting, a list or a source is wrong.
        FormatError: if a file of the pool is damaged.
        StorageError: if the pool cannot be read.
    """
    # Without the lock of the pool: a dry run may run beside a build.
    started = time.monotonic()
    job = open_job(settings, NullProgress())
    state = load_state(job.store, settings)

    layout = plan_layout(state, job.source.videos, settings)
    videos, num_open = videos_left(job, state, layout)
    planning_seconds = time.monotonic() - started
    estimate = estimate_build(job, videos, num_shards=num_open, planning_seconds=planning_seconds)

    return BuildReport(
        kind="dry run",
        dataset=settings.dataset,
        out=job.settings.out,
        pool_id=state.card.pool_id if state.card else None,
        counts={"videos": len(job.source.videos), "missing": len(job.protocols.missing)},
        planned=[
            PlannedManifest(plan.path, plan.expected, len(plan.rows))
            for plan in job.protocols.manifests
        ],
        warnings=_warnings(job, state),
        num_shards=len(layout),
        num_to_decode=len(videos),
        estimate=estimate,
        seconds=time.monotonic() - started,
    )


def write_shards(job: Job, state: PoolState, work: Work) -> list[ShardRows]:
    """Decode the videos that are left and write the open shards in order.

    The bytes do not depend on the number or kind of workers.

    Returns:
        All shards of the run by index, those that were finished before included.
    """
    if not work.open:
        return work.finished

    # The note must be there before the first byte, for the run that continues after a kill.
    job.begin_writing(
        state, rewritten=[plan.name for plan, _ in work.open if plan.name in state.broken]
    )
    todo = [job.videos[key] for plan, num_done in work.open for key in plan.keys[num_done:]]

    # The first update states the videos that earlier runs have finished.
    total = sum(len(shard.plan.keys) for shard in work.finished)
    total += sum(len(plan.keys) for plan, _ in work.open)
    num_done_after = itertools.count(total - len(todo))

    def show_next() -> None:
        job.progress.update("clips", next(num_done_after), total)

    show_next()
    # `answers` is one stream over all shards, so that workers are busy while a shard is finished.
    shards = list(work.finished)
    with (
        job.workspace as workspace,
        job.workers() as workers,
        closing(workers.decode(todo)) as answers,
    ):
        for plan, num_done in work.open:
            own_answers = itertools.islice(answers, len(plan.keys) - num_done)
            shard = _write_shard(workspace, plan, own_answers, show_next)
            workspace.keep(shard)
            shards.append(shard)
    return sorted(shards, key=lambda shard: shard.plan.index)


def _write_shard(
    workspace: Workspace,
    plan: ShardPlan,
    answers: Iterable[Decoded],
    show_next: Callable[[], None],
) -> ShardRows:
    """Append the videos that are left to one shard and finish it."""
    writer = workspace.writer(plan.name)
    try:
        for answer in answers:
            row = answer.row
            # An undecodable video is journalled too, but has no sample.
            sample = None
            if answer.frames:
                sample = encode_sample(row["key"], answer.frames, sample_facts(row))
            writer.append(row, sample)
            show_next()
        entry = writer.finish()
    finally:
        # After an error the files stay, so that the next run continues with them.
        writer.close()
    return ShardRows(plan, rows_table(writer.rows), entry)


def _close(
    job: Job, state: PoolState, shards: Sequence[ShardRows], num_decoded: int, started: float
) -> BuildReport:
    """Close the pool and report the build."""
    card, samples, manifests = close_pool(job, state, shards, has_new_bytes=num_decoded > 0)
    # Copies of a file under other keys count as overlaps too.
    duplicates = find_duplicates(samples)
    overlaps = find_overlaps(job.protocols.manifests, duplicates)

    return BuildReport(
        kind="build",
        dataset=job.settings.dataset,
        out=job.settings.out,
        pool_id=card.pool_id,
        counts=card.counts,
        manifests=manifests,
        num_audited=job.protocols.num_audited,
        num_not_audited=job.protocols.num_not_audited,
        failed=failed_videos(samples),
        duplicates=duplicates,
        overlaps=overlaps,
        expected_sources=_compare_sources(job, samples),
        warnings=[*_warnings(job, state), *overlap_warnings(duplicates, overlaps)],
        num_shards=len(card.shards),
        num_decoded=num_decoded,
        seconds=time.monotonic() - started,
    )


def _end_part(
    job: Job,
    state: PoolState,
    layout: Sequence[ShardPlan],
    shards: Sequence[ShardRows],
    num_decoded: int,
    started: float,
) -> BuildReport:
    """Write the file of a part and report it."""
    # A part without shards has a file too, since `--merge` requires the files of all parts.
    if any(plan.name not in state.whole for plan in layout):
        write_part(job, shards)

    samples = join_tables(shards, rows_table([]))
    return BuildReport(
        kind="part",
        dataset=job.settings.dataset,
        out=job.settings.out,
        pool_id=None,
        counts=count_samples(samples),
        failed=failed_videos(samples),
        duplicates=find_duplicates(samples),
        expected_sources=_compare_sources(job, samples),
        warnings=_warnings(job, state),
        num_shards=len(shards),
        num_decoded=num_decoded,
        seconds=time.monotonic() - started,
    )


def _compare_sources(job: Job, samples: pa.Table) -> SourceCheck | None:
    """Return the comparison with `--expect-sources`, None without that option."""
    if job.settings.expect_sources is None:
        return None
    expected = {
        key: video.expected for key, video in job.videos.items() if video.expected is not None
    }
    return count_different(samples, expected)


def _warnings(job: Job, state: PoolState) -> list[str]:
    """Return the sentences about missing videos, rebuilt shards and mixed library versions."""
    warnings = list(job.protocols.warnings)

    missing = job.protocols.missing
    if missing:
        warnings.append(
            f"{len(missing)} videos that lists or annotation files name are not below "
            f"{job.settings.videos}; they are rows with the verdict missing (the first: "
            f"{missing[0].key})"
        )

    gone = [key for shard in state.shards for key in shard.plan.keys if key not in job.videos]
    if gone:
        warnings.append(
            f"{len(gone)} videos of the pool are gone from --videos and stay in it (the first: "
            f"{gone[0]})"
        )

    for name in sorted(state.broken):
        warnings.append(
            f"{tar_name(name)} was missing or cut short, or a run that rewrote it was stopped; it "
            "was built again"
        )

    # Versions of several builds are joined as `18.1.0, 18.2.0`.
    mixed = [
        f"{name} {version}" for name, version in sorted(state.libraries.items()) if ", " in version
    ]
    if mixed:
        warnings.append(f"library versions changed between builds of this pool: {'; '.join(mixed)}")
    return warnings
