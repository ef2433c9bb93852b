"""Counts, percentages and HM."""

from __future__ import annotations

import numpy as np
import pytest

from bmpt.evaluation.report import results_table, show_percent
from bmpt.runtime.metrics import count_correct, harmonic_mean, percent, top_classes


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_the_best_classes_come_first() -> None:
    top = top_classes(scores([0.1, 0.9, 0.5, 0.7, 0.2, 0.3]))
    assert top.tolist() == [[1, 3, 2, 5, 4]]
    assert top.dtype == np.int32


def test_of_equal_scores_the_lower_class_wins() -> None:
    assert top_classes(scores([1, 2, 2, 1, 2, 0])).tolist() == [[1, 2, 4, 0, 3]]
    assert top_classes(scores([0] * 7)).tolist() == [[0, 1, 2, 3, 4]]


def test_with_fewer_than_five_classes_all_of_them_are_ranked() -> None:
    assert top_classes(scores([0.1, 0.3, 0.2])).tolist() == [[1, 2, 0]]


def test_a_row_is_correct_if_its_label_is_among_the_first() -> None:
    top = np.array([[1, 3, 2], [0, 2, 1], [2, 0, 1]], dtype=np.int32)
    labels = np.array([3, 0, 1])
    assert [count_correct(top, labels, count) for count in (1, 2, 3)] == [1, 2, 3]


def test_no_rows_have_no_correct_row() -> None:
    assert count_correct(np.zeros((0, 5), dtype=np.int32), np.zeros(0, dtype=np.int64), 5) == 0


def test_percentages_are_rounded_to_six_decimals() -> None:
    assert percent(13, 14) == 92.857143
    assert percent(0, 3) == 0.0
    assert percent(3, 3) == 100.0


def test_the_percentage_of_no_scored_rows_is_none() -> None:
    assert percent(0, 0) is None


def test_hm_of_the_published_pair_is_93_38_not_93_9() -> None:
    hm = harmonic_mean([97.5, 89.6])
    assert hm == round(2 * 97.5 * 89.6 / (97.5 + 89.6), 6)
    assert round(hm, 2) == 93.38


def test_hm_is_0_if_one_part_is_0_and_none_if_one_is_missing() -> None:
    assert harmonic_mean([0.0, 90.0]) == 0.0
    assert harmonic_mean([None, 90.0]) is None
    assert harmonic_mean([]) is None


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0.00"), (92.857143, "92.86"), (100.0, "100.00")]
)
def test_a_percentage_is_shown_with_two_decimals(value: float | None, text: str) -> None:
    assert show_percent(value) == text


def test_the_table_has_a_line_per_manifest_and_one_for_hm() -> None:
    entry = {
        "manifest": "base_to_novel/val_base",
        "top1": 50.0,
        "top5": None,
        "correct_top1": 7,
        "scored": 14,
        "failed": 2,
        "missing": 2074,
        "classes": 51,
    }
    results = {"evaluations": [entry], "hm": 66.666667, "hm_of": ["a", "b"]}
    lines = results_table(results).splitlines()
    assert lines[1].split() == ["base_to_novel/val_base", "50.00", "-", "7/14", "2", "2074", "51"]
    assert lines[2] == "HM of a and b: 66.67"
    assert len(results_table({"evaluations": [entry], "hm": None, "hm_of": None}).splitlines()) == 2
