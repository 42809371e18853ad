"""Cut the network's field of view from slices, and put its logits back into the slices."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scans.fitting import fit, unfit

# A slice is used whole if its longer side differs from the field of view by at most this share:
# in training, augmentation scaled slices by more.
AS_TRAINED = 0.12
SQUARE = 0.01  # height and width of a square pixel may differ by this share


class Field(NamedTuple):
    """A rectangle in a slice, in pixels. It may extend beyond the slice, where values are 0."""

    top: int
    left: int
    height: int
    width: int
    squared: tuple[int, int]  # height and width after resampling to square pixels

    def cut(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Return the field of slices (D, H, W, …), 0 outside them; a view if possible."""
        rows, columns = self.within(slices.shape[1], slices.shape[2])
        inside = slices[:, rows, columns]
        if inside.shape[1:3] == (self.height, self.width):
            return inside
        shape = (len(slices), self.height, self.width, *slices.shape[3:])
        found = np.zeros(shape, dtype=slices.dtype)
        top, left = rows.start - self.top, columns.start - self.left
        found[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
        return found

    def within(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of a slice that are inside the field."""
        rows = slice(max(self.top, 0), min(self.top + self.height, height))
        columns = slice(max(self.left, 0), min(self.left + self.width, width))
        return rows, columns

    def fitted(self, pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
        """Return a field's pixels (H, W, 3) as the network takes them, (S, S, 3)."""
        if self.squared != pixels.shape[:2]:
            size = self.squared[::-1]
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        return fit(pixels, image_size)

    def restored(
        self, logits: NDArray[np.float32], height: int, width: int, image_size: int
    ) -> NDArray[np.float32]:
        """Return a slice's logits (H, W) from those of its field (S, S); -inf outside the field."""
        scaled = unfit(logits, self.height, self.width, image_size, resized=self.squared)
        found = np.full((height, width), -np.inf, dtype=np.float32)
        rows, columns = self.within(height, width)
        found[rows, columns] = scaled[
            rows.start - self.top : rows.stop - self.top,
            columns.start - self.left : columns.stop - self.left,
        ]
        return found


def field_start(tissue: NDArray[np.bool_], n_pixels: int) -> int:
    """Return the start of a field of `n_pixels` along an axis, centered on the tissue.

    `tissue` flags the positions along the axis that contain tissue. If the axis is not longer than
    the field, or there is no tissue, the field is centered on the axis.
    """
    if n_pixels >= len(tissue) or not tissue.any():
        return -((n_pixels - len(tissue)) // 2)
    positions = np.flatnonzero(tissue)
    return int(positions[0] + positions[-1] + 1 - n_pixels) // 2


def choose_field(
    tissue: NDArray[np.bool_], pixel: tuple[float, float], field_of_view: float
) -> Field:
    """Return the field in slices whose tissue is (D, H, W), for a network's field of view in mm.

    Slices of about that size are used whole, as in training; others are padded, or cropped around
    the head. `pixel` has the height and width of a pixel in mm.
    """
    height, width = tissue.shape[1:]
    longer = max(height * pixel[0], width * pixel[1])
    if abs(longer / field_of_view - 1) <= AS_TRAINED:
        top = left = 0
    else:
        rows = np.asarray(tissue.any(axis=(0, 2)))
        columns = np.asarray(tissue.any(axis=(0, 1)))
        height, width = (round(field_of_view / side) for side in pixel)
        top, left = field_start(rows, height), field_start(columns, width)
    side = min(pixel)
    squared = (height, width)
    if abs(pixel[0] / pixel[1] - 1) > SQUARE:
        squared = (round(height * pixel[0] / side), round(width * pixel[1] / side))
    return Field(top, left, height, width, squared)
