"""A picture of all stored frames of a sample: what a model sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from shards.errors import ConfigError
from shards.files import write_file
from shards.format.jpeg import Image, encode_rgb
from shards.reader import open_pool, read_frames

_QUALITY = 90
_GAP_PX = 2


def write_contact_sheet(uri: str | Path, key: str | None, out: Path | None) -> str:
    """Write a JPEG with the frames of a sample in time order, row by row.

    Returns:
        A line that states what was written.

    Raises:
        ConfigError: if one of `key` and `out` is missing, or the key has no stored frames.
        StorageError: if the picture cannot be written.
    """
    if key is None or out is None:
        raise ConfigError("give both --key KEY (the sample) and --out FILE (the picture)")
    if out.suffix.lower() not in (".jpg", ".jpeg"):
        raise ConfigError(f"--out {out}: the picture is a JPEG; give a name that ends in .jpg")

    pool = open_pool(uri)
    samples = pool.samples()
    rows = samples.filter(pc.equal(samples["key"], key)).to_pylist()
    if not rows or rows[0]["shard"] is None:
        problem = f"is {rows[0]['verdict']}: {rows[0]['reason']}" if rows else "is not in the pool"
        raise ConfigError(f"--key {key}: {problem}; samples.parquet lists all keys")

    frames = read_frames(pool.store, rows[0], range(len(rows[0]["frame_offset"])))
    write_file(out, encode_rgb(tile(frames), quality=_QUALITY), hint="give another --out")
    return f"{out}: {len(frames)} frames of {key}"


def tile(frames: Sequence[Image]) -> Image:
    """Arrange T frames [H, W, 3] of one size in about sqrt(T) columns, with black gaps.

    Returns:
        uint8 [H', W', 3].
    """
    num_columns = math.ceil(math.sqrt(len(frames)))
    num_rows = -(-len(frames) // num_columns)
    height, width = (side + _GAP_PX for side in frames[0].shape[:2])
    sheet = np.zeros((num_rows * height, num_columns * width, 3), np.uint8)

    for position, frame in enumerate(frames):
        row, column = divmod(position, num_columns)
        top, left = row * height, column * width
        sheet[top : top + height - _GAP_PX, left : left + width - _GAP_PX] = frame
    return sheet
