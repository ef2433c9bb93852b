"""`knowledge.parquet`: one CLIP text feature a training clip, keyed by sample key; written once, read by training.

The file says which CLIP made the features. Published ones (BMPT's `<video>_feature.npy`) do not, so only their width
is checked."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ConfigError, FormatError
from shards.reader import Manifest
from shards.storage import open_store
from shards.tables import read_parquet

if TYPE_CHECKING:
    from bmpt.clip import Backbone

FORMAT_VERSION = 1
METADATA_KEY = b"bmpt"
POOLING = "mean of the lines' unit features, unit length"
PUBLISHED_SUFFIX = "_feature.npy"
KNOWLEDGE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("text", pa.string()),  # a line a triple; null in imported files
        pa.field("features", pa.list_(pa.float32()), nullable=False),  # [D], unit length
        pa.field("model", pa.string()),
        pa.field("prompt_version", pa.string()),
    ]
)
_UNIT_TOLERANCE = 1e-3

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class KnowledgeRow:
    """features: float32 [D], unit length; the other fields are columns of the file"""

    key: str
    features: FloatArray
    text: str | None = None
    model: str | None = None
    prompt_version: str | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import of published features did. unused: files that no sample of the manifest has"""

    file: str
    expected: int
    written: int
    unused: int
    missing: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether every sample of the manifest has its features."""
        return not self.missing


def write_knowledge(file: Path, rows: Sequence[KnowledgeRow], manifest: Manifest, backbone: Backbone | None) -> None:
    """Write the rows atomically, with the manifest and the CLIP that they belong to. Raises: StorageError."""
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
        "pooling": POOLING if backbone is not None else None,
        "clip": None if backbone is None else {"name": backbone.name, "weights_sha256": backbone.weights_sha256},
    }
    columns = {name: [getattr(row, name) for row in rows] for name in KNOWLEDGE_SCHEMA.names}
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    table = pa.table(columns, schema=KNOWLEDGE_SCHEMA).replace_schema_metadata({METADATA_KEY: text.encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    open_store(file.absolute().parent).put(file.name, buffer.getvalue())


def read_knowledge(file: Path, keys: Sequence[str], backbone: Backbone) -> FloatArray:
    """The features of some samples: float32 [N, D], unit rows, in the order of `keys`.

    Raises: ConfigError that counts the keys without features, or for features of another CLIP; FormatError."""
    try:
        table = read_parquet(file.read_bytes(), where=str(file))
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror or error}; `bmpt knowledge POOL MANIFEST --out {file}` makes it"
        ) from None
    _check_clip(_metadata(table, file), backbone, file)
    row_of = {key: row for row, key in enumerate(table["key"].to_pylist())}
    missing = [key for key in keys if key not in row_of]
    if missing:
        raise ConfigError(
            f"{file}: {len(missing)} of {len(keys)} samples have no knowledge text (the first: {missing[0]}); make it "
            "for this manifest with `bmpt knowledge`, or import features for all of it"
        )
    width = _joint_width(backbone)
    lists = table["features"].combine_chunks()
    if any(length != width for length in lists.value_lengths().to_pylist()):
        raise ConfigError(
            f"{file}: its features have {lists.value_lengths()[0]} values, those of {backbone.name} {width}; make it "
            "again with this CLIP"
        )
    features_MD = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
    features_ND = features_MD[[row_of[key] for key in keys]]
    if not np.all(np.abs(np.linalg.norm(features_ND, axis=1) - 1) < _UNIT_TOLERANCE):
        raise FormatError(f"{file}: holds features that are not of unit length; make it again")
    return features_ND


def import_features(folder: Path, manifest: Manifest, file: Path) -> ImportReport:
    """Make a knowledge file of published `<video>_feature.npy` files, each float32 [1, D], unit length.

    A sample's file is named by the last part of its key. Raises: ConfigError naming the folder, or FormatError the
    file that is something else; nothing is written then."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; unpack the published archive and give its folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{PUBLISHED_SUFFIX}")):
        other = files.setdefault(path.name.removesuffix(PUBLISHED_SUFFIX), path)
        if other != path:
            raise ConfigError(f"{folder}: holds both {other} and {path}; give the folder of one data set")
    keys = manifest.table["key"].to_pylist()
    names = {key: unquote(key.rpartition("/")[2]) for key in keys}
    found = [key for key in keys if names[key] in files]
    if not found:
        raise ConfigError(
            f"{folder}: none of its {len(files)} {PUBLISHED_SUFFIX} files is of the {len(keys)} samples of "
            f"{manifest.info.path}, for example {names[keys[0]] if keys else 'none'}; give the folder of this list"
        )
    rows = [KnowledgeRow(key, _read_published(files[names[key]])) for key in found]
    for row in rows:
        if len(row.features) != len(rows[0].features):
            raise FormatError(
                f"{files[names[row.key]]}: has {len(row.features)} values, {files[names[rows[0].key]]} has "
                f"{len(rows[0].features)}; get the archive again"
            )
    write_knowledge(file, rows, manifest, backbone=None)
    return ImportReport(
        file=str(file),
        expected=len(keys),
        written=len(rows),
        unused=len(files) - len({names[key] for key in found}),
        missing=[key for key in keys if names[key] not in files],
    )


def import_text(done: ImportReport) -> str:
    """The outcome for people."""
    first = f", the first {done.missing[0]}" if done.missing else ""
    return (
        f"{done.file}: published features of {done.written} of {done.expected} samples ({len(done.missing)} "
        f"missing{first}; {done.unused} files not used)\n"
        "which CLIP made them is not known: their width alone is checked"
    )


def _read_published(path: Path) -> FloatArray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(f"{path}: is not a NumPy array: {' '.join(str(error).split())[:120]}; get it again") from None
    is_vector = isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.shape[-1:] == (values.size,)
    is_unit = is_vector and abs(float(np.linalg.norm(values)) - 1) < _UNIT_TOLERANCE  # NaN is not
    if not is_unit:
        what = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else "no array"
        raise FormatError(f"{path}: is {what}, expected one feature [1, D] of unit length; get it again")
    return values.reshape(-1).astype(np.float32)


def _metadata(table: pa.Table, file: Path) -> dict[str, Any]:
    """Raises: FormatError for a table of another kind or version."""
    try:
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
        is_knowledge = table.schema.names == KNOWLEDGE_SCHEMA.names and "clip" in metadata
    except (KeyError, ValueError):
        is_knowledge = False
    if not is_knowledge or metadata.get("format_version") != FORMAT_VERSION:
        raise FormatError(f"{file}: is no knowledge file of format {FORMAT_VERSION}; `bmpt knowledge` makes one")
    return metadata


def _check_clip(metadata: dict[str, Any], backbone: Backbone, file: Path) -> None:
    clip = metadata["clip"]
    if clip is not None and clip["weights_sha256"] != backbone.weights_sha256:
        raise ConfigError(
            f"{file}: its features are of {clip['name']} {clip['weights_sha256'][:12]}, training uses {backbone.name} "
            f"{backbone.weights_sha256[:12]}; run `bmpt knowledge` with this CLIP, the answers are kept"
        )


def _joint_width(backbone: Backbone) -> int:
    """D."""
    return int(backbone.model.visual.proj.shape[1])
