"""Calibration compared with values computed by hand and with scikit-learn."""

from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from scoring.calibration import (
    BINS,
    area_under_risk_coverage,
    expected_calibration_error,
    reliability,
    risk_coverage,
    risks,
    soft_dice_confidence,
)


def test_reliability_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.random(200))
    pixels = rng.integers(0, 200, 5000)
    tumor = rng.random(5000) < values[pixels] ** 2
    counts = np.stack([np.bincount(pixels[tumor == kind], minlength=200) for kind in (False, True)])
    bins = reliability(values, counts)
    observed, probability = calibration_curve(tumor, values[pixels], n_bins=BINS)
    np.testing.assert_allclose(bins["observed"], observed)
    np.testing.assert_allclose(bins["probability"], probability)
    assert bins["n_pixels"].sum() == 5000
    gap = np.abs(bins["observed"] - bins["probability"])
    expected = np.average(gap, weights=bins["n_pixels"])
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_reliability_equals_values_computed_by_hand() -> None:
    values = np.array([0.0, 0.52, 0.54, 1.0])
    counts = np.array([[90, 1, 0, 0], [0, 0, 1, 8]])
    bins = reliability(values, counts)
    assert bins["n_pixels"].tolist() == [90] + [0] * 9 + [2] + [0] * 8 + [8]
    assert bins.loc[10, "probability"] == pytest.approx(0.53)
    assert bins.loc[10, "observed"] == 0.5
    assert bins["observed"].isna().sum() == BINS - 3
    assert expected_calibration_error(bins) == pytest.approx(0.03 * 2 / 100)
    assert np.isnan(expected_calibration_error(reliability(values, np.zeros((2, 4), np.int64))))


def test_confidence_is_the_dice_that_the_network_expects() -> None:
    # 10 pixels with a probability of 1, 10 pixels with 0.5, and no pixel with any probability.
    confidence = soft_dice_confidence([10, 5, 0], [10, 5, 0], [10, 10, 0])
    np.testing.assert_allclose(confidence, [1, 10 / 15, 1])


def test_risk_falls_with_coverage_if_confidence_ranks_patients_by_dice() -> None:
    dice, confidence = [0.5, 0.9, np.nan, 0.7, 1.0], [0.1, 0.8, 0.9, 0.3, 0.9]
    np.testing.assert_allclose(risks(dice, confidence), [0, 0.05, 0.4 / 3, 0.225])
    assert area_under_risk_coverage(dice, confidence) == pytest.approx(
        (0 + 0.05 + 0.4 / 3 + 0.225) / 4
    )
    table: Any = risk_coverage(dice, confidence).set_index("coverage")
    assert table["n_patients"].tolist() == [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5
    assert table.loc[0.5, "risk"] == pytest.approx(0.05)
    assert table.loc[1.0, "risk"] == pytest.approx(0.225)
    assert np.isnan(area_under_risk_coverage([np.nan], [0.5]))
    # With equal confidence, the order of the patients makes no difference.
    for order in ([0.2, 1.0, 0.6], [1.0, 0.6, 0.2]):
        np.testing.assert_allclose(risks(order, [1, 1, 1]), [0.4, 0.4, 0.4])
    assert risk_coverage([], [])["risk"].isna().all()
