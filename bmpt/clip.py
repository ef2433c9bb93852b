"""CLIP backbones: open_clip models by name and tag, by local file, or from an OpenAI-format state dict.

Importing open_clip costs 3 s, so it happens inside `load_backbone`. Only plain ViT towers are taken, since
our own towers (`bmpt/towers.py`) walk their blocks."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shards.errors import ConfigError, FormatError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RANDOM = "random"
BUNDLED = {"demo": Path(__file__).parent / "demo" / "motion_clip.safetensors"}  # see scripts/pretrain_demo_clip.py
SPEC_METADATA_KEY = "bmpt_clip"
TEMPORAL_KEY = "visual.temporal_embedding"
# what torch.load raises for files that are cut, not its own, or would run code
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, IndexError, KeyError, pickle.UnpicklingError)
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Backbone:
    """A CLIP in float32 and what belongs to it.

    model: open_clip.CLIP; visual width Ev, text width Et, joint width D
    temporal_TE: the trained per-frame embedding that came with the weights [T, Ev], or None
    weights_sha256: over names, shapes and values of all weights, 64 hex digits"""

    name: str
    model: Any
    tokenizer: Any
    image_size_px: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    temporal_TE: torch.Tensor | None
    weights_sha256: str

    @property
    def vision_width(self) -> int:
        """Ev."""
        return self.model.visual.conv1.out_channels

    @property
    def text_width(self) -> int:
        """Et."""
        return self.model.token_embedding.embedding_dim

    @property
    def vision_layers(self) -> int:
        """Number of visual blocks."""
        return len(self.model.visual.transformer.resblocks)

    @property
    def text_layers(self) -> int:
        """Number of text blocks."""
        return len(self.model.transformer.resblocks)

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """Token ids [K, context]: SOT, words, EOT, zeros; a longer text is cut and keeps its EOT."""
        return cast(torch.Tensor, self.tokenizer(texts))


def load_backbone(name: str, pretrained: str, *, seed: int = 0) -> Backbone:
    """Load a CLIP. `pretrained`: a file, `random` (seeded), `demo`, or an open_clip tag such as `openai`.

    A file is safetensors (ours carry their architecture), an OpenAI JIT archive, or a state dict in OpenAI's
    or open_clip's naming, of any width and depth; if `name` is an open_clip architecture the file must fit it.
    Raises: ConfigError naming the name, the tag or the file, and the cure."""
    open_clip = import_open_clip()
    config = open_clip.get_model_config(name)
    file = BUNDLED.get(pretrained, Path(pretrained))
    spec: dict[str, Any] = {}
    temporal_TE = None
    if file.suffix in _WEIGHT_SUFFIXES or file.is_file():
        state, spec = read_weights(file)
        temporal_TE = state.pop(TEMPORAL_KEY, None)
        model = _build_from_state(name, config, spec, state, where=str(file))
    elif config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise ConfigError(
            f"model.name={name}: open_clip has no such architecture and model.pretrained={pretrained} is no file; "
            f"{'near: ' + ', '.join(near) if near else 'give for example ViT-B-16 or ViT-L-14'}"
        )
    elif pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_clip(_spec_of(name, config))
    else:
        model = _create_by_tag(open_clip, name, pretrained)
    _check_is_plain_vit(model, name)
    model = model.float().eval()
    return Backbone(
        name=name,
        model=model,
        tokenizer=open_clip.SimpleTokenizer(context_length=model.context_length),
        image_size_px=int(model.visual.image_size[0]),
        image_mean=tuple(spec.get("image_mean", getattr(model.visual, "image_mean", None) or OPENAI_MEAN)),
        image_std=tuple(spec.get("image_std", getattr(model.visual, "image_std", None) or OPENAI_STD)),
        temporal_TE=None if temporal_TE is None else temporal_TE.float(),
        weights_sha256=hash_weights(model.state_dict(), temporal_TE),
    )


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a weight file: (state dict without `module.` prefixes, the architecture it carries or {})."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such weight file; give model.pretrained an existing file, a tag or `random`")
    spec: dict[str, Any] = {}
    try:
        if file.suffix == ".safetensors":
            state, metadata = read_safetensors(file)
            spec = json.loads(metadata.get(SPEC_METADATA_KEY, "{}"))
        else:
            state, spec = _read_torch_file(file)
    except SafetensorError as error:
        raise FormatError(f"{file}: is not safetensors: {_one_line(error)}") from None
    except UNREADABLE as error:
        why = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else _one_line(error)
        raise FormatError(f"{file}: is not a weight file that can be read safely: {why}") from None
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in state.items()}, spec


def read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, metadata). Raises: OSError, SafetensorError."""
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def hash_weights(state: Mapping[str, torch.Tensor], temporal_TE: torch.Tensor | None = None) -> str:
    """sha256 over (name, shape, float32 bytes) of all weights, sorted by name."""
    digest = hashlib.sha256()
    extra = {} if temporal_TE is None else {TEMPORAL_KEY: temporal_TE}
    for key, value in sorted({**state, **extra}.items()):
        digest.update(f"{key}\t{tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_clip(spec: Mapping[str, Any]) -> Any:
    """Make an untrained open_clip.CLIP from {embed_dim, vision_cfg, text_cfg, quick_gelu}."""
    open_clip = import_open_clip()
    return open_clip.CLIP(
        spec["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**spec["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**spec["text_cfg"]),
        quick_gelu=spec["quick_gelu"],
    )


_torchvision_library: list[torch.library.Library] = []  # dropped when collected, so it is kept


def import_open_clip() -> Any:
    """Import open_clip; the one place where torchvision is imported.

    torchvision's wheels are CUDA builds: beside a CPU torch their import fails because the operators they
    declare shapes for do not exist. Declaring the two it asks for is enough; a healthy one is never touched."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_library.append(library)
        importlib.import_module("torchvision")
    import open_clip

    return open_clip


def _read_torch_file(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An OpenAI JIT archive (QuickGELU) or a pickled state dict, read with weights_only=True."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI publishes JIT archives all the same
            archive = torch.jit.load(str(file), map_location="cpu")
    except RuntimeError:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model"):
            if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
                loaded = loaded[wrapper]
        if not isinstance(loaded, dict) or not all(torch.is_tensor(value) for value in loaded.values()):
            raise ValueError("it holds no state dict of tensors") from None
        return loaded, {}
    return dict(archive.state_dict()), {"quick_gelu": True}


def _build_from_state(
    name: str, config: dict[str, Any] | None, spec: dict[str, Any], state: dict[str, Any], *, where: str
) -> Any:
    """Make the model that a state dict fits, and load it strictly.

    spec: the whole architecture if the file carries one, else what is known of it (QuickGELU of a JIT archive)."""
    for key in ("input_resolution", "context_length", "vocab_size"):  # numbers that OpenAI's archives carry along
        state.pop(key, None)
    if "vision_cfg" not in spec:
        spec = {**(infer_spec(state, where=where) if config is None else _spec_of(name, config)), **spec}
    model = build_clip(spec)
    try:
        model.load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        raise ConfigError(f"{where}: does not fit model.name={name}: {_one_line(error)[:300]}") from None
    return model


def _spec_of(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of an open_clip name. Raises: ConfigError if it is not made of CLIP's own two towers."""
    if "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"] or config.get("custom_text"):
        raise _not_plain(name)
    return {key: config.get(key, False) for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}


def infer_spec(state: Mapping[str, torch.Tensor], *, where: str) -> dict[str, Any]:
    """Read the architecture off the shapes of an OpenAI-format ViT state dict; heads are width / 64."""
    try:
        vision_width, _, patch_px, _ = state["visual.conv1.weight"].shape
        grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
        context_length, text_width = state["positional_embedding"].shape
        embed_dim = state["text_projection"].shape[1]
        vocab_size = state["token_embedding.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{where}: is not an OpenAI-format ViT CLIP: {error} is missing or misshapen") from None
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch_px,
            "patch_size": patch_px,
            "width": vision_width,
            "layers": _count_blocks(state, "visual.transformer.resblocks."),
            "head_width": min(64, vision_width),
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": _count_blocks(state, "transformer.resblocks."),
        },
    }


def _count_blocks(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _create_by_tag(open_clip: Any, name: str, tag: str) -> Any:
    """Make a model with published weights, from open_clip's cache or its hub."""
    known = open_clip.list_pretrained_tags_by_model(name)
    if tag not in known:
        raise ConfigError(
            f"model.pretrained={tag}: no tag of {name} and no file; tags: {', '.join(known) or 'none'}, or `random`"
        )
    logging.disable(logging.ERROR)  # the hub's client logs every retry; the one line below says it all
    try:
        return open_clip.create_model(name, pretrained=tag)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model.pretrained={tag}: the weights of {name} could not be fetched ({_one_line(error)[:200]}); "
            "fetch the file where there is a network and give its path as model.pretrained"
        ) from None
    finally:
        logging.disable(logging.NOTSET)


def _check_is_plain_vit(model: Any, name: str) -> None:
    """Raises: ConfigError for towers that `bmpt/towers.py` cannot walk."""
    visual = getattr(model, "visual", None)
    is_plain = (
        hasattr(model, "transformer")
        and hasattr(visual, "class_embedding")
        and getattr(visual, "attn_pool", None) is None
        and getattr(visual, "pool_type", "tok") == "tok"
        and getattr(model, "text_pool_type", "argmax") == "argmax"
        and getattr(model, "attn_mask", None) is not None
        and not getattr(visual, "final_ln_after_pool", False)
        and isinstance(getattr(visual, "proj", None), nn.Parameter)
    )
    if not is_plain:
        raise _not_plain(name)


def _not_plain(name: str) -> ConfigError:
    return ConfigError(f"model.name={name}: only CLIP's own ViT form is supported, such as ViT-B-32, -B-16, -L-14")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
