"""End a build: write the files of parts, samples.parquet, the manifests and, last, pool.json.

After that nothing temporary is left.
"""

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
from preprocess.records.versions import join_versions, library_versions
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
    """Write `parts/<I>-of-<N>.parquet`: rows and hashes of the shards that this part finished."""
    # Hash here, so that the merge of many parts need not read all tars on one machine.
    described = [
        replace(shard, entry=shard.entry or _describe(job.store, shard)) for shard in shards
    ]
    table = join_tables(described, rows_table([]), with_entries=True)
    job.store.put(part_name(job.settings), to_parquet(table))


def read_parts(store: Store, layout: Sequence[ShardPlan], state: PoolState) -> list[ShardRows]:
    """Return the shards of all parts and of the pool that existed before, by index.

    Args:
        store: the pool.
        layout: all shards of the pool once it is merged.
        state: the pool before the merge.

    Raises:
        ConfigError: naming a part that is missing, or that was built with other options.
    """
    part_files, num_parts = _find_parts(store)

    if all(state.is_closed(plan.name) for plan in layout):
        # The pool was merged before; some files of parts may be left from a run that was killed.
        return [state.whole[plan.name] for plan in layout]

    _check_no_part_missing(store, part_files, num_parts)

    # A shard that a part wrote again replaces that of the pool.
    shards = dict(state.whole)
    for name in part_files.values():
        for shard in split_by_shard(read_samples(store.read(name), where=store.uri(name))):
            shards[shard.plan.name] = shard

    # Compare with the plan of --merge: it may see other videos than the parts saw.
    tar_sizes = store.sizes(f"{SHARDS}/")
    for plan in layout:
        name = tar_name(plan.name)
        merged = shards.get(plan.name)
        has_same_videos = merged is not None and merged.plan.keys == plan.keys
        if not has_same_videos or tar_sizes.get(name) != end_of_tar(shards[plan.name].table):
            part = part_of(plan.index, num_parts)
            raise ConfigError(
                f"{store.uri(name)}: part {part}/{num_parts} has built other videos or another "
                f"--limit than --merge was given; run `--part {part}/{num_parts}` again with the "
                "same options"
            )
    return [shards[plan.name] for plan in layout]


def _find_parts(store: Store) -> tuple[dict[int, str], int]:
    """Return the names of the files of parts by index, and the number of parts, at least 1.

    Raises:
        ConfigError: if there are files of two divisions of the pool.
    """
    part_files: dict[int, str] = {}
    totals: set[int] = set()
    for name in store.names(f"{PARTS}/"):
        match = _PART_NAME.fullmatch(name)
        if match is not None:
            part_files[int(match[1])] = name
            totals.add(int(match[2]))

    if len(totals) > 1:
        raise ConfigError(
            f"{store.uri(PARTS)}: has parts of {sorted(totals)} parts; remove those of the other "
            "division"
        )
    return part_files, totals.pop() if totals else 1


def _check_no_part_missing(store: Store, part_files: dict[int, str], num_parts: int) -> None:
    """Check that the files of all parts are there.

    Raises:
        ConfigError: naming the parts that are missing.
    """
    missing = [
        f"{index}/{num_parts}" for index in range(1, num_parts + 1) if index not in part_files
    ]
    if part_files and not missing:
        return

    what = f"part {', '.join(missing)}" if part_files else "every part"
    raise ConfigError(
        f"{store.uri(PARTS)}: {what} is not there; run `--part I/N` for it, then --merge again"
    )


def close_pool(
    job: Job, state: PoolState, shards: Sequence[ShardRows], *, has_new_bytes: bool
) -> tuple[PoolCard, pa.Table, list[ManifestReport]]:
    """Write the tables, the manifests and the card; remove the files of the unfinished build.

    Args:
        job: the run.
        state: the pool before this run.
        shards: all shards of the pool.
        has_new_bytes: whether this run decoded videos, so that its library versions count.

    Returns:
        The card, the table of `samples.parquet`, and a report per manifest.
    """
    store, protocols = job.store, job.protocols

    # A video that is gone from --videos stays in the pool, so it is not missing.
    stored_keys = {key for shard in shards for key in shard.plan.keys}
    absent = [video for video in protocols.missing if video.key not in stored_keys]
    missing = rows_table(missing_row(video.key, video.class_name) for video in absent)
    samples = join_tables(shards, missing)

    # A run that decoded nothing changed no byte, so its versions are not part of the pool.
    libraries = state.libraries
    if has_new_bytes or not libraries:
        versions = library_versions(job.settings.decoder, job.settings.hwaccel)
        libraries = join_versions(libraries, versions)

    # The manifests state the pool_id of the card, but the card is written after them.
    card = _make_card(job, state, shards, samples, libraries)
    _put_if_new(store, SAMPLES, to_parquet(samples))
    manifests = write_manifests(
        protocols, samples, store, dataset=job.settings.dataset, pool_id=card.pool_id
    )
    if state.card is None or state.card.shards != card.shards:
        _remove_stale_manifests(store, manifests)

    # Last, since a pool with a card is complete.
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
    entries_before = {entry.name: entry for entry in state.card.shards} if state.card else {}

    # Hash only the shards whose entry is not known from this run, a part or the pool before.
    entries: list[ShardEntry] = []
    for shard in shards:
        entry = shard.entry
        if entry is None and state.is_closed(shard.plan.name):
            entry = entries_before.get(tar_name(shard.plan.name))
        entries.append(entry or _describe(job.store, shard))

    stored = samples.filter(pc.is_valid(samples["sha256"]))
    hashes = zip(stored["key"].to_pylist(), stored["sha256"].to_pylist(), strict=True)
    return PoolCard(
        format_version=FORMAT_VERSION,
        dataset=job.settings.dataset,
        pool_id=pool_id(hashes),
        classes=job.protocols.classes,
        encoding=job.settings.encoding,
        libraries=libraries,
        counts=count_samples(samples),
        shards=entries,
    )


def _describe(store: Store, shard: ShardRows) -> ShardEntry:
    """Return the entry of a finished shard, which is read once for its hash."""
    name = tar_name(shard.plan.name)
    num_samples = shard.table.num_rows - shard.table["shard"].null_count
    size, sha256 = store.size(name), store.sha256(name)
    return ShardEntry(name=name, size=size, samples=num_samples, sha256=sha256)


def _put_if_new(store: Store, name: str, data: bytes) -> None:
    # An unchanged file keeps its modification time, and an object is not uploaded again.
    if not store.exists(name) or store.read(name) != data:
        store.put(name, data)


def _remove_stale_manifests(store: Store, written: Sequence[ManifestReport]) -> None:
    """Remove manifests of earlier lists: their offsets and their pool_id are no longer true."""
    current = {f"manifests/{manifest.path}.parquet" for manifest in written}
    for name in store.names("manifests/"):
        if name not in current:
            store.delete(name)
