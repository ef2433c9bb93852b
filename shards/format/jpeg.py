"""Frames to JPEG and back. The only file that names a JPEG library (simplejpeg, over
libjpeg-turbo)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from shards.errors import SampleError

Image = npt.NDArray[np.uint8]


def encode_planes(y: Image, u: Image, v: Image, *, quality: int) -> bytes:
    """Encode full-range BT.601 4:2:0 planes: y [H, W], u and v [ceil(H/2), ceil(W/2)]; no RGB in
    between."""
    return simplejpeg.encode_jpeg_yuv_planes(_readable_to_even(y), u, v, quality=quality)


def _readable_to_even(plane: Image) -> Image:
    """The same plane, its last column and row repeated behind an odd width or height.

    TurboJPEG reads that far; what lay there by chance would get into the file, so that equal frames
    differ."""
    height, width = plane.shape
    if height % 2 == 0 and width % 2 == 0:
        return plane
    even = np.empty((height + height % 2, width + width % 2), np.uint8)  # 3 times as fast as np.pad
    even[:height, :width] = plane
    even[:height, width:] = even[:height, width - 1 : width]
    even[height:] = even[height - 1]
    return even[:height, :width]


def encode_rgb(image_HWC: Image, *, quality: int) -> bytes:
    """Encode an RGB image [H, W, 3], 4:2:0."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image_HWC), quality=quality, colorsubsampling="420"
    )


def size_of(data: bytes, *, where: str) -> tuple[int, int]:
    """(height, width) in px, from the header. Raises: SampleError naming `where`."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise SampleError(f"{where}: is not a readable JPEG: {error}") from None
    return height, width


def decode(data: bytes, *, where: str, shrink: int = 1, into: Image | None = None) -> Image:
    """Decode to RGB [ceil(H/shrink), ceil(W/shrink), 3]; shrink 2, 4 or 8 leaves out the high
    frequencies of a block.

    into: contiguous, of that shape; a new array without it.
    Raises: SampleError naming `where` if the bytes are not a whole JPEG."""
    height, width = size_of(data, where=where) if shrink > 1 else (0, 0)
    least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=into, **least)
    except ValueError as error:
        raise SampleError(f"{where}: is not a readable JPEG: {error}") from None
