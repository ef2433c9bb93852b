"""Frames to JPEG: the same planes give the same bytes, whatever lies beside them in memory."""

from __future__ import annotations

import numpy as np
import pytest

from shards.format import jpeg


@pytest.mark.parametrize("size", [(48, 64), (48, 67), (49, 64), (49, 67), (1, 1)])
def test_equal_planes_give_equal_bytes_whatever_lies_behind_them(size: tuple[int, int]) -> None:
    height, width = size
    half = (-(-height // 2), -(-width // 2))
    y = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    u, v = (np.random.default_rng(seed).integers(0, 256, half, np.uint8) for seed in (1, 2))
    found = set()
    for rubbish in (0, 77, 255):
        wide = np.full(
            (height + 3, width + 5), rubbish, np.uint8
        )  # a scaler's lines are padded like this
        wide[:height, :width] = y
        found.add(jpeg.encode_planes(wide[:height, :width], u, v, quality=90))
    found.add(jpeg.encode_planes(y, u, v, quality=90))
    assert len(found) == 1
    assert jpeg.decode(found.pop(), where="test").shape == (height, width, 3)
