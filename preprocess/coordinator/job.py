"""One run of a build: everything that its steps need, opened and checked before decoding."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from preprocess.coordinator.workspace import Workspace, open_workspace
from preprocess.protocols import ProtocolPlan, plan_protocols
from preprocess.records.expected import read_expected
from preprocess.records.state import (
    PoolState,
    part_name,
    write_note,
)
from preprocess.records.versions import join_versions, library_versions
from preprocess.settings import BuildSettings
from preprocess.sources import Source, SourceVideo, open_source
from preprocess.workers.child import DecodeOptions
from preprocess.workers.in_order import InOrder
from preprocess.workers.local import LocalWorkers
from preprocess.workers.ray_engine import RayTasks
from shards.errors import ConfigError
from shards.format.schema import POOL_CARD
from shards.progress import Progress
from shards.storage.base import Store


@dataclass(frozen=True)
class Job:
    """A run of a build."""

    settings: BuildSettings
    workspace: Workspace
    source: Source
    protocols: ProtocolPlan

    videos: dict[str, SourceVideo]
    """The videos of `source` by key."""

    progress: Progress
    """Shows the step `clips`; its first update counts the videos of earlier runs."""

    @property
    def store(self) -> Store:
        """Return the store of the pool."""
        return self.workspace.store

    @property
    def decode_options(self) -> DecodeOptions:
        """Return the settings of each worker."""
        settings = self.settings
        return DecodeOptions(settings.encoding, settings.timeout_seconds, settings.hwaccel)

    @contextlib.contextmanager
    def workers(self) -> Iterator[InOrder]:
        """Open the executor of `--engine`; a local worker starts when it is first needed.

        Raises:
            ConfigError: if the Ray cluster cannot be joined.
        """
        with self._executor() as executor:
            yield InOrder(executor)

    def _executor(self) -> LocalWorkers | RayTasks:
        settings = self.settings
        if settings.engine == "local":
            return LocalWorkers(settings.workers, self.decode_options)

        # Without --workers, Ray uses all CPUs of the cluster instead of this machine's cores.
        num_tasks = settings.workers if "workers" in settings.model_fields_set else None
        return RayTasks(self.decode_options, address=settings.ray_address, num_tasks=num_tasks)

    def begin_writing(self, state: PoolState, *, rewritten: Collection[str]) -> None:
        """Write the build note before the first shard; remove the files that it makes wrong.

        Args:
            state: the pool as it is.
            rewritten: shards of a closed pool that will be written again; until the build ends the
                pool has no card.
        """
        settings = self.settings
        versions = library_versions(settings.decoder, settings.hwaccel)
        libraries = join_versions(state.libraries, versions)
        write_note(self.store, settings, libraries, rewritten=rewritten)

        # A pool without a card is not finished: readers refuse it.
        if rewritten:
            self.store.delete(POOL_CARD)
        # The rows of this part will change, so an earlier file of it must not be merged.
        if settings.part is not None:
            self.store.delete(part_name(settings))


def open_job(settings: BuildSettings, progress: Progress) -> Job:
    """Open the pool, find the videos and the lists, and audit the labels.

    Raises:
        ConfigError: if a setting, a folder or a list is wrong.
        StorageError: if the pool cannot be read.
    """
    # A node of a Ray cluster checks its own FFmpeg.
    if settings.decoder == "ffmpeg" and settings.engine == "local":
        from preprocess.decode.ffmpeg_process import check_ffmpeg

        check_ffmpeg(settings.hwaccel)

    workspace = open_workspace(settings)
    source = _open_source(settings)
    protocols = plan_protocols(source, settings.splits, labels=settings.labels, seed=settings.seed)
    videos = {video.key: video for video in source.videos}
    return Job(settings, workspace, source, protocols, videos, progress)


def _open_source(settings: BuildSettings) -> Source:
    """Find the videos and add the sizes and hashes of `--expect-sources`.

    Raises:
        ConfigError: if there are no videos, or a file cannot be read.
    """
    source = open_source(settings.dataset, settings.videos, settings.annotations)

    # Each video carries its expectation, so that a worker compares it right after decoding.
    if settings.expect_sources is not None:
        expected = read_expected(settings.expect_sources)
        videos = [replace(video, expected=expected.get(video.key)) for video in source.videos]
        source = replace(source, videos=videos)

    if not source.videos:
        raise ConfigError(f"{settings.videos}: no videos below it; give their folder with --videos")
    return source
