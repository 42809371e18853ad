"""Distances between the borders of a predicted mask P and the reference R, in 2-D and in pixels.

The data set's files carry no voxel spacing: nothing here is in millimeters, and slices are measured
one by one. By MONAI, as recommended by Maier-Hein et al., Metrics Reloaded, Nature Methods 21
(2024).
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray

TOLERANCE = 1.0  # pixels; border pixels that are no farther apart agree


def hd95(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Return the 95th percentile of the Hausdorff distance of two masks (H, W), in pixels.

    The larger of the two directed ones; NaN where a mask is empty, for then there is no distance.
    """
    if not (predicted.any() and mask.any()):
        return float("nan")
    return measure(compute_hausdorff_distance, predicted, mask, percentile=95)


def surface_dice(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Return the share of both borders within TOLERANCE of the other one, in [0, 1].

    Also called normalized surface distance (Nikolov et al., arXiv 1809.04430). 0 where one mask is
    empty, NaN where both are.
    """
    if not (predicted.any() or mask.any()):
        return float("nan")
    if not (predicted.any() and mask.any()):
        return 0.0
    return measure(compute_surface_dice, predicted, mask, class_thresholds=[TOLERANCE])


def measure(
    metric: Callable[..., torch.Tensor],
    predicted: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    **options: Any,
) -> float:
    """Return what a metric of MONAI says of one pair of masks (H, W)."""
    pair = (torch.from_numpy(each[None, None]) for each in (predicted, mask))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of MONAI's own calls
        return float(metric(*pair, include_background=True, **options))
