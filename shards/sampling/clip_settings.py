"""Clip settings: which frames and pixels of a sample make a clip."""

from __future__ import annotations

from pydantic import Field

from shards.config import Settings
from shards.sampling.clip_sampling import Sampling
from shards.sampling.crops import CropKind


class ClipSettings(Settings):
    """How a clip is made from a sample.

    frames: T; size_px: side of the square
    sampling: even | vifi, see `clip_sampling.segment_bounds`
    crop, flip: in training; an evaluation takes the centre crop (or the whole frame) and never
        flips
    scaled_decode: decode at 1/2, 1/4 or 1/8 where the crop stays larger than `size_px`, see
        `crops.largest_shrink`"""

    frames: int = Field(ge=1)
    size_px: int = Field(ge=1)
    sampling: Sampling = "even"
    crop: CropKind = "multi_scale"
    flip: bool = True
    scaled_decode: bool = False

    @property
    def clip_bytes(self) -> int:
        """Of one clip, uint8."""
        return self.frames * 3 * self.size_px**2
