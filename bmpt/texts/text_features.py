"""Files of one CLIP text feature a sample, keyed by sample key: written once, read by training.

A file says which CLIP made its features. Those of published archives do not, so only their width is
checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F

from bmpt.clip.backbone import Backbone
from bmpt.clip.towers import encode_texts
from shards.errors import ConfigError, FormatError
from shards.files import write_file
from shards.format.names import video_stem
from shards.format.parquet import read_parquet, to_parquet
from shards.progress import NullProgress, Progress
from shards.reader import Manifest

FORMAT_VERSION = 1
METADATA_KEY = b"bmpt"
FEATURES_FIELD = pa.field("features", pa.list_(pa.float32()), nullable=False)  # [D], unit length
UNIT_TOLERANCE = 1e-3
_TEXTS_AT_ONCE = 256

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FileKind:
    """What tells one kind of these files from another, in its columns and in what errors say.

    name: of the kind and of the command `bmpt <name>` that makes it; has: what a sample of it has
    schema: its columns, `key` and FEATURES_FIELD among them; again: what another CLIP takes"""

    name: str
    has: str
    schema: pa.Schema
    again: str


@dataclass(frozen=True)
class FeatureRow:
    """features: float32 [D], unit length; a kind's own rows have the other columns of its schema as
    fields"""

    key: str
    features: FloatArray


def check_target(file: Path) -> None:
    """Raises: ConfigError, before any work is done, for a file that is a folder."""
    if file.is_dir():
        raise ConfigError(f"{file}: is a folder; name a file in it")


def keys_by_stem(manifest: Manifest) -> dict[str, str]:
    """The key of each sample by the file name of its video, as published features are named, in
    manifest order.

    Raises: ConfigError for two samples that have one name."""
    keys: dict[str, str] = {}
    for key in manifest.table["key"].to_pylist():
        other = keys.setdefault(video_stem(key), key)
        if other != key:
            raise ConfigError(
                f"{manifest.info.path}: {other} and {key} have one file name, which is all that published features are "
                "known by; make them here instead of importing them"
            )
    return keys


def write_features(
    kind: FileKind,
    file: Path,
    rows: Sequence[FeatureRow],
    manifest: Manifest,
    backbone: Backbone | None,
    **origin: Any,
) -> None:
    """Write the rows atomically, with the manifest and the CLIP that they belong to; None: which
    CLIP is not known.

    origin: entries of the metadata that this kind has beside the common ones. Raises:
        StorageError."""
    info = manifest.info
    metadata = {
        "format_version": FORMAT_VERSION,
        "dataset": info.dataset,
        "manifest": info.path,
        "fingerprint": info.fingerprint,
        "pool_id": info.pool_id,
        "expected": len(manifest),
        "found": len(rows),
        "width": len(rows[0].features) if rows else None,
        "clip": None
        if backbone is None
        else {"name": backbone.name, "weights_sha256": backbone.weights_sha256},
        **origin,
    }
    columns = {name: [getattr(row, name) for row in rows] for name in kind.schema.names}
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    table = pa.table(columns, schema=kind.schema).replace_schema_metadata(
        {METADATA_KEY: text.encode()}
    )
    write_file(file.absolute(), to_parquet(table))


def read_features(
    kind: FileKind, files: Sequence[Path], keys: Sequence[str], backbone: Backbone
) -> FloatArray:
    """The features of some samples: float32 [N, D], unit rows, in the order of `keys`.

    files: which together have all of them. Raises: ConfigError that counts the keys without
        features, or for features
    of another CLIP; FormatError."""
    row_of: dict[str, int] = {}
    parts: list[FloatArray] = []
    for file in files:
        found, features_MD = _read_file(kind, file, backbone)
        start = sum(map(len, parts))
        row_of |= {key: start + row for row, key in enumerate(found)}
        parts.append(features_MD)
    missing = [key for key in keys if key not in row_of]
    if missing:
        raise ConfigError(
            f"{', '.join(map(str, files))}: {len(missing)} of {len(keys)} samples have no {kind.has} (the first: "
            f"{missing[0]}); make it for all of this manifest with `bmpt {kind.name}`"
        )
    return np.concatenate(parts)[[row_of[key] for key in keys]]


def _read_file(kind: FileKind, file: Path, backbone: Backbone) -> tuple[list[str], FloatArray]:
    """(keys, features) of all samples of a file."""
    try:
        table = read_parquet(file.read_bytes(), where=str(file))
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror or error}; `bmpt {kind.name} POOL MANIFEST --out {file}` makes it"
        ) from None
    _check_clip(kind, _metadata(kind, table, file), backbone, file)
    width = backbone.joint_width
    lists = table["features"].combine_chunks()
    if any(length != width for length in lists.value_lengths().to_pylist()):
        raise ConfigError(
            f"{file}: its features have {lists.value_lengths()[0]} values, those of {backbone.name} {width}; make it "
            "again with this CLIP"
        )
    features_MD = (
        lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
    )
    if not np.all(np.abs(np.linalg.norm(features_MD, axis=1) - 1) < UNIT_TOLERANCE):
        raise FormatError(f"{file}: holds features that are not of unit length; make it again")
    return table["key"].to_pylist(), features_MD


@torch.no_grad()
def encode_unit_texts(
    backbone: Backbone,
    texts: Sequence[str],
    *,
    progress: Progress = NullProgress(),
) -> torch.Tensor:
    """CLIP text features of at least one text: float32 [L, D], unit rows, on the CPU; computed on
    the CLIP's device."""
    device = next(backbone.model.parameters()).device
    blocks = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        ids = backbone.tokenize(list(texts[start : start + _TEXTS_AT_ONCE])).to(device)
        blocks.append(encode_texts(backbone.model, ids).float().cpu())
        progress.update("sentences", min(start + _TEXTS_AT_ONCE, len(texts)), len(texts))
    return F.normalize(torch.cat(blocks), dim=-1)


def _metadata(kind: FileKind, table: pa.Table, file: Path) -> dict[str, Any]:
    """Raises: FormatError for a table of another kind or version."""
    try:
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
        is_of_kind = table.schema.remove_metadata().equals(kind.schema)
        is_of_kind = is_of_kind and (
            metadata["clip"] is None or {"name", "weights_sha256"} <= metadata["clip"].keys()
        )
    except (KeyError, ValueError, AttributeError, TypeError):
        is_of_kind = False
    if not is_of_kind or metadata.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{file}: is no {kind.name} file of format {FORMAT_VERSION}; `bmpt {kind.name}` makes one"
        )
    return metadata


def _check_clip(kind: FileKind, metadata: dict[str, Any], backbone: Backbone, file: Path) -> None:
    clip = metadata["clip"]
    if clip is not None and clip["weights_sha256"] != backbone.weights_sha256:
        raise ConfigError(
            f"{file}: its features are of {clip['name']} {clip['weights_sha256'][:12]}, training uses {backbone.name} "
            f"{backbone.weights_sha256[:12]}; {kind.again}"
        )
