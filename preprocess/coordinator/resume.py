"""Decide what a run has to do: which shards stand, which go on, which begin anew, and what has
changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocess.coordinator.workspace import BegunShard, Workspace
from preprocess.planning import ShardPlan, part_of, plan_shards
from preprocess.records.expected import is_settled
from preprocess.records.state import PoolState, tar_name
from preprocess.records.tables import ShardRows, rows_table
from preprocess.settings import BuildSettings
from preprocess.sources import SourceVideo
from shards.errors import ConfigError
from shards.files import hash_file


@dataclass(frozen=True)
class Work:
    """What is left to do.

    standing: finished shards; open: the others of this run, in order, with the number of videos
        already journalled"""

    standing: list[ShardRows]
    open: list[tuple[ShardPlan, int]]

    @property
    def num_to_decode(self) -> int:
        """Videos of the open shards that no journal holds."""
        return sum(len(plan.keys) - num_done for plan, num_done in self.open)


def plan_layout(
    state: PoolState, videos: Sequence[SourceVideo], settings: BuildSettings
) -> list[ShardPlan]:
    """All shards of the pool once this build has ended; `--limit` looks at the first keys alone."""
    keys = [video.key for video in videos][: settings.limit]
    return plan_shards(
        keys,
        dataset=settings.dataset,
        videos_per_shard=settings.encoding.videos_per_shard,
        existing=[shard.plan for shard in state.shards],
    )


def plan_work(
    workspace: Workspace,
    state: PoolState,
    layout: Sequence[ShardPlan],
    videos: Mapping[str, SourceVideo],
    settings: BuildSettings,
) -> Work:
    """Sort the shards of this run (all, or those of its part) into finished and open ones.

    What is left of a shard that does not agree with the plan (a file changed or came in between) is
    discarded.
    Raises: ConfigError if a shard must be built whose videos are gone."""
    standing: list[ShardRows] = []
    open_shards: list[tuple[ShardPlan, int]] = []
    for plan in layout:
        if (
            part_of(plan.index, settings.num_parts) != settings.part_index
            and settings.part is not None
        ):
            continue
        if state.is_closed(plan.name) or (
            plan.name in state.whole and not workspace.is_begun(plan.name)
        ):
            standing.append(state.whole[plan.name])
            continue
        begun = workspace.begun(plan.name)
        agrees = begun is not None and _agrees(begun, plan, videos, hashed=settings.check_sources)
        if begun is not None and agrees and begun.is_in_pool:
            standing.append(ShardRows(plan, rows_table(begun.rows), begun.entry))
            continue
        check_videos_are_there(plan, videos)
        if begun is None or not agrees:
            workspace.discard(plan.name)
        open_shards.append((plan, len(begun.rows) if begun is not None and agrees else 0))
    return Work(standing, open_shards)


def _agrees(
    begun: BegunShard, plan: ShardPlan, videos: Mapping[str, SourceVideo], *, hashed: bool
) -> bool:
    """Whether the rows that are there are those that the plan begins with, of the same files.

    hashed: compare contents too, as `--check-sources` asks"""
    known = (videos[key] for key in plan.keys if key in videos)
    expected = [
        (video.key, video.relative_path, video.num_bytes, video.class_name) for video in known
    ]
    found = [
        (row["key"], row["source_path"], row["source_bytes"], row["class_name"])
        for row in begun.rows
    ]
    if found != (expected if begun.is_ended else expected[: len(found)]):
        return False
    if hashed and any(
        row["source_sha256"] not in (None, hash_file(videos[row["key"]].path)) for row in begun.rows
    ):
        return False
    return all(is_settled(row, videos[row["key"]].expected) for row in begun.rows)


def check_videos_are_there(plan: ShardPlan, videos: Mapping[str, SourceVideo]) -> None:
    """Raise ConfigError if a shard that has to be built names a video that is no longer below
    `--videos`."""
    gone = [key for key in plan.keys if key not in videos]
    if gone:
        raise ConfigError(
            f"{tar_name(plan.name)} has to be built again, but {len(gone)} of its videos are gone from --videos "
            f"(the first: {gone[0]}); put them back, or build into another folder with --out"
        )
