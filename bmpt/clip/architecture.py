"""Architectures of CLIP: by open_clip name, from the shapes of a state dict, and as a new model.

An architecture is a mapping {embed_dim, vision_cfg, text_cfg, quick_gelu} as in open_clip's model
configs. Importing open_clip takes 3 s, so it happens inside the functions that need it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from shards.errors import ConfigError

_ARCHITECTURE_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
# ViT-L has this width. The wider models of open_clip do not have width / 64 attention heads.
_MAX_INFERABLE_WIDTH = 1024
_HEAD_WIDTH = 64

# A torch library is unregistered when it is garbage-collected, so it is kept here.
_torchvision_library: list[torch.library.Library] = []


def import_open_clip() -> Any:
    """Import open_clip, and torchvision with it, also beside a torch build without CUDA.

    Wheels of torchvision are CUDA builds. Beside a CPU build of torch their import fails, because
    they register shape functions for operators that are not defined. This function then defines
    the two operators and imports torchvision again. It does not touch a torchvision that works.
    """
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


def build_clip(architecture: Mapping[str, Any]) -> Any:
    """Build an untrained open_clip.CLIP."""
    open_clip = import_open_clip()
    return open_clip.CLIP(
        architecture["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**architecture["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**architecture["text_cfg"]),
        quick_gelu=architecture["quick_gelu"],
    )


def find_architecture(name: str) -> dict[str, Any] | None:
    """Return the architecture of an open_clip model name, or None for an unknown name.

    Raises:
        ConfigError: if the model does not consist of CLIP's own two towers.
    """
    open_clip = import_open_clip()
    if name not in open_clip.list_models():
        return None

    config = open_clip.get_model_config(name)
    has_other_tower = (
        "timm_model_name" in config["vision_cfg"]
        or "hf_model_name" in config["text_cfg"]
        or config.get("custom_text")
    )
    if has_other_tower:
        raise _unsupported_towers(name)
    return {key: config.get(key, False) for key in _ARCHITECTURE_KEYS}


def infer_architecture(state: Mapping[str, torch.Tensor], *, where: str) -> dict[str, Any]:
    """Infer the architecture of a ViT CLIP in OpenAI's naming from the shapes of its weights.

    Shapes do not show the number of attention heads, which is taken to be width / 64, nor the
    activation, which is taken to be QuickGELU.

    Args:
        state: the weights by name.
        where: source of the weights, named in errors.

    Raises:
        ConfigError: if a weight is missing, or if the tower is so wide that the number of heads
            cannot be derived from its width.
    """
    try:
        vision_width, _, patch_px, _ = state["visual.conv1.weight"].shape
        grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
        context_length, text_width = state["positional_embedding"].shape
        embed_dim = state["text_projection"].shape[1]
        vocab_size = state["token_embedding.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{where}: is not an OpenAI-format ViT CLIP: {error} is missing or has a wrong shape; "
            "give the weights of a ViT CLIP"
        ) from None

    if vision_width > _MAX_INFERABLE_WIDTH:
        raise ConfigError(
            f"{where}: has a visual width of {vision_width}, from which the number of heads "
            "cannot be derived; give its open_clip architecture as model.name, for example "
            "ViT-H-14"
        )

    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch_px,
            "patch_size": patch_px,
            "width": vision_width,
            "layers": _count_blocks(state, "visual.transformer.resblocks."),
            "head_width": min(_HEAD_WIDTH, vision_width),
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": max(1, text_width // _HEAD_WIDTH),
            "layers": _count_blocks(state, "transformer.resblocks."),
        },
    }


def check_is_plain_vit(model: Any, name: str) -> None:
    """Check that `bmpt/clip/towers.py` computes the same as the model's own towers.

    Args:
        model: an open_clip model.
        name: its `model.name`, named in the error.

    Raises:
        ConfigError: if it does not.
    """
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
        and _has_plain_blocks(model)
    )
    if not is_plain:
        raise _unsupported_towers(name)


def _has_plain_blocks(model: Any) -> bool:
    # Other block classes contain extra layers that our forward pass would silently skip.
    plain_block = import_open_clip().transformer.ResidualAttentionBlock
    blocks = [*model.transformer.resblocks, *model.visual.transformer.resblocks]
    return all(type(block) is plain_block for block in blocks)


def _count_blocks(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _unsupported_towers(name: str) -> ConfigError:
    return ConfigError(
        f"model.name={name}: only CLIP's own ViT form is supported; give for example ViT-B-32, "
        "ViT-B-16 or ViT-L-14"
    )
