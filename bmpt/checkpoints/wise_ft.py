"""WiSE-FT: the weights half-way (or any way) between a base model and its tuned form. Source:
Wortsman et al. 2022."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bmpt.methods.base import Method
from shards.errors import ConfigError


def interpolate(
    base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], weight: float
) -> dict[str, torch.Tensor]:
    """theta = (1 - weight) * base + weight * tuned for every name of `base`; other names stay
    tuned.

    0 gives the base and 1 the tuned weights exactly. Source: BDC-CLIP, whose adapters stay tuned
    likewise."""
    return {
        name: (1 - weight) * base[name] + weight * value if name in base else value
        for name, value in tuned.items()
    }


def base_weights(method: Method) -> dict[str, torch.Tensor]:
    """The values, before a checkpoint is loaded, of those weights of the base model that the method
    tunes; on the CPU.

    Prompts, heads and other tensors that are new are none of them.
    Raises: ConfigError for a method that tunes no weights of the base."""
    names = set(method.backbone_names()) & method.trained_groups().keys()
    if not names:
        raise ConfigError(
            "eval.wise_ft interpolates tuned weights of the base model, and this method tunes none; set "
            "method.tune=all or leave eval.wise_ft out"
        )
    return {name: value for name, value in method.trained_state().items() if name in names}


@torch.no_grad()
def apply_wise_ft(method: Method, base: Mapping[str, torch.Tensor], weight: float) -> None:
    """Move a method with tuned weights back towards `base`, what `base_weights` gave before they
    were loaded."""
    for name, value in interpolate(base, method.trained_state(), weight).items():
        method.get_parameter(name).copy_(value)
