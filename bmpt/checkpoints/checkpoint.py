"""Write and read `prompts.safetensors`, the trained tensors of a run with their origin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from bmpt.clip.backbone import Backbone
from bmpt.clip.weights import read_safetensors
from bmpt.config import RunConfig, identity
from bmpt.methods.base import Method
from shards.errors import ConfigError, FormatError
from shards.files import hash_file, name_some, one_line, write_file

# 2: the config has only the settings of its own method
CHECKPOINT_FORMAT = 2
METADATA_KEY = "bmpt"
# settings that change the meaning of trained tensors, but not their shapes
_UNSEEN_IN_IMPORTS = ("exchange", "space_time_blocks", "temporal_position", "causal")
# BIKE's published files do not state the last two, so imports may be scored with either value
_UNSEEN = (*_UNSEEN_IN_IMPORTS, "interaction", "counts_padding")
_NAMES_IN_ERROR = 4


@dataclass(frozen=True)
class CheckpointInfo:
    """The origin of trained tensors, as results.json states it."""

    file: str
    """File name of the checkpoint."""
    sha256: str
    """Hash of the file."""
    step: int
    """Number of optimiser steps before it was written."""
    selection: str = "last"
    """Rule by which this step was selected."""


def config_sha256(config: RunConfig) -> str:
    """Return a hash of the settings on which results depend; see `bmpt.config.identity`."""
    values = identity(config, with_places=False)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save_checkpoint(
    path: Path,
    method: Method,
    backbone: Backbone,
    config: RunConfig,
    *,
    step: int,
    provenance: dict[str, Any],
) -> CheckpointInfo:
    """Write only the trained tensors, with config, base weights and data in the metadata.

    Args:
        path: target.
        method: whose tensors are written.
        backbone: the base weights.
        config: of the run.
        step: number of optimiser steps that are done.
        provenance: classes, and pool_id, manifest and fingerprint of the training data.

    Raises:
        StorageError: if the file cannot be written.
    """
    metadata = {
        "format_version": CHECKPOINT_FORMAT,
        "method": config.method.name,
        "model": {
            "name": backbone.name,
            "weights_sha256": backbone.weights_sha256,
            "quick_gelu": bool(backbone.architecture.get("quick_gelu")),
        },
        "config": config.model_dump(mode="json", exclude={"run": {"dir"}}),
        "step": step,
        **provenance,
    }
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    data = save(method.trained_state(), {METADATA_KEY: text})

    write_file(path, data)
    return CheckpointInfo(path.name, hashlib.sha256(data).hexdigest(), step)


def load_checkpoint(
    path: Path, method: Method, backbone: Backbone, config: RunConfig
) -> CheckpointInfo:
    """Load trained tensors into a method that was built by `config`.

    Raises:
        ConfigError: if the checkpoint belongs to another method, base model or shape.
        FormatError: if the file is not a checkpoint of this format.
    """
    state, metadata = _read_checkpoint(path)
    _check_method(path, metadata, config)
    _check_base(path, metadata["model"], backbone)
    _load_exactly(path, method, state, _differences(metadata["config"]["method"], config))
    return CheckpointInfo(path.name, hash_file(path), metadata["step"])


def read_trained_classes(path: Path) -> tuple[str, ...]:
    """Read the classes that a checkpoint was trained on.

    Raises:
        ConfigError: if the file does not exist.
        FormatError: if the file is not a checkpoint of this format.
    """
    _, metadata = _read_checkpoint(path)
    return tuple(metadata.get("classes", ()))


def _read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and parsed metadata."""
    try:
        state, stored = read_safetensors(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such checkpoint; give <run folder>/prompts.safetensors, which "
            "`bmpt train` writes"
        ) from None
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path}: is not a safetensors checkpoint: {one_line(error)}; give a "
            "prompts.safetensors that `bmpt train` wrote"
        ) from None
    return state, _parse_metadata(path, stored.get(METADATA_KEY))


def _parse_metadata(path: Path, text: str | None) -> dict[str, Any]:
    """Raises: FormatError for a file that is not a checkpoint of this format."""
    try:
        metadata = json.loads(text or "{}")
        version = metadata.get("format_version")
        is_ours = {"name", "weights_sha256"} <= metadata["model"].keys() and "step" in metadata
        is_ours = is_ours and "name" in metadata["config"]["method"]
    except (ValueError, AttributeError, KeyError):
        version, is_ours = None, False

    if version != CHECKPOINT_FORMAT or not is_ours:
        hint = "give a prompts.safetensors that `bmpt train` wrote"
        if isinstance(version, int) and version < CHECKPOINT_FORMAT:
            hint = "an earlier version wrote it: train again, or use that version"
        raise FormatError(
            f"{path}: has checkpoint format {version}, this code reads {CHECKPOINT_FORMAT}; {hint}"
        )
    return metadata


def _check_method(path: Path, metadata: dict[str, Any], config: RunConfig) -> None:
    """Raises: ConfigError for another method, or other settings that no tensor's shape shows."""
    theirs = metadata["config"]["method"]
    ours = config.method.model_dump(mode="json")
    if theirs["name"] != ours["name"]:
        raise ConfigError(
            f"{path}: is a checkpoint of method {theirs['name']}, the config says {ours['name']}; "
            f"set method.name={theirs['name']} or give another checkpoint"
        )

    differences = _differences(theirs, config)
    for key in _UNSEEN if "imported_from" not in metadata else _UNSEEN_IN_IMPORTS:
        if key in differences:
            raise ConfigError(
                f"{path}: was trained with method.{key}={differences[key]}, the config says "
                f"{ours[key]}; set method.{key}={json.dumps(differences[key])}"
            )


def _check_base(path: Path, stated: dict[str, Any], backbone: Backbone) -> None:
    """Raises: ConfigError for a base model of another activation or with other weights."""
    # The hash of the weights does not show the activation, so it is checked first.
    has_quick_gelu = bool(backbone.architecture.get("quick_gelu"))
    if stated.get("quick_gelu", has_quick_gelu) != has_quick_gelu:
        names = ("GELU", "QuickGELU")
        raise ConfigError(
            f"{path}: was trained on {stated['name']} with {names[not has_quick_gelu]}, the config "
            f"loads {backbone.name} with {names[has_quick_gelu]}; set model.name={stated['name']}"
        )

    if stated["weights_sha256"] != backbone.weights_sha256:
        raise ConfigError(
            f"{path}: was trained on {stated['name']} ({stated['weights_sha256'][:12]}), the "
            f"config loads {backbone.name} ({backbone.weights_sha256[:12]}); set model.name and "
            "model.pretrained to the former"
        )


def _differences(theirs: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the method settings in which a checkpoint and the config differ.

    A setting that the checkpoint is older than has its default.
    """
    ours = config.method.model_dump(mode="json")
    defaults = type(config.method).model_validate({}).model_dump(mode="json")
    stored = defaults | theirs | {"tune": _tune_of(theirs)}
    return {key: value for key, value in stored.items() if value != ours.get(key)}


def _tune_of(theirs: dict[str, Any]) -> str:
    """Return `tune` of a checkpoint, which may say `both` for `all`."""
    tune = str(theirs.get("tune"))
    return "all" if tune == "both" else tune


def _load_exactly(
    path: Path, method: Method, state: dict[str, torch.Tensor], differences: dict[str, Any]
) -> None:
    """Copy the tensors, whose names and shapes must be those of the trained parameters."""
    trained = {name: method.get_parameter(name) for name in method.trained_groups()}
    wrong = wrong_names(trained, state)
    if wrong:
        settings = [f"method.{key}={json.dumps(value)}" for key, value in differences.items()]
        hint = "take the config of its run (`config.yaml`)"
        if settings:
            hint = f"it was trained with {', '.join(settings)}: set that, or {hint}"
        raise ConfigError(
            f"{path}: its tensors do not fit the method: {name_some(wrong, _NAMES_IN_ERROR)}; "
            f"{hint}"
        )

    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state[name])


def wrong_names(
    expected: dict[str, torch.nn.Parameter], actual: dict[str, torch.Tensor]
) -> list[str]:
    """Return the names, sorted, that only one mapping has or that differ in shape."""
    wrong = expected.keys() ^ actual.keys()
    for name in expected.keys() & actual.keys():
        if expected[name].shape != actual[name].shape:
            wrong.add(name)
    return sorted(wrong)
