"""Plan the work of a run: which shards are finished, which continue, and which start from zero."""

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
    """The shards of a run."""

    finished: list[ShardRows]

    open: list[tuple[ShardPlan, int]]
    """The other shards in order, each with its number of videos that are already journalled."""

    @property
    def num_to_decode(self) -> int:
        """Number of videos of the open shards that are not journalled."""
        return sum(len(plan.keys) - num_done for plan, num_done in self.open)


def plan_layout(
    state: PoolState, videos: Sequence[SourceVideo], settings: BuildSettings
) -> list[ShardPlan]:
    """Return all shards that the pool will have; `--limit` uses the first keys only."""
    keys = [video.key for video in videos][: settings.limit]
    return plan_shards(
        keys,
        dataset=settings.dataset,
        videos_per_shard=settings.encoding.videos_per_shard,
        existing=[shard.plan for shard in state.shards],
    )


def is_of_this_part(plan: ShardPlan, settings: BuildSettings) -> bool:
    """Return whether this run, or its part, writes a shard."""
    if settings.part is None:
        return True
    return part_of(plan.index, settings.num_parts) == settings.part_index


def needs_nothing(plan: ShardPlan, workspace: Workspace, state: PoolState) -> bool:
    """Return whether a shard of an earlier pool is complete and is not being written again."""
    if state.is_closed(plan.name):
        return True
    # Without a card the pool is being rewritten: a journal shows that this shard is.
    return plan.name in state.whole and not workspace.is_begun(plan.name)


def plan_work(
    workspace: Workspace,
    state: PoolState,
    layout: Sequence[ShardPlan],
    videos: Mapping[str, SourceVideo],
    settings: BuildSettings,
) -> Work:
    """Sort the shards of this run (all, or those of its part) into finished and open ones.

    A begun shard that does not agree with its plan, because a file changed or was added, is
    discarded.

    Args:
        workspace: where shards are written.
        state: the pool before this run.
        layout: all shards of the pool.
        videos: the source videos by key.
        settings: of the run.

    Raises:
        ConfigError: if a shard must be built and some of its videos are gone.
    """
    finished: list[ShardRows] = []
    open_shards: list[tuple[ShardPlan, int]] = []

    for plan in layout:
        # Case 1: another part writes it, or an earlier pool has it.
        if not is_of_this_part(plan, settings):
            continue
        if needs_nothing(plan, workspace, state):
            finished.append(state.whole[plan.name])
            continue

        # Case 2: an earlier run of this build has finished it.
        begun = workspace.begun(plan.name)
        if begun is not None and not _agrees(begun, plan, videos, hashed=settings.check_sources):
            begun = None
        if begun is not None and begun.is_in_pool:
            finished.append(ShardRows(plan, rows_table(begun.rows), begun.entry))
            continue

        # Case 3: it is open, from its first video or from the last that is journalled.
        check_videos_exist(plan, videos)
        if begun is None:
            workspace.discard(plan.name)
        open_shards.append((plan, 0 if begun is None else len(begun.rows)))
    return Work(finished, open_shards)


def _agrees(
    begun: BegunShard, plan: ShardPlan, videos: Mapping[str, SourceVideo], *, hashed: bool
) -> bool:
    """Return whether the rows of a begun shard are the first rows of its plan, of the same files.

    Args:
        begun: the begun shard.
        plan: its plan now.
        videos: the source videos by key.
        hashed: whether the contents of the files are compared too, as `--check-sources` asks.
    """
    planned = [
        (video.key, video.relative_path, video.num_bytes, video.class_name)
        for video in (videos[key] for key in plan.keys if key in videos)
    ]
    written = [
        (row["key"], row["source_path"], row["source_bytes"], row["class_name"])
        for row in begun.rows
    ]
    # A finished tar must have all planned videos, an open one the first of them.
    if written != (planned if begun.is_ended else planned[: len(written)]):
        return False

    for row in begun.rows:
        video = videos[row["key"]]
        if hashed and row["source_sha256"] not in (None, hash_file(video.path)):
            return False
        if not is_settled(row, video.expected):
            return False
    return True


def check_videos_exist(plan: ShardPlan, videos: Mapping[str, SourceVideo]) -> None:
    """Check that all videos of a shard that must be built are below `--videos`.

    Raises:
        ConfigError: naming the first that is gone.
    """
    gone = [key for key in plan.keys if key not in videos]
    if gone:
        raise ConfigError(
            f"{tar_name(plan.name)} has to be built again, but {len(gone)} of its videos are gone "
            f"from --videos (the first: {gone[0]}); put them back, or build into another folder "
            "with --out"
        )
