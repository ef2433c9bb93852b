"""What a run leaves behind: trained tensors with their provenance, and the state to go on from."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from bmpt.clip.backbone import Backbone
from bmpt.clip.weights import UNREADABLE, read_safetensors
from bmpt.config import RunConfig, identity
from bmpt.methods.base import Method
from shards.errors import ConfigError, FormatError, StorageError

CHECKPOINT_FORMAT = 2  # 2: its config has the settings of its own method alone
STATE_FORMAT = 3  # 2: failures_in_a_row; 3: inputs
METADATA_KEY = "bmpt"
# settings that change what trained tensors mean, and the shape of none
_UNSEEN_IN_IMPORTS = ("exchange", "space_time_blocks", "temporal_position", "causal")
_UNSEEN = (
    *_UNSEEN_IN_IMPORTS,
    "interaction",
    "counts_padding",
)  # of which published files of BIKE do not speak


@dataclass(frozen=True)
class CheckpointInfo:
    """Where trained tensors come from, as results.json states it."""

    file: str
    sha256: str
    step: int
    selection: str = "last"


def config_sha256(config: RunConfig) -> str:
    """Hash what decides the numbers, see `bmpt.config.identity`."""
    values = identity(config, with_places=False)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write atomically. Raises: StorageError naming the file, for example when the disk is full."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}; make room or give another place"
        ) from None


def save_checkpoint(
    path: Path,
    method: Method,
    backbone: Backbone,
    config: RunConfig,
    *,
    step: int,
    provenance: dict[str, Any],
) -> CheckpointInfo:
    """Write the trained tensors alone as safetensors, with config, base weights and data in the
    metadata.

    provenance: classes, pool_id, manifest and fingerprint of the training data."""
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
    data = save(
        method.trained_state(),
        {METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)},
    )
    write_file(path, data)
    return CheckpointInfo(path.name, hashlib.sha256(data).hexdigest(), step)


def load_checkpoint(
    path: Path, method: Method, backbone: Backbone, config: RunConfig
) -> CheckpointInfo:
    """Load trained tensors into a method built by `config`.

    Raises: ConfigError for a checkpoint of another method, base model or shape; FormatError for
        another file."""
    state, metadata = _read_checkpoint(path)
    _check_method(path, metadata, config)
    _check_activation(path, metadata["model"], backbone)
    if metadata["model"]["weights_sha256"] != backbone.weights_sha256:
        raise ConfigError(
            f"{path}: was trained on {metadata['model']['name']} ({metadata['model']['weights_sha256'][:12]}), "
            f"the config loads {backbone.name} ({backbone.weights_sha256[:12]}); set model.name and "
            "model.pretrained to the former"
        )
    _load_exactly(path, method, state, _differences(metadata["config"]["method"], config))
    return CheckpointInfo(
        path.name, hashlib.sha256(path.read_bytes()).hexdigest(), metadata["step"]
    )


def read_trained_classes(path: Path) -> tuple[str, ...]:
    """The classes that a checkpoint was trained on. Raises: ConfigError, FormatError as
    `load_checkpoint`."""
    return tuple(_read_checkpoint(path)[1].get("classes", ()))


def _read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        state, stored = read_safetensors(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such checkpoint; `bmpt train` writes <run folder>/prompts.safetensors"
        ) from None
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path}: is not a safetensors checkpoint: {' '.join(str(error).split())}"
        ) from None
    return state, _parse_metadata(path, stored.get(METADATA_KEY))


def _parse_metadata(path: Path, text: str | None) -> dict[str, Any]:
    """Raises: FormatError for a file that is no checkpoint of this format."""
    try:
        metadata = json.loads(text or "{}")
        found = metadata.get("format_version")
        is_ours = {"name", "weights_sha256"} <= metadata["model"].keys() and "step" in metadata
        is_ours = is_ours and "name" in metadata["config"]["method"]
    except (ValueError, AttributeError, KeyError):
        found, is_ours = None, False
    if found != CHECKPOINT_FORMAT or not is_ours:
        raise FormatError(
            f"{path}: has checkpoint format {found}, this code reads {CHECKPOINT_FORMAT}; "
            "give a prompts.safetensors that `bmpt train` wrote"
        )
    return metadata


def _check_activation(path: Path, stated: dict[str, Any], backbone: Backbone) -> None:
    """Raises: ConfigError for a base of equal weights and another activation, which their hash does
    not show."""
    ours = bool(backbone.architecture.get("quick_gelu"))
    if stated.get("quick_gelu", ours) != ours:
        names = ("GELU", "QuickGELU")
        raise ConfigError(
            f"{path}: was trained on {stated['name']} with {names[not ours]}, the config loads {backbone.name} with "
            f"{names[ours]}; set model.name={stated['name']}"
        )


def _check_method(path: Path, metadata: dict[str, Any], config: RunConfig) -> None:
    """Raises: ConfigError for a checkpoint of another method, or of other settings that no tensor's
    shape shows."""
    theirs, ours = metadata["config"]["method"], config.method.model_dump(mode="json")
    if theirs["name"] != ours["name"]:
        raise ConfigError(
            f"{path}: is a checkpoint of method {theirs['name']}, the config says {ours['name']}; "
            f"set method.name={theirs['name']} or give another checkpoint"
        )
    differences = _differences(theirs, config)
    for key in _UNSEEN if "imported_from" not in metadata else _UNSEEN_IN_IMPORTS:
        if key in differences:
            raise ConfigError(
                f"{path}: was trained with method.{key}={differences[key]}, the config says {ours[key]}; "
                f"set method.{key}={json.dumps(differences[key])}"
            )


def _differences(theirs: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """The settings of a checkpoint's method that the config has otherwise; defaults for those it is
    older than."""
    ours = config.method.model_dump(mode="json")
    return {
        key: value
        for key, value in (
            type(config.method).model_validate({}).model_dump(mode="json")
            | theirs
            | {"tune": _tune_of(theirs)}
        ).items()
        if value != ours.get(key)
    }


def _tune_of(theirs: dict[str, Any]) -> str:
    """By its one name: checkpoints may say `both` for `all`."""
    return "all" if theirs.get("tune") == "both" else str(theirs.get("tune"))


def _load_exactly(
    path: Path, method: Method, state: dict[str, torch.Tensor], differences: dict[str, Any]
) -> None:
    """Copy the tensors; the trained parameters must be exactly these names and shapes."""
    trained = {name: method.get_parameter(name) for name in method.trained_groups()}
    wrong = sorted(
        name
        for name in trained.keys() | state.keys()
        if name not in trained or name not in state or trained[name].shape != state[name].shape
    )
    if wrong:
        were = ", ".join(f"method.{key}={json.dumps(value)}" for key, value in differences.items())
        raise ConfigError(
            f"{path}: its tensors do not fit the method: {', '.join(wrong[:4])} ({len(wrong)} in all); "
            f"{f'it was trained with {were}: set that, or ' if were else ''}take the config of its run (`config.yaml`)"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state[name])


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write state.pt atomically. Raises: StorageError."""
    buffer = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save({"version": STATE_FORMAT, **state}, buffer)
    write_file(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read state.pt, onto the CPU, without executing anything in it. Raises: FormatError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise FormatError(
            f"{path}: is not a state that can be read safely; start over with --fresh"
        ) from None
    found = state.get("version") if isinstance(state, dict) else None
    if found != STATE_FORMAT:
        raise FormatError(
            f"{path}: has state version {found}, this code reads {STATE_FORMAT}; start over with --fresh"
        )
    return state
