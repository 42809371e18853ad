"""Resample the sequences of one examination to one axial grid, and convert them to 8 bits."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.refusals import Refusal, quantity
from scans.intensity import distinct, normalized, tissue_statistics
from scans.sequences import NAMES
from scans.series import Axial, Series, check_plane, name_of, resampled
from scans.tiff import LEVELS

FEW_VALUES = 8  # a volume with at most this many distinct values is taken for a mask
NEGATIVE = 0.01  # if a larger share of voxels is negative, 0 is not black
BACKGROUND = 0.1  # if a larger share of voxels is exactly 0, they are the background
COVERED = 0.95  # share of the main sequence's grid that another sequence should cover


def checked_values(series: Series, warnings: list[str]) -> NDArray[Any]:
    """Return a series' values, shifted to start at 0 if needed; raise an error for a label map."""
    values = series.values
    if len(np.unique(values[:: max(1, len(values) // 16)])) <= FEW_VALUES:
        n_values = len(np.unique(values))
        if n_values <= FEW_VALUES:
            raise Refusal(
                f"{name_of(series)}: only {quantity(n_values, 'distinct value')}: it seems to be "
                "a mask; use a scan"
            )
    lowest = values.min()
    if lowest >= 0 or float((values < 0).mean()) <= NEGATIVE:
        return values
    shifted = values.astype(np.float32) - np.float32(lowest)
    black = f"the lowest value ({lowest:g}) is"
    background = values == 0
    if float(background.mean()) > BACKGROUND:  # as in z-scores of a skull-stripped brain
        shifted[background] = 0
        black = f"the lowest value ({lowest:g}) and all zeros are"
    warnings.append(f"{name_of(series)}: negative intensities: {black} treated as black")
    return shifted


def on_one_grid(
    series: Mapping[str, Series],
    warnings: list[str],
    *,
    main: str = "flair",
    required: Collection[str] = ("flair",),
) -> tuple[dict[str, NDArray[Any]], Axial]:
    """Return the sequences as axial slices (D, H, W) on the main one's grid, and the Axial used.

    If a sequence cannot be resampled to that grid, raise an error if it is `required`; otherwise
    leave it out with a warning.
    """
    reference = series[main]
    check_plane(reference)
    axial = Axial.of(reference.affine)
    found = {}
    for sequence, sequence_series in series.items():
        warnings.extend(sequence_series.notes)
        try:
            values = checked_values(sequence_series, warnings)
            values, covered = resampled(sequence_series._replace(values=values), reference)
        except Refusal as refusal:
            if sequence in required:
                raise
            warnings.append(f"{NAMES[sequence]} is not used: {refusal}")
            continue
        if covered < COVERED:
            warnings.append(
                f"{NAMES[sequence]} covers only {covered:.0%} of {NAMES[main]}'s grid; the other "
                "voxels are set to 0"
            )
        found[sequence] = axial.turn(values)
    return found, axial


def eight_bit(volume: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return one sequence's values (D, H, W) as levels from 0 to 255; None if all are equal.

    Integers from 0 to 255 stay unchanged. Other values are scaled so that the 99th percentile of
    tissue becomes 191, then rounded and clipped. `segment` scales in the same way. If a scaled
    volume is normalized again, as by `train.normalize: percentile`, it does not change.
    """
    values, counts = distinct(volume)
    statistics = tissue_statistics(values, counts)
    if not statistics["tissue_p99"] > 0:
        return None
    if values[0] >= 0 and values[-1] < LEVELS and np.array_equal(values, np.rint(values)):
        return volume.astype(np.uint8)
    return np.stack([normalized(image, statistics, "percentile") for image in volume])
