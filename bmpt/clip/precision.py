"""Float32 where half precision is not enough, whatever autocast says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def widen(value: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; float32, float64 and what is no floating-point tensor as they
    are."""
    return (
        value.to(torch.promote_types(value.dtype, torch.float32))
        if value.is_floating_point()
        else value
    )


def in_float32(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run a function without autocast, its floating-point tensor arguments widened; float64 stays
    float64."""

    @functools.wraps(function)
    def wide(*args: Any, **kwargs: Any) -> Result:
        devices = {
            value.device.type
            for value in (*args, *kwargs.values())
            if isinstance(value, torch.Tensor)
        }
        with torch.autocast(devices.pop(), enabled=False):
            return cast(Any, function)(
                *(_widen_tensor(value) for value in args),
                **{name: _widen_tensor(value) for name, value in kwargs.items()},
            )

    return cast("Callable[Parameters, Result]", wide)


def unit(vectors_XD: torch.Tensor) -> torch.Tensor:
    """Of length 1 along the last axis, half precision as float32."""
    return F.normalize(widen(vectors_XD), dim=-1)


@in_float32
def cosines(rows_XD: torch.Tensor, columns_KD: torch.Tensor) -> torch.Tensor:
    """Inner products [..., K] of unit vectors, under autocast too: bfloat16 has 256 steps between
    0.5 and 1."""
    return rows_XD @ columns_KD.T


def _widen_tensor(value: Any) -> Any:
    return widen(value) if isinstance(value, torch.Tensor) else value
