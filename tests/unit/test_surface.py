"""Distances between borders, compared with values by hand, MONAI and SciPy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from scoring.surface import TOLERANCE, surface_scores


def hd95(predicted: np.ndarray, mask: np.ndarray) -> float:
    return surface_scores(predicted, mask)["hd95"]


def surface_dice(predicted: np.ndarray, mask: np.ndarray) -> float:
    return surface_scores(predicted, mask)["surface_dice"]


def distances(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distance from each border pixel of `start` to the border of `end`."""
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (start, end)]
    result: np.ndarray = ndimage.distance_transform_edt(~borders[1])[borders[0]]
    return result


@given(arrays(np.bool_, (2, 9, 8), elements=st.booleans()))
def test_scores_equal_those_from_a_distance_transform(pair: np.ndarray) -> None:
    predicted, mask = pair
    if not (predicted.any() and mask.any()):
        return
    from_predicted, from_mask = distances(predicted, mask), distances(mask, predicted)
    expected = max(np.percentile(from_predicted, 95), np.percentile(from_mask, 95))
    assert hd95(predicted, mask) == pytest.approx(expected, rel=1e-5)
    both = np.concatenate([from_predicted, from_mask])
    assert surface_dice(predicted, mask) == pytest.approx((both <= TOLERANCE).mean())


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_monais(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, 70, 60)), (0, 3, 3))
    predicted, mask = fields > np.quantile(fields, rng.uniform(0.5, 0.99))
    pair = [torch.from_numpy(array[None, None]) for array in (predicted, mask)]
    with warnings.catch_warnings(action="ignore"):
        distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95)
        agreement = compute_surface_dice(*pair, include_background=True, class_thresholds=[1.0])
    assert hd95(predicted, mask) == pytest.approx(distance.item(), rel=1e-6)
    assert surface_dice(predicted, mask) == pytest.approx(agreement.item(), rel=1e-6)


def square(row: int, column: int, size: int = 10) -> np.ndarray:
    mask = np.zeros((40, 50), np.bool_)
    mask[row : row + size, column : column + size] = True
    return mask


def test_scores_equal_values_computed_by_hand() -> None:
    assert hd95(square(5, 5), square(5, 5)) == 0
    assert surface_dice(square(5, 5), square(5, 5)) == 1
    assert hd95(square(5, 5), square(5, 12)) == 7
    assert hd95(square(5, 5, size=1), square(8, 9, size=1)) == 5
    assert surface_dice(square(5, 5, size=1), square(8, 9, size=1)) == 0
    # A distance of one pixel is within the tolerance; two pixels are not.
    assert surface_dice(square(5, 5), square(5, 6)) == 1
    assert surface_dice(square(5, 5, size=1), square(5, 6, size=1)) == 1
    assert surface_dice(square(5, 5, size=1), square(5, 7, size=1)) == 0
    assert 0 < surface_dice(square(5, 5), square(5, 8)) < 1


def test_an_empty_mask_has_no_distance_and_a_surface_dice_of_0() -> None:
    empty = np.zeros((40, 50), np.bool_)
    for pair in ((empty, square(5, 5)), (square(5, 5), empty)):
        assert np.isnan(hd95(*pair))
        assert surface_dice(*pair) == 0
    assert np.isnan(hd95(empty, empty))
    assert np.isnan(surface_dice(empty, empty))
