"""Computation in float32, under autocast too, where half precision is not accurate enough."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def widen(value: torch.Tensor) -> torch.Tensor:
    """Return a half-precision tensor as float32, and any other tensor unchanged."""
    if not value.is_floating_point():
        return value
    return value.to(torch.promote_types(value.dtype, torch.float32))


def in_float32(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wrap a function so that it runs without autocast, on widened tensor arguments.

    float64 arguments stay float64. All tensor arguments must be on one type of device.
    """

    @functools.wraps(function)
    def wide(*args: Any, **kwargs: Any) -> Result:
        device_types = set()
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                device_types.add(value.device.type)

        with torch.autocast(device_types.pop(), enabled=False):
            return cast(Any, function)(
                *(_widen_tensor(value) for value in args),
                **{name: _widen_tensor(value) for name, value in kwargs.items()},
            )

    return cast("Callable[Parameters, Result]", wide)


def unit(vectors_XD: torch.Tensor) -> torch.Tensor:
    """Scale vectors to length 1 along the last axis; half precision becomes float32."""
    return F.normalize(widen(vectors_XD), dim=-1)


@in_float32
def cosines(rows_XD: torch.Tensor, columns_KD: torch.Tensor) -> torch.Tensor:
    """Compute the inner products [..., K] of unit vectors in float32.

    Under autocast, bfloat16 would have only 256 values between 0.5 and 1.
    """
    return rows_XD @ columns_KD.T


def _widen_tensor(value: Any) -> Any:
    return widen(value) if isinstance(value, torch.Tensor) else value
