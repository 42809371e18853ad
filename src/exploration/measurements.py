"""Counts of pixels in a patient's images, which can be added up over patients.

Hue is computed from the three sequences as red, green and blue, only for patients who have all
three; a pixel whose channels are all equal has no hue and is not counted. Healthy tissue is every
pixel outside the mask that is brighter than TISSUE_LEVEL in FLAIR, including scalp and skull.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from scans.tiff import LEVELS, SEQUENCES, read_image, read_mask

Counts = NDArray[np.int64]

GRID = 64  # cells of the heat map along each side of a slice
HUE_BINS = 180  # bin k is around 2 k degrees, as OpenCV rounds hue in 8 bits
POSITIONS = 20  # bins along the volume, first slice to last
TISSUES = ("tumor", "healthy")
TISSUE_LEVEL = 20  # of 255 in FLAIR; darker pixels, mostly air, are not counted as tissue
PEAK_WEIGHTS = (1, 2, 3, 4, 3, 2, 1)  # smooths spikes from equal 8-bit channels


class Volume(NamedTuple):
    """A patient's slices in the order of their numbers; their sizes may differ."""

    rows: pd.DataFrame  # rows of the manifest, with `slice_number`, `image` and `mask`
    images: list[NDArray[np.uint8]]  # (H, W, 3) each
    masks: list[NDArray[np.bool_]]  # (H, W) each


@dataclass(frozen=True)
class Measurements:
    """Counts over the slices of one patient or of several patients together."""

    location: Counts  # (GRID, GRID) tumor pixels by position in the slice plane
    position: Counts  # (POSITIONS, 3) slices, abnormal slices, tumor pixels along the volume
    hue: Counts  # (TISSUES, HUE_BINS) pixels; zeros if any sequence is missing
    levels: Counts  # (SEQUENCES, TISSUES, LEVELS) pixels; zeros for a missing sequence
    n_pixels: int

    @classmethod
    def sum(cls, measured: Iterable["Measurements"]) -> "Measurements":
        """Return the sum of several measurements."""
        columns = zip(*(vars(counts).values() for counts in measured), strict=True)
        return cls(*(sum(column[1:], start=column[0]) for column in columns))


def read_volume(rows: pd.DataFrame) -> Volume:
    """Return a patient's scans and masks, given their rows of the manifest."""
    return Volume(
        rows,
        [read_image(Path(path)) for path in rows["image"]],
        [read_mask(Path(path)) for path in rows["mask"]],
    )


def location_counts(mask: NDArray[np.bool_]) -> Counts:
    """Return the tumor pixels in each cell of a grid over the slice, (GRID, GRID)."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    cells = (rows * GRID // height) * GRID + columns * GRID // width
    return np.bincount(cells, minlength=GRID * GRID).reshape(GRID, GRID)


def position_counts(masks: list[NDArray[np.bool_]]) -> Counts:
    """Return slices, abnormal slices and tumor pixels by position along the volume, (POSITIONS, 3).

    The volume is cut into bins of equal height; a slice is counted in the bin of its center.
    """
    counts = np.zeros((POSITIONS, 3), dtype=np.int64)
    for index, mask in enumerate(masks):
        bin_ = (2 * index + 1) * POSITIONS // (2 * len(masks))
        counts[bin_] += (1, mask.any(), mask.sum())
    return counts


def hue_counts(image: NDArray[np.uint8], where: NDArray[np.bool_]) -> Counts:
    """Return the hue histogram of the pixels in `where` (H, W); gray pixels are not counted."""
    pixels = image[where][None]
    if pixels.size == 0:
        return np.zeros(HUE_BINS, dtype=np.int64)
    hue, saturation, _ = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    return np.bincount(hue[saturation > 0], minlength=HUE_BINS)


def level_counts(image: NDArray[np.uint8], where: NDArray[np.bool_]) -> Counts:
    """Return intensity histograms of the pixels in `where` (H, W), (SEQUENCES, LEVELS)."""
    return np.stack([np.bincount(channel, minlength=LEVELS) for channel in image[where].T])


def measure(volume: Volume, missing: list[bool]) -> Measurements:
    """Return the counts over a patient's slices; `missing` flags the SEQUENCES they do not have."""
    location = np.zeros((GRID, GRID), dtype=np.int64)
    hue = np.zeros((len(TISSUES), HUE_BINS), dtype=np.int64)
    levels = np.zeros((len(SEQUENCES), len(TISSUES), LEVELS), dtype=np.int64)
    for image, mask in zip(volume.images, volume.masks, strict=True):
        location += location_counts(mask)
        tissue = (image[..., 1] > TISSUE_LEVEL) & ~mask
        for index, where in enumerate((mask, tissue)):
            hue[index] += hue_counts(image, where)
            levels[:, index] += level_counts(image, where)
    levels[missing] = 0
    hue *= not any(missing)  # a copy of FLAIR would add a spike at cyan
    n_pixels = sum(mask.size for mask in volume.masks)
    return Measurements(location, position_counts(volume.masks), hue, levels, n_pixels)


def resultant(counts: Counts) -> complex:
    """Return the mean of a hue histogram's unit vectors; NaN if it is empty."""
    angles = np.deg2rad(np.arange(len(counts)) * 360 / len(counts))
    total = counts.sum()
    return complex((counts * np.exp(1j * angles)).sum() / total) if total else complex("nan")


def circular_mean(counts: Counts) -> float:
    """Return the mean direction of a hue histogram in degrees, [0, 360); NaN if it is empty.

    It means little if `concentration` is near 0.
    """
    return float(np.rad2deg(np.angle(resultant(counts))) % 360)


def concentration(counts: Counts) -> float:
    """Return how concentrated hues are around their mean: 1 if all are equal, 0 if none dominates.

    The mean resultant length (Mardia and Jupp, Directional Statistics, 2000, section 2.3.1).
    """
    return abs(resultant(counts))


def peak(counts: Counts) -> float:
    """Return the most frequent hue in degrees after smoothing the bins; NaN if they are empty."""
    smooth = ndimage.convolve1d(counts, PEAK_WEIGHTS, mode="wrap")
    return int(smooth.argmax()) * 360 / len(counts) if counts.any() else float("nan")


def level_quantile(counts: Counts, q: float) -> float:
    """Return the `q` quantile of a histogram's intensities; NaN if it is empty.

    That is the lowest intensity that at least a share `q` of the pixels do not exceed.
    """
    cumulative = counts.cumsum()
    return float(np.searchsorted(cumulative, q * cumulative[-1])) if counts.any() else float("nan")


def level_mean(counts: Counts) -> float:
    """Return the mean intensity of a histogram, 0 to 255; NaN if it is empty."""
    return float(np.average(np.arange(LEVELS), weights=counts)) if counts.any() else float("nan")


def image_left_share(measured: Measurements) -> float:
    """Return the share of tumor pixels in the left half of the image; NaN if there is no tumor."""
    total = measured.location.sum()
    return float(measured.location[:, : GRID // 2].sum() / total) if total else float("nan")
