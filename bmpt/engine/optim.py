"""The optimiser and its schedule: AdamW over groups of rates, linear warm-up, then a cosine."""

from __future__ import annotations

import math

import torch

from bmpt.methods.base import Method
from bmpt.settings import TrainSettings

LOWEST_SHARE = 0.01  # of the base rate, at the end


def build_optimizer(method: Method, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over what trains. Prompts, gains and biases have no weight decay; each group keeps its
    base rate."""
    rates = {
        "backbone": settings.lr,
        "prompts": settings.lr_prompts or settings.lr,
        "exchange": settings.lr_exchange or settings.lr,
        "adapters": settings.lr_adapters or settings.lr,
        "head": settings.lr_head or settings.lr,
    }
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, group in method.trained_groups().items():
        parameter = method.get_parameter(name)
        decays = group != "prompts" and parameter.ndim >= 2
        groups.setdefault((group, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "base_lr": rates[group],
                "lr": rates[group],
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (group, decays), parameters in groups.items()
        ],
        betas=settings.betas,
        eps=settings.eps,
    )


def lr_share(step: int, *, num_steps: int, warmup_steps: int) -> float:
    """The share of the base rate at optimiser step `step` of `num_steps`, counted from 0.

    Warm-up rises linearly and reaches 1 at its last step; the cosine falls from 1 to
    LOWEST_SHARE."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return LOWEST_SHARE + (1 - LOWEST_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to its share of its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share
