"""Read weight files without executing their code: safetensors, OpenAI's JIT archives, torch
files."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from shards.errors import ConfigError, FormatError
from shards.files import one_line

# entry of our safetensors metadata: the architecture as JSON
SPEC_METADATA_KEY = "bmpt_clip"
TEMPORAL_KEY = "visual.temporal_embedding"
# prefix of the tensors of a method that `bmpt export` writes beside the CLIP
METHOD_PREFIX = "method."
# torch.load raises these for files that are truncated, of another kind, or would run code
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    LookupError,
    pickle.UnpicklingError,
)
# OpenAI's archives list these numbers among their weights
_ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")


class _Ignored:
    """Replaces an object of a checkpoint that is not a tensor; drops its arguments and state."""

    def __init__(self, *args: Any) -> None:
        return

    def __setstate__(self, state: Any) -> None:
        return


# Classes that published checkpoints contain beside tensors. torch looks the names up in this table
# and does not import them, so none of their code runs. A yacs node becomes an OrderedDict, the only
# mapping that torch can fill in all its versions.
_INERT: list[Any] = [
    (OrderedDict, "yacs.config.CfgNode"),
    (_Ignored, "numpy.core.multiarray.scalar"),
    (_Ignored, "numpy._core.multiarray.scalar"),
    (_Ignored, "numpy.dtype"),
]


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a weight file.

    Returns:
        The state dict without prefixes such as `module.`, and the architecture that the file
        states: the whole architecture from our own metadata or from an `open_clip_config.json`
        beside the file, only `quick_gelu` from OpenAI's archives, {} from a bare state dict.

    Raises:
        ConfigError: if the file does not exist.
        FormatError: if the file or the config beside it cannot be read safely.
    """
    if not file.is_file():
        raise ConfigError(
            f"{file}: no such weight file; give model.pretrained an existing file, a tag or "
            "`random`"
        )

    stated = _read_config_beside(file)
    if file.suffix == ".safetensors":
        try:
            state, metadata = read_safetensors(file)
        except (SafetensorError, OSError) as error:
            raise FormatError(
                f"{file}: is not safetensors: {one_line(error)}; get the file again"
            ) from None
        stated = _architecture_in(file, metadata) or stated
    else:
        archived = _read_archive(file)
        is_openai = archived is not None
        if archived is None:
            state = unwrap_state_dict(file, read_torch_file(file))
            is_openai = all(key in state for key in _ARCHIVE_NUMBERS)
        else:
            state = archived
        if is_openai:
            stated = stated or {"quick_gelu": True}

    for key in _ARCHIVE_NUMBERS:
        state.pop(key, None)
    return without_prefixes(state), stated


def read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors by name and the metadata of a safetensors file.

    Raises:
        OSError: if the file cannot be read.
        SafetensorError: if the file is not safetensors.
    """
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def read_torch_file(file: Path) -> Any:
    """Read what torch.save wrote, onto the CPU, with weights_only=True.

    A yacs config in the file becomes a plain mapping.

    Raises:
        FormatError: naming the file, and the class or function that reading it would call.
    """
    try:
        with torch.serialization.safe_globals(_INERT):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            reason = "it contains more than tensors"
        else:
            reason = f"it asks for {refused[1]}, which is not a tensor"
        raise _unreadable(file, reason) from None
    except UNREADABLE as error:
        raise _unreadable(file, one_line(error)) from None


def unwrap_state_dict(file: Path, loaded: Any) -> dict[str, torch.Tensor]:
    """Return the state dict in the content of a training script's file.

    Args:
        file: named in the error.
        loaded: a state dict, or a mapping with one as `state_dict`, `model`, or both nested.

    Raises:
        FormatError: if there is none.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]

    if not isinstance(loaded, dict) or not all(torch.is_tensor(value) for value in loaded.values()):
        raise _unreadable(file, "it holds no state dict of tensors")
    return loaded


def without_prefixes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the name prefixes of DistributedDataParallel (`module.`) and torch.compile
    (`_orig_mod.`)."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in state.items()}


def hash_weights(state: Mapping[str, torch.Tensor], temporal_TE: torch.Tensor | None = None) -> str:
    """Return the sha256 over (name, shape, float32 bytes) of all weights, sorted by name."""
    digest = hashlib.sha256()
    extra = {} if temporal_TE is None else {TEMPORAL_KEY: temporal_TE}

    for key, value in sorted({**state, **extra}.items()):
        digest.update(f"{key}\t{tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())

    return digest.hexdigest()


def _read_archive(file: Path) -> dict[str, torch.Tensor] | None:
    """Return the weights of a TorchScript archive, as OpenAI publishes them, else None.

    Raises: FormatError for an archive that runs code while it is read."""
    archive = _copy_safe_archive(file)
    if archive is None:
        return None

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return dict(torch.jit.load(archive, map_location="cpu").state_dict())
    except (RuntimeError, ValueError, OSError):
        return None


def _copy_safe_archive(file: Path) -> io.BytesIO | None:
    """Copy a TorchScript archive and check every member, or return None for another file.

    torch reads the copy and not the file, in which its own parser could find other members. Only
    `__setstate__` runs while an archive is read; other code runs only when it is called.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as original, zipfile.ZipFile(copy, "w") as checked:
            if not any("/code/" in name.lower() for name in original.namelist()):
                return None
            for member in original.infolist():
                data = original.read(member)
                if b"__setstate__" in data:
                    raise _unreadable(
                        file,
                        "its TorchScript has a __setstate__, which is code that runs when the "
                        "file is read",
                    )
                checked.writestr(member.filename, data)
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error):
        return None

    copy.seek(0)
    return copy


def _architecture_in(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the architecture in our metadata, {} if there is none."""
    try:
        architecture = json.loads(metadata.get(SPEC_METADATA_KEY, "{}"))
    except ValueError:
        architecture = None
    if not isinstance(architecture, dict):
        raise FormatError(
            f"{file}: its metadata {SPEC_METADATA_KEY} is not an architecture; write the file again"
        )
    return architecture


def _read_config_beside(file: Path) -> dict[str, Any]:
    """Return the architecture in `open_clip_config.json` beside the weights, as in the folders
    that open_clip publishes; {} if there is none."""
    config = file.with_name("open_clip_config.json")
    if not config.is_file():
        return {}

    try:
        stated = json.loads(config.read_text(encoding="utf-8"))
        architecture = {"quick_gelu": False, **stated["model_cfg"]}
        normalisation = stated.get("preprocess_cfg", {})
        for key in ("mean", "std"):
            if key in normalisation:
                architecture[f"image_{key}"] = normalisation[key]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{config}: is not an open_clip config: {one_line(error)}; correct it or move it away"
        ) from None
    return architecture


def _unreadable(file: Path, reason: str) -> FormatError:
    return FormatError(
        f"{file}: is not a weight file that can be read safely: {reason}; give another file"
    )
