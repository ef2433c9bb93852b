"""CLIP backbones: open_clip models by name and tag, or weights from a file.

Only plain ViT towers are supported, since `bmpt/clip/towers.py` computes them block by block."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from bmpt.clip.architecture import (
    build_clip,
    check_is_plain_vit,
    find_architecture,
    import_open_clip,
    infer_architecture,
)
from bmpt.clip.pretrained import find_pretrained
from bmpt.clip.weights import (
    METHOD_PREFIX,
    SPEC_METADATA_KEY,
    TEMPORAL_KEY,
    hash_weights,
    read_weights,
)
from shards.errors import ConfigError
from shards.files import name_some, one_line

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RANDOM = "random"
# weights that come with the package; `scripts/pretrain_demo_clip.py` trains them
BUNDLED = {"demo": Path(__file__).parents[1] / "demo" / "motion_clip.safetensors"}
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_LOAD_ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class Backbone:
    """A CLIP model in float32, with its tokenizer and the origin of its weights."""

    name: str
    """`model.name` of the config."""
    model: Any
    """open_clip.CLIP of visual width Ev, text width Et and joint width D."""
    tokenizer: Any
    """open_clip.SimpleTokenizer of the model's context length."""
    image_size_px: int
    """Height and width of the images that the model expects."""
    image_mean: tuple[float, float, float]
    """Mean per channel, for normalisation."""
    image_std: tuple[float, float, float]
    """Standard deviation per channel, for normalisation."""
    temporal_TE: torch.Tensor | None
    """Trained embedding of each frame, [T, Ev], if the weights include one."""
    weights_sha256: str
    """Hash over names, shapes and values of all weights, 64 hex digits."""
    architecture: Mapping[str, Any]
    """{embed_dim, vision_cfg, text_cfg, quick_gelu, image_mean, image_std}."""
    note: str | None = None
    """Warning about an assumption that the file of the weights does not confirm."""

    @property
    def vision_width(self) -> int:
        """Width of the visual tower (Ev)."""
        return self.model.visual.conv1.out_channels

    @property
    def joint_width(self) -> int:
        """Width of the joint space (D)."""
        return self.model.visual.proj.shape[1]

    @property
    def text_width(self) -> int:
        """Width of the text tower (Et)."""
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
        """Return token ids [K, context]: SOT, words, EOT, zeros.

        A text that is too long is truncated; its last token is then EOT.
        """
        return cast(torch.Tensor, self.tokenizer(texts))


def load_backbone(name: str, pretrained: str, *, seed: int = 0) -> Backbone:
    """Load a CLIP.

    A weight file is a safetensors file, an OpenAI JIT archive, or a state dict in OpenAI's or
    open_clip's naming, of any width and depth. Safetensors that this package writes contain their
    architecture. The activation is that of the tag or the file. A bare state dict gets the
    activation of `name` (OpenAI's for open_clip's names that end in `-quickgelu`), or QuickGELU if
    `name` is not an open_clip architecture.

    Args:
        name: an open_clip architecture, which a weight file must fit, or any other name.
        pretrained: a weight file, `random`, `demo`, or an open_clip tag such as `openai`.
        seed: of the weights of `random`.

    Raises:
        ConfigError: if the name or tag is unknown, or the file does not fit the architecture.
        FormatError: if the file cannot be read safely.
    """
    file = BUNDLED.get(pretrained, Path(pretrained))
    if file.suffix in _WEIGHT_SUFFIXES or file.is_file():
        return _load_file(name, file)

    architecture = find_architecture(name)
    if architecture is None:
        raise _unknown_name(name, pretrained)

    if pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _as_backbone(name, build_clip(architecture), architecture, temporal_TE=None)

    published = find_pretrained(import_open_clip(), name, pretrained)
    state, _ = read_weights(published.file)
    # The table of tags is right where that of architectures is not: ViT-B-16 is listed with GELU,
    # and its tag `openai` with QuickGELU.
    architecture |= {
        "quick_gelu": published.quick_gelu,
        "image_mean": published.image_mean,
        "image_std": published.image_std,
    }
    return backbone_from_state(name, state, architecture, where=str(published.file))


def _load_file(name: str, file: Path) -> Backbone:
    state, stated = read_weights(file)

    method_keys = [key for key in state if key.startswith(METHOD_PREFIX)]
    if method_keys:
        names = sorted(key.removeprefix(METHOD_PREFIX) for key in method_keys)
        raise ConfigError(
            f"{file}: contains tensors of a method beside its CLIP ({name_some(names, 3)}), which "
            "model.pretrained would ignore; give the base model here and the run's "
            "prompts.safetensors as --checkpoint"
        )

    return backbone_from_state(name, state, stated, where=str(file))


def _unknown_name(name: str, pretrained: str) -> ConfigError:
    similar = difflib.get_close_matches(name, import_open_clip().list_models(), n=3)
    suggestions = " or ".join(similar or ("ViT-B-16", "ViT-L-14"))
    return ConfigError(
        f"model.name={name}: open_clip has no such architecture, and "
        f"model.pretrained={pretrained} is not a file; give for example {suggestions}"
    )


def backbone_from_state(
    name: str, state: dict[str, torch.Tensor], stated: Mapping[str, Any], *, where: str
) -> Backbone:
    """Build the backbone of a state dict and load all weights strictly.

    Args:
        name: an open_clip architecture or any other name.
        state: the weights by name, with `visual.temporal_embedding` if they include one.
        stated: the architecture as `Backbone.architecture`, or a part of it. The rest comes from
            `name` or else from the shapes.
        where: source of the weights, named in errors.

    Raises:
        ConfigError: if the weights do not fit the architecture.
    """
    temporal_TE = state.get(TEMPORAL_KEY)
    weights = {key: value.float() for key, value in state.items() if key != TEMPORAL_KEY}
    # Some published checkpoints store the scale with an axis of length 1.
    if "logit_scale" in weights and weights["logit_scale"].shape == (1,):
        weights["logit_scale"] = weights["logit_scale"].reshape(())

    architecture = dict(stated)
    if "vision_cfg" not in architecture:
        named = find_architecture(name)
        if named is None:
            named = infer_architecture(weights, where=where)
        architecture = {**named, **architecture}

    model = build_clip(architecture)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: does not fit model.name={name}: "
            f"{one_line(error)[:_LOAD_ERROR_CHARACTERS]}; give another open_clip architecture as "
            "model.name, or a name that open_clip does not have, so that the sizes are read from "
            "the file"
        ) from None

    backbone = _as_backbone(name, model, architecture, temporal_TE=temporal_TE)
    if "quick_gelu" in stated:
        return backbone
    return replace(backbone, note=_activation_warning(name, architecture, where=where))


def _activation_warning(name: str, architecture: Mapping[str, Any], *, where: str) -> str | None:
    """Return a warning about the assumed activation, which shapes do not show, or None."""
    if name.endswith("-quickgelu"):
        return None

    if architecture["quick_gelu"]:
        assumed = "QuickGELU, as OpenAI's models have it"
        hint = "with GELU, give their open_clip architecture"
    elif find_architecture(f"{name}-quickgelu") is not None:
        assumed = "GELU, as open_clip's models have it"
        hint = f"with QuickGELU, give {name}-quickgelu"
    else:
        assumed = "GELU, as open_clip's models have it"
        hint = "with QuickGELU, give a name that open_clip does not have"

    return (
        f"{where}: does not state its activation; {assumed}, is assumed; for weights trained "
        f"{hint} as model.name"
    )


def weights_metadata(architecture: Mapping[str, Any], **origin: Any) -> dict[str, str]:
    """Return the safetensors metadata from which `read_weights` restores the architecture.

    Args:
        architecture: as `Backbone.architecture`.
        origin: further entries that state where the weights come from.
    """
    # A single entry: safetensors writes several in random order, so the bytes would vary.
    text = json.dumps({**architecture, **origin}, sort_keys=True, ensure_ascii=False)
    return {SPEC_METADATA_KEY: text}


def _as_backbone(
    name: str, model: Any, architecture: Mapping[str, Any], *, temporal_TE: torch.Tensor | None
) -> Backbone:
    check_is_plain_vit(model, name)
    model = model.float().eval()
    image_mean = tuple(architecture.get("image_mean", OPENAI_MEAN))
    image_std = tuple(architecture.get("image_std", OPENAI_STD))

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
            "embed_dim": architecture["embed_dim"],
            "vision_cfg": architecture["vision_cfg"],
            "text_cfg": architecture["text_cfg"],
            "quick_gelu": architecture["quick_gelu"],
            "image_mean": image_mean,
            "image_std": image_std,
        },
    )
