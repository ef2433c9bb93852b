"""Test the normalisation of uint8 clips."""

from __future__ import annotations

import pytest
import torch

from bmpt.clip.normalize import normalize

# those of CLIP's weights
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def test_normalize_uses_mean_and_deviation_of_each_channel() -> None:
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


@pytest.mark.parametrize("channel", range(3))
def test_normalize_gives_all_256_values_of_a_channel_as_in_float64(channel: int) -> None:
    values = torch.arange(256, dtype=torch.uint8)
    frames = torch.zeros((1, 1, 1, 3, 16, 16), dtype=torch.uint8)
    frames[0, 0, 0, channel] = values.view(16, 16)
    expected = (values.double() / 255 - MEAN[channel]) / STD[channel]
    found = normalize(frames, MEAN, STD)[0, 0, 0, channel].flatten()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_normalize_of_channels_last_frames_is_contiguous_and_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 1, 3, 3, 5, 7), dtype=torch.uint8, generator=generator)
    channels_last = frames.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)
    assert not channels_last.is_contiguous()
    found = normalize(channels_last, MEAN, STD)
    assert found.is_contiguous()
    assert torch.equal(found, normalize(frames, MEAN, STD))


def test_normalize_leaves_its_input_unchanged() -> None:
    frames = torch.full((1, 1, 1, 3, 2, 2), 7, dtype=torch.uint8)
    normalize(frames, MEAN, STD)
    assert torch.equal(frames, torch.full_like(frames, 7))
