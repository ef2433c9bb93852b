"""Tensors of the published systems under the names of our methods, with the settings that they were
trained with."""

from __future__ import annotations

from collections.abc import Iterable
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
    """What a published checkpoint holds, in float32: all of CLIP by CLIP's names, the others by
    their original ones.

    attributes: BIKE's attributes head, of a file of its own that belongs to this one"""

    clip: Tensors
    prompts: Tensors
    heads: Tensors
    attributes: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class MethodTensors:
    """Trained tensors of one of our methods: with `tune: prompts` on the published CLIP, else on
    its base model.

    num_classes: of a classifier, None without one"""

    settings: MethodSettings
    tensors: Tensors
    num_classes: int | None = None


def to_method(system: str, found: PublishedTensors, base: Backbone) -> MethodTensors | None:
    """The same as a checkpoint of our method; None for BIKE's attributes head without its video
    branch."""
    if system == "vifi_clip":
        return _vifi_clip(found)
    if system == "bdc_clip":
        return _bdc_clip(found, base)
    return _bmpt(found, base) if system == "bmpt" else _bike(found)


def _vifi_clip(found: PublishedTensors) -> MethodTensors:
    """Every weight, or prompts on a frozen CLIP."""
    if not found.prompts:
        return MethodTensors(VifiClipSettings(tune="all"), _tuned_clip(found))
    settings, tensors = _prompt_tensors("vifi_clip", found.prompts)
    return MethodTensors(VifiClipSettings(tune="prompts", **settings), tensors)


def _bmpt(found: PublishedTensors, base: Backbone) -> MethodTensors:
    """As released: every weight tuned, no exchange, no text prompt of block 0 but one layer of
    depth for it."""
    settings, tensors = _prompt_tensors("bmpt", found.prompts)
    settings["text_depth"] += 1 if settings["text_depth"] else 0
    method = BmptSettings(tune="all", exchange="none", **settings, **_blocks_there(Bmpt, base))
    return MethodTensors(method, {**_tuned_clip(found), **tensors})


def _bdc_clip(found: PublishedTensors, base: Backbone) -> MethodTensors:
    """CLIP and the heads; the classifier is called by one name, whether of pre-training or after
    it."""
    heads = {
        f"heads.{key.replace('vision_bdc_head_downstream', 'vision_bdc_head')}": v
        for key, v in found.heads.items()
    }
    width = len(heads["heads.vision_q_proj.weight"])
    settings = BdcClipSettings(tune="all", reduced_width=width, **_blocks_there(BdcClip, base))
    num_classes = len(heads["heads.vision_bdc_head.bias"])
    return MethodTensors(settings, {**_tuned_clip(found), **heads}, num_classes)


def _bike(found: PublishedTensors) -> MethodTensors | None:
    """CLIP and the temporal transformer; with an attributes head, whose text tower is the base's,
    no text weights."""
    if has_attributes(found.heads):
        return None
    tensors = _tuned_clip(found)
    if found.attributes:
        tensors = {
            key: value
            for key, value in tensors.items()
            if key.startswith(("clip.visual.", "clip.logit_scale"))
        }
    for branch, heads in (("temporal", found.heads), ("attributes", found.attributes)):
        tensors |= {
            f"{branch}.{key.removeprefix(f'{BIKE_STATES[1]}.')}": value
            for key, value in heads.items()
        }
    settings = BikeSettings(
        tune="image" if found.attributes else "all",
        attributes=bool(found.attributes),
        temporal_layers=temporal_layers(found.heads),
        counts_padding=True,
    )
    return MethodTensors(settings, tensors)


def _prompt_tensors(system: str, prompts: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Depths, numbers of tokens and the stacked prompts [L, P, E] of both towers."""
    settings: dict[str, Any] = {}
    tensors: Tensors = {}
    for tower, ours in (("image", "vision"), ("text", "text")):
        first = INPUT_PROMPTS.get((system, tower))
        layers = [prompts[first]] if first in prompts else []
        layers += _values(prompts, deep_prompts(prompts, tower).values())
        settings[f"{ours}_depth"] = len(layers)
        if layers:
            settings[f"{ours}_tokens"] = len(layers[0])
            tensors[f"{ours}_LPE"] = torch.stack(layers)
    return settings, tensors


def _values(tensors: Tensors, names: Iterable[str]) -> list[torch.Tensor]:
    return [tensors[name] for name in names]


def _blocks_there(kind: type[Method], base: Backbone) -> dict[str, Any]:
    """The released code passes over space-time blocks that a tower has not; ours refuses them."""
    there = tuple(block for block in kind.default_space_time_blocks if block < base.vision_layers)
    return {} if there == kind.default_space_time_blocks else {"space_time_blocks": there}


def _tuned_clip(found: PublishedTensors) -> Tensors:
    """All CLIP weights under our methods' names but the token embedding, which none of them
    trains."""
    return {f"clip.{name}": value for name, value in found.clip.items() if name != TOKEN_EMBEDDING}
