"""Test that functions run in float32 under autocast, and in float64 on float64 arguments."""

from __future__ import annotations

import pytest
import torch

from bmpt.clip.precision import in_float32, widen
from tests.bmpt.tiny import random_frames


@in_float32
def product(left: torch.Tensor, *, right: torch.Tensor, times: int = 1) -> torch.Tensor:
    return times * left @ right


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widen_makes_half_precision_float32_and_keeps_float64(
    given: torch.dtype, taken: torch.dtype
) -> None:
    value = random_frames(3, 3).to(given)
    assert widen(value).dtype == product(value, right=value).dtype == taken


def test_widen_keeps_integers() -> None:
    labels = torch.tensor([1, 2])
    assert widen(labels) is labels


def test_in_float32_product_is_equal_with_and_without_autocast() -> None:
    left, right = random_frames(8, 64), random_frames(64, 8, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, ours = left @ right, product(left, right=right, times=2)
        assert (left @ right).dtype == torch.bfloat16, "autocast is on again afterwards"
    assert torch.equal(ours, 2 * left @ right)
    assert not torch.equal(2 * rounded.float(), ours)


def test_in_float32_keeps_integers_and_other_arguments() -> None:
    @in_float32
    def pick(values: torch.Tensor, at: torch.Tensor, *, name: str) -> tuple[torch.Tensor, str]:
        assert at.dtype == torch.int64
        return values[at], name

    values = random_frames(4).bfloat16()
    picked, name = pick(values, torch.tensor([2, 0]), name="as it is")
    assert torch.equal(picked, values[[2, 0]].float())
    assert name == "as it is"


def test_in_float32_gradient_has_the_dtype_of_the_argument() -> None:
    left = random_frames(2, 3).bfloat16().requires_grad_()
    product(left, right=random_frames(3, 2, seed=1)).sum().backward()
    assert left.grad is not None
    assert left.grad.dtype == torch.bfloat16
