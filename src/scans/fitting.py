"""Slices fitted into the square that a network takes, scaled and padded, by Pillow alone."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIDE = 32  # an encoder halves a slice five times


def fitted_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return height and width scaled so that the longer one is `image_size`."""
    scale = image_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def padded_size(image_size: int) -> int:
    """Return `image_size` rounded up to a multiple of 32."""
    return -(-image_size // STRIDE) * STRIDE


def fit(pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Return a scan (H, W, 3) or mask (H, W) scaled to `image_size`, padded below and to the right.

    The result has S = padded_size(image_size) pixels along each side. What is made smaller is
    averaged: half the size is the mean of 2 × 2 pixels, rounded.
    """
    height, width = fitted_size(pixels.shape[0], pixels.shape[1], image_size)
    if (height, width) != pixels.shape[:2]:
        # First by a whole factor, then the rest of the way, smoothed as far as it gets smaller.
        scaled = Image.fromarray(pixels).resize(
            (width, height), Image.Resampling.BILINEAR, reducing_gap=1.0
        )
        pixels = np.asarray(scaled)
    size = padded_size(image_size)
    fitted = np.zeros((size, size, *pixels.shape[2:]), dtype=np.uint8)
    fitted[:height, :width] = pixels
    return fitted


def fit_mask(mask: NDArray[np.bool_], image_size: int) -> NDArray[np.uint8]:
    """Return a mask (H, W) fitted as its scan is, (S, S), 1 where tumor fills half a pixel."""
    return (fit(mask.astype(np.uint8) * 255, image_size) > 127).astype(np.uint8)


@lru_cache(maxsize=16)
def interpolation(n_out: int, n_in: int) -> NDArray[np.float32]:
    """Return the matrix (n_out, n_in) that scales a row of pixels linearly.

    Pixels are areas, and their values belong to their middle; the outermost go on to the border.
    """
    places = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, n_in - 1)
    matrix = np.zeros((n_out, n_in), dtype=np.float32)
    np.add.at(matrix, (np.arange(n_out), below), 1 - (places - below))
    np.add.at(matrix, (np.arange(n_out), above), places - below)
    return matrix


def unfit(
    fitted: NDArray[np.float32],
    height: int,
    width: int,
    image_size: int,
    of: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Return values (S, S) of a fitted slice at the slice's own size, (H, W), bilinear.

    `of` is the size of what was fitted, where that was not the slice itself.
    """
    rows, columns = fitted_size(*(of or (height, width)), image_size)
    inside = fitted[:rows, :columns]
    if (rows, columns) == (height, width):
        return inside
    scaled: NDArray[np.float32] = interpolation(height, rows) @ inside
    return np.asarray(scaled @ interpolation(width, columns).T, dtype=np.float32)


def neighbors(patient_ids: Sequence[str], numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return for each slice where the slices before and after it are, (N, 2).

    Those are the slices of the same patient with the next lower and the next higher number; where
    there is none, at the ends of a volume and at a gap, the slice itself stands in.
    """
    places = {key: place for place, key in enumerate(zip(patient_ids, numbers, strict=True))}
    return np.array(
        [
            [places.get((patient_id, number + step), place) for step in (-1, 1)]
            for (patient_id, number), place in places.items()
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
