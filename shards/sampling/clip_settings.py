"""Clip settings: which frames and pixels of a sample make a clip."""

from __future__ import annotations

from pydantic import Field

from shards.config import Settings
from shards.sampling.clip_sampling import Sampling
from shards.sampling.crops import CropKind


class CutSettings(Settings):
    """How a clip is cut out of a sample, whatever its size."""

    sampling: Sampling = Field(
        "even", description="segment bounds; vifi drops a tail of n mod T frames"
    )
    crop: CropKind = Field(
        "multi_scale",
        description="of training clips; an evaluation takes the centre crop (whole: the frame)",
    )
    scaled_decode: bool = Field(
        False,
        description="decode at a smaller size: faster for small inputs, with slightly different "
        "pixels",
    )
    flip: bool = Field(
        True, description="mirror half of the training clips; wrong where direction is the class"
    )


class ClipSettings(CutSettings):
    """How a clip is made from a sample: frames, pixels, and how it is cut."""

    frames: int = Field(ge=1, description="T, frames per clip")
    size_px: int = Field(ge=1, description="side of the square frames of a clip, in pixels")

    @property
    def clip_bytes(self) -> int:
        """Return the bytes of one clip as uint8."""
        return self.frames * 3 * self.size_px**2
