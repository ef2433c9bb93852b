"""Normalise the pixels of clips for CLIP, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def normalize(
    frames_BVTCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Return uint8 RGB frames as float32 (x / 255 - mean) / std, channel by channel."""
    return standardize(to_unit_range(frames_BVTCHW), mean, std)


def to_unit_range(frames_BVTCHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 frames as float32 from 0 to 1, in contiguous memory.

    The loader's frames are channels last in memory, which is slow for the patch convolution.
    """
    return frames_BVTCHW.to(torch.float32, memory_format=torch.contiguous_format) / 255


def standardize(
    frames_BVTCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Return (x - mean) / std of float frames, channel by channel."""
    mean_C11 = torch.tensor(mean, device=frames_BVTCHW.device).view(3, 1, 1)
    std_C11 = torch.tensor(std, device=frames_BVTCHW.device).view(3, 1, 1)
    return (frames_BVTCHW - mean_C11) / std_C11
