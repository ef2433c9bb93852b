"""Restore the files that `bmpt verify` finds damaged, from the source videos: the same bytes.

Everything is written and compared in a hidden folder inside the pool and moved into place last. So
a repair that is killed or refused leaves the pool as it was, and the next one continues with the
files of the hidden folder.
"""

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
_SAME_LISTS = "give the --splits, --annotations and --set that the pool was built with"


@dataclass(frozen=True)
class RepairReport:
    """The result of a repair."""

    pool: str
    pool_id: str

    restored: list[str]
    """Files that were restored."""

    left: list[str]
    """Files below shards/ that do not belong to the pool."""

    num_decoded: int

    findings: list[str]
    """The damage that was found, one line each."""

    seconds: float


@dataclass(frozen=True)
class RepairOptions:
    """The pool, its sources, and the options that it was built with."""

    pool: str
    videos: Path

    annotations: Path | None = None
    """Needed for damaged manifests only, like `splits`."""

    splits: Sequence[Path] = ()
    workers: int | None = None
    overrides: Sequence[str] = ()


def repair_pool(options: RepairOptions, *, progress: Progress = NullProgress()) -> RepairReport:
    """Verify a pool at level `full` and restore its damaged shards and manifests.

    Args:
        options: the pool and its sources.
        progress: shows the steps `samples` (verification) and `clips` (decoding).

    Raises:
        ConfigError: naming a source that is gone or has changed, or a table that cannot be
            restored.
        FormatError: if a restored shard has other bytes than before.
        StorageError: if the pool cannot be read or written.
    """
    started = time.monotonic()
    verification = verify_pool(options.pool, level="full", progress=progress)
    damaged = verification.damaged_files()

    # A sound pool is not locked, and its sources are not opened.
    restored: list[str] = []
    left: list[str] = []
    num_decoded = 0
    if damaged:
        pool = _open_repairable(options.pool, verification)
        own_tars = {entry.name for entry in pool.card.shards}
        in_shards = [name for name in damaged if name.startswith(f"{SHARDS}/")]
        left = [name for name in in_shards if name not in own_tars]
        tars = [name for name in damaged if name in own_tars]
        manifests = [name for name in damaged if name.startswith("manifests/")]
        restored = [*tars, *manifests]
        num_decoded = _restore(pool, _build_settings(pool, options), tars, manifests, progress)

    return RepairReport(
        pool=options.pool,
        pool_id=verification.pool_id or "",
        restored=restored,
        left=left,
        num_decoded=num_decoded,
        findings=[
            ": ".join(filter(None, (finding.file, finding.key, finding.what)))
            for finding in verification.findings
        ],
        seconds=time.monotonic() - started,
    )


def repair_text(report: RepairReport) -> str:
    """Return the report as lines for people."""
    lines = [f"found: {finding}" for finding in report.findings]
    lines += [f"restored: {name}" for name in report.restored]
    lines += [
        f"left: {name} is not a file of this pool; remove it if nothing needs it"
        for name in report.left
    ]

    summary = "nothing to do"
    if lines:
        summary = f"{len(report.restored)} files restored, {report.num_decoded} videos decoded"
    lines.append(f"{report.pool}: {summary} in {report.seconds:.1f} s, pool_id {report.pool_id}")
    return "\n".join(lines)


def _open_repairable(uri: str, verification: Verification) -> Pool:
    """Open a damaged pool.

    Raises:
        ConfigError: if the card or `samples.parquet` is damaged, which a repair depends on.
    """
    for finding in verification.findings:
        if finding.file in (POOL_CARD, SAMPLES):
            key = f"{finding.key}: " if finding.key else ""
            raise ConfigError(
                f"{open_store(uri).uri(finding.file)}: {key}{finding.what}; {_REBUILD}"
            )
    return open_pool(uri)


def _build_settings(pool: Pool, options: RepairOptions) -> BuildSettings:
    """Return the settings that the pool was built with, as far as they decide bytes."""
    encoding = pool.card.encoding
    values = {
        "dataset": pool.card.dataset,
        "videos": options.videos,
        "annotations": options.annotations,
        "splits": list(options.splits),
        "out": options.pool,
        "workers": options.workers,
        "encoding": encoding.model_dump(),
        "decoder": encoding.decoder,
    }
    return make_build_settings(values, options.overrides)


def _restore(
    pool: Pool,
    settings: BuildSettings,
    tars: Sequence[str],
    manifests: Sequence[str],
    progress: Progress,
) -> int:
    """Restore files of a pool under its lock and return the number of videos decoded.

    Raises:
        ConfigError: naming a source that is gone or has changed, or lists that have changed.
        FormatError: if a restored shard has other bytes than before.
    """
    workspace = open_workspace(settings)
    num_decoded = 0

    with workspace.lock(settings):
        # Shards first: they need no lists, so they are restored even if manifests are not.
        folder = workspace.folder / REPAIR
        if tars:
            num_decoded = _restore_shards(pool, settings, tars, folder, progress)
        if manifests:
            _restore_manifests(pool, settings, manifests, folder)
        shutil.rmtree(folder, ignore_errors=True)
    return num_decoded


def _restore_shards(
    pool: Pool, settings: BuildSettings, tars: Sequence[str], folder: Path, progress: Progress
) -> int:
    """Build some shards in a folder, compare their hashes with the card, and move them in.

    Returns:
        The number of videos decoded.

    Raises:
        ConfigError: naming a source that is gone or has changed.
        FormatError: naming a shard that has other bytes than before.
    """
    names = {tar.removeprefix(f"{SHARDS}/").removesuffix(".tar") for tar in tars}
    state = load_state(pool.store, settings)
    shards = [shard for shard in state.shards if shard.plan.name in names]

    # In their own folder, the shards are those of a new pool, and a killed repair is resumed.
    job = _make_job(pool, settings, shards, folder, progress)
    empty = PoolState(None, [], frozenset(), {})
    layout = [shard.plan for shard in shards]
    work = plan_work(job.workspace, empty, layout, job.videos, settings)

    sha256_of = {entry.name: entry.sha256 for entry in pool.card.shards}
    for shard in write_shards(job, empty, work):
        tar = tar_name(shard.plan.name)
        if job.store.sha256(tar) != sha256_of[tar]:
            shutil.rmtree(folder, ignore_errors=True)
            raise FormatError(
                f"{pool.store.uri(tar)}: built again it has other bytes than before, so it was "
                f"left as it was; the pool was built with {_versions_text(pool.card.libraries)}: "
                "install these, or build the pool again"
            )

    # Nothing is moved before all hashes were compared.
    for tar in tars:
        pool.store.move_in(tar, folder / tar)
    return work.num_to_decode


def _make_job(
    pool: Pool,
    settings: BuildSettings,
    shards: Sequence[ShardRows],
    folder: Path,
    progress: Progress,
) -> Job:
    """Return the job that builds some shards in a folder.

    The classes come from the pool, so that no list or annotation is needed.

    Raises:
        ConfigError: naming a source that is gone or has changed.
    """
    source = open_source(settings.dataset, settings.videos, None)
    source_videos = {video.key: video for video in source.videos}
    videos: dict[str, SourceVideo] = {}
    for shard in shards:
        for video in _same_videos(shard, source_videos, settings):
            videos[video.key] = video

    return Job(
        settings,
        Workspace(LocalStore(folder), folder),
        replace(source, videos=list(videos.values())),
        ProtocolPlan([], [], pool.card.classes, [], 0, 0),
        videos,
        progress,
    )


def _same_videos(
    shard: ShardRows, source_videos: dict[str, SourceVideo], settings: BuildSettings
) -> Iterator[SourceVideo]:
    """Yield the source videos of a shard with the classes that the pool states.

    Raises:
        ConfigError: naming the first that is gone, or that is not the same file.
    """
    needed = f"{tar_name(shard.plan.name)} is damaged and needs it"
    columns = ["key", "class_name", "source_path", "source_bytes", "source_sha256"]

    for row in shard.table.select(columns).to_pylist():
        video = source_videos.get(row["key"])
        path = settings.videos / (row["source_path"] or row["key"])
        if video is None:
            raise ConfigError(
                f"{path}: no such video, but {needed}; put it back, or give its folder with "
                "--videos"
            )

        # Hash only files of the right size, since a hash reads the whole file.
        path_and_size = (video.relative_path, video.num_bytes)
        is_same = path_and_size == (row["source_path"], row["source_bytes"])
        if is_same and row["source_sha256"] is not None:
            is_same = hash_file(video.path) == row["source_sha256"]
        if not is_same:
            raise ConfigError(
                f"{path}: is not the file that the pool was built from, but {needed}; put the old "
                "one back"
            )
        yield replace(video, class_name=row["class_name"])


def _restore_manifests(
    pool: Pool, settings: BuildSettings, names: Sequence[str], folder: Path
) -> None:
    """Plan all manifests again and move the damaged ones in, if the others come out as they are.

    Raises:
        ConfigError: if the lists are not those that the pool was built with.
    """
    job = open_job(settings, NullProgress())
    store = LocalStore(folder)
    samples = read_samples(pool.store.read(SAMPLES), where=pool.store.uri(SAMPLES))
    reports = write_manifests(
        job.protocols, samples, store, dataset=settings.dataset, pool_id=pool.card.pool_id
    )
    written = {f"manifests/{report.path}.parquet" for report in reports}

    for name in names:
        if name not in written:
            raise ConfigError(
                f"{pool.store.uri(name)}: is damaged, and the lists given do not make it; "
                f"{_SAME_LISTS}"
            )

    # The same lists give the same bytes: this proves that the damaged ones come out right.
    for path in pool.manifest_names():
        name = f"manifests/{path}.parquet"
        if name in names:
            continue
        if name not in written or store.read(name) != pool.store.read(name):
            raise ConfigError(
                f"{pool.store.uri(name)}: is sound, but the lists given make another one, so they "
                f"are not those that the pool was built with; {_SAME_LISTS}"
            )

    for name in names:
        pool.store.move_in(name, folder / name)


def _versions_text(libraries: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
