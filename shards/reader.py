"""Open a pool: its card, its tables, its frames."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ConfigError, FormatError, SampleError, StorageError
from shards.format import jpeg
from shards.format.parquet import read_parquet
from shards.format.schema import (
    MANIFEST_SCHEMA,
    POOL_CARD,
    SAMPLES,
    SAMPLES_SCHEMA,
    STORED_VERDICTS,
    ManifestInfo,
    PoolCard,
    fingerprint,
    manifest_info,
    parse_card,
)
from shards.storage.base import Store
from shards.storage.open import open_store


@dataclass(frozen=True)
class Manifest:
    """The samples of one split of one protocol, in the list's order."""

    info: ManifestInfo
    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> dict[str, Any]:
        """One row as plain Python values."""
        return self.table.slice(index, 1).to_pylist()[0]


@dataclass(frozen=True)
class Pool:
    """A finished pool; made by `open_pool`."""

    store: Store
    card: PoolCard

    def samples(self) -> pa.Table:
        """`samples.parquet`: one row for every source video, failed ones too."""
        return _read_table(self.store, SAMPLES, SAMPLES_SCHEMA)

    def manifest_names(self) -> list[str]:
        """`<protocol>/<name>` of all manifests, sorted."""
        names = self.store.names("manifests/")
        return [
            name.removeprefix("manifests/").removesuffix(".parquet")
            for name in names
            if name.endswith(".parquet")
        ]

    def has_manifest(self, path: str) -> bool:
        """Whether it has `few_shot/train_k2`, for example."""
        return bool(re.fullmatch(r"[\w-]+/[\w-]+", path)) and self.store.exists(
            f"manifests/{path}.parquet"
        )

    def manifest(self, path: str) -> Manifest:
        """Read one manifest, for example `few_shot/train_k2`. Raises: ConfigError that lists what
        is there."""
        name = f"manifests/{path}.parquet"
        if not self.has_manifest(path):
            raise ConfigError(f"{self.store.uri(name)}: no such manifest; {self._what_there_is()}")
        table = _read_table(self.store, name, MANIFEST_SCHEMA)
        return Manifest(manifest_info(table, where=self.store.uri(name)), table)

    def _what_there_is(self) -> str:
        try:
            return f"the pool has: {', '.join(self.manifest_names()) or 'none'}"
        except StorageError:  # a web server has no listing
            return "`bmpt report` of a copy in a folder or bucket lists them"


def open_pool(uri: str | Path) -> Pool:
    """Open a pool folder. Raises: FormatError if it has no card or a card of another version."""
    store = open_store(uri)
    if not store.exists(POOL_CARD):
        raise FormatError(
            f"{store.uri(POOL_CARD)}: no such file, so this is not a finished pool; run `bmpt build`"
        )
    return Pool(store, parse_card(store.read(POOL_CARD), where=store.uri(POOL_CARD)))


def select(manifest: Manifest, verdicts: Sequence[str]) -> Manifest:
    """Keep the rows with one of these verdicts (`data.verdicts`); the fingerprint is that of the
    rows that stay.

    Raises: ConfigError for a verdict that no stored sample can have."""
    for verdict in verdicts:
        if verdict not in STORED_VERDICTS:
            raise ConfigError(
                f"data.verdicts: {verdict!r} is not one of {', '.join(STORED_VERDICTS)}"
            )
    table = manifest.table.filter(
        pc.is_in(manifest.table["verdict"], value_set=pa.array(list(verdicts), pa.string()))
    )
    rows = zip(*(table[name].to_pylist() for name in ("key", "label", "sha256")), strict=True)
    identity = fingerprint(manifest.info.path, manifest.info.classes, rows)
    return Manifest(manifest.info.model_copy(update={"fingerprint": identity}), table)


def require_samples(manifest: Manifest) -> None:
    """Check that a manifest has at least one sample.

    Raises:
        ConfigError: with the counts of the manifest.
    """
    if len(manifest):
        return

    info = manifest.info
    raise ConfigError(
        f"{info.path}: has no sample to read (expected {info.expected}, found {info.found}, "
        f"missing {info.missing}; from {info.source}); build the pool with these videos, or choose "
        "another manifest or data.verdicts"
    )


def read_frame_bytes(store: Store, row: Mapping[str, Any], positions: Sequence[int]) -> list[bytes]:
    """Read stored frames of one sample (a row of a manifest or of `samples.parquet`) as JPEG bytes.

    Raises: SampleError if a CRC is wrong, StorageError if the shard cannot be read."""
    wanted = sorted(set(positions))  # a clip shorter than T repeats frames; each is read once
    starts = [row["offset"] + row["frame_offset"][position] for position in wanted]
    blocks = store.read_ranges(
        row["shard"], starts, [row["frame_size"][position] for position in wanted]
    )
    check_frames(store, row, wanted, blocks)
    by_position = dict(zip(wanted, blocks, strict=True))
    return [by_position[position] for position in positions]


def first_wrong_frame(
    row: Mapping[str, Any], positions: Sequence[int], blocks: Sequence[bytes]
) -> int | None:
    """The first of some frames whose bytes have another CRC than its row states."""
    for position, block in zip(positions, blocks, strict=True):
        if zlib.crc32(block) != row["frame_crc32"][position]:
            return position
    return None


def check_frames(
    store: Store, row: Mapping[str, Any], positions: Sequence[int], blocks: Sequence[bytes]
) -> None:
    """Raises: SampleError naming the first of some frames whose CRC is wrong."""
    wrong = first_wrong_frame(row, positions, blocks)
    if wrong is not None:
        where = f"{store.uri(row['shard'])}: frame {wrong} of {row['key']}"
        raise SampleError(f"{where} has a wrong CRC; run `bmpt repair`")


def read_frames(store: Store, row: Mapping[str, Any], positions: Sequence[int]) -> list[jpeg.Image]:
    """Read and decode stored frames: RGB uint8 [H, W, 3] each. Raises: SampleError,
    StorageError."""
    blocks = read_frame_bytes(store, row, positions)
    where = f"{store.uri(row['shard'])}: {row['key']}"
    return [
        jpeg.decode(block, where=f"{where} frame {p}")
        for p, block in zip(positions, blocks, strict=True)
    ]


def _read_table(store: Store, name: str, schema: pa.Schema) -> pa.Table:
    """Read a Parquet table and check that it has exactly the columns of `schema`."""
    table = read_parquet(store.read(name), where=store.uri(name))
    for found, expected in zip_longest(table.schema, schema):
        if (
            found is None
            or expected is None
            or (found.name, found.type) != (expected.name, expected.type)
        ):
            raise FormatError(
                f"{store.uri(name)}: has column {found}, expected {expected}; build the pool again"
            )
    return table
