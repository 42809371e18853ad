r"""Overlap of a predicted mask P with the reference R, from pixel counts.

All measures are ratios of tp = |P ∩ R|, fp = |P \ R| and fn = |R \ P|. Counts can be added over
slices, patients and splits; ratios cannot. If P and R are both empty, a ratio is undefined: it is
NaN, never a silent 0 or 1. Definitions follow Taha and Hanbury, BMC Medical Imaging 15:29 (2015).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

COUNTS = ("tp", "fp", "fn", "tn")


def count_pixels(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> dict[str, int]:
    """Return tp, fp, fn and tn of two boolean masks of the same shape, usually (H, W)."""
    assert predicted.shape == mask.shape, (predicted.shape, mask.shape)
    tp = int(np.count_nonzero(predicted & mask))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(mask)) - tp
    return {"tp": tp, "fp": fp, "fn": fn, "tn": mask.size - tp - fp - fn}


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Return the elementwise quotient; NaN where the denominator is 0."""
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    undefined = np.full(top.shape, np.nan)
    return np.asarray(np.divide(top, bottom, out=undefined, where=bottom != 0))


def iou(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> NDArray[np.float64]:
    """Return |P ∩ R| / |P ∪ R| in [0, 1], elementwise; NaN where both masks are empty."""
    tp, fp, fn = np.asarray(tp), np.asarray(fp), np.asarray(fn)
    return ratio(tp, tp + fp + fn)


def dice(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> NDArray[np.float64]:
    """Return 2 |P ∩ R| / (|P| + |R|) in [0, 1], elementwise; NaN where both masks are empty."""
    tp, fp, fn = np.asarray(tp), np.asarray(fp), np.asarray(fn)
    return ratio(2 * tp, 2 * tp + fp + fn)
