"""The optimiser and its schedule: AdamW with parameter groups, linear warm-up, then a cosine."""

from __future__ import annotations

import math

import torch

from bmpt.methods.base import Group, Method
from bmpt.settings import TrainSettings

LOWEST_FRACTION = 0.01
"""Fraction of the base rate at the end of the cosine."""


def build_optimizer(method: Method, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters of a method.

    Prompts, gains and biases have no weight decay. Each group keeps its base rate.
    """
    rates: dict[Group, float] = {
        "backbone": settings.lr,
        "prompts": settings.lr_prompts or settings.lr,
        "exchange": settings.lr_exchange or settings.lr,
        "adapters": settings.lr_adapters or settings.lr,
        "head": settings.lr_head or settings.lr,
    }
    # AdamW takes groups of equal rate and decay; parameters keep the order of `trained_groups`,
    # by which a saved state finds them again.
    parameters: dict[tuple[Group, bool], list[torch.nn.Parameter]] = {}
    for name, group in method.trained_groups().items():
        parameter = method.get_parameter(name)
        # Matrices have two axes or more; so do prompts, which are no matrices.
        decays = group != "prompts" and parameter.ndim >= 2
        parameters.setdefault((group, decays), []).append(parameter)

    groups = []
    for (group, decays), members in parameters.items():
        groups.append(
            {
                "params": members,
                "base_lr": rates[group],
                "lr": rates[group],
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
        )
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)


def lr_fraction(step: int, *, num_steps: int, warmup_steps: int) -> float:
    """Return the fraction of the base rate at an optimiser step.

    The warm-up rises linearly and reaches 1 at its last step; the cosine falls from 1 to
    `LOWEST_FRACTION`.

    Args:
        step: Number of the step, from 0.
        num_steps: Steps of the run.
        warmup_steps: Steps of the warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return LOWEST_FRACTION + (1 - LOWEST_FRACTION) * cosine


def set_lr(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    """Set the rate of every group to a fraction of its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * fraction
