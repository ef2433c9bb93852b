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
    ManifestRow,
    PoolCard,
    fingerprint,
    manifest_info,
    parse_card,
)
from shards.storage.base import Store
from shards.storage.open import open_store


@dataclass(frozen=True)
class Manifest:
    """The samples of one split of one protocol, in the order of the list."""

    info: ManifestInfo

    table: pa.Table
    """One row per sample, with the columns of MANIFEST_SCHEMA."""

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> ManifestRow:
        """Return one row as plain Python values."""
        return self.table.slice(index, 1).to_pylist()[0]


@dataclass(frozen=True)
class Pool:
    """A finished pool; made by `open_pool`."""

    store: Store
    card: PoolCard

    def samples(self) -> pa.Table:
        """Read `samples.parquet`: one row per source video, failed ones included."""
        return _read_table(self.store, SAMPLES, SAMPLES_SCHEMA)

    def manifest_names(self) -> list[str]:
        """Return `<protocol>/<name>` of all manifests, sorted."""
        return [
            name.removeprefix("manifests/").removesuffix(".parquet")
            for name in self.store.names("manifests/")
            if name.endswith(".parquet")
        ]

    def has_manifest(self, path: str) -> bool:
        """Return whether the pool has a manifest, for example `few_shot/train_k2`."""
        # A path from a config must not lead out of the folder of manifests.
        if not re.fullmatch(r"[\w-]+/[\w-]+", path):
            return False
        return self.store.exists(f"manifests/{path}.parquet")

    def manifest(self, path: str) -> Manifest:
        """Read one manifest, for example `few_shot/train_k2`.

        Raises:
            ConfigError: naming the manifests of the pool, if it is not one of them.
        """
        name = f"manifests/{path}.parquet"
        if not self.has_manifest(path):
            raise ConfigError(
                f"{self.store.uri(name)}: no such manifest; {self._known_manifests()}"
            )

        table = _read_table(self.store, name, MANIFEST_SCHEMA)
        return Manifest(manifest_info(table, where=self.store.uri(name)), table)

    def _known_manifests(self) -> str:
        try:
            return f"the pool has: {', '.join(self.manifest_names()) or 'none'}"
        except StorageError:  # a web server cannot list files
            return "`bmpt report` of a copy in a folder or bucket lists them"


def open_pool(uri: str | Path) -> Pool:
    """Open a pool in a folder or in object storage.

    Raises:
        FormatError: if it has no card, or a card of another version.
    """
    store = open_store(uri)
    if not store.exists(POOL_CARD):
        raise FormatError(
            f"{store.uri(POOL_CARD)}: no such file, so this is not a finished pool; "
            "run `bmpt build`"
        )
    return Pool(store, parse_card(store.read(POOL_CARD), where=store.uri(POOL_CARD)))


def select(manifest: Manifest, verdicts: Sequence[str]) -> Manifest:
    """Keep the rows with one of some verdicts (`data.verdicts`).

    Returns:
        A manifest with the fingerprint of the rows that remain.

    Raises:
        ConfigError: for a verdict that no stored sample can have.
    """
    for verdict in verdicts:
        if verdict not in STORED_VERDICTS:
            raise ConfigError(
                f"data.verdicts: {verdict!r} is not one of {', '.join(STORED_VERDICTS)}"
            )

    # The type is stated, since it cannot be inferred from an empty list.
    wanted = pa.array(list(verdicts), pa.string())
    table = manifest.table.filter(pc.is_in(manifest.table["verdict"], value_set=wanted))
    columns = [table[name].to_pylist() for name in ("key", "label", "sha256")]
    info = manifest.info
    identity = fingerprint(info.path, info.classes, zip(*columns, strict=True))
    return Manifest(info.model_copy(update={"fingerprint": identity}), table)


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
    """Read stored frames of one sample as JPEG bytes.

    Args:
        store: of the pool.
        row: of a manifest or of `samples.parquet`.
        positions: positions in the stored sample; a frame that is named twice is read once.

    Returns:
        The bytes in the order of `positions`.

    Raises:
        SampleError: if a CRC is wrong.
        StorageError: if the shard cannot be read.
    """
    # A clip of a short sample repeats frames.
    wanted = sorted(set(positions))
    starts = [row["offset"] + row["frame_offset"][position] for position in wanted]
    sizes = [row["frame_size"][position] for position in wanted]
    jpegs = store.read_ranges(row["shard"], starts, sizes)

    check_frames(store, row, wanted, jpegs)
    jpeg_at = dict(zip(wanted, jpegs, strict=True))
    return [jpeg_at[position] for position in positions]


def first_wrong_frame(
    row: Mapping[str, Any], positions: Sequence[int], jpegs: Sequence[bytes]
) -> int | None:
    """Return the first of some frames whose bytes have another CRC than the row states."""
    for position, data in zip(positions, jpegs, strict=True):
        if zlib.crc32(data) != row["frame_crc32"][position]:
            return position
    return None


def check_frames(
    store: Store, row: Mapping[str, Any], positions: Sequence[int], jpegs: Sequence[bytes]
) -> None:
    """Check the CRC of some frames of a sample.

    Raises:
        SampleError: naming the first frame with a wrong CRC.
    """
    wrong = first_wrong_frame(row, positions, jpegs)
    if wrong is not None:
        frame = f"{store.uri(row['shard'])}: frame {wrong} of {row['key']}"
        raise SampleError(f"{frame} has a wrong CRC; run `bmpt repair`")


def read_frames(store: Store, row: Mapping[str, Any], positions: Sequence[int]) -> list[jpeg.Image]:
    """Read and decode stored frames of one sample, see `read_frame_bytes`.

    Returns:
        RGB uint8 [H, W, 3] each.

    Raises:
        SampleError: if a CRC is wrong or a frame is not a JPEG.
        StorageError: if the shard cannot be read.
    """
    sample = f"{store.uri(row['shard'])}: {row['key']}"
    jpegs = read_frame_bytes(store, row, positions)
    return [
        jpeg.decode(data, where=f"{sample} frame {position}")
        for position, data in zip(positions, jpegs, strict=True)
    ]


def _read_table(store: Store, name: str, schema: pa.Schema) -> pa.Table:
    """Read a Parquet table and check that it has exactly the columns of a schema."""
    table = read_parquet(store.read(name), where=store.uri(name))
    for found, expected in zip_longest(table.schema, schema):
        # Metadata and nullability may differ.
        is_expected = (
            found is not None
            and expected is not None
            and (found.name, found.type) == (expected.name, expected.type)
        )
        if not is_expected:
            raise FormatError(
                f"{store.uri(name)}: has column {found}, expected {expected}; build the pool again"
            )
    return table
