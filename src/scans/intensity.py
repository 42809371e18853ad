"""Intensity normalization: MRI intensities have no units, so all patients are put on one scale.

Tissue is all pixels brighter than the mean of the sequence in the patient's volume, air included.
TorchIO's ZNormalization offers the same mask (Pérez-García et al., Comput. Methods Programs Biomed.
208:106236, 2021). The threshold scales with the brightness, so a volume twice as bright gives the
same result, except for rounding and values clipped at 255.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scans.tiff import LEVELS

STATISTICS = ("tissue_mean", "tissue_std", "tissue_median", "tissue_p99")
Normalize = Literal["none", "percentile", "median", "z_score"]

# percentile: the 99th percentile of a sequence's tissue becomes 191, three quarters of the scale,
#     because tumors may be brighter.
# median: the median of tissue becomes 75. `percentile` puts it there in most patients, but not in
#     those with a bright scalp.
# z_score: tissue gets mean 115 and standard deviation 57, as in the photographs of ImageNet, on
#     which encoders were pretrained.
# none: intensities are not changed.
P99, MEDIAN, MEAN, STD = 191, 75, 115, 57


def distinct(volume: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct values of a volume in ascending order, and the voxel count of each."""
    if volume.dtype.kind in "iu" and volume.dtype.itemsize <= 2:
        lowest, highest = int(volume.min()), int(volume.max())
        counts = np.zeros(highest - lowest + 1, dtype=np.int64)
        for part in volume:  # one at a time, because the copies take memory
            counts += np.bincount(part.ravel().astype(np.int64) - lowest, minlength=len(counts))
        places = np.flatnonzero(counts)
        return places + lowest, counts[places]
    values, counts = np.unique(volume, return_counts=True)
    return values, counts


def tissue_statistics(values: NDArray[Any], counts: NDArray[np.int64]) -> dict[str, float]:
    """Return mean, standard deviation, median and 99th percentile of the tissue of one sequence.

    `values` are the distinct intensities of the volume in ascending order, and `counts` the number
    of pixels with each; both are (N,). The statistics are NaN if all pixels are equal.
    """
    tissue = np.where(values > np.average(values, weights=counts), counts, 0)
    if not tissue.any():
        return dict.fromkeys(STATISTICS, np.nan)
    mean = np.average(values, weights=tissue)
    std = np.sqrt(np.average((values - mean) ** 2, weights=tissue))
    ranks = np.searchsorted(tissue.cumsum(), [0.5 * tissue.sum(), 0.99 * tissue.sum()])
    median, p99 = values[ranks]
    return dict(zip(STATISTICS, map(float, (mean, std, median, p99)), strict=True))


def normalized(
    values: NDArray[Any], statistics: Mapping[Any, float], normalize: Normalize
) -> NDArray[np.uint8]:
    """Return the normalized intensities of a sequence as levels from 0 to 255, rounded and clipped.

    A sequence without contrast, whose statistics are NaN or 0, is not scaled.
    """
    scaled = values.astype(np.float64)
    if normalize == "percentile" and statistics["tissue_p99"] > 0:
        scaled *= P99 / statistics["tissue_p99"]
    if normalize == "median" and statistics["tissue_median"] > 0:
        scaled *= MEDIAN / statistics["tissue_median"]
    if normalize == "z_score" and statistics["tissue_std"] > 0:
        scaled = MEAN + (scaled - statistics["tissue_mean"]) * STD / statistics["tissue_std"]
    return np.clip(np.rint(scaled), 0, LEVELS - 1).astype(np.uint8)
