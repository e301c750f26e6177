"""Metrics against values computed by hand or by their definition."""

import numpy as np
import pytest

from model.training.metrics import (
    area_under_roc,
    confusion_matrix,
    group_interval,
    reliability,
    risk_coverage,
    wilson_interval,
)


def test_wilson_interval_is_the_published_one() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(72, 72).high == pytest.approx(1.0)
    assert wilson_interval(0, 10).low == 0.0


def test_group_interval_is_wider_if_errors_correlate_within_groups() -> None:
    right = np.ones(100, dtype=bool)
    right[:10] = False
    alone = group_interval(right, np.arange(100))
    together = group_interval(right, np.arange(100) // 10)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    assert alone.low < 0.9 < alone.high


def test_confusion_matrix_has_truth_in_rows() -> None:
    matrix = confusion_matrix(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_calibration_error_is_weighted_by_images() -> None:
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 6, np.float32)
    labels = np.array([0, 0, 0, 1] + [0] * 3 + [1] * 3)
    found = reliability(probabilities, labels)
    assert found.expected_calibration_error == pytest.approx(0.4 * 0.15 + 0.6 * 0.1, abs=1e-6)
    assert found.images.sum() == 10


def test_area_under_roc_counts_pairs() -> None:
    inside, outside = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])
    pairs = [(b > a) + 0.5 * (b == a) for a in inside for b in outside]
    assert area_under_roc(inside, outside) == pytest.approx(np.mean(pairs))
    assert area_under_roc(inside, inside + 10) == 1.0


def test_risk_accumulates_from_the_most_confident() -> None:
    found = risk_coverage(np.array([0.9, 0.5, 0.7, 0.6]), np.array([True, False, True, False]))
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
