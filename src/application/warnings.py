"""Warn if a scan is unlike the scans that the model was trained on."""

import numpy as np
from numpy.typing import NDArray

from application.field import Field
from scans.sequences import MAIN
from scans.series import Series, tilt
from scans.skull import LEAST_BONE, skull_share

THIN, THICK = 2.0, 7.0  # mm between slices; training slices are about 5 mm apart
OBLIQUE = 30.0  # degrees from the axial plane
CROPPED = 0.01  # share of tissue outside the field of view


def describe_scan(
    flair: Series,
    images: NDArray[np.uint8],
    tissue: NDArray[np.bool_],
    field: Field,
    voxel_size: tuple[float, float, float],
) -> list[str]:
    """Return warnings about a scan: `images` (D, H, W, 3) normalized, `tissue` (D, H, W)."""
    spacing, *pixel = voxel_size
    found = []
    if not THIN <= spacing <= THICK:
        found.append(
            f"slices are {spacing:.1f} mm apart; the model was trained on slices about 5 mm apart, "
            "and its accuracy on others is unknown"
        )
    if tilt(flair.affine) > OBLIQUE:
        found.append(f"slices are tilted by {tilt(flair.affine):.0f}° from the axial plane")
    outside = tissue.copy()
    rows, columns = field.within(*tissue.shape[1:])
    outside[:, rows, columns] = False
    share = outside.sum() / max(1, tissue.sum())
    if share > CROPPED:
        found.append(
            f"the head is larger than the model's field of view: {share:.0%} of its tissue is "
            "outside and not segmented"
        )
    bone = skull_share([image[..., MAIN] for image in images], min(pixel))
    if bone < LEAST_BONE:
        found.append(
            "the scan seems to be skull-stripped; the model was trained on whole heads, and its "
            "accuracy on skull-stripped scans is unknown"
        )
    return found
