"""Read, write and import `knowledge.parquet`: a CLIP text feature per clip, of its knowledge text.

BMPT trains with these features. They are made by `bmpt knowledge` or come from published files."""

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
from shards.files import one_line
from shards.reader import Manifest

POOLING = "mean of the lines' unit features, unit length"
PUBLISHED_SUFFIX = "_feature.npy"
KNOWLEDGE = FileKind(
    name="knowledge",
    has="knowledge text",
    schema=pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            # one line per triple; null in imported files
            pa.field("text", pa.string()),
            FEATURES_FIELD,
            pa.field("model", pa.string()),
            pa.field("prompt_version", pa.string()),
        ]
    ),
    again="run `bmpt knowledge` with this CLIP, which reuses the answers",
)
_ERROR_CHARACTERS = 120


@dataclass(frozen=True)
class KnowledgeRow(FeatureRow):
    """The row of a sample; the fields are None in imported files."""

    text: str | None = None
    """Knowledge text of the clip, one line per triple."""
    model: str | None = None
    """Vision-language model that wrote the text."""
    prompt_version: str | None = None
    """Version of the question that the model was asked."""


@dataclass(frozen=True)
class ImportReport:
    """Result of an import of published features."""

    file: str
    """File that was written."""
    expected: int
    """Number of samples in the manifest."""
    written: int
    """Number of samples with a feature."""
    unused: int
    """Number of published files that belong to no sample of the manifest."""
    missing: list[str]
    """Keys of the samples without a feature."""

    @property
    def is_complete(self) -> bool:
        """Whether every sample of the manifest has a feature."""
        return not self.missing


def write_knowledge(
    file: Path, rows: Sequence[KnowledgeRow], manifest: Manifest, backbone: Backbone | None
) -> None:
    """Write the rows atomically.

    Args:
        file: target.
        rows: one per sample.
        manifest: list of the samples.
        backbone: CLIP that made the features, None for published ones.

    Raises:
        StorageError: if the file cannot be written.
    """
    pooling = None if backbone is None else POOLING
    write_features(KNOWLEDGE, file, rows, manifest, backbone, pooling=pooling)


def read_knowledge(file: Path, keys: Sequence[str], backbone: Backbone) -> FloatArray:
    """Read the features of samples; arguments, result and errors are those of `read_features`."""
    return read_features(KNOWLEDGE, [file], keys, backbone)


def import_features(folder: Path, manifest: Manifest, file: Path) -> ImportReport:
    """Make a knowledge file from published files, `<video>_feature.npy` for each sample.

    Each is float32 [1, D] of unit length. `<video>` is the last part of a sample's key. Nothing is
    written if an error is raised.

    Args:
        folder: the published files, in any subfolders.
        manifest: list of the samples.
        file: target.

    Raises:
        ConfigError: if the folder does not have files of these samples, or two for one name.
        FormatError: if a published file has another form.
        StorageError: if the target cannot be written.
    """
    check_target(file)
    files = _find_published(folder)

    stems = keys_by_stem(manifest)
    present = {stem: key for stem, key in stems.items() if stem in files}
    if not present:
        raise ConfigError(
            f"{folder}: none of its {len(files)} {PUBLISHED_SUFFIX} files belongs to one of the "
            f"{len(stems)} samples of {manifest.info.path}, for example "
            f"{next(iter(stems), 'none')}; give the folder of this list"
        )

    rows = [KnowledgeRow(key, _read_published(files[stem])) for stem, key in present.items()]
    first_stem = next(iter(present))
    for stem, row in zip(present, rows, strict=True):
        if len(row.features) != len(rows[0].features):
            raise FormatError(
                f"{files[stem]}: has {len(row.features)} values, {files[first_stem]} has "
                f"{len(rows[0].features)}; get the archive again"
            )

    write_knowledge(file, rows, manifest, backbone=None)
    return ImportReport(
        file=str(file),
        expected=len(stems),
        written=len(rows),
        unused=len(files) - len(present),
        missing=[key for stem, key in stems.items() if stem not in files],
    )


def _find_published(folder: Path) -> dict[str, Path]:
    """Return the published files of a folder by the names of their videos."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: is not a folder; unpack the published archive and give its folder"
        )

    files: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{PUBLISHED_SUFFIX}")):
        other = files.setdefault(path.name.removesuffix(PUBLISHED_SUFFIX), path)
        if other != path:
            raise ConfigError(
                f"{folder}: holds both {other} and {path}; give the folder of one data set"
            )
    return files


def import_text(report: ImportReport) -> str:
    """Return the report as text for a terminal."""
    first = f", the first {report.missing[0]}" if report.missing else ""
    return (
        f"{report.file}: published features of {report.written} of {report.expected} samples "
        f"({len(report.missing)} missing{first}; {report.unused} files not used)\n"
        "The files do not state which CLIP made them: only their width is checked."
    )


def _read_published(path: Path) -> FloatArray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(
            f"{path}: is not a NumPy array: {one_line(error)[:_ERROR_CHARACTERS]}; get it again"
        ) from None

    # np.load returns another type for an archive of arrays
    if isinstance(values, np.ndarray):
        actual = f"{values.dtype} {list(values.shape)}"
        is_vector = values.dtype.kind == "f" and values.shape[-1:] == (values.size,)
    else:
        actual, is_vector = "several arrays", False

    # False for NaN
    is_unit = is_vector and abs(float(np.linalg.norm(values)) - 1) < UNIT_TOLERANCE
    if not is_unit:
        raise FormatError(
            f"{path}: is {actual}, expected one feature [1, D] of unit length; get it again"
        )
    return values.reshape(-1).astype(np.float32)
