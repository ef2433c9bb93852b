"""One run of a build: what all its steps need, opened and checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from preprocess.expected import read_expected
from preprocess.protocols import ProtocolPlan, plan_protocols
from preprocess.settings import BuildSettings
from preprocess.sources import Source, SourceVideo, open_source
from preprocess.state import PoolState, join_versions, library_versions, write_note
from preprocess.workers import WorkerPool
from shards.errors import ConfigError
from shards.schema import POOL_CARD
from shards.storage import Store, open_store

Progress = Callable[[int, int], None]  # (videos done, videos in all); the first call says what stood before


@dataclass(frozen=True)
class Job:
    """A run; `videos` are those of the source by key."""

    settings: BuildSettings
    store: Store
    source: Source
    protocols: ProtocolPlan
    videos: dict[str, SourceVideo]
    progress: Progress

    def workers(self) -> WorkerPool:
        """Decode workers, to be used as a context manager; they start when they get a video."""
        settings = self.settings
        return WorkerPool(settings.workers, encoding=settings.encoding, timeout_seconds=settings.timeout_seconds)

    def begin_writing(self, state: PoolState, *, rewrites: bool) -> None:
        """Note what this build was started with; while shards of a closed pool are rewritten it has no card."""
        write_note(self.store, self.settings, join_versions(state.libraries, library_versions()))
        if rewrites:
            Path(self.store.uri(POOL_CARD)).unlink(missing_ok=True)


def open_job(settings: BuildSettings, progress: Progress) -> Job:
    """Find videos and lists, audit the labels. Raises: ConfigError."""
    store = open_store(settings.out)
    source = open_source(settings.dataset, settings.videos, settings.annotations)
    if settings.expect_sources is not None:
        expected = read_expected(settings.expect_sources)
        source = replace(source, videos=[replace(video, expected=expected.get(video.key)) for video in source.videos])
    if not source.videos:
        raise ConfigError(f"{settings.videos}: no videos below it; give their folder with --videos")
    protocols = plan_protocols(source, settings.splits, labels=settings.labels, seed=settings.seed)
    return Job(settings, store, source, protocols, {video.key: video for video in source.videos}, progress)
