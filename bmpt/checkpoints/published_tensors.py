"""Convert tensors of the published systems to our methods: their names and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from bmpt.checkpoints.published_keys import (
    BIKE_STATES,
    INPUT_PROMPTS,
    TOKEN_EMBEDDING,
    deep_prompts,
    has_attributes,
    temporal_layers,
)
from bmpt.clip.backbone import Backbone
from bmpt.methods.base import Method
from bmpt.methods.bdc_clip import BdcClip, BdcClipSettings
from bmpt.methods.bike import BikeSettings
from bmpt.methods.bmpt import Bmpt, BmptSettings
from bmpt.methods.vifi_clip import VifiClipSettings
from bmpt.settings import MethodSettings

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PublishedTensors:
    """The tensors of a published checkpoint, in float32."""

    clip: Tensors
    """All weights of CLIP by CLIP's names; those that the file lacks are the base model's."""
    prompts: Tensors
    """Prompt tokens by their original names."""
    heads: Tensors
    """Other layers by their original names."""
    attributes: Tensors = field(default_factory=dict)
    """BIKE's attributes head from a second file, by its original names."""


@dataclass(frozen=True)
class MethodTensors:
    """Trained tensors of one of our methods."""

    settings: MethodSettings
    """Settings of the method. Its CLIP is the published one with `tune: prompts`, else the base."""
    tensors: Tensors
    """Trained tensors by our names."""
    num_classes: int | None = None
    """Number of classes of a classifier, None without one."""


def to_method(system: str, published: PublishedTensors, base: Backbone) -> MethodTensors | None:
    """Convert published tensors to the trained tensors of our method.

    Args:
        system: one of SYSTEMS.
        published: tensors of its checkpoint.
        base: the CLIP that was tuned.

    Returns:
        None for BIKE's attributes head without the video branch.
    """
    if system == "vifi_clip":
        return _vifi_clip(published)
    if system == "bdc_clip":
        return _bdc_clip(published, base)
    if system == "bmpt":
        return _bmpt(published, base)
    return _bike(published)


def _vifi_clip(published: PublishedTensors) -> MethodTensors:
    """Convert all weights, or prompts on a frozen CLIP."""
    if not published.prompts:
        return MethodTensors(VifiClipSettings(tune="all"), _tuned_clip(published))
    settings, tensors = _prompt_tensors("vifi_clip", published.prompts)
    return MethodTensors(VifiClipSettings(tune="prompts", **settings), tensors)


def _bmpt(published: PublishedTensors, base: Backbone) -> MethodTensors:
    """Convert BMPT as it is released: all weights tuned and no exchange."""
    settings, tensors = _prompt_tensors("bmpt", published.prompts)
    # The release has no text prompt at block 0, which our depth counts.
    if settings["text_depth"]:
        settings["text_depth"] += 1
    method = BmptSettings(tune="all", exchange="none", **settings, **_existing_blocks(Bmpt, base))
    return MethodTensors(method, {**_tuned_clip(published), **tensors})


def _bdc_clip(published: PublishedTensors, base: Backbone) -> MethodTensors:
    """Convert CLIP and the heads."""
    heads = {}
    for key, value in published.heads.items():
        # The classifier has another name after pre-training.
        name = key.replace("vision_bdc_head_downstream", "vision_bdc_head")
        heads[f"heads.{name}"] = value

    width = len(heads["heads.vision_q_proj.weight"])
    settings = BdcClipSettings(tune="all", reduced_width=width, **_existing_blocks(BdcClip, base))
    num_classes = len(heads["heads.vision_bdc_head.bias"])
    return MethodTensors(settings, {**_tuned_clip(published), **heads}, num_classes)


def _bike(published: PublishedTensors) -> MethodTensors | None:
    """Convert CLIP and the temporal transformer, and the attributes head if there is one."""
    if has_attributes(published.heads):
        return None

    tensors = _tuned_clip(published)
    # With an attributes head the text tower is frozen, so its weights are not trained tensors.
    if published.attributes:
        visual = ("clip.visual.", "clip.logit_scale")
        tensors = {key: value for key, value in tensors.items() if key.startswith(visual)}

    for branch, heads in (("temporal", published.heads), ("attributes", published.attributes)):
        for key, value in heads.items():
            name = key.removeprefix(f"{BIKE_STATES[1]}.")
            tensors[f"{branch}.{name}"] = value

    settings = BikeSettings(
        tune="image" if published.attributes else "all",
        attributes=bool(published.attributes),
        temporal_layers=temporal_layers(published.heads),
        counts_padding=True,
    )
    return MethodTensors(settings, tensors)


def _prompt_tensors(system: str, prompts: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Return depths and numbers of tokens as settings, and the prompts [L, P, E] of both towers."""
    settings: dict[str, Any] = {}
    tensors: Tensors = {}
    for tower, ours in (("image", "vision"), ("text", "text")):
        first = INPUT_PROMPTS.get((system, tower))
        layers = [prompts[first]] if first in prompts else []
        layers += [prompts[key] for key in deep_prompts(prompts, tower).values()]
        settings[f"{ours}_depth"] = len(layers)
        if layers:
            settings[f"{ours}_tokens"] = len(layers[0])
            tensors[f"{ours}_LPE"] = torch.stack(layers)
    return settings, tensors


def _existing_blocks(kind: type[Method], base: Backbone) -> dict[str, Any]:
    """Return settings that restrict the default space-time blocks to those of the tower.

    The released code ignores blocks that the tower does not have; ours refuses them.
    """
    default = kind.default_space_time_blocks
    existing = tuple(block for block in default if block < base.vision_layers)
    return {} if existing == default else {"space_time_blocks": existing}


def _tuned_clip(published: PublishedTensors) -> Tensors:
    """Return CLIP's weights by our names, without the token embedding, which no method trains."""
    return {
        f"clip.{name}": value for name, value in published.clip.items() if name != TOKEN_EMBEDDING
    }
