"""Distances between the borders of a predicted mask P and the reference R.

The Kaggle data set's files carry no voxel spacing, so slices are measured one by one, in pixels;
`physical` measures volumes in millimeters where the spacing is known. Definitions follow
Maier-Hein et al., Metrics Reloaded, Nature Methods 21 (2024). The results are those of MONAI in
single precision, which a test checks. MONAI itself takes four seconds to import, and four times as
long for a slice.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

TOLERANCE = 1.0  # pixels; border pixels that are no farther apart agree
QUANTILE = float(np.float32(0.95))  # distances are in single precision too, as MONAI has them


def border(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions (N, 2 or 3) of a mask's pixels with a direct neighbor outside it."""
    return np.argwhere(mask & ~binary_erosion(mask))


def border_distances(
    predicted: NDArray[np.bool_], mask: NDArray[np.bool_], spacing: Sequence[float] = (1.0, 1.0)
) -> list[NDArray[np.float32]]:
    """Return the distance of each border pixel from the nearest one of the other mask.

    First those of `predicted`, then those of `mask`; neither mask is empty. `spacing` has the
    distance between neighbors along each axis, in the unit of the result.
    """
    borders = border(predicted) * np.array(spacing), border(mask) * np.array(spacing)
    return [
        KDTree(other).query(own)[0].astype(np.float32)
        for own, other in (borders, reversed(borders))
    ]


def surface_scores(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> dict[str, float]:
    """Return `hd95` and `surface_dice` of two masks (H, W).

    `hd95` is the larger of the two directed 95th percentiles of the Hausdorff distance, in pixels;
    NaN where a mask is empty, for then there is no distance. `surface_dice` is the share of both
    borders within TOLERANCE of the other one, in [0, 1]; 0 where one mask is empty, NaN where both
    are. It is also called normalized surface distance (Nikolov et al., arXiv 1809.04430).
    """
    if not (predicted.any() and mask.any()):
        one_is_empty = predicted.any() or mask.any()
        return {"hd95": np.nan, "surface_dice": 0.0 if one_is_empty else np.nan}
    distances = border_distances(predicted, mask)
    directed = [np.quantile(each.astype(np.float64), QUANTILE) for each in distances]
    return {
        "hd95": float(np.float32(max(directed))),
        "surface_dice": float(np.float32((np.concatenate(distances) <= TOLERANCE).mean())),
    }
