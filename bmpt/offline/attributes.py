"""`attributes.parquet`: the names that fit each clip best (BIKE), as a sentence and its CLIP text
feature.

Source: Wu et al. 2023, which ranks the names of a lexicon. The program for that is not published,
    the JSON files that
it wrote are: they are read here too. A name's cosine is that of its sentence and the mean of the
    clip's frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
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
from bmpt.texts.class_texts import cut_warning, readable
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
            pa.field("attributes", pa.list_(pa.string()), nullable=False),  # best first
            pa.field("text", pa.string(), nullable=False),  # the sentence of the first 5
            FEATURES_FIELD,
        ]
    ),
    again="run `bmpt attributes` with this CLIP",
)
_CLIPS_AT_ONCE = 16
_MAX_LISTED = 10


@dataclass(frozen=True)
class AttributesRow(FeatureRow):
    """The other columns of the file. attributes: best first"""

    attributes: list[str]
    text: str


@dataclass(frozen=True)
class AttributesReport:
    """What `bmpt attributes` has done.

    source: the lexicon or the published file; entries: names or videos in it; used: of them, by any
        sample
    missing: keys of samples without attributes; problems: why, for each of them
    warning: sentences that CLIP cuts, or None"""

    file: str
    source: str
    expected: int
    written: int
    entries: int
    used: int
    missing: list[str]
    problems: list[str]
    warning: str | None

    @property
    def is_complete(self) -> bool:
        """Whether every sample of the manifest has its attributes."""
        return not self.missing


def read_attributes(files: Sequence[Path], keys: Sequence[str], backbone: Backbone) -> FloatArray:
    """Features of some samples' sentences: float32 [N, D], unit rows, in the order of `keys`.

    files: which together have all of them. Raises as `read_features`."""
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
    """Give every sample the `top` names that fit 8 frames of it best, centre crop; computed on the
    CLIP's device.

    lexicon: where the names come from; they are written as words (`ApplyEyeMakeup` -> `apply eye
        makeup`) and used
    once each. A sample that cannot be read is left out of the file and named.
    Raises: ConfigError, FormatError, StorageError; the file is written whole or not at all."""
    check_target(file)
    for name in names:
        if not is_utf8(name):
            raise ConfigError(f"{lexicon}: {name!r} is not UTF-8; convert the file")
    words = list(dict.fromkeys(readable(name) for name in names))
    if len(words) < top:
        raise ConfigError(
            f"{lexicon}: has {len(words)} different names, --top asks for {top}; add names or ask for fewer"
        )
    attributes, problems = _rank(pool, manifest, words, backbone, top, num_workers, progress)
    found = _Found(
        source=lexicon,
        entries=len(words),
        used=len({name for chosen in attributes.values() for name in chosen}),
        attributes=attributes,
        problems=problems,
        origin={
            "lexicon": lexicon.name,
            "names": len(words),
            "names_sha256": hashlib.sha256("\n".join(words).encode()).hexdigest(),
            "frames": NUM_FRAMES,
        },
    )
    return _write(found, manifest, backbone, file, progress)


def import_attributes(
    source: Path,
    manifest: Manifest,
    backbone: Backbone,
    file: Path,
    *,
    top: int = NUM_ATTRIBUTES,
    progress: Progress = NullProgress(),
) -> AttributesReport:
    """Take the `top` first names of each sample from BIKE's JSON {video path: {"classname_topk":
    [names]}}.

    A sample's entry is the one whose path ends in the name of its video, with or without an
    extension.
    Raises: ConfigError for a file of another data set or two entries of one sample, FormatError
        naming an entry that
    is something else, StorageError; nothing is written then."""
    check_target(file)
    data = _read_bytes(source)
    entries = _parse_published(data, source)
    stems = keys_by_stem(manifest)
    found: dict[str, tuple[str, list[str]]] = {}
    for path, names in entries:
        last = path.rstrip("/").rpartition("/")[2]
        # whole first: the folder of a video's frames may have a dot in its name
        key = stems.get(last) or stems.get(last.rpartition(".")[0])
        if key in found:
            raise ConfigError(
                f"{source}: {found[key][0]!r} and {path!r} are both of {key}; remove one of the entries"
            )
        if key is not None:
            found[key] = (path, names)
    if not found:
        raise ConfigError(
            f"{source}: none of its {len(entries)} entries (the first: {entries[0][0]!r}) is of the {len(stems)} "
            f"samples of {manifest.info.path} (the first: {next(iter(stems), None)!r}); give the file of this list"
        )
    imported = _Found(
        source=source,
        entries=len(entries),
        used=len(found),
        attributes={key: found[key][1][:top] for key in stems.values() if key in found},
        problems={key: "no entry" for key in stems.values() if key not in found},
        origin={"imported": source.name, "imported_sha256": hashlib.sha256(data).hexdigest()},
    )
    return _write(imported, manifest, backbone, file, progress)


def attributes_text(done: AttributesReport) -> str:
    """The outcome for people."""
    more = len(done.missing) - _MAX_LISTED
    pairs = list(zip(done.missing, done.problems, strict=True))[:_MAX_LISTED]
    return "\n".join(
        [
            f"{done.file}: attributes of {done.written} of {done.expected} samples ({len(done.missing)} without)",
            *(f"  no attributes: {key}: {why}" for key, why in pairs),
            *([f"  ... and {more} more; --json lists all"] if more > 0 else []),
            f"{done.source}: {done.used} of {done.entries} entries used",
        ]
    )


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
    """Names by key, best first, and why others have none, by key."""
    clip = ClipSettings(frames=NUM_FRAMES, size_px=backbone.image_size_px)
    settings = BlockSettings(block_size=_CLIPS_AT_ONCE, num_workers=num_workers)
    loader = build_eval_loader(pool, manifest, clip, settings)
    words_LD = encode_unit_texts(backbone, [attribute_text([word]) for word in words])
    attributes: dict[str, list[str]] = {}
    problems: dict[str, str] = {}
    for clips in loader:
        cosines_BL = mean_frame_cosines(_frame_features(backbone, clips).cpu(), words_LD)
        for key, failure, best in zip(
            clips.keys, clips.failures, top_classes(cosines_BL.numpy(), top), strict=True
        ):
            if failure is None:
                attributes[key] = [words[index] for index in best]
            else:
                problems[key] = failure
        progress.update("clips", len(attributes) + len(problems), len(manifest))
    return attributes, problems


def _frame_features(backbone: Backbone, clips: ClipBatch) -> torch.Tensor:
    """CLIP's image features [B, T, D], not normalised."""
    device = next(backbone.model.parameters()).device
    frames_BVTCHW = normalize(
        clips.frames_BVTCHW.to(device), backbone.image_mean, backbone.image_std
    )
    tokens_NSD = encode_frames(backbone.model, frames_BVTCHW.flatten(0, 2), num_frames=NUM_FRAMES)
    return tokens_NSD[:, 0].unflatten(0, (-1, NUM_FRAMES))


@dataclass(frozen=True)
class _Found:
    """attributes: by key, best first; problems: by key, why a sample has none; origin: for the
    metadata of the file"""

    source: Path
    entries: int
    used: int
    attributes: dict[str, list[str]]
    problems: dict[str, str]
    origin: dict[str, Any]


def _write(
    found: _Found,
    manifest: Manifest,
    backbone: Backbone,
    file: Path,
    progress: Progress,
) -> AttributesReport:
    """Encode the sentences of at least one sample and write the file."""
    texts = [attribute_text(names) for names in found.attributes.values()]
    features_ND = encode_unit_texts(backbone, texts, progress=progress).numpy()
    rows = [
        AttributesRow(key, features_D, names, text)
        for (key, names), text, features_D in zip(
            found.attributes.items(), texts, features_ND, strict=True
        )
    ]
    write_features(ATTRIBUTES, file, rows, manifest, backbone, **found.origin)
    return AttributesReport(
        file=str(file),
        source=str(found.source),
        expected=len(manifest),
        written=len(rows),
        entries=found.entries,
        used=found.used,
        missing=list(found.problems),
        problems=list(found.problems.values()),
        warning=cut_warning(backbone, texts, what="attribute sentences"),
    )


def _read_bytes(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror or error}") from None


def _parse_published(data: bytes, source: Path) -> list[tuple[str, list[str]]]:
    """(video path, names, best first) of every entry, a path that is there twice too. Raises:
    FormatError."""
    form = f'{{video path: {{"{PUBLISHED_FIELD}": [names]}}}}'
    try:
        videos = json.loads(
            data, object_pairs_hook=tuple
        )  # a dict would keep the last of two equal paths alone
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
                f'{source}: entry {path!r} is {str(value)[:80]}, expected {{"{PUBLISHED_FIELD}": [names]}}; correct '
                "or remove it"
            )
        entries.append((path, names))
    return entries


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_utf8(value)
