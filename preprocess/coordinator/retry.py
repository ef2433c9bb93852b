"""Videos of a finished pool that are not ok, or whose file is another one now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing

import pyarrow as pa

from preprocess.coordinator.job import Job
from preprocess.coordinator.resume import check_videos_are_there
from preprocess.planning import sort_keys
from preprocess.records.expected import is_settled
from preprocess.records.state import PoolState
from preprocess.records.tables import ShardRows
from preprocess.sources import SourceVideo
from shards.errors import ConfigError
from shards.files import hash_file

_FAILED = ("short", "damaged", "undecodable")
_COMPARED = ("verdict", "source_sha256", "source_path", "num_frames_decoded")


def check_sources(job: Job, state: PoolState) -> None:
    """Compare the finished videos with their files. Raises: ConfigError telling the cure if one is
    another now."""
    changed = _changed_keys(state.whole.values(), job.videos, hashed=job.settings.check_sources)
    if changed:
        raise ConfigError(
            f"{job.videos[changed[0]].path}: is not the file that the pool was built from ({len(changed)} such "
            "videos); put the old file back, or run again with --retry-failed to rewrite the shards of changed videos"
        )
    unexpected = _unexpected_keys(state.whole.values(), job.videos)
    if unexpected:
        raise ConfigError(
            f"{job.videos[unexpected[0]].path}: is ok in the pool and not the file that {job.settings.expect_sources} "
            f"states ({len(unexpected)} such videos); run again with --retry-failed to mark them damaged"
        )


def check_classes(job: Job, state: PoolState) -> None:
    """Raises: ConfigError if a finished video has another class now: the class stands in its
    sample's bytes."""
    for shard in state.whole.values():
        for key, before in zip(
            *(shard.table[name].to_pylist() for name in ("key", "class_name")), strict=True
        ):
            video = job.videos.get(key)
            if video is not None and video.class_name != before:
                raise ConfigError(
                    f"{job.settings.out}: {key} was stored with class {before!r} and now has {video.class_name!r}; "
                    "give the --annotations that the pool was built with, or build into another folder with --out"
                )


def drop_recovered(job: Job, state: PoolState) -> int:
    """Decode failed and changed videos again; drop the shards of those that come out otherwise than
    before.

    A dropped shard is then built like a new one, so that it equals that of an undisturbed build; a
    video that fails as before costs its own decoding alone. Returns: how many videos were
    decoded."""
    shards = list(state.whole.values())
    changed = _changed_keys(shards, job.videos, hashed=job.settings.check_sources)
    again = {*changed, *_failed_keys(shards), *_unexpected_keys(shards, job.videos)}
    videos = [job.videos[key] for key in sort_keys(again) if key in job.videos]
    before = {row["key"]: row for shard in shards for row in _rows_of(shard, again)}
    other: set[str] = set()
    with job.workers() as pool, closing(pool.decode(videos)) as decoded:
        for answer in decoded:
            old = before[answer.row["key"]]
            if any(old[name] != answer.row[name] for name in _COMPARED):
                other.add(answer.row["key"])
    plans = [shard.plan for shard in shards if other.intersection(shard.plan.keys)]
    for plan in plans:
        check_videos_are_there(plan, job.videos)
    if plans:
        job.begin_writing(state, rewritten=[plan.name for plan in plans])
    for plan in plans:
        job.workspace.discard(plan.name)
    return len(videos)


def _changed_keys(
    shards: Iterable[ShardRows], videos: Mapping[str, SourceVideo], *, hashed: bool
) -> list[str]:
    """Keys of videos whose file has another path or size now or, if `hashed`, another content."""
    changed = []
    for shard in shards:
        for row in shard.table.select(
            ["key", "source_path", "source_bytes", "source_sha256"]
        ).to_pylist():
            video = videos.get(row["key"])
            if video is None:
                continue
            same = (video.relative_path, video.num_bytes) == (
                row["source_path"],
                row["source_bytes"],
            )
            if same and hashed and row["source_sha256"] is not None:
                same = _hash_or_none(video) == row["source_sha256"]
            if not same:
                changed.append(row["key"])
    return changed


def _unexpected_keys(shards: Iterable[ShardRows], videos: Mapping[str, SourceVideo]) -> list[str]:
    """Keys of videos that are stored as ok and whose file is not the one that `--expect-sources`
    states."""
    if all(video.expected is None for video in videos.values()):
        return []
    return [
        row["key"]
        for shard in shards
        for row in shard.table.select(
            ["key", "verdict", "source_bytes", "source_sha256"]
        ).to_pylist()
        if row["key"] in videos and not is_settled(row, videos[row["key"]].expected)
    ]


def _failed_keys(shards: Iterable[ShardRows]) -> list[str]:
    """Keys of videos that are not ok."""
    return [
        key
        for shard in shards
        for key, verdict in zip(shard.plan.keys, shard.table["verdict"].to_pylist(), strict=True)
        if verdict in _FAILED
    ]


def _rows_of(shard: ShardRows, keys: set[str]) -> list[dict[str, object]]:
    chosen = pa.array([key in keys for key in shard.plan.keys], pa.bool_())
    return shard.table.select(["key", *_COMPARED]).filter(chosen).to_pylist()


def _hash_or_none(video: SourceVideo) -> str | None:
    try:
        return hash_file(video.path)
    except OSError:
        return None
