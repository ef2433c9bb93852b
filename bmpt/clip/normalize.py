"""What is done to clips on the device, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def normalize(
    frames_BVTCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """uint8 RGB to float32 (x / 255 - mean) / std, channel by channel."""
    mean_C11, std_C11 = (
        torch.tensor(v, device=frames_BVTCHW.device).view(3, 1, 1) for v in (mean, std)
    )
    planar = frames_BVTCHW.to(
        torch.float32, memory_format=torch.contiguous_format
    )  # they come channels last
    return (planar / 255 - mean_C11) / std_C11
