"""Scale and pad slices to the square that a network takes, with Pillow only."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIDE = 32  # because an encoder halves a slice five times


def fitted_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return height and width, scaled so that the longer one is `image_size`."""
    scale = image_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def padded_size(image_size: int) -> int:
    """Return `image_size` rounded up to a multiple of 32."""
    return -(-image_size // STRIDE) * STRIDE


def fit(pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Return a scan (H, W, 3) or mask (H, W) scaled to `image_size`, padded below and to the right.

    The result has S = padded_size(image_size) pixels along each side. Downscaling averages: at half
    the size, a pixel is the rounded mean of 2 × 2 pixels.
    """
    height, width = fitted_size(pixels.shape[0], pixels.shape[1], image_size)
    if (height, width) != pixels.shape[:2]:
        # First shrink by an integer factor, then scale the rest with antialiasing.
        scaled = Image.fromarray(pixels).resize(
            (width, height), Image.Resampling.BILINEAR, reducing_gap=1.0
        )
        pixels = np.asarray(scaled)
    size = padded_size(image_size)
    fitted = np.zeros((size, size, *pixels.shape[2:]), dtype=np.uint8)
    fitted[:height, :width] = pixels
    return fitted


def fit_mask(mask: NDArray[np.bool_], image_size: int) -> NDArray[np.uint8]:
    """Return a mask (H, W) fitted like its scan, (S, S); 1 where tumor fills half of a pixel."""
    return (fit(mask.astype(np.uint8) * 255, image_size) > 127).astype(np.uint8)


@lru_cache(maxsize=16)
def interpolation(n_out: int, n_in: int) -> NDArray[np.float32]:
    """Return the matrix (n_out, n_in) that scales a row of pixels by linear interpolation.

    A pixel's value is that of its center; beyond the outermost centers, the values are constant.
    """
    positions = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    below = np.floor(positions).astype(np.int64)
    above = np.minimum(below + 1, n_in - 1)
    matrix = np.zeros((n_out, n_in), dtype=np.float32)
    np.add.at(matrix, (np.arange(n_out), below), 1 - (positions - below))
    np.add.at(matrix, (np.arange(n_out), above), positions - below)
    return matrix


def unfit(
    fitted: NDArray[np.float32],
    height: int,
    width: int,
    image_size: int,
    resized: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Return values (S, S) of a fitted slice at the slice's original size, (H, W), bilinear.

    `resized` is the slice's height and width when it was fitted, if it had been resized before.
    """
    rows, columns = fitted_size(*(resized or (height, width)), image_size)
    inside = fitted[:rows, :columns]
    if (rows, columns) == (height, width):
        return inside
    scaled: NDArray[np.float32] = interpolation(height, rows) @ inside
    return np.asarray(scaled @ interpolation(width, columns).T, dtype=np.float32)


def neighbors(patient_ids: Sequence[str], numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return the positions of the slices before and after each slice, (N, 2).

    These are the slices of the same patient whose number is one lower and one higher. If there is
    none, at the ends of a volume or at a gap, it is the slice's own position.
    """
    positions = {key: at for at, key in enumerate(zip(patient_ids, numbers, strict=True))}
    return np.array(
        [
            [positions.get((patient_id, number + step), at) for step in (-1, 1)]
            for (patient_id, number), at in positions.items()
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
