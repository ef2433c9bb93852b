"""One Parquet of per-sample predictions a manifest, in manifest order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.format import parquet

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("top5", pa.list_(pa.int32()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("failed", pa.string()),
    ]
)


@dataclass(frozen=True)
class Block:
    """Predictions of some rows of a manifest.

    positions_N: row in the manifest
    scores_NK: what classes are ranked by, see `Method.class_scores`: logits, of bdc_clip and bike
        probabilities
    failures: why a row could not be read, else None"""

    positions_N: npt.NDArray[np.int64]
    keys: list[str]
    labels_N: npt.NDArray[np.int64]
    scores_NK: npt.NDArray[np.float32]
    failures: list[str | None]


def join_blocks(blocks: list[Block]) -> Block:
    """All blocks of all ranks as one, in manifest order."""
    positions_N = np.concatenate([block.positions_N for block in blocks])
    order_N = np.argsort(positions_N, kind="stable")
    keys = [key for block in blocks for key in block.keys]
    failures = [failure for block in blocks for failure in block.failures]
    return Block(
        positions_N=positions_N[order_N],
        keys=[keys[index] for index in order_N],
        labels_N=np.concatenate([block.labels_N for block in blocks])[order_N],
        scores_NK=np.concatenate([block.scores_NK for block in blocks])[order_N],
        failures=[failures[index] for index in order_N],
    )


def to_parquet(block: Block, top_NP: npt.NDArray[np.int32]) -> bytes:
    """Parquet bytes (zstd); equal predictions give equal bytes."""
    columns = {
        "key": block.keys,
        "label": block.labels_N.astype(np.int32),
        "top5": list(top_NP),
        "scores": list(block.scores_NK),
        "failed": block.failures,
    }
    # Without checksums, as in earlier versions: equal predictions keep equal bytes.
    return parquet.to_parquet(pa.table(columns, schema=PREDICTIONS_SCHEMA), page_checksums=False)
