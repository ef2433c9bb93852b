"""`knowledge.parquet`: the CLIP text feature of each training clip's knowledge text, or a published
one (BMPT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bmpt.clip.backbone import Backbone
from bmpt.texts.text_features import (
    FEATURES_FIELD,
    UNIT_TOLERANCE,
    FeatureRow,
    FileKind,
    FloatArray,
    check_target,
    keys_by_stem,
    read_features,
    write_features,
)
from shards.errors import ConfigError, FormatError
from shards.reader import Manifest

POOLING = "mean of the lines' unit features, unit length"
PUBLISHED_SUFFIX = "_feature.npy"
KNOWLEDGE = FileKind(
    name="knowledge",
    has="knowledge text",
    schema=pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("text", pa.string()),  # a line a triple; null in imported files
            FEATURES_FIELD,
            pa.field("model", pa.string()),
            pa.field("prompt_version", pa.string()),
        ]
    ),
    again="run `bmpt knowledge` with this CLIP, the answers are kept",
)


@dataclass(frozen=True)
class KnowledgeRow(FeatureRow):
    """The other columns of the file."""

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


def write_knowledge(
    file: Path, rows: Sequence[KnowledgeRow], manifest: Manifest, backbone: Backbone | None
) -> None:
    """Write the rows atomically; backbone: the CLIP that made the features, None for published
    ones.

    Raises: StorageError."""
    write_features(
        KNOWLEDGE, file, rows, manifest, backbone, pooling=None if backbone is None else POOLING
    )


def read_knowledge(file: Path, keys: Sequence[str], backbone: Backbone) -> FloatArray:
    """The features of some samples: float32 [N, D], unit rows, in the order of `keys`. Raises as
    `read_features`."""
    return read_features(KNOWLEDGE, [file], keys, backbone)


def import_features(folder: Path, manifest: Manifest, file: Path) -> ImportReport:
    """Make a knowledge file of published `<video>_feature.npy` files, each float32 [1, D], unit
    length.

    A sample's file is named by the last part of its key. Raises: ConfigError naming the folder, or
    FormatError the file that is something else; nothing is written then."""
    check_target(file)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: is no folder; unpack the published archive and give its folder"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{PUBLISHED_SUFFIX}")):
        other = files.setdefault(path.name.removesuffix(PUBLISHED_SUFFIX), path)
        if other != path:
            raise ConfigError(
                f"{folder}: holds both {other} and {path}; give the folder of one data set"
            )
    stems = keys_by_stem(manifest)
    found = {stem: key for stem, key in stems.items() if stem in files}
    if not found:
        raise ConfigError(
            f"{folder}: none of its {len(files)} {PUBLISHED_SUFFIX} files is of the {len(stems)} samples of "
            f"{manifest.info.path}, for example {next(iter(stems), 'none')}; give the folder of this list"
        )
    rows = [KnowledgeRow(key, _read_published(files[stem])) for stem, key in found.items()]
    first_stem = next(iter(found))
    for stem, row in zip(found, rows, strict=True):
        if len(row.features) != len(rows[0].features):
            raise FormatError(
                f"{files[stem]}: has {len(row.features)} values, {files[first_stem]} has {len(rows[0].features)}; get "
                "the archive again"
            )
    write_knowledge(file, rows, manifest, backbone=None)
    return ImportReport(
        file=str(file),
        expected=len(stems),
        written=len(rows),
        unused=len(files) - len(found),
        missing=[key for stem, key in stems.items() if stem not in files],
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
        raise FormatError(
            f"{path}: is not a NumPy array: {' '.join(str(error).split())[:120]}; get it again"
        ) from None
    is_vector = (
        isinstance(values, np.ndarray)
        and values.dtype.kind == "f"
        and values.shape[-1:] == (values.size,)
    )
    is_unit = is_vector and abs(float(np.linalg.norm(values)) - 1) < UNIT_TOLERANCE  # NaN is not
    if not is_unit:
        what = (
            f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else "no array"
        )
        raise FormatError(
            f"{path}: is {what}, expected one feature [1, D] of unit length; get it again"
        )
    return values.reshape(-1).astype(np.float32)
