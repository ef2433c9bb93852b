"""Weight files, read without executing anything in them: safetensors, OpenAI's JIT archives, torch
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

SPEC_METADATA_KEY = "bmpt_clip"  # metadata of our safetensors: the architecture as JSON
TEMPORAL_KEY = "visual.temporal_embedding"
METHOD_PREFIX = "method."  # tensors of a method that `bmpt export` writes beside the CLIP
# what torch.load raises for files that are cut, not its own, or would run code
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
_ARCHIVE_NUMBERS = (
    "input_resolution",
    "context_length",
    "vocab_size",
)  # OpenAI's archives carry them along


class _Ignored:
    """Stands for an object of a checkpoint that is no weight: takes any arguments and state, and
    drops them."""

    def __init__(self, *args: Any) -> None:
        return

    def __setstate__(self, state: Any) -> None:
        return


# What published checkpoints hold beside tensors. The names are looked up here and never imported,
# so nothing of
# theirs runs; a yacs node becomes the OrderedDict of its items, the one mapping that torch fills in
# every version.
_INERT: list[Any] = [
    (OrderedDict, "yacs.config.CfgNode"),
    (_Ignored, "numpy.core.multiarray.scalar"),
    (_Ignored, "numpy._core.multiarray.scalar"),
    (_Ignored, "numpy.dtype"),
]


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a weight file: (state dict without `module.` prefixes, what the file states of its
    architecture).

    Whole from our own metadata or an `open_clip_config.json` beside the file; `quick_gelu` alone
    from OpenAI's archives; {} from a bare state dict. Raises: ConfigError, FormatError naming the
    file."""
    if not file.is_file():
        raise ConfigError(
            f"{file}: no such weight file; give model.pretrained an existing file, a tag or `random`"
        )
    spec = _spec_beside(file)
    if file.suffix == ".safetensors":
        try:
            state, metadata = read_safetensors(file)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{file}: is not safetensors: {one_line(error)}") from None
        spec = _spec_in(file, metadata) or spec
    else:
        found = _read_archive(file)
        state = _state_of(file, read_torch_file(file)) if found is None else found
        if found is not None or all(key in state for key in _ARCHIVE_NUMBERS):
            spec = spec or {"quick_gelu": True}
    for key in _ARCHIVE_NUMBERS:
        state.pop(key, None)
    return without_prefixes(state), spec


def read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, metadata). Raises: OSError, SafetensorError."""
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def read_torch_file(file: Path) -> Any:
    """What torch.save wrote, on the CPU, with weights_only=True; a yacs config in it becomes a
    plain mapping.

    Raises: FormatError naming the file and any other class or function that it asks for."""
    try:
        with torch.serialization.safe_globals(_INERT):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"it asks for {asked[1]}, which is no tensor" if asked else "it holds more than tensors"
        )
        raise _unreadable(file, why) from None
    except UNREADABLE as error:
        raise _unreadable(file, one_line(error)) from None


def without_prefixes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take off what DistributedDataParallel (`module.`) and torch.compile (`_orig_mod.`) put before
    names."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in state.items()}


def hash_weights(state: Mapping[str, torch.Tensor], temporal_TE: torch.Tensor | None = None) -> str:
    """sha256 over (name, shape, float32 bytes) of all weights, sorted by name."""
    digest = hashlib.sha256()
    extra = {} if temporal_TE is None else {TEMPORAL_KEY: temporal_TE}
    for key, value in sorted({**state, **extra}.items()):
        digest.update(f"{key}\t{tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """The text of a library's error without its line breaks."""
    return " ".join(str(error).split())


def _read_archive(file: Path) -> dict[str, torch.Tensor] | None:
    """The weights of a TorchScript archive, as OpenAI publishes them; None for another file.

    Raises: FormatError for one that would run code while it is read."""
    checked = _checked_archive(file)
    if checked is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return dict(torch.jit.load(checked, map_location="cpu").state_dict())
    except (RuntimeError, ValueError, OSError):
        return None


def _checked_archive(file: Path) -> io.BytesIO | None:
    """A copy of a TorchScript archive of what has been looked at, whatever else torch would find in
    the file.

    Only a `__setstate__` runs when an archive is read; other code waits to be called."""
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as given, zipfile.ZipFile(copy, "w") as checked:
            if not any("/code/" in name.lower() for name in given.namelist()):
                return None
            for member in given.infolist():
                data = given.read(member)
                if b"__setstate__" in data:
                    raise _unreadable(
                        file,
                        "its TorchScript has a __setstate__, which is code that runs when it is read",
                    )
                checked.writestr(member.filename, data)
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error):
        return None
    copy.seek(0)
    return copy


def _state_of(file: Path, loaded: Any) -> dict[str, torch.Tensor]:
    """The state dict in what a training script saved."""
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(torch.is_tensor(value) for value in loaded.values()):
        raise _unreadable(file, "it holds no state dict of tensors")
    return loaded


def _spec_in(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        spec = json.loads(metadata.get(SPEC_METADATA_KEY, "{}"))
    except ValueError:
        spec = None
    if not isinstance(spec, dict):
        raise FormatError(
            f"{file}: its metadata {SPEC_METADATA_KEY} is no architecture; write the file anew"
        )
    return spec


def _spec_beside(file: Path) -> dict[str, Any]:
    """The architecture in `open_clip_config.json`, which open_clip's published folders keep beside
    the weights."""
    config = file.with_name("open_clip_config.json")
    if not config.is_file():
        return {}
    try:
        stated = json.loads(config.read_text(encoding="utf-8"))
        spec = {"quick_gelu": False, **stated["model_cfg"]}
        seen = stated.get("preprocess_cfg", {})
        return {**spec, **{f"image_{key}": seen[key] for key in ("mean", "std") if key in seen}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{config}: is no open_clip config: {one_line(error)}; mend it or move it away"
        ) from None


def _unreadable(file: Path, why: str) -> FormatError:
    return FormatError(f"{file}: is not a weight file that can be read safely: {why}")
