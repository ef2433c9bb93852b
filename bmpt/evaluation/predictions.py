"""Predictions per sample: one Parquet file per manifest, in manifest order."""

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
class PredictionBatch:
    """Predictions of some rows of a manifest."""

    positions_N: npt.NDArray[np.int64]
    """Rows in the manifest."""

    keys: list[str]

    labels_N: npt.NDArray[np.int64]

    scores_NK: npt.NDArray[np.float32]
    """Class scores, see `Method.class_scores`: logits; for bdc_clip and bike probabilities."""

    failures: list[str | None]
    """Why a row could not be read, else None."""

    def failed_keys(self) -> list[str]:
        """Return the keys of the rows that could not be read."""
        pairs = zip(self.keys, self.failures, strict=True)
        return [key for key, failure in pairs if failure is not None]


def join_batches(batches: list[PredictionBatch]) -> PredictionBatch:
    """Join the batches of all ranks, in manifest order."""
    positions_N = np.concatenate([batch.positions_N for batch in batches])
    order_N = np.argsort(positions_N, kind="stable")
    keys = [key for batch in batches for key in batch.keys]
    failures = [failure for batch in batches for failure in batch.failures]
    return PredictionBatch(
        positions_N=positions_N[order_N],
        keys=[keys[index] for index in order_N],
        labels_N=np.concatenate([batch.labels_N for batch in batches])[order_N],
        scores_NK=np.concatenate([batch.scores_NK for batch in batches])[order_N],
        failures=[failures[index] for index in order_N],
    )


def check_complete(predictions: PredictionBatch, num_samples: int) -> None:
    """Check that every sample of a manifest has exactly one prediction, before it is counted.

    The blocks of `shards.sampling.plan.eval_blocks` guarantee it. A mistake there would change
    published numbers without a trace.

    Args:
        predictions: Of all ranks, in manifest order.
        num_samples: Rows of the manifest.

    Raises:
        RuntimeError: A sample is missing or counted twice.
    """
    if not np.array_equal(predictions.positions_N, np.arange(num_samples)):
        raise RuntimeError(
            f"{len(predictions.positions_N)} predictions of {num_samples} samples: each must have "
            "exactly one; this is a bug of bmpt"
        )


def to_parquet(predictions: PredictionBatch, top_NP: npt.NDArray[np.int32]) -> bytes:
    """Return the bytes of a Parquet file (zstd); equal predictions give equal bytes.

    Args:
        predictions: The predictions of a manifest.
        top_NP: The best classes of each row, best first.
    """
    columns = {
        "key": predictions.keys,
        "label": predictions.labels_N.astype(np.int32),
        "top5": list(top_NP),
        "scores": list(predictions.scores_NK),
        "failed": predictions.failures,
    }
    # Without checksums, as in earlier versions: equal predictions keep equal bytes.
    return parquet.to_parquet(pa.table(columns, schema=PREDICTIONS_SCHEMA), page_checksums=False)
