"""What a person should be warned of, where a scan is unlike those of the training."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from application.field import Field
from scans.series import Series, tilt
from scans.tiff import SEQUENCES

THIN, THICK = 2.0, 7.0  # mm between slices; the training's have about 5
OBLIQUE = 30.0  # degrees
CROPPED = 0.01  # share of tissue beyond the field of view
TISSUE = 30  # level from which a voxel belongs to the head
SHELL = (3.0, 12.0)  # mm below the surface, where a head with a skull has dark bone
DARK = 0.4  # of the median inside, below which bone is
LEAST_BONE = 0.08  # share of dark voxels in the shell of a head with a skull


def skull_share(images: NDArray[np.uint8], pixel: float) -> float:
    """Return the share of dark voxels in a shell below the surface of the head, NaN if no head.

    `images` are normalized FLAIR slices (D, H, W), `pixel` their pixels' size in mm. The middle
    third of the slices is looked at.
    """
    middle = images[len(images) // 3 : max(2 * len(images) // 3, len(images) // 3 + 1)]
    dark = in_shell = 0
    for image in middle:
        filled = ndimage.binary_fill_holes(ndimage.binary_closing(image > TISSUE, iterations=2))
        labels, n = ndimage.label(filled)
        if not n:
            continue
        head = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        depth = ndimage.distance_transform_edt(head) * pixel
        inside = image[depth > SHELL[1]]
        if not inside.size:
            continue
        shell = image[(depth > SHELL[0]) & (depth <= SHELL[1])]
        dark += int((shell < DARK * np.median(inside)).sum())
        in_shell += shell.size
    return dark / in_shell if in_shell else float("nan")


def describe_scan(
    flair: Series,
    images: NDArray[np.uint8],
    tissue: NDArray[np.bool_],
    field: Field,
    voxel_size: tuple[float, float, float],
) -> list[str]:
    """Return warnings on a scan: `images` (D, H, W, 3) normalized, `tissue` (D, H, W)."""
    spacing, *pixel = voxel_size
    found = []
    if not THIN <= spacing <= THICK:
        found.append(
            f"slices are {spacing:.1f} mm apart; the training's are about 5 mm apart, and how well "
            f"the model does on others is not known"
        )
    if tilt(flair.affine) > OBLIQUE:
        found.append(f"slices are tilted by {tilt(flair.affine):.0f}° from the axial plane")
    outside = tissue.copy()
    rows, columns = field.within(*tissue.shape[1:])
    outside[:, rows, columns] = False
    share = outside.sum() / max(1, tissue.sum())
    if share > CROPPED:
        found.append(
            f"the head is larger than the model's field of view: {share:.0%} of its tissue is not "
            "looked at"
        )
    bone = skull_share(images[..., SEQUENCES.index("flair")], min(pixel))
    if bone < LEAST_BONE:
        found.append(
            "the skull seems to have been removed; the training's scans show whole heads, and how "
            "well the model does on others is not known"
        )
    return found
