"""Augmentations of color."""

from __future__ import annotations

from collections.abc import Sequence

import torch

GRAY_FRACTION = 0.2
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gray(frames_BVTCHW: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Replace a fifth of the clips by their luma, which teaches a model not to rely on color."""
    draws = [torch.rand((), generator=generator) for generator in generators]
    is_gray_B = torch.stack(draws).to(frames_BVTCHW.device) < GRAY_FRACTION

    weights_C11 = torch.tensor(_LUMA, device=frames_BVTCHW.device).view(3, 1, 1)
    luma_BVT1HW = (frames_BVTCHW * weights_C11).sum(dim=3, keepdim=True)
    return torch.where(
        is_gray_B.view(-1, 1, 1, 1, 1, 1), luma_BVT1HW.expand_as(frames_BVTCHW), frames_BVTCHW
    )
