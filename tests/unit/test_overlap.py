"""Overlap compared with values computed by hand and with scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from scoring.overlap import count_pixels, dice, iou

masks = arrays(np.bool_, (2, 5, 4), elements=st.booleans())


@given(masks)
def test_counts_and_ratios_equal_scikit_learn(pair: np.ndarray) -> None:
    predicted, mask = pair
    counts = count_pixels(predicted, mask)
    tn, fp, fn, tp = confusion_matrix(mask.ravel(), predicted.ravel(), labels=[False, True]).ravel()
    assert counts == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    if mask.any() or predicted.any():
        assert iou(tp, fp, fn) == pytest.approx(jaccard_score(mask.ravel(), predicted.ravel()))
        assert dice(tp, fp, fn) == pytest.approx(f1_score(mask.ravel(), predicted.ravel()))
    else:
        assert np.isnan(iou(tp, fp, fn))
        assert np.isnan(dice(tp, fp, fn))


@given(masks)
def test_overlap_is_symmetric_and_dice_follows_from_iou(pair: np.ndarray) -> None:
    counts, swapped = (count_pixels(a, b) for a, b in (pair, pair[::-1]))
    assert (counts["tp"], counts["fp"], counts["fn"]) == (
        swapped["tp"],
        swapped["fn"],
        swapped["fp"],
    )
    j = float(iou(counts["tp"], counts["fp"], counts["fn"]))
    d = float(dice(counts["tp"], counts["fp"], counts["fn"]))
    assert math.isnan(j) == math.isnan(d)
    if not math.isnan(j):
        assert d == pytest.approx(2 * j / (1 + j))
        assert 0 <= j <= d <= 1


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "expected_iou", "expected_dice"),
    [(3, 0, 0, 1, 1), (0, 2, 3, 0, 0), (1, 1, 1, 1 / 3, 1 / 2), (0, 0, 4, 0, 0)],
)
def test_iou_and_dice_equal_values_computed_by_hand(
    tp: int, fp: int, fn: int, expected_iou: float, expected_dice: float
) -> None:
    assert iou(tp, fp, fn) == pytest.approx(expected_iou)
    assert dice(tp, fp, fn) == pytest.approx(expected_dice)
