"""The rectangle of a clip and its resizing."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.format.jpeg import decode, encode_rgb
from shards.sampling.crops import (
    Crop,
    CropKind,
    center_crop,
    choose_crop,
    largest_shrink,
    multi_scale_crop,
    resized,
)
from tests.pools import smooth_frames

SIDES = st.integers(1, 500)


@given(
    kind=st.sampled_from(get_args(CropKind)),
    height=SIDES,
    width=SIDES,
    seed=st.integers(0, 50),
    train=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_crop_lies_within_the_frame(
    kind: CropKind, height: int, width: int, seed: int, train: bool
) -> None:
    crop = choose_crop(
        kind, height, width, flip=True, rng=np.random.default_rng(seed) if train else None
    )
    assert crop.height >= 1
    assert crop.width >= 1
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width


def test_the_centre_crop_of_a_256_px_frame_is_224_px() -> None:
    assert center_crop(256, 340) == Crop(16, 58, 224, 224)
    assert center_crop(320, 240) == Crop(55, 15, 210, 210)


def test_a_training_crop_has_one_of_10_shapes_at_5_positions() -> None:
    rng = np.random.default_rng(0)
    crops = [multi_scale_crop(256, 341, rng) for _ in range(3000)]
    shapes = {(crop.height, crop.width) for crop in crops}
    assert {side for shape in shapes for side in shape} == {256, 224, 192, 168}
    assert len(shapes) == 10
    # Four or two quarters of 256 - 224 and of 341 - 192.
    positions = {(crop.top, crop.left) for crop in crops if (crop.height, crop.width) == (224, 192)}
    assert positions == {
        (0, 0),
        (0, 148),
        (32, 0),
        (32, 148),
        (16, 74),
    }


def test_an_evaluation_crop_is_the_centre_or_the_whole_frame_and_never_mirrored() -> None:
    assert choose_crop("multi_scale", 256, 340, flip=True) == center_crop(256, 340)
    assert choose_crop("center", 256, 340, flip=True) == center_crop(256, 340)
    assert choose_crop("whole", 256, 340, flip=True) == Crop(0, 0, 256, 340)


def test_half_of_the_training_crops_are_mirrored_and_none_without_flip() -> None:
    rng = np.random.default_rng(0)
    flips = [choose_crop("center", 256, 340, flip=True, rng=rng).flip for _ in range(2000)]
    assert 900 < sum(flips) < 1100
    assert not any(choose_crop("center", 256, 340, flip=False, rng=rng).flip for _ in range(50))


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_of_the_wanted_size_keeps_every_pixel(flip: bool) -> None:
    images = smooth_frames(np.random.default_rng(0), num_frames=3, height=40, width=50)
    clip_TCHW = resized(images, Crop(2, 5, 32, 32, flip=flip), size_px=32)
    expected = np.stack([image[2:34, 5:37] for image in images]).transpose(0, 3, 1, 2)
    assert clip_TCHW.dtype == torch.uint8
    assert np.array_equal(clip_TCHW.numpy(), expected[..., ::-1] if flip else expected)


@pytest.mark.parametrize(
    "crop", [Crop(0, 0, 48, 64), Crop(3, 4, 20, 24), Crop(1, 2, 45, 33, flip=True)]
)
def test_resizing_is_within_one_level_of_float_arithmetic(crop: Crop) -> None:
    images = smooth_frames(np.random.default_rng(1), num_frames=2, height=48, width=64)
    clip_TCHW = resized(images, crop, size_px=32)
    cut = np.stack(
        [
            image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            for image in images
        ]
    )
    frames_TCHW = torch.from_numpy(cut).permute(0, 3, 1, 2).float()
    expected = F.interpolate(frames_TCHW, (32, 32), mode="bilinear", antialias=True)
    expected = expected.flip(-1) if crop.flip else expected
    assert clip_TCHW.shape == (2, 3, 32, 32)
    assert (clip_TCHW.float() - expected).abs().max() <= 1.01


@pytest.mark.parametrize(
    ("side", "shrink"), [(31, 1), (63, 1), (64, 2), (127, 2), (128, 4), (256, 8), (2000, 8)]
)
def test_a_crop_is_decoded_at_the_smallest_size_that_is_not_enlarged_later(
    side: int, shrink: int
) -> None:
    crop = Crop(10, 21, side, side + 1, flip=True)
    assert largest_shrink(crop, 32) == shrink
    small = crop.shrunk(shrink)
    assert min(small.height, small.width) >= min(32, side)
    assert abs(small.top * shrink - 10) <= shrink / 2
    assert small.flip


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(64, 48), (65, 47), (9, 100)])
def test_a_shrunk_crop_lies_within_the_frame_decoded_at_that_size(
    shrink: int, height: int, width: int
) -> None:
    block = encode_rgb(np.zeros((height, width, 3), np.uint8), quality=90)
    image = decode(block, where="", shrink=shrink)
    assert image.shape == (-(-height // shrink), -(-width // shrink), 3)
    for top in range(height // 2):
        small = Crop(top, width // 2, height - top, width - width // 2).shrunk(shrink)
        assert small.top + small.height <= image.shape[0]
        assert small.left + small.width <= image.shape[1]


def test_a_frame_decoded_at_one_half_is_the_mean_of_its_pixels() -> None:
    (image,) = smooth_frames(np.random.default_rng(2), num_frames=1, height=64, width=96)
    block = encode_rgb(image, quality=90)
    full = decode(block, where="").astype(float)
    means = full.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(decode(block, where="", shrink=2) - means).mean() < 1.0
