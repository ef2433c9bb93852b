"""Which pixels of a frame a clip takes, and how they become a square.

The geometry is pure. Resizing is one call a clip: 8 crops of 192 px to 224 px take 0.4 ms (torch,
bilinear, antialias, uint8, channels last), against 1.1 ms channels first and 3.3 ms with Pillow
(one core); both are within one grey level, Pillow within 8, of the same filter in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from shards.format.jpeg import Image

if TYPE_CHECKING:
    import torch

CropKind = Literal["multi_scale", "center", "whole"]

_SCALES = (1.0, 0.875, 0.75, 0.66)
_SIDES = tuple(
    (h, w) for i, h in enumerate(_SCALES) for j, w in enumerate(_SCALES) if abs(i - j) <= 1
)
_CORNERS = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))  # in quarters of what the crop leaves over


@dataclass(frozen=True)
class Crop:
    """A rectangle of a frame, px of the stored frame, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def shrunk(self, shrink: int) -> Crop:
        """The same part of a frame that was decoded at 1/shrink, to the nearest px."""
        top, left = round(self.top / shrink), round(self.left / shrink)
        return Crop(top, left, self.height // shrink, self.width // shrink, self.flip)


def choose_crop(
    kind: CropKind,
    height: int,
    width: int,
    *,
    flip: bool = False,
    rng: np.random.Generator | None = None,
) -> Crop:
    """Choose the crop of a clip whose frames are height x width px; an evaluation has no rng and
    never flips.

    whole: the frame; center, and multi_scale in evaluation: the centre square; multi_scale in
        training: one of
    10 shapes at one of 5 places. With `flip` half of all training clips are mirrored."""
    if kind == "whole":
        crop = Crop(0, 0, height, width)
    elif kind == "center" or rng is None:
        crop = center_crop(height, width)
    else:
        crop = multi_scale_crop(height, width, rng)
    mirrored = flip and rng is not None and bool(rng.random() < 0.5)
    return Crop(crop.top, crop.left, crop.height, crop.width, flip=mirrored)


def center_crop(height: int, width: int) -> Crop:
    """The centre square of 224/256 of the short side: what resizing to 256 and cutting 224
    keeps."""
    side = max(1, round(min(height, width) * 224 / 256))
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def multi_scale_crop(height: int, width: int, rng: np.random.Generator) -> Crop:
    """Draw a crop: sides of {1, 0.875, 0.75, 0.66} of the short side, at most one step apart, in 4
    corners or centre.

    Source: TSN's MultiScaleCrop as in ViFi-CLIP, BDC-CLIP and BMPT. Its snapping to 224 px never
        acts on frames
    of short side 256."""
    scale_h, scale_w = _SIDES[rng.integers(len(_SIDES))]
    quarter_top, quarter_left = _CORNERS[rng.integers(len(_CORNERS))]
    base = min(height, width)
    crop_h, crop_w = max(1, int(base * scale_h)), max(1, int(base * scale_w))
    return Crop(
        quarter_top * ((height - crop_h) // 4),
        quarter_left * ((width - crop_w) // 4),
        crop_h,
        crop_w,
    )


def largest_shrink(crop: Crop, size_px: int) -> int:
    """The largest n of 1, 2, 4 and 8 so that a crop decoded at 1/n need not be enlarged
    afterwards."""
    return next((n for n in (8, 4, 2) if min(crop.height, crop.width) >= n * size_px), 1)


def cut_and_resize(frames_THWC: Image, crop: Crop, *, out_TCHW: torch.Tensor) -> None:
    """Cut the same rectangle of T frames and scale it to the square of `out_TCHW`, uint8, channels
    last in memory.

    Bilinear, antialiased where it shrinks. Mirroring comes first: the same levels, and the crop is
    the smaller one."""
    import torch

    rows, columns = (
        slice(crop.top, crop.top + crop.height),
        slice(crop.left, crop.left + crop.width),
    )
    frames_TCHW = torch.from_numpy(frames_THWC)[:, rows, columns].permute(0, 3, 1, 2)
    if crop.flip:
        frames_TCHW = frames_TCHW.flip(-1)
    if frames_TCHW.shape == out_TCHW.shape:
        out_TCHW.copy_(frames_TCHW)
    else:  # what F.interpolate calls, which cannot write into a given place
        torch.ops.aten._upsample_bilinear2d_aa.out(
            frames_TCHW, out_TCHW.shape[-2:], False, None, None, out=out_TCHW
        )


def resized(images: Sequence[Image], crop: Crop, *, size_px: int) -> torch.Tensor:
    """The same for T frames [H, W, 3], as a new tensor: uint8 [T, 3, size_px, size_px]."""
    import torch

    clip_THWC = torch.empty((len(images), size_px, size_px, 3), dtype=torch.uint8)
    cut_and_resize(np.stack(images), crop, out_TCHW=clip_THWC.permute(0, 3, 1, 2))
    return clip_THWC.permute(0, 3, 1, 2)
