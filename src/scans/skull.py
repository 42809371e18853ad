"""Detect whether a scan shows the whole head or a skull-stripped brain."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

TISSUE = 30  # voxels above this level belong to the head
SHELL = (3.0, 12.0)  # mm below the surface; here a head with its skull has dark bone
DARK = 0.4  # a voxel is dark below this share of the median inside the head
LEAST_BONE = 0.08  # least share of dark voxels in the shell of a head with its skull


def skull_share(images: Sequence[NDArray[np.uint8]], pixel: float) -> float:
    """Return the share of dark voxels in a shell below the surface of the head; NaN if no head.

    `images` are normalized FLAIR slices (H, W), and `pixel` is their pixel size in mm. Only the
    middle third of the slices is used.
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
