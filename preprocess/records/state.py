"""Read and write the state that earlier runs have left in a pool.

A closed pool has `pool.json` and `samples.parquet`. An unfinished build has `.build.json` (its
settings), finished tars with their journals, at most one open tar, and `parts/` of finished
parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from preprocess.records.tables import ShardRows, end_of_tar, read_samples, split_by_shard
from preprocess.records.versions import join_versions
from preprocess.settings import BuildSettings
from shards.errors import ConfigError, FormatError
from shards.format.schema import POOL_CARD, SAMPLES, PoolCard, parse_card
from shards.storage.base import Store

BUILD_NOTE = ".build.json"
SHARDS, PARTS = "shards", "parts"
REPAIR = ".repair"  # files that a repair has made and not yet moved into the pool


@dataclass(frozen=True)
class PoolState:
    """The content of a pool folder before a run."""

    card: PoolCard | None
    """None while the pool is unfinished, or while its shards are rewritten."""
    shards: list[ShardRows]
    """The shards of `samples.parquet`, by index."""
    broken: frozenset[str]
    """Names of shards whose tar is missing, has another size, or was being rewritten. They are
    built again."""
    libraries: dict[str, str]
    """Versions of the libraries that wrote the content."""

    @property
    def whole(self) -> dict[str, ShardRows]:
        """The shards that are not broken, by name."""
        return {
            shard.plan.name: shard for shard in self.shards if shard.plan.name not in self.broken
        }

    def is_closed(self, name: str) -> bool:
        """Return whether a shard belongs to a closed pool and is sound.

        Such a shard is kept, whatever files an earlier build has left beside it."""
        return self.card is not None and name in self.whole


def load_state(store: Store, settings: BuildSettings) -> PoolState:
    """Read the state of a pool.

    Raises:
        ConfigError: the pool was built with other settings; the message names both values.
        FormatError: a file of the pool is damaged."""
    card = None
    libraries: dict[str, str] = {}
    rewritten: frozenset[str] = frozenset()
    if store.exists(POOL_CARD):
        card = parse_card(store.read(POOL_CARD), where=store.uri(POOL_CARD))
        encoding = card.encoding.model_dump()
        _check_settings(card.dataset, encoding, settings, where=store.uri(POOL_CARD))
        libraries = dict(card.libraries)
    # The note of a build in progress, also of one that rewrites shards of a closed pool.
    if store.exists(BUILD_NOTE):
        note = _read_note(store)
        _check_settings(note["dataset"], note["encoding"], settings, where=store.uri(BUILD_NOTE))
        libraries = join_versions(libraries, note["libraries"])
        # With a card no shard is being rewritten: it is deleted first and written last.
        if card is None:
            rewritten = frozenset(note["rewritten"])

    shards: list[ShardRows] = []
    if store.exists(SAMPLES):
        shards = split_by_shard(read_samples(store.read(SAMPLES), where=store.uri(SAMPLES)))
    elif card is not None:
        raise FormatError(
            f"{store.uri(SAMPLES)}: no such file beside pool.json; remove this folder and build "
            "again"
        )

    # A tar of the right size is taken as sound; `bmpt verify` compares its bytes.
    sizes = store.sizes(f"{SHARDS}/")
    broken = set(rewritten)
    for shard in shards:
        if sizes.get(tar_name(shard.plan.name)) != end_of_tar(shard.table):
            broken.add(shard.plan.name)
    return PoolState(card, shards, frozenset(broken), libraries)


def write_note(
    store: Store, settings: BuildSettings, libraries: Mapping[str, str], *, rewritten: Iterable[str]
) -> None:
    """Write the settings of the build that starts, for the run that resumes it.

    Args:
        rewritten: shards of a closed pool that are built again; `samples.parquet` still describes
            their old bytes"""
    note = {
        "dataset": settings.dataset,
        "encoding": settings.encoding.model_dump(),
        "libraries": dict(libraries),
        "rewritten": sorted(rewritten),
    }
    store.put(BUILD_NOTE, (json.dumps(note, sort_keys=True, indent=2) + "\n").encode())


def part_name(settings: BuildSettings) -> str:
    """Return the name of the file that holds the rows of the finished part."""
    return f"{PARTS}/{settings.part_index}-of-{settings.num_parts}.parquet"


def tar_name(name: str) -> str:
    """Return the name of a shard's tar in a pool."""
    return f"{SHARDS}/{name}.tar"


def _read_note(store: Store) -> dict[str, Any]:
    try:
        note = json.loads(store.read(BUILD_NOTE))
        return {name: note[name] for name in ("dataset", "encoding", "libraries", "rewritten")}
    except (ValueError, KeyError, TypeError):
        raise FormatError(
            f"{store.uri(BUILD_NOTE)}: is damaged; remove this folder and build again"
        ) from None


def _check_settings(
    dataset: str, encoding: Mapping[str, Any], settings: BuildSettings, *, where: str
) -> None:
    """Check that a pool is continued with the data set and the encoding it was started with."""
    before = {"dataset": dataset, **encoding}
    now = {"dataset": settings.dataset, **settings.encoding.model_dump()}
    different = [
        f"{name} was {before.get(name)!r} and is now {now[name]!r}"
        for name in now
        if before.get(name) != now[name]
    ]
    if different:
        raise ConfigError(
            f"{where}: {'; '.join(different)}; use the same settings, or build into another folder "
            "with --out"
        )
