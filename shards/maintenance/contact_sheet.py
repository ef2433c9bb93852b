"""One picture of all stored frames of a sample, to see what a model is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from shards.errors import ConfigError, StorageError
from shards.format.jpeg import Image, encode_rgb
from shards.reader import open_pool, read_frames

_QUALITY = 90
_GAP_PX = 2


def write_contact_sheet(uri: str | Path, key: str | None, out: Path | None) -> str:
    """Write a JPEG of a sample's frames in time order, row by row; returns a line that says what
    was written.

    Raises: ConfigError for options that do not fit together or a key without a sample."""
    if key is None or out is None:
        raise ConfigError(
            "--key K and --out FILE belong together: which sample, and where the picture goes"
        )
    if out.suffix.lower() not in (".jpg", ".jpeg"):
        raise ConfigError(f"--out {out}: the picture is a JPEG; give a name that ends in .jpg")
    pool = open_pool(uri)
    samples = pool.samples()
    rows = samples.filter(pc.equal(samples["key"], key)).to_pylist()
    if not rows or rows[0]["shard"] is None:
        why = f"is {rows[0]['verdict']}: {rows[0]['reason']}" if rows else "is no key of the pool"
        raise ConfigError(
            f"--key {key}: {why}, so there is no frame to show; samples.parquet has all keys"
        )
    frames = read_frames(pool.store, rows[0], range(len(rows[0]["frame_offset"])))
    try:
        out.write_bytes(encode_rgb(tile(frames), quality=_QUALITY))
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from None
    return f"{out}: {len(frames)} frames of {key}"


def tile(frames: Sequence[Image]) -> Image:
    """Lay T frames [H, W, 3] of one size out in about sqrt(T) columns, black between them: uint8
    [H', W', 3]."""
    columns = math.ceil(math.sqrt(len(frames)))
    height, width = (side + _GAP_PX for side in frames[0].shape[:2])
    sheet = np.zeros((-(-len(frames) // columns) * height, columns * width, 3), np.uint8)
    for position, frame in enumerate(frames):
        top, left = position // columns * height, position % columns * width
        sheet[top : top + height - _GAP_PX, left : left + width - _GAP_PX] = frame
    return sheet
