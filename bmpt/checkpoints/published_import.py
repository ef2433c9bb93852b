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
from bmpt.checkpoints.import_checks import (
    check_keys,
    check_published_state,
    check_shapes,
    check_text_tower,
    check_token_embedding,
)
from bmpt.checkpoints.import_report import (
    CHECKPOINT_FILE,
    ImportedKeys,
    ImportReport,
    ImportSource,
    list_names,
)
from bmpt.checkpoints.published_keys import SYSTEMS, has_attributes, sort_keys
from bmpt.checkpoints.published_tensors import MethodTensors, PublishedTensors, to_method
from bmpt.clip.backbone import Backbone, backbone_from_state, weights_metadata
from bmpt.clip.weights import read_torch_file
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from bmpt.settings import DataSettings, ModelSettings
from shards.errors import ConfigError
from shards.files import hash_file, write_file

CLIP_FILE = "clip.safetensors"
TENSORS_FILE = "tensors.safetensors"
# entry of the metadata of the CLIP and the tensors
REPORT_KEY = "import"
# of a checkpoint that does not state it; no tensor of these systems depends on it
_DEFAULT_FRAMES = 8
_OF_VIDEO = "replaced by that of the video branch"


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
    check_keys(file, system, keys, base)
    check_shapes(file, state, keys, base)
    tuned = {name: state[key] for key, name in keys.clip.items()}
    check_token_embedding(file, tuned, base)

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
    for branch in (video, attributes):
        check_text_tower(branch.report.source.file, branch.tensors.clip, base)

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
            f"{source.file}: does not fit our method {config.method.name}: {list_names(wrong)}; "
            "give the CLIP it was tuned from as --model"
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
