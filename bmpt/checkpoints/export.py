"""Export a checkpoint and its base model as one safetensors file, and read it.

The file contains the CLIP under its usual names, its architecture, and the tensors that the method
adds, with the prefix `method.`. A file without such tensors can be used as any other CLIP
(`model.pretrained=FILE`); a file with them is read by `load_model`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save

from bmpt.checkpoints.checkpoint import METADATA_KEY, load_checkpoint, wrong_names
from bmpt.checkpoints.wise_ft import apply_wise_ft, base_weights
from bmpt.clip.backbone import Backbone, backbone_from_state, load_backbone, weights_metadata
from bmpt.clip.weights import METHOD_PREFIX, TEMPORAL_KEY, read_safetensors, read_weights
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from shards.errors import ConfigError, FormatError
from shards.files import name_some, one_line, write_file

EXPORT_FORMAT = 1
# entry of the metadata, beside the architecture
EXPORT_KEY = "export"
_NAMES_IN_ERROR = 4
_ERROR_CHARACTERS = 200


@dataclass(frozen=True)
class ExportReport:
    """Result of an export."""

    file: str
    """File that was written."""
    sha256: str
    """Hash of the file."""
    bytes: int
    """Size of the file."""
    method: str
    """Name of the method."""
    wise_ft: float | None
    """Weight of the interpolation with the base model, None without one."""
    clip_tensors: int
    """Number of CLIP's tensors."""
    method_tensors: list[str]
    """Names of the tensors that the method adds; none if it only tunes CLIP's weights."""
    settings: list[str]
    """`key=value` settings with which a config computes the same visual tower."""


@dataclass(frozen=True)
class ExportedModel:
    """A model that `load_model` has read."""

    backbone: Backbone
    """The tuned CLIP."""
    method: Method
    """The trained method on it, in evaluation mode."""
    config: RunConfig
    """Config of the run."""
    metadata: dict[str, Any]
    """Metadata of the checkpoint: config, classes, pool and manifest."""


def export_checkpoint(
    checkpoint: Path, out: Path, *, pretrained: str | None = None, wise_ft: float | None = None
) -> ExportReport:
    """Merge a checkpoint with its base model into one safetensors file.

    Args:
        checkpoint: a `prompts.safetensors`.
        out: target.
        pretrained: the base weights, if not those that the checkpoint's config names.
        wise_ft: weight for `bmpt.checkpoints.wise_ft`; None for that of the config.

    Raises:
        ConfigError: if the base model is not the one that was trained on.
        FormatError: if the file is not a checkpoint.
        StorageError: if the target cannot be written.
    """
    metadata, config = _read_metadata(checkpoint)
    if out.resolve() == checkpoint.resolve():
        raise ConfigError(f"{out}: is the checkpoint itself; give another file as --out")
    if wise_ft is None:
        wise_ft = config.eval.wise_ft

    backbone = load_backbone(
        config.model.name, pretrained or config.model.pretrained, seed=config.seed
    )
    method = _build(backbone, config, metadata)
    # Loading the checkpoint overwrites the base weights.
    base = base_weights(method) if wise_ft is not None else {}
    info = load_checkpoint(checkpoint, method, backbone, config)
    if wise_ft is not None:
        apply_wise_ft(method, base, wise_ft)

    clip, added = _split(method)
    origin = {
        "format_version": EXPORT_FORMAT,
        "checkpoint": metadata,
        "sha256": info.sha256,
        "wise_ft": wise_ft,
    }
    tensors = {**clip, **{f"{METHOD_PREFIX}{name}": value for name, value in added.items()}}
    data = save(tensors, weights_metadata(backbone.architecture, **{EXPORT_KEY: origin}))
    write_file(out, data)

    return ExportReport(
        file=str(out),
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        method=config.method.name,
        wise_ft=wise_ft,
        clip_tensors=len(clip),
        method_tensors=sorted(added),
        settings=_settings_of_tower(method),
    )


def load_model(path: Path | str) -> ExportedModel:
    """Read an export: the trained method on its tuned CLIP, ready to score.

    Raises:
        ConfigError: if the file does not exist.
        FormatError: if the file is not an export of this format.
    """
    path = Path(path)
    state, architecture = read_weights(path)

    try:
        origin = architecture[EXPORT_KEY]
        version = origin["format_version"]
    except (KeyError, TypeError):
        raise FormatError(
            f"{path}: is not an export; write one with `bmpt export CHECKPOINT`"
        ) from None
    if version != EXPORT_FORMAT:
        raise FormatError(
            f"{path}: has export format {version}, this code reads {EXPORT_FORMAT}; export it again"
        )

    config = _parse_config(path, origin["checkpoint"])
    clip, added = {}, {}
    for key, value in state.items():
        if key.startswith(METHOD_PREFIX):
            added[key.removeprefix(METHOD_PREFIX)] = value
        else:
            clip[key] = value

    backbone = backbone_from_state(config.model.name, clip, architecture, where=str(path))
    method = _build(backbone, config, origin["checkpoint"])
    _fill(path, method, added)
    return ExportedModel(backbone, method.eval(), config, origin["checkpoint"])


def export_text(report: ExportReport) -> str:
    """Return the report as text for a terminal."""
    mixed = "" if report.wise_ft is None else f", WiSE-FT {report.wise_ft:g}"
    summary = (
        f"{report.file}: {report.method}{mixed}, {report.clip_tensors} tensors of CLIP, "
        f"{report.bytes:,} bytes"
    )

    if report.method_tensors:
        names = ", ".join(report.method_tensors)
        use = f"contains {names} beside CLIP; read it with bmpt.checkpoints.export.load_model"
    else:
        settings = [f"model.pretrained={report.file}", *report.settings]
        options = " ".join(f"--set {setting}" for setting in settings)
        use = f"can be used as any other CLIP: {options}"
    return f"{summary}\n{use}"


def _settings_of_tower(method: Method) -> list[str]:
    settings = []
    if method.temporal_TE is not None:
        settings += ["method.temporal_position=learned", f"data.frames={method.num_frames}"]
    if method.space_time_blocks:
        blocks = ",".join(str(block) for block in method.space_time_blocks)
        settings.append(f"method.space_time_blocks=[{blocks}]")
    if method.settings.causal:
        settings.append("method.causal=true")
    return settings


def _build(backbone: Backbone, config: RunConfig, metadata: Mapping[str, Any]) -> Method:
    return build_method(
        backbone,
        config.method,
        num_frames=config.data.frames,
        seed=config.seed,
        classes=tuple(metadata.get("classes") or ()),
    )


def _split(method: Method) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return CLIP's weights by CLIP's names, and the tensors that the method adds, on the CPU."""
    clip = {}
    for name, value in method.clip.state_dict().items():
        clip[name] = value.detach().cpu().contiguous().clone()
    if method.temporal_TE is not None:
        clip[TEMPORAL_KEY] = method.temporal_TE.detach().cpu().clone()

    added = {name: value for name, value in method.trained_state().items() if _is_added(name)}
    return clip, added


def _is_added(name: str) -> bool:
    return not name.startswith("clip.") and name != "temporal_TE"


def _fill(path: Path, method: Method, added: dict[str, torch.Tensor]) -> None:
    """Raises: FormatError unless these are exactly the tensors that the method adds to CLIP."""
    own = {name: method.get_parameter(name) for name in method.trained_groups() if _is_added(name)}
    if wrong_names(own, added):
        raise FormatError(
            f"{path}: does not hold the tensors of its method "
            f"{name_some(sorted(own), _NAMES_IN_ERROR)}; export it again"
        )

    with torch.no_grad():
        for name, value in added.items():
            own[name].copy_(value)


def _read_metadata(checkpoint: Path) -> tuple[dict[str, Any], RunConfig]:
    try:
        _, stored = read_safetensors(checkpoint)
        metadata = json.loads(stored[METADATA_KEY])
    except (SafetensorError, OSError, ValueError, KeyError):
        raise FormatError(
            f"{checkpoint}: is not a checkpoint; give a prompts.safetensors that `bmpt train` "
            "wrote, or the checkpoint.safetensors of `bmpt import-checkpoint`"
        ) from None
    return metadata, _parse_config(checkpoint, metadata)


def _parse_config(path: Path, metadata: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(metadata["config"])
    except (KeyError, TypeError, ValidationError) as error:
        reason = one_line(error)[:_ERROR_CHARACTERS]
        raise FormatError(
            f"{path}: contains a config that this version cannot read: {reason}; read it with the "
            "version that wrote it"
        ) from None
