"""One run of a build: what all its steps need, opened and checked before anything is decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from preprocess.coordinator.workspace import Workspace, open_workspace
from preprocess.protocols import ProtocolPlan, plan_protocols
from preprocess.records.expected import read_expected
from preprocess.records.state import (
    PoolState,
    join_versions,
    library_versions,
    part_name,
    write_note,
)
from preprocess.settings import BuildSettings
from preprocess.sources import Source, SourceVideo, open_source
from preprocess.workers.child import DecodeOptions
from preprocess.workers.in_order import InOrder
from preprocess.workers.local import LocalWorkers
from preprocess.workers.ray_engine import RayTasks
from shards.errors import ConfigError
from shards.format.schema import POOL_CARD
from shards.storage.base import Store

Progress = Callable[
    [int, int], None
]  # (videos done, videos in all); the first call says what stood before


@dataclass(frozen=True)
class Job:
    """A run; `videos` are those of the source by key."""

    settings: BuildSettings
    workspace: Workspace
    source: Source
    protocols: ProtocolPlan
    videos: dict[str, SourceVideo]
    progress: Progress

    @property
    def store(self) -> Store:
        """The pool."""
        return self.workspace.store

    @contextlib.contextmanager
    def workers(self) -> Iterator[InOrder]:
        """Open the executor of `--engine`; a worker starts when it is first needed."""
        with self._executor() as executor:
            yield InOrder(executor)

    def _executor(self) -> LocalWorkers | RayTasks:
        settings = self.settings
        if settings.engine == "local":
            return LocalWorkers(settings.workers, self.decode_options)

        # Without --workers, Ray uses all CPUs of the cluster instead of the cores of this machine.
        num_tasks = settings.workers if "workers" in settings.model_fields_set else None
        return RayTasks(self.decode_options, address=settings.ray_address, num_tasks=num_tasks)

    @property
    def decode_options(self) -> DecodeOptions:
        """What each worker is told, whatever runs it."""
        settings = self.settings
        return DecodeOptions(settings.encoding, settings.timeout_seconds, settings.hwaccel)

    def begin_writing(self, state: PoolState, *, rewritten: Collection[str]) -> None:
        """Note what this build was started with; while shards of a closed pool are rewritten it has
        no card."""
        now = library_versions(self.settings.decoder, self.settings.hwaccel)
        write_note(
            self.store, self.settings, join_versions(state.libraries, now), rewritten=rewritten
        )
        if rewritten:
            self.store.delete(POOL_CARD)
        if self.settings.part is not None:
            self.store.delete(part_name(self.settings))  # what it says may change


def open_job(settings: BuildSettings, progress: Progress) -> Job:
    """Open the pool, find videos and lists, audit the labels. Raises: ConfigError, StorageError."""
    if (
        settings.decoder == "ffmpeg" and settings.engine == "local"
    ):  # a node of a cluster looks for itself
        from preprocess.decode.ffmpeg_process import check_ffmpeg

        check_ffmpeg(settings.hwaccel)
    workspace = open_workspace(settings)
    source = open_source(settings.dataset, settings.videos, settings.annotations)
    if settings.expect_sources is not None:
        expected = read_expected(settings.expect_sources)
        source = replace(
            source,
            videos=[replace(video, expected=expected.get(video.key)) for video in source.videos],
        )
    if not source.videos:
        raise ConfigError(f"{settings.videos}: no videos below it; give their folder with --videos")
    protocols = plan_protocols(source, settings.splits, labels=settings.labels, seed=settings.seed)
    return Job(
        settings,
        workspace,
        source,
        protocols,
        {video.key: video for video in source.videos},
        progress,
    )
