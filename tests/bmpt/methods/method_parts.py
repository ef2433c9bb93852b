"""Helpers for tests of small modules: drawn parameters, ids of texts, finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def drawn(module: Module, seed: int) -> Module:
    """In float64, with every parameter but scalars drawn: none keeps its start of 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            if parameter.ndim > 0:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(values / parameter.shape[-1] ** 0.5)
    return module


def ids_with_eot(*positions: int, context: int) -> torch.Tensor:
    """Token ids [K, context] of texts of nothing but an EOT at these positions."""
    ids = torch.zeros(len(positions), context, dtype=torch.int64)
    ids[torch.arange(len(positions)), torch.tensor(positions)] = 49407
    return ids


def assert_gradients(
    module: nn.Module, run: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> None:
    """Finite differences of `run(module, *inputs)` in float64, by its inputs and by every
    parameter."""
    module = module.double()
    values = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def of(*everything: torch.Tensor) -> torch.Tensor:
        taken, left = everything[: len(inputs)], everything[len(inputs) :]
        return torch.func.functional_call(
            _Runs(module, run),
            {f"module.{name}": value for name, value in zip(values, left, strict=True)},
            taken,
        )

    everything = [
        value.detach().double().clone().requires_grad_() for value in (*inputs, *values.values())
    ]
    assert torch.autograd.gradcheck(of, everything)


class _Runs(nn.Module):
    def __init__(self, module: nn.Module, run: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.module, self.run = module, run

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.run(self.module, *inputs)
