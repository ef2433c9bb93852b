"""Import checkpoints of the published systems, without executing code in them.

The import fails for a key that `bmpt/checkpoints/published_keys.py` does not cover, for a missing
weight, and for a weight of another shape than the base model's: a wrong key map would only show as
a loss of accuracy."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bmpt.checkpoints.checkpoint import save_checkpoint, wrong_names
from bmpt.checkpoints.published_keys import (
    SYSTEMS,
    TOKEN_EMBEDDING,
    SortedKeys,
    has_attributes,
    sort_keys,
    split_published_state,
)
from bmpt.checkpoints.published_tensors import MethodTensors, PublishedTensors, Tensors, to_method
from bmpt.clip.backbone import Backbone, backbone_from_state, weights_metadata
from bmpt.clip.weights import read_torch_file
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from bmpt.settings import DataSettings, ModelSettings
from shards.errors import ConfigError, FormatError
from shards.files import hash_file, name_some, write_file

CLIP_FILE = "clip.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"
TENSORS_FILE = "tensors.safetensors"
# entry of the metadata of the CLIP and the tensors
REPORT_KEY = "import"
# of a checkpoint that does not state it; no tensor of these systems depends on it
_DEFAULT_FRAMES = 8
_NO_CHECKPOINT = (
    "no checkpoint of a method: the file has the attributes head without the video branch that it "
    "is scored with; import the file of the video branch, with this one as --attributes-head"
)
_OF_VIDEO = "replaced by that of the video branch"
_SYSTEM_HINT = "give the system that wrote it as --system"
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class ImportSource:
    """The files that an import has read."""

    file: str
    """Name of the checkpoint file."""
    sha256: str
    """Hash of the checkpoint file."""
    system: str
    """Published system that wrote it."""
    base: str
    """Name of the base model."""
    base_sha256: str
    """Hash of the base model's weights."""
    config: dict[str, Any] | None
    """Config in the file, None if there is none."""
    epoch: int | None
    """Number of the epoch, if the file states it."""
    attributes_file: str | None = None
    """Name of the second file, from which BIKE's attributes head was read."""
    attributes_sha256: str | None = None
    """Hash of the second file."""


@dataclass(frozen=True)
class ImportedKeys:
    """The use that an import makes of every key of a checkpoint."""

    mapped: dict[str, str]
    """CLIP's weights, {original name: CLIP's name}."""
    missing: list[str]
    """CLIP's weights that the system does not save; they are the base model's."""
    prompts: list[str]
    """Original names of prompts."""
    heads: list[str]
    """Original names of heads."""
    dropped: dict[str, str]
    """Keys without use, {original name: reason}."""
    left_out: list[str]
    """Entries of the file beside its weights."""
    unexpected: tuple[str, ...] = ()
    """Keys that no rule covers: always empty, since one of them ends the import."""


@dataclass(frozen=True)
class ImportReport:
    """Result of an import."""

    source: ImportSource
    """The files that were read."""
    keys: ImportedKeys
    """The use of every key."""
    files: tuple[str, ...] = ()
    """Files that were written."""

    def as_json(self) -> dict[str, Any]:
        """Return all fields in one object, as they are stored and printed."""
        own = {"files": self.files}
        return {**dataclasses.asdict(self.source), **dataclasses.asdict(self.keys), **own}


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A published checkpoint that has been read."""

    tensors: PublishedTensors
    """Its tensors."""
    report: ImportReport
    """Its origin, and the use of every key."""


def check_asked(file: Path, system: str) -> None:
    """Check the arguments of an import before the base model is loaded, which takes seconds.

    Raises:
        ConfigError: if the system is unknown, or the file does not exist.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"--system {system}: unknown system; choose one of {', '.join(SYSTEMS)}")
    if not file.is_file():
        raise ConfigError(f"{file}: no such checkpoint; give the published .pth or .pt file")


def import_checkpoint(file: Path, system: str, base: Backbone) -> ImportedCheckpoint:
    """Read a published checkpoint.

    Args:
        file: the published .pth or .pt file.
        system: `vifi_clip`, `bdc_clip`, `bmpt` or `bike`.
        base: the CLIP that was tuned.

    Raises:
        ConfigError: if the system is unknown, or the base is another one.
        FormatError: if the file cannot be read safely, or its keys are not those of the system.
    """
    check_asked(file, system)
    loaded = read_torch_file(file)
    state, left_out = check_published_state(file, system, loaded)

    weights = base.model.state_dict()
    keys = sort_keys(system, state, weights.keys())
    _check_keys(file, system, keys, base)
    _check_shapes(file, state, keys, base)
    tuned = {name: state[key] for key, name in keys.clip.items()}
    _check_token_embedding(file, tuned, base)

    config, epoch = loaded.get("config"), loaded.get("epoch")
    source = ImportSource(
        file=file.name,
        sha256=hash_file(file),
        system=system,
        base=base.name,
        base_sha256=base.weights_sha256,
        config=_plain(config) if isinstance(config, Mapping) else None,
        epoch=epoch if isinstance(epoch, int) else None,
    )
    imported_keys = ImportedKeys(
        mapped=keys.clip,
        missing=sorted(weights.keys() - tuned.keys()),
        prompts=keys.prompts,
        heads=keys.heads,
        dropped=keys.dropped,
        left_out=left_out,
    )
    tensors = PublishedTensors(
        clip={name: _float32(tuned.get(name, value)) for name, value in weights.items()},
        prompts={key: _float32(state[key]) for key in keys.prompts},
        heads={key: _float32(state[key]) for key in keys.heads},
    )
    return ImportedCheckpoint(tensors, ImportReport(source, imported_keys))


def join_attributes(video: ImportedCheckpoint, file: Path, base: Backbone) -> ImportedCheckpoint:
    """Add the attributes head of a second file to BIKE's video branch.

    BIKE trains the head after the video branch, with a frozen text tower.

    Args:
        video: the imported video branch.
        file: the published file with the attributes head.
        base: the CLIP that was tuned.

    Raises:
        ConfigError: if the files are not a video branch and an attributes head, or their text
            tower is not the base's.
        FormatError: as `import_checkpoint`.
    """
    source = video.report.source
    if source.system != "bike":
        raise ConfigError(
            f"--attributes-head {file}: {source.system} has no attributes head; leave it out"
        )
    if has_attributes(video.tensors.heads):
        raise ConfigError(
            f"{source.file}: has an attributes head itself; give the file of the video branch"
        )

    attributes = import_checkpoint(file, "bike", base)
    if not has_attributes(attributes.tensors.heads):
        raise ConfigError(
            f"--attributes-head {file}: has no attributes head; give BIKE's file that has one"
        )
    _check_text_tower(video, base)
    _check_text_tower(attributes, base)

    ours, theirs = video.report.keys, attributes.report.keys
    keys = dataclasses.replace(
        ours,
        heads=[*ours.heads, *theirs.heads],
        dropped={**ours.dropped, **{f"{file.name}: {key}": _OF_VIDEO for key in theirs.mapped}},
        left_out=[*ours.left_out, *(f"{file.name}: {name}" for name in theirs.left_out)],
    )
    source = dataclasses.replace(
        source,
        attributes_file=attributes.report.source.file,
        attributes_sha256=attributes.report.source.sha256,
    )
    tensors = dataclasses.replace(video.tensors, attributes=attributes.tensors.heads)
    return ImportedCheckpoint(tensors, ImportReport(source, keys))


def write_import(
    imported: ImportedCheckpoint,
    base: Backbone,
    model: ModelSettings,
    out: Path,
    *,
    classes: Sequence[str] = (),
) -> ImportReport:
    """Write the files of an import into a folder, all of them or none.

    * clip.safetensors: the published CLIP, for `model.pretrained`.
    * tensors.safetensors: prompts and heads by their original names.
    * checkpoint.safetensors: a checkpoint of our method, for `bmpt eval --checkpoint`. Its base is
      the base model, or clip.safetensors for prompts of ViFi-CLIP, which are trained on a frozen
      CLIP.

    Args:
        imported: the published checkpoint.
        base: the CLIP that was tuned.
        model: settings of the base for the checkpoint's config.
        out: folder.
        classes: class names of a classifier, in its order. Without them the classifier is stored,
            but not used for scoring.

    Returns:
        The report, with the files that were written.

    Raises:
        ConfigError: if the classifier has another number of classes, or the tensors do not fit our
            method on this base.
        StorageError: if a file cannot be written.
    """
    source, tensors = imported.report.source, imported.tensors
    report = imported.report.as_json()

    converted = to_method(source.system, tensors, base)
    checkpoint = None
    if converted is not None:
        if converted.settings.tune == "prompts":
            base = backbone_from_state(
                base.name, tensors.clip, base.architecture, where=source.file
            )
            model = ModelSettings(name=model.name, pretrained=str(out / CLIP_FILE))
        checkpoint = _as_checkpoint(source, converted, base, model, classes)

    others = {f"prompts.{key}": value for key, value in tensors.prompts.items()}
    others |= {f"heads.{key}": value for key, value in (tensors.heads | tensors.attributes).items()}

    files = [out / CLIP_FILE]
    with ExitStack() as unfinished:
        # After an error all files are removed; `pop_all` at the end keeps them.
        for name in (CLIP_FILE, TENSORS_FILE, CHECKPOINT_FILE):
            unfinished.callback((out / name).unlink, missing_ok=True)

        metadata = weights_metadata(base.architecture, **{REPORT_KEY: report})
        write_file(out / CLIP_FILE, save(tensors.clip, metadata))
        if others:
            metadata = {REPORT_KEY: json.dumps(report, sort_keys=True)}
            write_file(out / TENSORS_FILE, save(others, metadata))
            files.append(out / TENSORS_FILE)
        if checkpoint is not None:
            method, config, provenance = checkpoint
            save_checkpoint(
                out / CHECKPOINT_FILE, method, base, config, step=0, provenance=provenance
            )
            files.append(out / CHECKPOINT_FILE)
        unfinished.pop_all()

    return dataclasses.replace(imported.report, files=tuple(str(file) for file in files))


def import_text(report: ImportReport) -> str:
    """Return the report as text for a terminal."""
    source, keys = report.source, report.keys
    attributes = epoch = ""
    if source.attributes_file is not None:
        attributes = f" with the attributes head of {source.attributes_file}"
    if source.epoch is not None:
        epoch = f", epoch {source.epoch}"

    by_reason: dict[str, list[str]] = {}
    for name, reason in keys.dropped.items():
        by_reason.setdefault(reason, []).append(name)
    missing = ", ".join(f"{name} (taken from the base)" for name in keys.missing)

    lines = [
        f"{source.file}{attributes}: {source.system} on {source.base}{epoch}",
        f"mapped      {len(keys.mapped)} of CLIP, {len(keys.prompts)} of prompts, "
        f"{len(keys.heads)} of heads",
        f"missing     {missing or 'none'}",
    ]
    lines += [f"dropped     {_some(names)}: {reason}" for reason, names in by_reason.items()]
    lines += [f"left out    {', '.join(keys.left_out) or 'none'}", "unexpected  none"]
    lines += [f"wrote       {name}" for name in report.files]
    if not any(name.endswith(CHECKPOINT_FILE) for name in report.files):
        lines.append(_NO_CHECKPOINT)
    return "\n".join(lines)


def check_published_state(file: Path, system: str, loaded: Any) -> tuple[Tensors, list[str]]:
    """Split the content of a checkpoint file, and check that it has the layout of its system.

    Returns:
        The state dict without prefixes, and the names of the other entries.

    Raises:
        FormatError: if the content has another layout.
    """
    try:
        state, left_out = split_published_state(system, loaded)
    except KeyError as error:
        raise FormatError(
            f"{file}: is not a checkpoint of {system}: it has no {error}; {_SYSTEM_HINT}"
        ) from None
    except (AttributeError, TypeError):
        raise FormatError(
            f"{file}: is not a checkpoint of {system}: it holds no state dict; {_SYSTEM_HINT}"
        ) from None
    except ValueError as error:
        raise FormatError(
            f"{file}: has entries that are unknown for {system}: {error}; {_SYSTEM_HINT}"
        ) from None

    others = [name for name, value in state.items() if not torch.is_tensor(value)]
    if others:
        raise FormatError(f"{file}: {_some(others)}: not a tensor; {_SYSTEM_HINT}")
    return state, left_out


def _check_keys(file: Path, system: str, keys: SortedKeys, base: Backbone) -> None:
    """Raises: FormatError listing missing and unexpected keys."""
    if keys.missing or keys.unexpected:
        raise FormatError(
            f"{file}: does not have the keys of a {system} checkpoint on {base.name}: unexpected "
            f"{_some(keys.unexpected)}; missing {_some(keys.missing)}; {_SYSTEM_HINT} and the CLIP "
            "it was tuned from as --model"
        )


def _check_shapes(file: Path, state: Tensors, keys: SortedKeys, base: Backbone) -> None:
    """Raises: ConfigError for weights of another width than the base, or prompts that differ
    between blocks."""
    weights = base.model.state_dict()
    expected = {key: weights[name].shape for key, name in keys.clip.items()}

    first_of_tower: dict[bool, str] = {}
    for key in keys.prompts:
        width = base.vision_width if key.startswith("image_") else base.text_width
        first = first_of_tower.setdefault(key.startswith("image_"), key)
        expected[key] = torch.Size((*state[first].shape[:1], width))

    wrong = []
    for key, shape in expected.items():
        if state[key].shape != shape:
            wrong.append(f"{key} is {list(state[key].shape)}, the base has {list(shape)}")
    if wrong:
        raise ConfigError(
            f"{file}: was not tuned from {base.name}: {_some(wrong)}; give its architecture as "
            "--model"
        )


def _check_token_embedding(file: Path, tuned: Tensors, base: Backbone) -> None:
    """Raises: ConfigError if the file has a token embedding, which is never tuned, but not the
    base's."""
    ours = base.model.state_dict()[TOKEN_EMBEDDING]
    if TOKEN_EMBEDDING in tuned and not torch.equal(tuned[TOKEN_EMBEDDING].float(), ours):
        raise ConfigError(
            f"{file}: was not tuned from {base.name} ({base.weights_sha256[:12]}): its token "
            "embedding is another; give the weights it was tuned from as --pretrained"
        )


def _check_text_tower(imported: ImportedCheckpoint, base: Backbone) -> None:
    """Raises: ConfigError if a weight of the text tower is not the base's."""
    weights = base.model.state_dict()
    tuned = []
    for name, value in imported.tensors.clip.items():
        is_text = not name.startswith(("visual.", "logit_scale"))
        if is_text and not torch.equal(value, _float32(weights[name])):
            tuned.append(name)
    if tuned:
        raise ConfigError(
            f"{imported.report.source.file}: its text tower is not that of {base.name}, whose "
            f"features an attributes head compares: {_some(tuned)}; give the weights it was tuned "
            "from as --pretrained"
        )


def _as_checkpoint(
    source: ImportSource,
    converted: MethodTensors,
    base: Backbone,
    model: ModelSettings,
    classes: Sequence[str],
) -> tuple[Method, RunConfig, dict[str, Any]]:
    """Return our method with the tensors, its config and its provenance.

    Raises: ConfigError for another number of classes, or tensors that do not fit."""
    num_classes = converted.num_classes or 0
    names = [*classes] or [f"class {index}" for index in range(num_classes)]
    if num_classes and len(names) != num_classes:
        raise ConfigError(
            f"{source.file}: its classifier has {num_classes} classes, --classes names "
            f"{len(names)}; give the classes that it was trained on"
        )

    frames = _frames_of(source.config)
    config = RunConfig(
        data=DataSettings(pool="", frames=frames), model=model, method=converted.settings
    )
    # A copy, since the tensors are loaded into the method's CLIP.
    copied = dataclasses.replace(base, model=copy.deepcopy(base.model))
    method = build_method(copied, config.method, num_frames=frames, seed=config.seed, classes=names)

    parameters = {name: method.get_parameter(name) for name in method.trained_groups()}
    wrong = wrong_names(parameters, converted.tensors)
    if wrong:
        raise ConfigError(
            f"{source.file}: does not fit our method {config.method.name}: {_some(wrong)}; give "
            "the CLIP it was tuned from as --model"
        )
    with torch.no_grad():
        for name, value in converted.tensors.items():
            parameters[name].copy_(value)

    origin = {"file": source.file, "sha256": source.sha256, "system": source.system}
    if source.attributes_file is not None and source.attributes_sha256 is not None:
        origin["attributes_file"] = source.attributes_file
        origin["attributes_sha256"] = source.attributes_sha256
    provenance = {
        "classes": names,
        "pool_id": None,
        "manifest": None,
        "fingerprint": None,
        "imported_from": origin,
    }
    return method, config, provenance


def _frames_of(config: Any) -> int:
    """Return the number of frames in an embedded config, or the default."""
    data = config.get("DATA") if isinstance(config, Mapping) else None
    frames = data.get("NUM_FRAMES") if isinstance(data, Mapping) else None
    return frames if type(frames) is int and frames > 0 else _DEFAULT_FRAMES


def _float32(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float().contiguous().clone()


def _plain(value: Any) -> Any:
    """Return a config as JSON values; the name of its type replaces any other value."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _some(names: Sequence[str]) -> str:
    return name_some(names, _NAMES_SHOWN) or "none"
