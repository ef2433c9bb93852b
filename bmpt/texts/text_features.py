"""Read and write files of one CLIP text feature per sample, by sample key.

A file states which CLIP made its features, and is refused for training with another one. Files
imported from published archives do not state it, so only their width is checked."""

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
from shards.files import os_error_text, write_file
from shards.format.names import video_stem
from shards.format.parquet import read_parquet, to_parquet
from shards.progress import NullProgress, Progress
from shards.reader import Manifest

FORMAT_VERSION = 1
METADATA_KEY = b"bmpt"
# [D], unit length
FEATURES_FIELD = pa.field("features", pa.list_(pa.float32()), nullable=False)
UNIT_TOLERANCE = 1e-3
_TEXTS_PER_BATCH = 256

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FileKind:
    """A kind of feature file: its columns, and its words in errors."""

    name: str
    """Name of the kind and of the command `bmpt <name>` that makes it."""
    has: str
    """Noun for the text that a sample has."""
    schema: pa.Schema
    """Columns; `key` and FEATURES_FIELD are among them."""
    again: str
    """Hint for features of another CLIP."""


@dataclass(frozen=True)
class FeatureRow:
    """The row of a sample. Rows of a kind have the other columns of its schema as fields."""

    key: str
    """Sample key."""
    features: FloatArray
    """Text feature, float32 [D], unit length."""


def check_target(file: Path) -> None:
    """Check, before any work is done, that a file can be written under this path.

    Raises:
        ConfigError: if the path is a folder.
    """
    if file.is_dir():
        raise ConfigError(f"{file}: is a folder; name a file in it")


def keys_by_stem(manifest: Manifest) -> dict[str, str]:
    """Return the keys of all samples by the file names of their videos, in manifest order.

    Published features are named after the videos.

    Raises:
        ConfigError: if two samples have one file name.
    """
    keys: dict[str, str] = {}
    for key in manifest.table["key"].to_pylist():
        other = keys.setdefault(video_stem(key), key)
        if other != key:
            raise ConfigError(
                f"{manifest.info.path}: {other} and {key} have one file name, by which published "
                "features are found; make the features here instead of importing them"
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
    """Write rows atomically, with their manifest and CLIP in the metadata.

    Args:
        kind: of the file.
        file: target.
        rows: one per sample.
        manifest: list of the samples.
        backbone: CLIP that made the features, None if it is not known.
        origin: further entries of the metadata.

    Raises:
        StorageError: if the file cannot be written.
    """
    info = manifest.info
    clip = None
    if backbone is not None:
        clip = {"name": backbone.name, "weights_sha256": backbone.weights_sha256}
    metadata = {
        "format_version": FORMAT_VERSION,
        "dataset": info.dataset,
        "manifest": info.path,
        "fingerprint": info.fingerprint,
        "pool_id": info.pool_id,
        "expected": len(manifest),
        "found": len(rows),
        "width": len(rows[0].features) if rows else None,
        "clip": clip,
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
    """Read the features of samples.

    Args:
        kind: of the files.
        files: together they have all samples; the last file counts for samples in several.
        keys: sample keys [N].
        backbone: CLIP of the training, which must have made the features.

    Returns:
        float32 [N, D], rows of unit length in the order of `keys`.

    Raises:
        ConfigError: if a file cannot be read, samples are missing, or another CLIP made the
            features.
        FormatError: if a file has another form.
    """
    row_of: dict[str, int] = {}
    parts: list[FloatArray] = []
    num_rows = 0
    for file in files:
        file_keys, features_MD = _read_file(kind, file, backbone)
        for row, key in enumerate(file_keys, start=num_rows):
            row_of[key] = row
        parts.append(features_MD)
        num_rows += len(features_MD)

    missing = [key for key in keys if key not in row_of]
    if missing:
        raise ConfigError(
            f"{', '.join(map(str, files))}: {len(missing)} of {len(keys)} samples have no "
            f"{kind.has} (the first: {missing[0]}); make it for all of this manifest with "
            f"`bmpt {kind.name}`"
        )
    return np.concatenate(parts)[[row_of[key] for key in keys]]


def _read_file(kind: FileKind, file: Path, backbone: Backbone) -> tuple[list[str], FloatArray]:
    """Return keys and features of all samples of a file."""
    try:
        table = read_parquet(file.read_bytes(), where=str(file))
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {os_error_text(error)}; make it with "
            f"`bmpt {kind.name} POOL MANIFEST --out {file}`"
        ) from None
    _check_clip(kind, _parse_metadata(kind, table, file), backbone, file)

    width = backbone.joint_width
    lists = table["features"].combine_chunks()
    if any(length != width for length in lists.value_lengths().to_pylist()):
        raise ConfigError(
            f"{file}: its features have {lists.value_lengths()[0]} values, those of "
            f"{backbone.name} have {width}; make it again with this CLIP"
        )

    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    features_MD = values.reshape(-1, width)
    # not `>=`, which would let NaN pass
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
    """Compute the CLIP text features of texts on the device of the backbone.

    Args:
        backbone: the CLIP.
        texts: at least one text (L).
        progress: shows how many sentences are encoded.

    Returns:
        float32 [L, D] on the CPU, rows of unit length.
    """
    device = next(backbone.model.parameters()).device
    batches = []

    for start in range(0, len(texts), _TEXTS_PER_BATCH):
        end = min(start + _TEXTS_PER_BATCH, len(texts))
        ids = backbone.tokenize(list(texts[start:end])).to(device)
        batches.append(encode_texts(backbone.model, ids).float().cpu())
        progress.update("sentences", end, len(texts))

    return F.normalize(torch.cat(batches), dim=-1)


def _parse_metadata(kind: FileKind, table: pa.Table, file: Path) -> dict[str, Any]:
    """Raises: FormatError for a table of another kind or version."""
    try:
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
        clip = metadata["clip"]
        is_clip = clip is None or {"name", "weights_sha256"} <= clip.keys()
        is_of_kind = is_clip and table.schema.remove_metadata().equals(kind.schema)
    except (KeyError, ValueError, AttributeError, TypeError):
        is_of_kind = False

    if not is_of_kind or metadata.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{file}: is not a file of {kind.name}, format {FORMAT_VERSION}; make one with "
            f"`bmpt {kind.name}`"
        )
    return metadata


def _check_clip(kind: FileKind, metadata: dict[str, Any], backbone: Backbone, file: Path) -> None:
    clip = metadata["clip"]
    if clip is not None and clip["weights_sha256"] != backbone.weights_sha256:
        raise ConfigError(
            f"{file}: its features were made by {clip['name']} {clip['weights_sha256'][:12]}, "
            f"training uses {backbone.name} {backbone.weights_sha256[:12]}; {kind.again}"
        )
