"""A checkpoint and its base model as one file.

The CLIP in it has its usual names and carries its architecture; what a method adds stands beside it
under `method.`. A file without such tensors is a CLIP like any other (`model.pretrained=FILE`);
with them `load_model` reads it."""

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

from bmpt.checkpoints.checkpoint import METADATA_KEY, load_checkpoint, write_file
from bmpt.checkpoints.wise_ft import apply_wise_ft, base_weights
from bmpt.clip.backbone import Backbone, backbone_from_state, load_backbone, weights_metadata
from bmpt.clip.weights import METHOD_PREFIX, TEMPORAL_KEY, read_safetensors, read_weights
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from shards.errors import ConfigError, FormatError

EXPORT_FORMAT = 1
EXPORT_KEY = "export"  # in the metadata, beside the architecture


@dataclass(frozen=True)
class ExportReport:
    """What an export holds; method_tensors: names beside the CLIP, none if only CLIP's weights were
    tuned.

    settings: `key=value` that a config needs beside it so that its visual tower computes the
        same"""

    file: str
    sha256: str
    bytes: int
    method: str
    wise_ft: float | None
    clip_tensors: int
    method_tensors: list[str]
    settings: list[str]


@dataclass(frozen=True)
class ExportedModel:
    """A model as `load_model` reads it; metadata: of the checkpoint: config, classes, pool and
    manifest."""

    backbone: Backbone
    method: Method
    config: RunConfig
    metadata: dict[str, Any]


def export_checkpoint(
    checkpoint: Path, out: Path, *, pretrained: str | None = None, wise_ft: float | None = None
) -> ExportReport:
    """Merge a checkpoint with its base model into one safetensors file.

    pretrained: where the base lies, if not where the checkpoint's config says.
    wise_ft: see `bmpt.checkpoints.wise_ft`; None for what the run's config has.
    Raises: ConfigError for another base, FormatError for another file, StorageError."""
    metadata, config = _read_metadata(checkpoint)
    if out.resolve() == checkpoint.resolve():
        raise ConfigError(f"{out}: is the checkpoint itself; give another file as --out")
    wise_ft = config.eval.wise_ft if wise_ft is None else wise_ft
    backbone = load_backbone(
        config.model.name, pretrained or config.model.pretrained, seed=config.seed
    )
    method = _build(backbone, config, metadata)
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
    """Read an export: the method as it was trained, on its tuned CLIP, ready to score.

    Raises: ConfigError, FormatError naming the file."""
    path = Path(path)
    state, architecture = read_weights(path)
    try:
        origin = architecture[EXPORT_KEY]
        found = origin["format_version"]
    except (KeyError, TypeError):
        raise FormatError(f"{path}: is no export; `bmpt export CHECKPOINT` writes one") from None
    if found != EXPORT_FORMAT:
        raise FormatError(
            f"{path}: has export format {found}, this code reads {EXPORT_FORMAT}; export it again"
        )
    config = _config_of(path, origin["checkpoint"])
    added = {
        key.removeprefix(METHOD_PREFIX): value
        for key, value in state.items()
        if key.startswith(METHOD_PREFIX)
    }
    clip = {key: value for key, value in state.items() if not key.startswith(METHOD_PREFIX)}
    backbone = backbone_from_state(config.model.name, clip, architecture, where=str(path))
    method = _build(backbone, config, origin["checkpoint"])
    _fill(path, method, added)
    return ExportedModel(backbone, method.eval(), config, origin["checkpoint"])


def export_text(report: ExportReport) -> str:
    """The report for a terminal."""
    mixed = "" if report.wise_ft is None else f", WiSE-FT {report.wise_ft:g}"
    settings = [f"model.pretrained={report.file}", *report.settings]
    use = f"a CLIP like any other: {' '.join(f'--set {setting}' for setting in settings)}"
    if report.method_tensors:
        use = f"holds {', '.join(report.method_tensors)} beside CLIP: bmpt.checkpoints.export.load_model reads it"
    return f"{report.file}: {report.method}{mixed}, {report.clip_tensors} tensors of CLIP, {report.bytes:,} bytes\n{use}"


def _settings_of_tower(method: Method) -> list[str]:
    found = []
    if method.temporal_TE is not None:
        found += ["method.temporal_position=learned", f"data.frames={method.num_frames}"]
    if method.space_time_blocks:
        found.append(
            f"method.space_time_blocks=[{','.join(str(block) for block in method.space_time_blocks)}]"
        )
    return [*found, "method.causal=true"] if method.settings.causal else found


def _build(backbone: Backbone, config: RunConfig, metadata: Mapping[str, Any]) -> Method:
    classes = metadata.get("classes") or ()
    return build_method(
        backbone,
        config.method,
        num_frames=config.data.frames,
        seed=config.seed,
        classes=tuple(classes),
    )


def _split(method: Method) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(CLIP's weights by CLIP's names, what the method trains beside them by its own names), on the
    CPU."""
    clip = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in method.clip.state_dict().items()
    }
    if method.temporal_TE is not None:
        clip[TEMPORAL_KEY] = method.temporal_TE.detach().cpu().clone()
    return clip, {name: value for name, value in method.trained_state().items() if _is_added(name)}


def _is_added(name: str) -> bool:
    return not name.startswith("clip.") and name != "temporal_TE"


def _fill(path: Path, method: Method, added: Mapping[str, torch.Tensor]) -> None:
    """Raises: FormatError unless these are exactly the tensors that the method adds to CLIP."""
    own = {name: method.get_parameter(name) for name in method.trained_groups() if _is_added(name)}
    if {name: value.shape for name, value in own.items()} != {
        name: value.shape for name, value in added.items()
    }:
        raise FormatError(
            f"{path}: does not hold the tensors of its method {', '.join(sorted(own)[:4])}; export it again"
        )
    with torch.no_grad():
        for name, value in added.items():
            own[name].copy_(value)


def _read_metadata(checkpoint: Path) -> tuple[dict[str, Any], RunConfig]:
    try:
        metadata = json.loads(read_safetensors(checkpoint)[1][METADATA_KEY])
    except (SafetensorError, OSError, ValueError, KeyError):
        raise FormatError(
            f"{checkpoint}: is no checkpoint; give a prompts.safetensors that `bmpt train` wrote, or the "
            "checkpoint.safetensors of `bmpt import-checkpoint`"
        ) from None
    return metadata, _config_of(checkpoint, metadata)


def _config_of(path: Path, metadata: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(metadata["config"])
    except (KeyError, TypeError, ValidationError) as error:
        why = " ".join(str(error).split())[:200]
        raise FormatError(
            f"{path}: carries a config that this version does not read: {why}"
        ) from None
