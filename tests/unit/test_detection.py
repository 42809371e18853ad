"""Detection of abnormal slices, compared with values by hand, SciPy and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from scoring.bootstrap import Bootstrap
from scoring.detection import (
    auroc,
    average_precision,
    descending_ranks,
    detection,
    sensitivity_at_specificity,
    threshold_curves,
)


def table(abnormal: list[int], scores: list[float], detected: list[int]) -> pd.DataFrame:
    """Return slices of two patients, alternately; a detected slice has one predicted pixel."""
    true_positives = [a * d for a, d in zip(abnormal, detected, strict=True)]
    return pd.DataFrame(
        {
            "patient_id": ["A" if index % 2 else "B" for index in range(len(abnormal))],
            "abnormal": abnormal,
            "max_probability": scores,
            "tp": true_positives,
            "fp": np.array(detected) - true_positives,
        }
    )


def test_detection_equals_values_computed_by_hand() -> None:
    slices = table([1, 1, 1, 0, 0, 0], [0.9, 0.8, 0.2, 0.3, 0.1, 0.1], [1, 1, 0, 1, 0, 0])
    result = detection(slices, Bootstrap(200, 1))
    assert result["detection_auroc"] == pytest.approx(8 / 9)
    assert result["detection_average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert result["detection_sensitivity_at_95_specificity"] == pytest.approx(2 / 3)
    matrix = [result[f"detection_{name}"] for name in ("tp", "fp", "fn", "tn")]
    assert matrix == [2, 1, 1, 2]


def test_intervals_resample_patients_with_all_their_slices() -> None:
    rng = np.random.default_rng(6)
    abnormal = rng.integers(0, 2, 60)
    abnormal[:2] = 0, 1
    scores = 0.4 * abnormal + rng.random(60)
    slices = table(abnormal.tolist(), scores.tolist(), [0] * 60)
    slices["patient_id"] = [f"P{index // 4:02}" for index in range(60)]
    result = detection(slices, Bootstrap(1000, 1))
    drawn = rng.integers(15, size=(1000, 15))
    rows = np.arange(60).reshape(15, 4)[drawn].reshape(1000, 60)
    expected = [roc_auc_score(abnormal[row], scores[row]) for row in rows]
    low, high = np.quantile(expected, [0.025, 0.975])
    assert result["detection_auroc_low"] == pytest.approx(low, abs=0.02)
    assert result["detection_auroc_high"] == pytest.approx(high, abs=0.02)


def test_resamples_without_abnormal_or_healthy_slices_are_ignored_in_the_interval() -> None:
    slices = table([1, 0, 1, 0], [0.9, 0.1, 0.3, 0.5], [0] * 4)
    assert slices.groupby("patient_id")["abnormal"].nunique().tolist() == [1, 1]
    result = detection(slices, Bootstrap(100, 1))
    assert result["detection_auroc_low"] == result["detection_auroc"] == 0.75


def test_auroc_equals_the_rank_statistic_with_ties() -> None:
    rng = np.random.default_rng(0)
    abnormal = rng.integers(0, 2, 300)
    scores = np.round(rng.random(300) + 0.3 * abnormal, 1)
    result = detection(table(abnormal.tolist(), scores.tolist(), [0] * 300), Bootstrap(100, 1))
    u = mannwhitneyu(scores[abnormal == 1], scores[abnormal == 0]).statistic
    pairs = abnormal.sum() * (300 - abnormal.sum())
    assert result["detection_auroc"] == pytest.approx(u / pairs)


@pytest.mark.parametrize("decimals", [1, 9])
def test_areas_with_repeated_slices_equal_scikit_learns(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    for n_slices in (2, 10, 200):
        abnormal = rng.permutation(np.arange(n_slices) % 2 == 0)
        scores = np.round(rng.random(n_slices) + 0.3 * abnormal, decimals)  # 1 decimal gives ties
        times = rng.integers(0, 4, n_slices)
        times[[abnormal.argmax(), abnormal.argmin()]] = 1  # at least one abnormal, one healthy
        curves = threshold_curves(abnormal, descending_ranks(scores), times)
        drawn = np.repeat(np.arange(n_slices), times)
        labels, drawn_scores = abnormal[drawn], scores[drawn]
        assert auroc(*curves) == pytest.approx(roc_auc_score(labels, drawn_scores))
        assert average_precision(*curves) == pytest.approx(
            average_precision_score(labels, drawn_scores)
        )


@pytest.mark.parametrize("n_false", [0, 1, 2])
def test_sensitivity_allows_at_most_5_percent_false_positives(n_false: int) -> None:
    """With 20 healthy slices, one may score above the threshold, but not two."""
    healthy = [0.9] * n_false + [0.1] * (20 - n_false)
    abnormal = [0.95, 0.5, 0.5, 0.05]
    ranks = descending_ranks(healthy + abnormal)
    curves = threshold_curves(np.arange(24) >= 20, ranks, np.ones(24))
    assert sensitivity_at_specificity(*curves) == {0: 0.75, 1: 0.75, 2: 0.25}[n_false]


@pytest.mark.parametrize("abnormal", [0, 1])
def test_scores_are_nan_if_all_slices_are_abnormal_or_all_healthy(abnormal: int) -> None:
    slices = table([abnormal] * 4, [0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0])
    result = detection(slices, Bootstrap(100, 1))
    assert np.isnan(result["detection_auroc"])
    assert np.isnan(result["detection_average_precision_low"])
    assert np.isnan(result["detection_sensitivity_at_95_specificity"])
    assert result["detection_tp"] + result["detection_fp"] == 1
