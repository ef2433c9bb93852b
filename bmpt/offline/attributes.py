"""BIKE's attributes: the names that fit each clip best, as a sentence and its CLIP text feature.

Source: Wu et al. 2023, who rank the names of a lexicon. Their program is not published; the JSON
files that it wrote are, and can be imported. The score of a name is the cosine of its sentence and
the mean of the clip's frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from bmpt.clip.backbone import Backbone
from bmpt.clip.normalize import normalize
from bmpt.clip.towers import encode_frames
from bmpt.methods.components.bike_attributes import NUM_ATTRIBUTES, attribute_text
from bmpt.methods.components.bike_video import mean_frame_cosines
from bmpt.runtime.metrics import top_classes
from bmpt.texts.class_texts import readable, truncation_warning
from bmpt.texts.text_features import (
    FEATURES_FIELD,
    FeatureRow,
    FileKind,
    FloatArray,
    check_target,
    encode_unit_texts,
    keys_by_stem,
    read_features,
    write_features,
)
from shards.errors import ConfigError, FormatError
from shards.files import os_error_text
from shards.format.names import is_utf8
from shards.loader import build_eval_loader
from shards.progress import NullProgress, Progress
from shards.reader import Manifest, Pool
from shards.sampling.clip_settings import ClipSettings
from shards.stream.batches import ClipBatch
from shards.stream.settings import BlockSettings

NUM_FRAMES = 8
PUBLISHED_FIELD = "classname_topk"
ATTRIBUTES = FileKind(
    name="attributes",
    has="attributes",
    schema=pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            # Best first.
            pa.field("attributes", pa.list_(pa.string()), nullable=False),
            # The sentence of the first five.
            pa.field("text", pa.string(), nullable=False),
            FEATURES_FIELD,
        ]
    ),
    again="run `bmpt attributes` with this CLIP",
)
_CLIPS_PER_BLOCK = 16
_MAX_LISTED = 10


@dataclass(frozen=True)
class AttributesRow(FeatureRow):
    """A row of the file."""

    attributes: list[str]
    """Best first."""
    text: str
    """The sentence of the first five."""


@dataclass(frozen=True)
class AttributesReport:
    """The result of `bmpt attributes`."""

    file: str
    source: str
    """The lexicon or the published file."""
    expected: int
    """Samples of the manifest."""
    written: int
    """Samples in the file."""
    entries: int
    """Names in the lexicon, or videos in the published file."""
    used: int
    """Entries that a sample uses."""
    missing: list[str]
    """Keys of samples without attributes."""
    problems: list[str]
    """The reason for each missing sample."""
    warning: str | None
    """Sentences that CLIP truncates, or None."""

    @property
    def is_complete(self) -> bool:
        """Return whether every sample of the manifest has attributes."""
        return not self.missing


def read_attributes(files: Sequence[Path], keys: Sequence[str], backbone: Backbone) -> FloatArray:
    """Return the features of some samples' sentences.

    Args:
        files: together they hold all samples.
        keys: of the samples.
        backbone: the CLIP that the features must be of.

    Returns:
        float32 [N, D], rows of unit length in the order of `keys`.

    Raises:
        ConfigError, FormatError: as `read_features`.
    """
    return read_features(ATTRIBUTES, files, keys, backbone)


def rank_attributes(
    pool: Pool,
    manifest: Manifest,
    lexicon: Path,
    names: Sequence[str],
    backbone: Backbone,
    file: Path,
    *,
    top: int = NUM_ATTRIBUTES,
    num_workers: int = 0,
    progress: Progress = NullProgress(),
) -> AttributesReport:
    """Write the names that fit each sample best, by eight frames with a centre crop.

    The report names the samples that cannot be read, which are not in the file.

    Args:
        pool: of the manifest.
        manifest: the samples.
        lexicon: file of the names, for messages.
        names: the names to choose from. They are written as words (`ApplyEyeMakeup` becomes `apply
            eye makeup`), and repeated ones count once.
        backbone: the CLIP; its device computes.
        file: the Parquet file.
        top: names per sample.
        num_workers: processes that decode frames.
        progress: shows the clips, then the sentences.

    Raises:
        ConfigError: for a lexicon that is too short or not UTF-8.
        StorageError: if the file cannot be written; it is written completely or not at all.
    """
    check_target(file)
    for name in names:
        if not is_utf8(name):
            raise ConfigError(f"{lexicon}: {name!r} is not UTF-8; convert the file")
    words = list(dict.fromkeys(readable(name) for name in names))
    if len(words) < top:
        raise ConfigError(
            f"{lexicon}: has {len(words)} different names, --top asks for {top}; "
            "add names or ask for fewer"
        )

    attributes, problems = _rank(pool, manifest, words, backbone, top, num_workers, progress)
    origin = {
        "lexicon": lexicon.name,
        "names": len(words),
        "names_sha256": hashlib.sha256("\n".join(words).encode()).hexdigest(),
        "frames": NUM_FRAMES,
    }
    texts = _write(file, attributes, origin, manifest, backbone, progress)
    return _report(
        file,
        lexicon,
        manifest,
        attributes,
        problems,
        entries=len(words),
        used=len(set(chain.from_iterable(attributes.values()))),
        warning=truncation_warning(backbone, texts, what="attribute sentences"),
    )


def import_attributes(
    source: Path,
    manifest: Manifest,
    backbone: Backbone,
    file: Path,
    *,
    top: int = NUM_ATTRIBUTES,
    progress: Progress = NullProgress(),
) -> AttributesReport:
    """Import the first names of each sample from BIKE's {video path: {"classname_topk": [names]}}.

    The entry of a sample is the one whose path ends in the name of its video, with or without an
    extension.

    Args:
        source: the published JSON file.
        manifest: the samples.
        backbone: the CLIP that encodes the sentences.
        file: the Parquet file.
        top: names per sample.
        progress: shows the sentences.

    Raises:
        ConfigError: for a file of another data set, or two entries for one sample.
        FormatError: naming an entry of another form.
        StorageError: if the file cannot be written; nothing is written after an error.
    """
    check_target(file)
    data = _read_bytes(source)
    entries = _parse_published(data, source)
    key_of = keys_by_stem(manifest)
    entry_of: dict[str, tuple[str, list[str]]] = {}

    for path, names in entries:
        name = path.rstrip("/").rpartition("/")[2]
        # The whole name first: the folder of a video's frames may have a dot in its name.
        key = key_of.get(name) or key_of.get(name.rpartition(".")[0])
        if key in entry_of:
            raise ConfigError(
                f"{source}: {entry_of[key][0]!r} and {path!r} are both of {key}; "
                "remove one of the entries"
            )
        if key is not None:
            entry_of[key] = (path, names)

    if not entry_of:
        raise ConfigError(
            f"{source}: none of its {len(entries)} entries (the first: {entries[0][0]!r}) is of "
            f"the {len(key_of)} samples of {manifest.info.path} "
            f"(the first: {next(iter(key_of), None)!r}); give the file of this list"
        )

    attributes, problems = {}, {}
    for key in key_of.values():
        if key in entry_of:
            attributes[key] = entry_of[key][1][:top]
        else:
            problems[key] = "no entry"

    origin = {"imported": source.name, "imported_sha256": hashlib.sha256(data).hexdigest()}
    texts = _write(file, attributes, origin, manifest, backbone, progress)
    return _report(
        file,
        source,
        manifest,
        attributes,
        problems,
        entries=len(entries),
        used=len(entry_of),
        warning=truncation_warning(backbone, texts, what="attribute sentences"),
    )


def attributes_text(done: AttributesReport) -> str:
    """Return the counts, and one line per sample without attributes."""
    lines = [
        f"{done.file}: attributes of {done.written} of {done.expected} samples "
        f"({len(done.missing)} without)"
    ]

    problems = list(zip(done.missing, done.problems, strict=True))
    for key, problem in problems[:_MAX_LISTED]:
        lines.append(f"  no attributes: {key}: {problem}")
    num_more = len(problems) - _MAX_LISTED
    if num_more > 0:
        lines.append(f"  ... and {num_more} more; --json lists all")

    lines.append(f"{done.source}: {done.used} of {done.entries} entries used")
    return "\n".join(lines)


@torch.no_grad()
def _rank(
    pool: Pool,
    manifest: Manifest,
    words: Sequence[str],
    backbone: Backbone,
    top: int,
    num_workers: int,
    progress: Progress,
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return names by key, best first, and the reason by key for samples without names."""
    clip = ClipSettings(frames=NUM_FRAMES, size_px=backbone.image_size_px)
    settings = BlockSettings(block_size=_CLIPS_PER_BLOCK, num_workers=num_workers)
    loader = build_eval_loader(pool, manifest, clip, settings)

    words_LD = encode_unit_texts(backbone, [attribute_text([word]) for word in words])
    attributes: dict[str, list[str]] = {}
    problems: dict[str, str] = {}

    for clips in loader:
        cosines_BL = mean_frame_cosines(_frame_features(backbone, clips).cpu(), words_LD)
        best_BK = top_classes(cosines_BL.numpy(), top)
        for key, failure, best in zip(clips.keys, clips.failures, best_BK, strict=True):
            if failure is None:
                attributes[key] = [words[index] for index in best]
            else:
                problems[key] = failure
        progress.update("clips", len(attributes) + len(problems), len(manifest))
    return attributes, problems


def _frame_features(backbone: Backbone, clips: ClipBatch) -> torch.Tensor:
    """Return CLIP's image features [B, T, D], not normalised."""
    device = next(backbone.model.parameters()).device
    frames_BVTCHW = normalize(
        clips.frames_BVTCHW.to(device), backbone.image_mean, backbone.image_std
    )
    tokens_NSD = encode_frames(backbone.model, frames_BVTCHW.flatten(0, 2), num_frames=NUM_FRAMES)
    return tokens_NSD[:, 0].unflatten(0, (-1, NUM_FRAMES))


def _write(
    file: Path,
    attributes: Mapping[str, list[str]],
    origin: Mapping[str, Any],
    manifest: Manifest,
    backbone: Backbone,
    progress: Progress,
) -> list[str]:
    """Encode the sentences of at least one sample, write the file, and return the sentences."""
    texts = [attribute_text(names) for names in attributes.values()]
    features_ND = encode_unit_texts(backbone, texts, progress=progress).numpy()

    rows = []
    for (key, names), text, features_D in zip(attributes.items(), texts, features_ND, strict=True):
        rows.append(AttributesRow(key, features_D, names, text))
    write_features(ATTRIBUTES, file, rows, manifest, backbone, **origin)
    return texts


def _report(
    file: Path,
    source: Path,
    manifest: Manifest,
    attributes: Mapping[str, list[str]],
    problems: Mapping[str, str],
    *,
    entries: int,
    used: int,
    warning: str | None,
) -> AttributesReport:
    return AttributesReport(
        file=str(file),
        source=str(source),
        expected=len(manifest),
        written=len(attributes),
        entries=entries,
        used=used,
        missing=list(problems),
        problems=list(problems.values()),
        warning=warning,
    )


def _read_bytes(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {os_error_text(error)}") from None


def _parse_published(data: bytes, source: Path) -> list[tuple[str, list[str]]]:
    """Return (video path, names with the best first) of every entry, also of a repeated path.

    Raises:
        FormatError: naming the entry.
    """
    form = f'{{video path: {{"{PUBLISHED_FIELD}": [names]}}}}'
    try:
        # Pairs instead of a dict, which would keep only the last of two equal paths.
        videos = json.loads(data, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source}: is not JSON ({error}); expected {form}") from None
    if not isinstance(videos, tuple) or not videos:
        raise FormatError(f"{source}: holds no videos; expected {form}")

    entries = []
    for path, entry in videos:
        value = dict(entry) if isinstance(entry, tuple) else entry
        names = value.get(PUBLISHED_FIELD) if isinstance(value, dict) else None
        if not isinstance(names, list) or not names or not all(_is_name(name) for name in names):
            raise FormatError(
                f"{source}: entry {path!r} is {str(value)[:80]}, "
                f'expected {{"{PUBLISHED_FIELD}": [names]}}; correct or remove it'
            )
        entries.append((path, names))
    return entries


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_utf8(value)
