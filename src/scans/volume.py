"""A volume: all slices of a patient, stacked in the order of their numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def stack(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return masks (H, W) as a volume (D, H, W); smaller ones get False below and to the right."""
    height, width = np.max([mask.shape for mask in masks], axis=0)
    volume = np.zeros((len(masks), height, width), dtype=np.bool_)
    for slot, mask in zip(volume, masks, strict=True):
        slot[: mask.shape[0], : mask.shape[1]] = mask
    return volume


def components(
    volume: NDArray[np.bool_], numbers: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the labels (D, H, W) of connected components, from 1, and their sizes in pixels.

    Pixels are connected by their faces: within a slice, and from a slice to the next, if that has
    the next of the `numbers`, which rise.
    """
    gaps = np.flatnonzero(np.diff(numbers) > 1) + 1
    labels, n_components = ndimage.label(np.insert(volume, gaps, False, axis=0))
    labels = np.delete(labels, gaps + np.arange(len(gaps)), axis=0)
    return labels, np.bincount(labels.ravel(), minlength=n_components + 1)[1:]


def large_components(
    volume: NDArray[np.bool_], numbers: Sequence[int], *, share: float
) -> NDArray[np.bool_]:
    """Return the connected components of at least a `share` of the largest one's pixels, (D, H, W).

    1 keeps the largest alone, with its equals, and 0 all of them.
    """
    labels, sizes = components(volume, numbers)
    kept: NDArray[np.bool_] = np.insert(sizes >= share * sizes.max(initial=0), 0, False)
    return kept[labels]
