"""What earlier runs left in a pool.

A closed pool is `pool.json` and `samples.parquet`. A build that has not ended is `.build.json`
(what it was started with), finished tars with their journals, at most one open tar, and `parts/` of
finished parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from preprocess.records.tables import ShardRows, end_of_tar, read_samples, split_by_shard
from preprocess.settings import BuildSettings
from shards.errors import ConfigError, FormatError
from shards.format.schema import POOL_CARD, SAMPLES, PoolCard, parse_card
from shards.storage.base import Store

BUILD_NOTE = ".build.json"
SHARDS, PARTS = "shards", "parts"
REPAIR = ".repair"  # what a repair has made and not yet moved into the pool


@dataclass(frozen=True)
class PoolState:
    """A folder as it was found.

    shards: what `samples.parquet` says, by index
    broken: names of those whose tar is not there, has another size, or was being rewritten; they
        are built again
    libraries: versions that wrote what is there"""

    card: PoolCard | None
    shards: list[ShardRows]
    broken: frozenset[str]
    libraries: dict[str, str]

    @property
    def whole(self) -> dict[str, ShardRows]:
        """The shards that need nothing, by name."""
        return {
            shard.plan.name: shard for shard in self.shards if shard.plan.name not in self.broken
        }

    def is_closed(self, name: str) -> bool:
        """Whether a shard stands whatever an earlier build has left beside it: the pool has a card
        and is sound there.

        While shards of a pool are rewritten it has no card."""
        return self.card is not None and name in self.whole


def load_state(store: Store, settings: BuildSettings) -> PoolState:
    """Read what is there. Raises: ConfigError naming both values if it was built with other
    settings."""
    card = None
    if store.exists(POOL_CARD):
        card = parse_card(store.read(POOL_CARD), where=store.uri(POOL_CARD))
        _check_settings(
            card.dataset, card.encoding.model_dump(), settings, where=store.uri(POOL_CARD)
        )
    libraries = dict(card.libraries) if card else {}
    rewritten: frozenset[str] = frozenset()
    if store.exists(BUILD_NOTE):
        note = _read_note(store)
        _check_settings(note["dataset"], note["encoding"], settings, where=store.uri(BUILD_NOTE))
        libraries = join_versions(libraries, note["libraries"])
        rewritten = frozenset(note["rewritten"]) if card is None else rewritten
    shards: list[ShardRows] = []
    if store.exists(SAMPLES):
        shards = split_by_shard(read_samples(store.read(SAMPLES), where=store.uri(SAMPLES)))
    elif card is not None:
        raise FormatError(
            f"{store.uri(SAMPLES)}: no such file beside pool.json; remove this folder and build again"
        )
    held = store.sizes(f"{SHARDS}/")
    broken = rewritten | {
        shard.plan.name
        for shard in shards
        if held.get(tar_name(shard.plan.name)) != end_of_tar(shard.table)
    }
    return PoolState(card, shards, broken, libraries)


def part_name(settings: BuildSettings) -> str:
    """Where the rows of the part that is built are put once it has ended."""
    return f"{PARTS}/{settings.part_index}-of-{settings.num_parts}.parquet"


def write_note(
    store: Store, settings: BuildSettings, libraries: Mapping[str, str], *, rewritten: Iterable[str]
) -> None:
    """Say what the build that begins was started with, for the run that goes on after a kill.

    rewritten: shards of a closed pool that it makes again; `samples.parquet` tells of their old
        bytes"""
    note = {
        **{
            "dataset": settings.dataset,
            "encoding": settings.encoding.model_dump(),
            "libraries": dict(libraries),
        },
        "rewritten": sorted(rewritten),
    }
    store.put(BUILD_NOTE, (json.dumps(note, sort_keys=True, indent=2) + "\n").encode())


def join_versions(*versions: Mapping[str, str]) -> dict[str, str]:
    """Versions that worked on one pool: `18.1.0`, or `18.1.0, 18.2.0` after an upgrade in
    between."""
    names = sorted({name for version in versions for name in version})
    joined = {}
    for name in names:
        parts = [
            part for version in versions if name in version for part in version[name].split(", ")
        ]
        joined[name] = ", ".join(dict.fromkeys(parts))
    return joined


def library_versions(decoder: str = "pyav", hwaccel: str | None = None) -> dict[str, str]:
    """The versions that decide a pool's bytes, and the hardware decoder if one was asked for.
    Raises: ConfigError."""
    import av

    always = {
        "av": av.__version__,
        "simplejpeg": metadata.version("simplejpeg"),
        "bmpt": _own_version(),
    }
    if decoder == "ffmpeg":  # PyAV still reads the facts of the container
        from preprocess.decode.ffmpeg_process import ffmpeg_version

        return {**always, "ffmpeg": ffmpeg_version(), **({"hwaccel": hwaccel} if hwaccel else {})}
    libav = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return {**always, "libavcodec": libav["libavcodec"], "libswscale": libav["libswscale"]}


def tar_name(name: str) -> str:
    """Where a shard's tar lies in a pool."""
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
    before = {"dataset": dataset, **encoding}
    now = {"dataset": settings.dataset, **settings.encoding.model_dump()}
    differ = [
        f"{name} was {before.get(name)!r} and is now {now[name]!r}"
        for name in now
        if before.get(name) != now[name]
    ]
    if differ:
        raise ConfigError(
            f"{where}: {'; '.join(differ)}; use the same settings, or build into another folder with --out"
        )


def _own_version() -> str:
    """From the checkout, which may never have been installed, else from the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        found = re.search(
            r'^version = "(.+)"$', project.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        if found:
            return found[1]
    return metadata.version("bmpt")
