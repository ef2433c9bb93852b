"""Normalisation of uint8 clips."""

from __future__ import annotations

import torch

from bmpt.clip.normalize import normalize


def test_each_channel_gets_its_own_mean_and_deviation() -> None:
    frames = torch.zeros((1, 1, 2, 3, 2, 2), dtype=torch.uint8)
    frames[:, :, :, 1] = 255
    frames[:, :, 1, 2] = 51
    values = normalize(frames, (0.0, 0.5, 0.1), (1.0, 0.25, 0.5))
    assert values.dtype == torch.float32
    assert values.shape == frames.shape
    torch.testing.assert_close(values[0, 0, :, 0], torch.zeros(2, 2, 2))
    torch.testing.assert_close(values[0, 0, :, 1], torch.full((2, 2, 2), 2.0))
    torch.testing.assert_close(values[0, 0, 0, 2], torch.full((2, 2), -0.2))
    torch.testing.assert_close(values[0, 0, 1, 2], torch.full((2, 2), 0.2))
