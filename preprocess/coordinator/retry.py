"""Check the videos of a finished pool against their files, and decode failed ones again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing

import pyarrow as pa

from preprocess.coordinator.job import Job
from preprocess.coordinator.resume import check_videos_exist
from preprocess.planning import sort_keys
from preprocess.records.expected import is_settled
from preprocess.records.state import PoolState
from preprocess.records.tables import ShardRows
from preprocess.sources import SourceVideo
from shards.errors import ConfigError
from shards.files import hash_file
from shards.format.schema import FAILED_VERDICTS

# A video whose row differs in one of these is written again.
_COMPARED = ("verdict", "source_sha256", "source_path", "num_frames_decoded")


def check_sources(job: Job, state: PoolState) -> None:
    """Check that the files of the finished videos are those that the pool was built from.

    Raises:
        ConfigError: naming the first that has changed, or that `--expect-sources` contradicts.
    """
    shards = state.whole.values()

    changed = _changed_keys(shards, job.videos, hashed=job.settings.check_sources)
    if changed:
        raise ConfigError(
            f"{job.videos[changed[0]].path}: is not the file that the pool was built from "
            f"({len(changed)} such videos); put the old file back, or run again with "
            "--retry-failed to rewrite the shards of changed videos"
        )

    unexpected = _unexpected_keys(shards, job.videos)
    if unexpected:
        raise ConfigError(
            f"{job.videos[unexpected[0]].path}: is ok in the pool and not the file that "
            f"{job.settings.expect_sources} states ({len(unexpected)} such videos); run again "
            "with --retry-failed to mark them damaged"
        )


def check_classes(job: Job, state: PoolState) -> None:
    """Check that finished videos have the classes that the bytes of their samples state.

    Raises:
        ConfigError: naming the first that has another class now.
    """
    for shard in state.whole.values():
        keys = shard.table["key"].to_pylist()
        class_names = shard.table["class_name"].to_pylist()
        for key, class_name in zip(keys, class_names, strict=True):
            video = job.videos.get(key)
            if video is not None and video.class_name != class_name:
                raise ConfigError(
                    f"{job.settings.out}: {key} was stored with class {class_name!r} and now has "
                    f"{video.class_name!r}; give the --annotations that the pool was built with, "
                    "or build into another folder with --out"
                )


def drop_recovered(job: Job, state: PoolState) -> int:
    """Decode failed and changed videos again and drop the shards of those with another result.

    A dropped shard is built like a new one, so that it equals that of an undisturbed build. A
    video that fails as before only costs its own decoding.

    Returns:
        The number of videos that were decoded.

    Raises:
        ConfigError: if a dropped shard cannot be built, because some of its videos are gone.
    """
    shards = list(state.whole.values())
    # Decode every video whose row may come out differently.
    changed = _changed_keys(shards, job.videos, hashed=job.settings.check_sources)
    retried = {*changed, *_failed_keys(shards), *_unexpected_keys(shards, job.videos)}
    videos = [job.videos[key] for key in sort_keys(retried) if key in job.videos]
    rows_before = {row["key"]: row for shard in shards for row in _rows_of(shard, retried)}

    # The frames are thrown away: a shard is written in order, from its first video.
    recovered: set[str] = set()
    with job.workers() as workers, closing(workers.decode(videos)) as answers:
        for answer in answers:
            before = rows_before[answer.row["key"]]
            if _compared(before) != _compared(answer.row):
                recovered.add(answer.row["key"])

    # Check everything before the first file is removed.
    plans = [shard.plan for shard in shards if recovered.intersection(shard.plan.keys)]
    for plan in plans:
        check_videos_exist(plan, job.videos)
    if plans:
        job.begin_writing(state, rewritten=[plan.name for plan in plans])
    for plan in plans:
        job.workspace.discard(plan.name)
    return len(videos)


def _changed_keys(
    shards: Iterable[ShardRows], videos: Mapping[str, SourceVideo], *, hashed: bool
) -> list[str]:
    """Return the keys of videos whose file has another path or size or, if `hashed`, content."""
    columns = ["key", "source_path", "source_bytes", "source_sha256"]
    changed = []
    for shard in shards:
        for row in shard.table.select(columns).to_pylist():
            video = videos.get(row["key"])
            if video is None:
                continue

            # Without --check-sources a file counts as the same by its path and its size.
            path_and_size = (video.relative_path, video.num_bytes)
            is_same = path_and_size == (row["source_path"], row["source_bytes"])
            if is_same and hashed and row["source_sha256"] is not None:
                is_same = _hash_or_none(video) == row["source_sha256"]
            if not is_same:
                changed.append(row["key"])
    return changed


def _unexpected_keys(shards: Iterable[ShardRows], videos: Mapping[str, SourceVideo]) -> list[str]:
    """Return the keys of videos that are ok in the pool, against `--expect-sources`."""
    # Skip the rows if `--expect-sources` was not given.
    if all(video.expected is None for video in videos.values()):
        return []

    columns = ["key", "verdict", "source_bytes", "source_sha256"]
    unexpected = []
    for shard in shards:
        for row in shard.table.select(columns).to_pylist():
            video = videos.get(row["key"])
            if video is not None and not is_settled(row, video.expected):
                unexpected.append(row["key"])
    return unexpected


def _failed_keys(shards: Iterable[ShardRows]) -> list[str]:
    """Return the keys of videos that were read and are not ok."""
    return [
        key
        for shard in shards
        for key, verdict in zip(shard.plan.keys, shard.table["verdict"].to_pylist(), strict=True)
        if verdict in FAILED_VERDICTS
    ]


def _rows_of(shard: ShardRows, keys: set[str]) -> list[dict[str, object]]:
    """Return the compared columns of the rows with these keys."""
    is_chosen = pa.array([key in keys for key in shard.plan.keys], pa.bool_())
    return shard.table.select(["key", *_COMPARED]).filter(is_chosen).to_pylist()


def _compared(row: Mapping[str, object]) -> list[object]:
    """Return the values of a row that decide whether a video has another result than before."""
    return [row[name] for name in _COMPARED]


def _hash_or_none(video: SourceVideo) -> str | None:
    try:
        return hash_file(video.path)
    except OSError:
        return None
