"""End a build: the files of parts, samples.parquet, manifests, and last pool.json; then nothing
temporary is left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.coordinator.job import Job
from preprocess.planning import ShardPlan, part_of
from preprocess.protocols import write_manifests
from preprocess.records.rows import missing_row
from preprocess.records.state import (
    PARTS,
    SHARDS,
    PoolState,
    join_versions,
    library_versions,
    part_name,
    tar_name,
)
from preprocess.records.tables import (
    ShardRows,
    end_of_tar,
    join_tables,
    read_samples,
    rows_table,
    split_by_shard,
)
from shards.errors import ConfigError
from shards.format.parquet import to_parquet
from shards.format.schema import (
    FORMAT_VERSION,
    POOL_CARD,
    SAMPLES,
    PoolCard,
    ShardEntry,
    count_samples,
    pool_id,
)
from shards.maintenance.pool_report import ManifestReport
from shards.storage.base import Store

_PART_NAME = re.compile(r"parts/(\d+)-of-(\d+)\.parquet")


def write_part(job: Job, shards: Sequence[ShardRows]) -> None:
    """Write `parts/<I>-of-<N>.parquet`: rows and hashes of the shards that this part has
    finished."""
    described = [
        replace(shard, entry=shard.entry or _describe(job.store, shard)) for shard in shards
    ]
    table = join_tables(described, rows_table([]), with_entries=True)
    job.store.put(part_name(job.settings), to_parquet(table))


def read_parts(store: Store, layout: Sequence[ShardPlan], state: PoolState) -> list[ShardRows]:
    """The shards of all parts and those that stood before, by index. Raises: ConfigError naming
    what is not there."""
    names = store.names(f"{PARTS}/")
    parts = {
        (int(match[1]), int(match[2])): name
        for name in names
        if (match := _PART_NAME.fullmatch(name))
    }
    totals = sorted({total for _, total in parts})
    if len(totals) > 1:
        raise ConfigError(
            f"{store.uri(PARTS)}: holds parts of {totals} parts; remove those of the other division"
        )
    if all(state.is_closed(plan.name) for plan in layout):
        return [
            state.whole[plan.name] for plan in layout
        ]  # merged before; a kill may have left some parts
    num_parts = totals[0] if totals else 1
    absent = [
        f"{index}/{num_parts}"
        for index in range(1, num_parts + 1)
        if (index, num_parts) not in parts
    ]
    if not parts or absent:
        what = f"part {', '.join(absent)}" if parts else "every part"
        raise ConfigError(
            f"{store.uri(PARTS)}: {what} is not there; run `--part I/N` for it, then --merge again"
        )
    found = dict(state.whole)
    for name in parts.values():
        for shard in split_by_shard(read_samples(store.read(name), where=store.uri(name))):
            found[shard.plan.name] = shard
    held = store.sizes(f"{SHARDS}/")
    for plan in layout:
        name, part_shard = tar_name(plan.name), found.get(plan.name)
        if (
            part_shard is None
            or part_shard.plan.keys != plan.keys
            or held.get(name) != end_of_tar(part_shard.table)
        ):
            part = part_of(plan.index, num_parts)
            raise ConfigError(
                f"{store.uri(name)}: part {part}/{num_parts} has built other videos or another "
                f"--limit than --merge was given; run `--part {part}/{num_parts}` again with the same options"
            )
    return [found[plan.name] for plan in layout]


def close_pool(
    job: Job, state: PoolState, shards: Sequence[ShardRows], *, has_new_bytes: bool
) -> tuple[PoolCard, pa.Table, list[ManifestReport]]:
    """Write the tables, the manifests and, last, the card; remove what only an unfinished build
    needs.

    has_new_bytes: whether this run decoded something, so that its library versions count"""
    store, protocols = job.store, job.protocols
    have = {key for shard in shards for key in shard.plan.keys}
    absent = (video for video in protocols.missing if video.key not in have)
    samples = join_tables(
        shards, rows_table(missing_row(video.key, video.class_name) for video in absent)
    )
    libraries = state.libraries
    if has_new_bytes or not libraries:
        settings = job.settings
        libraries = join_versions(libraries, library_versions(settings.decoder, settings.hwaccel))
    card = _make_card(job, state, shards, samples, libraries)
    _put_if_new(store, SAMPLES, to_parquet(samples))
    manifests = write_manifests(
        protocols, samples, store, dataset=job.settings.dataset, pool_id=card.pool_id
    )
    if state.card is None or state.card.shards != card.shards:
        _remove_stale_manifests(store, manifests)
    _put_if_new(store, POOL_CARD, card.to_json().encode())
    job.workspace.clear(job.settings.dataset, {shard.plan.name for shard in shards})
    return card, samples, manifests


def _make_card(
    job: Job,
    state: PoolState,
    shards: Sequence[ShardRows],
    samples: pa.Table,
    libraries: dict[str, str],
) -> PoolCard:
    known = {entry.name: entry for entry in state.card.shards} if state.card else {}
    entries: list[ShardEntry] = []
    for shard in shards:
        entry = shard.entry
        if entry is None and state.is_closed(shard.plan.name):
            entry = known.get(tar_name(shard.plan.name))
        entries.append(entry or _describe(job.store, shard))
    stored_rows = samples.filter(pc.is_valid(samples["sha256"]))
    return PoolCard(
        format_version=FORMAT_VERSION,
        dataset=job.settings.dataset,
        pool_id=pool_id(
            zip(stored_rows["key"].to_pylist(), stored_rows["sha256"].to_pylist(), strict=True)
        ),
        classes=job.protocols.classes,
        encoding=job.settings.encoding,
        libraries=libraries,
        counts=count_samples(samples),
        shards=entries,
    )


def _describe(store: Store, shard: ShardRows) -> ShardEntry:
    """Hash a finished shard where it lies."""
    name = tar_name(shard.plan.name)
    stored = shard.table.num_rows - shard.table["shard"].null_count
    return ShardEntry(name=name, size=store.size(name), samples=stored, sha256=store.sha256(name))


def _put_if_new(store: Store, name: str, data: bytes) -> None:
    if not store.exists(name) or store.read(name) != data:
        store.put(name, data)


def _remove_stale_manifests(store: Store, written: Sequence[ManifestReport]) -> None:
    """Manifests of earlier lists state offsets and a pool_id that no longer hold."""
    keep = {f"manifests/{info.path}.parquet" for info in written}
    for name in store.names("manifests/"):
        if name not in keep:
            store.delete(name)
