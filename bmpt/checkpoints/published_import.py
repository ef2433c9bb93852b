"""Take over a checkpoint that one of the four published systems wrote: every key explained, nothing
executed.

A key that `bmpt/checkpoints/published_keys.py` does not explain, a weight that is not there, or one
of another shape than the base model's ends the import: a key map that is silently wrong costs
points of accuracy, not an error."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bmpt.checkpoints.checkpoint import save_checkpoint, write_file
from bmpt.checkpoints.published_keys import (
    SYSTEMS,
    TOKEN_EMBEDDING,
    SortedKeys,
    has_attributes,
    sort_keys,
    state_of,
)
from bmpt.checkpoints.published_tensors import MethodTensors, PublishedTensors, Tensors, to_method
from bmpt.clip.backbone import Backbone, backbone_from_state, weights_metadata
from bmpt.clip.weights import read_torch_file
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from bmpt.settings import DataSettings, ModelSettings
from shards.errors import ConfigError, FormatError

CLIP_FILE, CHECKPOINT_FILE, TENSORS_FILE = (
    "clip.safetensors",
    "checkpoint.safetensors",
    "tensors.safetensors",
)
REPORT_KEY = "import"  # in the metadata of clip and tensors
_DEFAULT_FRAMES = 8  # of a checkpoint that does not say; no tensor of these systems depends on it
_NO_CHECKPOINT = (
    "no checkpoint of a method: it has the attributes head without the video branch that it is scored with; "
    "import that file with this one as --attributes-head"
)
_OF_VIDEO = "the video branch's is taken"
_NAMES_IN_ERROR = 8


@dataclass(frozen=True)
class ImportReport:
    """What became of each key of a checkpoint; `unexpected` is empty, since one would have ended
    the import.

    mapped: {original name: CLIP's name}; missing: CLIP weights that the system does not save, taken
        from the base;
    prompts, heads: original names; dropped: {original name: reason}; left_out: entries beside the
        weights;
    config: the one embedded in the file, None if there is none; files: what was written
    attributes_file, attributes_sha256: where the attributes head of `heads` was read, if in a file
        of its own"""

    file: str
    sha256: str
    system: str
    base: str
    base_sha256: str
    mapped: dict[str, str]
    missing: list[str]
    prompts: list[str]
    heads: list[str]
    dropped: dict[str, str]
    left_out: list[str]
    config: dict[str, Any] | None
    epoch: int | None
    unexpected: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    attributes_file: str | None = None
    attributes_sha256: str | None = None


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A published checkpoint, read and explained."""

    tensors: PublishedTensors
    report: ImportReport


def check_asked(file: Path, system: str) -> None:
    """Raises: ConfigError for what no loading of a base model can help."""
    if system not in SYSTEMS:
        raise ConfigError(f"--system {system}: is none of {', '.join(SYSTEMS)}")
    if not file.is_file():
        raise ConfigError(f"{file}: no such checkpoint; give the published .pth or .pt file")


def import_checkpoint(file: Path, system: str, base: Backbone) -> ImportedCheckpoint:
    """Read a checkpoint of `vifi_clip`, `bdc_clip`, `bmpt` or `bike` (.pth, .pt) that was tuned
    from `base`.

    Raises: ConfigError for another system or base, FormatError for a file that cannot be read
        safely or has keys
    that nothing explains."""
    check_asked(file, system)
    loaded = read_torch_file(file)
    state, left_out = _state_of(file, system, loaded)
    weights = base.model.state_dict()
    keys = sort_keys(system, state, weights.keys())
    _check_explained(file, system, keys, base)
    _check_shapes(file, state, keys, base)
    tuned = {name: state[key] for key, name in keys.clip.items()}
    if TOKEN_EMBEDDING in tuned and not torch.equal(
        tuned[TOKEN_EMBEDDING].float(), weights[TOKEN_EMBEDDING]
    ):
        raise ConfigError(  # BIKE saves it, and its text tower is frozen
            f"{file}: was not tuned from {base.name} ({base.weights_sha256[:12]}): its token embedding is another; "
            "give the weights it was tuned from as --pretrained"
        )
    report = ImportReport(
        file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        system=system,
        base=base.name,
        base_sha256=base.weights_sha256,
        mapped=keys.clip,
        missing=sorted(weights.keys() - tuned.keys()),
        prompts=keys.prompts,
        heads=keys.heads,
        dropped=keys.dropped,
        left_out=left_out,
        config=_plain(loaded["config"]) if isinstance(loaded.get("config"), Mapping) else None,
        epoch=loaded["epoch"] if isinstance(loaded.get("epoch"), int) else None,
    )
    tensors = PublishedTensors(
        clip={name: _float32(tuned.get(name, value)) for name, value in weights.items()},
        prompts={key: _float32(state[key]) for key in keys.prompts},
        heads={key: _float32(state[key]) for key in keys.heads},
    )
    return ImportedCheckpoint(tensors, report)


def join_attributes(video: ImportedCheckpoint, file: Path, base: Backbone) -> ImportedCheckpoint:
    """BIKE's video branch with the attributes head of another file, trained after it beside the
    frozen text tower.

    Raises: ConfigError for files that are not these, or a text tower that is not the base's; else
        as
    `import_checkpoint`."""
    if video.report.system != "bike":
        raise ConfigError(
            f"--attributes-head {file}: {video.report.system} has no attributes head; leave it out"
        )
    if has_attributes(video.tensors.heads):
        raise ConfigError(
            f"{video.report.file}: has an attributes head itself; give the file of the video branch"
        )
    attributes = import_checkpoint(file, "bike", base)
    if not has_attributes(attributes.tensors.heads):
        raise ConfigError(
            f"--attributes-head {file}: has no attributes head; give BIKE's file that has one"
        )
    weights = base.model.state_dict()
    for imported in (video, attributes):
        tuned = [
            name
            for name, value in imported.tensors.clip.items()
            if not name.startswith(("visual.", "logit_scale"))
            and not torch.equal(value, _float32(weights[name]))
        ]
        if tuned:
            raise ConfigError(
                f"{imported.report.file}: its text tower is not that of {base.name}, whose features an attributes head "
                f"compares: {_some(tuned)}; give the weights it was tuned from as --pretrained"
            )
    report = dataclasses.replace(
        video.report,
        heads=[*video.report.heads, *attributes.report.heads],
        dropped={
            **video.report.dropped,
            **{f"{file.name}: {key}": _OF_VIDEO for key in attributes.report.mapped},
        },
        left_out=[
            *video.report.left_out,
            *(f"{file.name}: {name}" for name in attributes.report.left_out),
        ],
        attributes_file=attributes.report.file,
        attributes_sha256=attributes.report.sha256,
    )
    return ImportedCheckpoint(
        dataclasses.replace(video.tensors, attributes=attributes.tensors.heads), report
    )


def write_import(
    imported: ImportedCheckpoint,
    base: Backbone,
    model: ModelSettings,
    out: Path,
    *,
    classes: Sequence[str] = (),
) -> ImportReport:
    """Write the files of an import into a folder; returns the report, which names them.

    clip.safetensors: the published CLIP, for model.pretrained. tensors.safetensors: prompts and
        heads by original
    names. checkpoint.safetensors: all of it as a checkpoint of our method, for `bmpt eval
        --checkpoint`, on the base
    model; prompts of ViFi-CLIP, which are trained on a frozen CLIP, on clip.safetensors.
    classes: the names of a classifier's classes in its order; without them it is kept and takes no
        part in scoring.
    Raises: ConfigError for another number of classes, or a base that it cannot be a checkpoint on;
        StorageError."""
    tensors, report = imported.tensors, dataclasses.asdict(imported.report)
    converted = to_method(imported.report.system, tensors, base)
    checkpoint = None
    if converted is not None:
        if converted.settings.tune == "prompts":
            base = backbone_from_state(
                base.name, tensors.clip, base.architecture, where=imported.report.file
            )
            model = ModelSettings(name=model.name, pretrained=str(out / CLIP_FILE))
        checkpoint = _as_checkpoint(imported.report, converted, base, model, classes)
    others = {f"prompts.{key}": value for key, value in tensors.prompts.items()}
    others |= {f"heads.{key}": value for key, value in (tensors.heads | tensors.attributes).items()}
    files = [out / CLIP_FILE]
    with ExitStack() as unfinished:  # all files or none
        for name in (CLIP_FILE, TENSORS_FILE, CHECKPOINT_FILE):
            unfinished.callback((out / name).unlink, missing_ok=True)
        write_file(
            out / CLIP_FILE,
            save(tensors.clip, weights_metadata(base.architecture, **{REPORT_KEY: report})),
        )
        if others:
            write_file(
                out / TENSORS_FILE, save(others, {REPORT_KEY: json.dumps(report, sort_keys=True)})
            )
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
    """The report for a terminal."""
    dropped: dict[str, list[str]] = {}
    for name, reason in report.dropped.items():
        dropped.setdefault(reason, []).append(name)
    attributes = (
        ""
        if report.attributes_file is None
        else f" with the attributes head of {report.attributes_file}"
    )
    epoch = "" if report.epoch is None else f", epoch {report.epoch}"
    lines = [
        f"{report.file}{attributes}: {report.system} on {report.base}{epoch}",
        f"mapped      {len(report.mapped)} of CLIP, {len(report.prompts)} of prompts, {len(report.heads)} of heads",
        f"missing     {', '.join(f'{name} (taken from the base)' for name in report.missing) or 'none'}",
        *(f"dropped     {_some(names)}: {reason}" for reason, names in dropped.items()),
        f"left out    {', '.join(report.left_out) or 'none'}",
        "unexpected  none",
        *(f"wrote       {name}" for name in report.files),
        *([] if any(name.endswith(CHECKPOINT_FILE) for name in report.files) else [_NO_CHECKPOINT]),
    ]
    return "\n".join(lines)


def _state_of(file: Path, system: str, loaded: Any) -> tuple[Tensors, list[str]]:
    """Raises: FormatError for a file that is not laid out as the system's checkpoints are."""
    cure = "give the system that wrote it as --system"
    try:
        state, left_out = state_of(system, loaded)
    except KeyError as error:
        raise FormatError(
            f"{file}: is no checkpoint of {system}: it has no {error}; {cure}"
        ) from None
    except (AttributeError, TypeError):
        raise FormatError(
            f"{file}: is no checkpoint of {system}: it holds no state dict; {cure}"
        ) from None
    except ValueError as error:
        raise FormatError(
            f"{file}: has entries that nothing of {system} explains: {error}; {cure}"
        ) from None
    strange = [name for name, value in state.items() if not torch.is_tensor(value)]
    if strange:
        raise FormatError(f"{file}: {_some(strange)}: are no tensors; {cure}")
    return state, left_out


def _check_explained(file: Path, system: str, keys: SortedKeys, base: Backbone) -> None:
    """Raises: FormatError listing what is missing and unexpected."""
    if keys.missing or keys.unexpected:
        raise FormatError(
            f"{file}: does not have the keys of a {system} checkpoint on {base.name}: unexpected "
            f"{_some(keys.unexpected)}; missing {_some(keys.missing)}; give the system that wrote it as --system and "
            "the CLIP it was tuned from as --model"
        )


def _check_shapes(file: Path, state: Tensors, keys: SortedKeys, base: Backbone) -> None:
    """Raises: ConfigError for weights of another width than the base, or prompts that differ
    between blocks."""
    weights = base.model.state_dict()
    expected = {key: weights[name].shape for key, name in keys.clip.items()}
    for tower, width in (("image", base.vision_width), ("text", base.text_width)):
        own = [
            key
            for key in keys.prompts
            if ("image" if key.startswith("image_") else "text") == tower
        ]
        expected |= {key: torch.Size((*state[own[0]].shape[:1], width)) for key in own}
    wrong = [
        f"{key} is {list(state[key].shape)}, the base has {list(shape)}"
        for key, shape in expected.items()
        if state[key].shape != shape
    ]
    if wrong:
        raise ConfigError(
            f"{file}: was not tuned from {base.name}: {_some(wrong)}; give its architecture as --model"
        )


def _as_checkpoint(
    report: ImportReport,
    converted: MethodTensors,
    base: Backbone,
    model: ModelSettings,
    classes: Sequence[str],
) -> tuple[Method, RunConfig, dict[str, Any]]:
    """(our method with these tensors, its config, where they come from). Raises: ConfigError;
    nothing is written."""
    num_classes = converted.num_classes or 0
    names = [*classes] or [f"class {index}" for index in range(num_classes)]
    if num_classes and len(names) != num_classes:
        raise ConfigError(
            f"{report.file}: its classifier has {num_classes} classes, --classes names {len(names)}"
        )
    frames = _frames_of(report.config)
    config = RunConfig(
        data=DataSettings(pool="", frames=frames), model=model, method=converted.settings
    )
    copied = dataclasses.replace(base, model=copy.deepcopy(base.model))  # the base stays as it is
    method = build_method(copied, config.method, num_frames=frames, seed=config.seed, classes=names)
    parameters = {name: method.get_parameter(name) for name in method.trained_groups()}
    wrong = sorted(
        name
        for name in parameters.keys() | converted.tensors.keys()
        if name not in parameters
        or name not in converted.tensors
        or parameters[name].shape != converted.tensors[name].shape
    )
    if wrong:
        raise ConfigError(
            f"{report.file}: does not fit our method {config.method.name}: {_some(wrong)}"
        )
    with torch.no_grad():
        for name, value in converted.tensors.items():
            parameters[name].copy_(value)
    origin: dict[str, str | None] = {
        "file": report.file,
        "sha256": report.sha256,
        "system": report.system,
    }
    if report.attributes_file is not None:
        origin |= {
            "attributes_file": report.attributes_file,
            "attributes_sha256": report.attributes_sha256,
        }
    provenance = {
        "classes": names,
        "pool_id": None,
        "manifest": None,
        "fingerprint": None,
        "imported_from": origin,
    }
    return method, config, provenance


def _frames_of(config: Any) -> int:
    """T of an embedded config, where it has one."""
    data = config.get("DATA") if isinstance(config, Mapping) else None
    frames = data.get("NUM_FRAMES") if isinstance(data, Mapping) else None
    return frames if type(frames) is int and frames > 0 else _DEFAULT_FRAMES


def _float32(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float().contiguous().clone()


def _plain(value: Any) -> Any:
    """An embedded config as JSON can say it; what it cannot is left out as its type's name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _some(names: Sequence[str]) -> str:
    """The first names and how many there are."""
    more = f" ({len(names)} in all)" if len(names) > _NAMES_IN_ERROR else ""
    return ", ".join(names[:_NAMES_IN_ERROR]) + more if names else "none"
