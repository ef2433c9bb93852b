"""Make what `bmpt verify` finds damaged again, from the source videos: the same bytes, the same
pool_id.

Everything is made and compared in a hidden folder beside the pool's files and moved into place
last, so that a repair that is killed or refused leaves the pool as it was; the next one goes on
with what is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocess.coordinator.job import Job, open_job
from preprocess.coordinator.pipeline import write_shards
from preprocess.coordinator.resume import plan_work
from preprocess.coordinator.workspace import Workspace, open_workspace
from preprocess.protocols import ProtocolPlan, write_manifests
from preprocess.records.state import REPAIR, SHARDS, PoolState, load_state, tar_name
from preprocess.records.tables import ShardRows, read_samples
from preprocess.settings import BuildSettings, make_build_settings
from preprocess.sources import SourceVideo, open_source
from shards.errors import ConfigError, FormatError
from shards.files import hash_file
from shards.format.schema import POOL_CARD, SAMPLES
from shards.maintenance.verify import Verification, verify_pool
from shards.progress import NullProgress, Progress
from shards.reader import Pool, open_pool
from shards.storage.local import LocalStore
from shards.storage.open import open_store

_REBUILD = (
    "repair cannot restore it; build the pool again into another folder with `bmpt build --out`"
)


@dataclass(frozen=True)
class RepairReport:
    """What a repair did: the files that it made again, files below shards/ that are not the pool's,
    what it found."""

    pool: str
    pool_id: str
    restored: list[str]
    left: list[str]
    num_decoded: int
    findings: list[str]
    seconds: float


@dataclass(frozen=True)
class RepairOptions:
    """Where the pool and its sources are, and with what it was built; lists matter for damaged
    manifests alone."""

    pool: str
    videos: Path
    annotations: Path | None = None
    splits: Sequence[Path] = ()
    workers: int | None = None
    overrides: Sequence[str] = ()


def repair_pool(options: RepairOptions, *, progress: Progress = NullProgress()) -> RepairReport:
    """Verify a pool (`full`) and make its damaged shards and manifests again.

    Raises: ConfigError naming a source that is gone or another one now, or a table that cannot be
        restored."""
    started = time.monotonic()
    found = verify_pool(options.pool, level="full", progress=progress)
    damaged = found.damaged_files()
    hopeless = [name for name in damaged if name in (POOL_CARD, SAMPLES)]
    restored: list[str] = []
    left: list[str] = []
    num_decoded = 0
    if damaged:
        pool = _readable(options.pool, found, hopeless)
        settings = _settings(pool, options)
        workspace = open_workspace(settings)
        with workspace.lock(settings):
            beside = workspace.folder / REPAIR
            known = {entry.name for entry in pool.card.shards}
            tars = [name for name in damaged if name in known]
            manifests = [name for name in damaged if name.startswith("manifests/")]
            left = [name for name in damaged if name.startswith(f"{SHARDS}/") and name not in known]
            if tars:
                num_decoded = _restore_shards(pool, settings, tars, beside, progress)
            if manifests:
                _restore_manifests(pool, settings, manifests, beside)
            shutil.rmtree(beside, ignore_errors=True)
            restored = [*tars, *manifests]
    return RepairReport(
        pool=options.pool,
        pool_id=found.pool_id or "",
        restored=restored,
        left=left,
        num_decoded=num_decoded,
        findings=[
            ": ".join(filter(None, (item.file, item.key, item.what))) for item in found.findings
        ],
        seconds=time.monotonic() - started,
    )


def repair_text(report: RepairReport) -> str:
    """What was found and what was done about it, for people."""
    lines = [f"found: {finding}" for finding in report.findings]
    lines += [f"restored: {name}" for name in report.restored]
    lines += [
        f"left: {name} is not a file of this pool; remove it if nothing needs it"
        for name in report.left
    ]
    what = (
        f"{len(report.restored)} files restored, {report.num_decoded} videos decoded"
        if lines
        else "nothing to do"
    )
    return "\n".join(
        [*lines, f"{report.pool}: {what} in {report.seconds:.1f} s, pool_id {report.pool_id}"]
    )


def _readable(uri: str, found: Verification, hopeless: Sequence[str]) -> Pool:
    """The pool, unless what a repair would go by is itself damaged."""
    if not hopeless:
        return open_pool(uri)
    first = next(finding for finding in found.findings if finding.file in hopeless)
    place = open_store(uri).uri(first.file)
    raise ConfigError(f"{place}: {f'{first.key}: ' if first.key else ''}{first.what}; {_REBUILD}")


def _settings(pool: Pool, options: RepairOptions) -> BuildSettings:
    """Those that the pool was built with, as far as they decide bytes."""
    encoding = pool.card.encoding
    values = {
        **{"dataset": pool.card.dataset, "videos": options.videos, "out": options.pool},
        **{
            "annotations": options.annotations,
            "splits": list(options.splits),
            "workers": options.workers,
        },
        **{"encoding": encoding.model_dump(), "decoder": encoding.decoder},
    }
    return make_build_settings(values, options.overrides)


def _restore_shards(
    pool: Pool, settings: BuildSettings, names: Sequence[str], beside: Path, progress: Progress
) -> int:
    """Build some shards beside the pool, compare their hashes with the card, move them into it.

    Returns: the number of videos decoded."""
    wanted = {name.removeprefix(f"{SHARDS}/").removesuffix(".tar") for name in names}
    shards = [
        shard for shard in load_state(pool.store, settings).shards if shard.plan.name in wanted
    ]
    job = _shard_job(pool, settings, shards, beside, progress)
    empty = PoolState(None, [], frozenset(), {})
    layout = [shard.plan for shard in shards]
    work = plan_work(job.workspace, empty, layout, job.videos, settings)
    known = {entry.name: entry.sha256 for entry in pool.card.shards}
    for shard in write_shards(job, empty, work):
        name = tar_name(shard.plan.name)
        if job.store.sha256(name) != known[name]:
            shutil.rmtree(beside, ignore_errors=True)
            raise FormatError(
                f"{pool.store.uri(name)}: made again it has other bytes than before, so it was left as it is; the pool "
                f"was built with {_versions(pool.card.libraries)}: install these, or build the pool again"
            )
    for name in names:
        pool.store.move_in(name, beside / name)
    return work.num_to_decode


def _shard_job(
    pool: Pool,
    settings: BuildSettings,
    shards: Sequence[ShardRows],
    beside: Path,
    progress: Progress,
) -> Job:
    """A build of some shards in the hidden folder; classes come from the pool, so no list or
    annotation is needed."""
    source = open_source(settings.dataset, settings.videos, None)
    found = {video.key: video for video in source.videos}
    videos = {
        video.key: video for shard in shards for video in _same_videos(shard, found, settings)
    }
    nothing = ProtocolPlan([], [], pool.card.classes, [], 0, 0)
    workspace = Workspace(LocalStore(beside), beside)
    return Job(
        settings,
        workspace,
        replace(source, videos=list(videos.values())),
        nothing,
        videos,
        progress,
    )


def _same_videos(
    shard: ShardRows, found: dict[str, SourceVideo], settings: BuildSettings
) -> Iterator[SourceVideo]:
    """The source videos of a shard. Raises: ConfigError naming the first that is gone or not the
    same file."""
    columns = ["key", "class_name", "source_path", "source_bytes", "source_sha256"]
    for row in shard.table.select(columns).to_pylist():
        video = found.get(row["key"])
        place = settings.videos / (row["source_path"] or row["key"])
        needed = f"{tar_name(shard.plan.name)} is damaged and needs it"
        if video is None:
            raise ConfigError(
                f"{place}: no such video, but {needed}; put it back, or give its folder with --videos"
            )
        same = (video.relative_path, video.num_bytes) == (row["source_path"], row["source_bytes"])
        if not same or (
            row["source_sha256"] is not None and hash_file(video.path) != row["source_sha256"]
        ):
            raise ConfigError(
                f"{place}: is not the file that the pool was built from, but {needed}; put the old one back"
            )
        yield replace(video, class_name=row["class_name"])


def _restore_manifests(
    pool: Pool, settings: BuildSettings, names: Sequence[str], beside: Path
) -> None:
    """Plan all manifests again; move the damaged ones into the pool if the others come out as they
    are."""
    job = open_job(settings, NullProgress())
    store = LocalStore(beside)
    samples = read_samples(pool.store.read(SAMPLES), where=pool.store.uri(SAMPLES))
    written = write_manifests(
        job.protocols, samples, store, dataset=settings.dataset, pool_id=pool.card.pool_id
    )
    made = {f"manifests/{info.path}.parquet" for info in written}
    cure = "give the --splits, --annotations and --set that the pool was built with"
    for name in names:
        if name not in made:
            raise ConfigError(
                f"{pool.store.uri(name)}: is damaged, and the lists given do not make it; {cure}"
            )
    for path in pool.manifest_names():
        name = f"manifests/{path}.parquet"
        if name not in names and (name not in made or store.read(name) != pool.store.read(name)):
            raise ConfigError(
                f"{pool.store.uri(name)}: is sound, but the lists given make another one, so they are not those that "
                f"the pool was built with; {cure}"
            )
    for name in names:
        pool.store.move_in(name, beside / name)


def _versions(libraries: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
