"""WiSE-FT: weights between those of a base model and those of its tuned form.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2022."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bmpt.methods.base import Method
from shards.errors import ConfigError


def interpolate(
    base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], weight: float
) -> dict[str, torch.Tensor]:
    """Compute (1 - weight) * base + weight * tuned for every name of `base`.

    Args:
        base: base weights.
        tuned: tuned tensors; those without a base weight stay tuned, as in BDC-CLIP.
        weight: 0 gives exactly the base weights, 1 exactly the tuned ones.
    """
    mixed = {}
    for name, value in tuned.items():
        if name in base:
            value = (1 - weight) * base[name] + weight * value
        mixed[name] = value
    return mixed


def base_weights(method: Method) -> dict[str, torch.Tensor]:
    """Return the base weights that a method tunes, on the CPU, before a checkpoint is loaded.

    Prompts, heads and other tensors that the method adds are not among them.

    Raises:
        ConfigError: if the method tunes no weights of the base model.
    """
    names = set(method.backbone_names()) & method.trained_groups().keys()
    if not names:
        raise ConfigError(
            "eval.wise_ft interpolates tuned weights of the base model, and this method tunes "
            "none; set method.tune=all or leave eval.wise_ft out"
        )
    return {name: value for name, value in method.trained_state().items() if name in names}


@torch.no_grad()
def apply_wise_ft(method: Method, base: Mapping[str, torch.Tensor], weight: float) -> None:
    """Replace the tuned weights of a method by interpolated ones.

    Args:
        method: with tuned weights.
        base: result of `base_weights` before the tuned weights were loaded.
        weight: as in `interpolate`.
    """
    for name, value in interpolate(base, method.trained_state(), weight).items():
        method.get_parameter(name).copy_(value)
