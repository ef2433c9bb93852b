"""Predictions of all ranks as one table in manifest order."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from bmpt.evaluation.predictions import (
    PREDICTIONS_SCHEMA,
    PredictionBatch,
    check_complete,
    join_batches,
    to_parquet,
)
from bmpt.runtime.metrics import top_classes

CLASSES = 6


def block(*positions: int, failed: tuple[int, ...] = ()) -> PredictionBatch:
    """Rows whose every field can be told from its position."""
    rng = {position: np.random.default_rng(position) for position in positions}
    return PredictionBatch(
        positions_N=np.array(positions, dtype=np.int64),
        keys=[f"key{position}" for position in positions],
        labels_N=np.array([position % CLASSES for position in positions], dtype=np.int64),
        scores_NK=np.stack(
            [rng[position].standard_normal(CLASSES).astype(np.float32) for position in positions]
        ),
        failures=["wrong CRC" if position in failed else None for position in positions],
    )


def parquet_of(joined: PredictionBatch) -> bytes:
    return to_parquet(joined, top_classes(joined.scores_NK))


@pytest.mark.parametrize("positions", [(0, 1), (0, 2, 3), (0, 1, 1, 2), (1, 2, 3)])
def test_predictions_with_a_missing_or_repeated_sample_are_refused(
    positions: tuple[int, ...],
) -> None:
    check_complete(join_batches([block(2, 0), block(1)]), 3)
    with pytest.raises(RuntimeError, match=r"predictions of 3 samples: .* exactly one"):
        check_complete(join_batches([block(*positions)]), 3)


def test_blocks_of_all_ranks_come_back_in_manifest_order() -> None:
    joined = join_batches([block(4, 5), block(0, 1), block(6), block(2, 3, failed=(3,))])
    whole = block(*range(7), failed=(3,))
    assert joined.keys == whole.keys
    assert joined.failures == whole.failures
    assert np.array_equal(joined.positions_N, whole.positions_N)
    assert np.array_equal(joined.labels_N, whole.labels_N)
    assert np.array_equal(joined.scores_NK, whole.scores_NK)


def test_any_cut_into_blocks_gives_the_same_bytes() -> None:
    whole = parquet_of(join_batches([block(*range(7))]))
    assert parquet_of(join_batches([block(3, 4, 5), block(6), block(0, 1, 2)])) == whole
    assert parquet_of(join_batches([block(0, 2, 4, 6), block(1, 3, 5)])) == whole


def test_other_scores_give_other_bytes() -> None:
    changed = block(*range(7))
    changed.scores_NK[3, 2] += 1e-6
    assert parquet_of(changed) != parquet_of(block(*range(7)))


def test_the_file_has_the_stated_columns_and_values() -> None:
    original = block(0, 1, failed=(1,))
    table = pq.read_table(io.BytesIO(parquet_of(original)))
    assert table.schema.equals(PREDICTIONS_SCHEMA)
    assert table.column_names == ["key", "label", "top5", "scores", "failed"]
    row = table.to_pylist()[1]
    assert (row["key"], row["label"], row["failed"]) == ("key1", 1, "wrong CRC")
    assert row["scores"] == pytest.approx(original.scores_NK[1].tolist())
    assert row["top5"] == np.argsort(-original.scores_NK[1])[:5].tolist()
