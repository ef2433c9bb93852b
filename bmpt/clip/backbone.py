"""CLIP backbones: open_clip models by name and tag, by local file, or from an OpenAI-format state
dict.

Importing open_clip costs 3 s, so it happens inside `load_backbone`. Only plain ViT towers are
taken, since our own towers (`bmpt/clip/towers.py`) walk their blocks."""

from __future__ import annotations

import difflib
import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bmpt.clip.pretrained import find_pretrained
from bmpt.clip.weights import (
    METHOD_PREFIX,
    SPEC_METADATA_KEY,
    TEMPORAL_KEY,
    hash_weights,
    one_line,
    read_weights,
)
from shards.errors import ConfigError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
OPENAI_WIDEST = 1024  # of ViT-L; wider ones of open_clip have other heads than width / 64
RANDOM = "random"
BUNDLED = {
    "demo": Path(__file__).parents[1] / "demo" / "motion_clip.safetensors"
}  # see scripts/pretrain_demo_clip.py
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Backbone:
    """A CLIP in float32 and what belongs to it.

    model: open_clip.CLIP; visual width Ev, text width Et, joint width D
    temporal_TE: the trained per-frame embedding that came with the weights [T, Ev], or None
    weights_sha256: over names, shapes and values of all weights, 64 hex digits
    architecture: {embed_dim, vision_cfg, text_cfg, quick_gelu, image_mean, image_std}
    note: what was assumed of weights that do not say it, or None"""

    name: str
    model: Any
    tokenizer: Any
    image_size_px: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    temporal_TE: torch.Tensor | None
    weights_sha256: str
    architecture: Mapping[str, Any]
    note: str | None = None

    @property
    def vision_width(self) -> int:
        """Ev."""
        return self.model.visual.conv1.out_channels

    @property
    def joint_width(self) -> int:
        """D."""
        return self.model.visual.proj.shape[1]

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
        """Token ids [K, context]: SOT, words, EOT, zeros; a longer text is cut and keeps its
        EOT."""
        return cast(torch.Tensor, self.tokenizer(texts))


def load_backbone(name: str, pretrained: str, *, seed: int = 0) -> Backbone:
    """Load a CLIP. `pretrained`: a file, `random` (seeded), `demo`, or an open_clip tag such as
    `openai`.

    A file is safetensors (ours carry their architecture), an OpenAI JIT archive, or a state dict in
    OpenAI's or open_clip's naming, of any width and depth; if `name` is an open_clip architecture
    the file must fit it. The activation is what the tag or the file states; a bare state dict has
    that of `name` (open_clip's names that end in `-quickgelu` are OpenAI's), or QuickGELU under a
    free name.
    Raises: ConfigError naming the name, the tag or the file, and the cure."""
    open_clip = import_open_clip()
    known = open_clip.list_models()
    config = open_clip.get_model_config(name) if name in known else None
    file = BUNDLED.get(pretrained, Path(pretrained))
    if file.suffix in _WEIGHT_SUFFIXES or file.is_file():
        state, stated = read_weights(file)
        carried = sorted(
            key.removeprefix(METHOD_PREFIX) for key in state if key.startswith(METHOD_PREFIX)
        )
        if carried:
            raise ConfigError(
                f"{file}: holds {', '.join(carried[:3])} of a method beside its CLIP, which model.pretrained would "
                "leave out; give the base model here and the run's prompts.safetensors as --checkpoint"
            )
        return backbone_from_state(name, state, stated, where=str(file))
    if config is None:
        near = difflib.get_close_matches(name, known, n=3)
        raise ConfigError(
            f"model.name={name}: open_clip has no such architecture and model.pretrained={pretrained} is no file; "
            f"{'near: ' + ', '.join(near) if near else 'give for example ViT-B-16 or ViT-L-14'}"
        )
    spec = _spec_of(name, config)
    if pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _as_backbone(name, build_clip(spec), spec, temporal_TE=None)
    found = find_pretrained(open_clip, name, pretrained)
    state, stated = read_weights(found.file)
    # open_clip's table is right where its architectures are not: ViT-B-16 is GELU, its tag `openai`
    # is QuickGELU
    spec |= {
        "quick_gelu": found.quick_gelu,
        "image_mean": found.image_mean,
        "image_std": found.image_std,
    }
    return backbone_from_state(name, state, spec, where=str(found.file))


def backbone_from_state(
    name: str, state: dict[str, torch.Tensor], stated: Mapping[str, Any], *, where: str
) -> Backbone:
    """Make the backbone that a state dict fits, and load it strictly.

    stated: the architecture as `Backbone.architecture`, or what is known of it beyond `name` and
        the shapes.
    Raises: ConfigError naming `where`."""
    open_clip = import_open_clip()
    temporal_TE = state.get(TEMPORAL_KEY)
    weights = {key: value.float() for key, value in state.items() if key != TEMPORAL_KEY}
    if "logit_scale" in weights and weights["logit_scale"].shape == (1,):  # as some publish it
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    spec = dict(stated)
    if "vision_cfg" not in spec:
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        spec = {
            **(infer_spec(weights, where=where) if config is None else _spec_of(name, config)),
            **spec,
        }
    model = build_clip(spec)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        cure = "another open_clip architecture as model.name, or a name of your own to read the sizes off the file"
        raise ConfigError(
            f"{where}: does not fit model.name={name}: {one_line(error)[:300]}; give {cure}"
        ) from None
    found = _as_backbone(name, model, spec, temporal_TE=temporal_TE)
    return (
        found
        if "quick_gelu" in stated
        else replace(found, note=_note_on_activation(name, spec, where=where))
    )


def _note_on_activation(name: str, spec: Mapping[str, Any], *, where: str) -> str | None:
    """The assumption about a bare state dict, whose shapes do not show it: another activation,
    other features."""
    if name.endswith("-quickgelu"):
        return None
    if spec["quick_gelu"]:
        taken, other = "QuickGELU, as OpenAI's", "with GELU give their open_clip architecture"
    else:
        known = f"{name}-quickgelu" in import_open_clip().list_models()
        taken = "GELU, as open_clip's"
        other = f"with QuickGELU, as OpenAI's, give {f'{name}-quickgelu' if known else 'a name of your own'}"
    return f"{where}: does not say its activation; {taken} is taken; for weights trained {other} as model.name"


def weights_metadata(architecture: Mapping[str, Any], **origin: Any) -> dict[str, str]:
    """The safetensors metadata by which `read_weights` knows an architecture again, and where the
    weights come from.

    One entry, since safetensors writes several in any order and a file would have other bytes each
    time."""
    return {
        SPEC_METADATA_KEY: json.dumps(
            {**architecture, **origin}, sort_keys=True, ensure_ascii=False
        )
    }


def _as_backbone(
    name: str, model: Any, spec: Mapping[str, Any], *, temporal_TE: torch.Tensor | None
) -> Backbone:
    """Raises: ConfigError for towers that `bmpt/clip/towers.py` cannot walk."""
    _check_is_plain_vit(model, name)
    model = model.float().eval()
    image_mean, image_std = (
        tuple(spec.get("image_mean", OPENAI_MEAN)),
        tuple(spec.get("image_std", OPENAI_STD)),
    )
    return Backbone(
        name=name,
        model=model,
        tokenizer=import_open_clip().SimpleTokenizer(context_length=model.context_length),
        image_size_px=int(model.visual.image_size[0]),
        image_mean=image_mean,
        image_std=image_std,
        temporal_TE=None if temporal_TE is None else temporal_TE.float(),
        weights_sha256=hash_weights(model.state_dict(), temporal_TE),
        architecture={
            **{key: spec[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")},
            "image_mean": image_mean,
            "image_std": image_std,
        },
    )


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

    torchvision's wheels are CUDA builds: beside a CPU torch their import fails because the
    operators they declare shapes for do not exist. Declaring the two it asks for is enough; a
    healthy one is never touched."""
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


def _spec_of(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of an open_clip name. Raises: ConfigError if it is not made of CLIP's own
    two towers."""
    if (
        "timm_model_name" in config["vision_cfg"]
        or "hf_model_name" in config["text_cfg"]
        or config.get("custom_text")
    ):
        raise _not_plain(name)
    return {
        key: config.get(key, False) for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    }


def infer_spec(state: Mapping[str, torch.Tensor], *, where: str) -> dict[str, Any]:
    """Read the architecture off the shapes of an OpenAI-format ViT state dict; heads are width /
    64."""
    try:
        vision_width, _, patch_px, _ = state["visual.conv1.weight"].shape
        grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
        context_length, text_width = state["positional_embedding"].shape
        embed_dim = state["text_projection"].shape[1]
        vocab_size = state["token_embedding.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{where}: is not an OpenAI-format ViT CLIP: {error} is missing or misshapen"
        ) from None
    if vision_width > OPENAI_WIDEST:
        raise ConfigError(
            f"{where}: has a visual width of {vision_width}, whose number of heads its shapes do not show; give its "
            "open_clip architecture as model.name, for example ViT-H-14"
        )
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


def _check_is_plain_vit(model: Any, name: str) -> None:
    """Raises: ConfigError for towers that `bmpt/clip/towers.py` cannot walk."""
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
        and all(  # others have layers between or within, which nothing would miss here
            type(block) is import_open_clip().transformer.ResidualAttentionBlock
            for tower in (model, model.visual)
            for block in tower.transformer.resblocks
        )
    )
    if not is_plain:
        raise _not_plain(name)


def _not_plain(name: str) -> ConfigError:
    return ConfigError(
        f"model.name={name}: only CLIP's own ViT form is supported, such as ViT-B-32, -B-16, -L-14"
    )
