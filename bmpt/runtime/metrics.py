"""Accuracies as exact counts; percentages are computed from them once, at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TOP = 5


def top_classes(scores_NK: npt.NDArray[np.float32], count: int = TOP) -> npt.NDArray[np.int32]:
    """Return the `min(count, K)` best classes of each row, best first.

    Of equal scores the lower class id wins.
    """
    # stable: the default sort may order equal scores differently on another machine
    order_NK = np.argsort(-scores_NK, axis=1, kind="stable")
    return order_NK[:, :count].astype(np.int32)


def count_correct(
    top_NP: npt.NDArray[np.int32], labels_N: npt.NDArray[np.int64], count: int
) -> int:
    """Return the number of rows whose label is among the first `count` classes."""
    return int((top_NP[:, :count] == labels_N[:, None]).any(axis=1).sum())


def percent(correct: int, scored: int) -> float | None:
    """Return `correct` in percent of `scored`, to 6 decimals; None if nothing was scored."""
    return round(100.0 * correct / scored, 6) if scored else None


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """Return the harmonic mean of percentages, to 6 decimals: 2bn / (b + n) for two.

    It is None if a percentage is missing.
    """
    present = [value for value in values if value is not None]
    if len(present) < len(values) or not present:
        return None
    # the limit of the formula, which divides by the percentage
    if min(present) == 0:
        return 0.0
    return round(len(present) / sum(1 / value for value in present), 6)
