"""A volume: all slices of a patient, stacked in the order of their numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def stack(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return masks (H, W) as a volume (D, H, W); smaller ones are padded below and to the right."""
    height, width = np.max([mask.shape for mask in masks], axis=0)
    volume = np.zeros((len(masks), height, width), dtype=np.bool_)
    for slot, mask in zip(volume, masks, strict=True):
        slot[: mask.shape[0], : mask.shape[1]] = mask
    return volume


def components(
    volume: NDArray[np.bool_], numbers: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the labels (D, H, W) of connected components, from 1, and their sizes in pixels.

    Pixels are connected through their faces, within a slice and between adjacent slices. Slices are
    adjacent if their `numbers`, which must increase, are consecutive.
    """
    gaps = np.flatnonzero(np.diff(numbers) > 1) + 1
    labels, n_components = ndimage.label(np.insert(volume, gaps, False, axis=0))
    labels = np.delete(labels, gaps + np.arange(len(gaps)), axis=0)
    return labels, np.bincount(labels.ravel(), minlength=n_components + 1)[1:]


def large_components(
    volume: NDArray[np.bool_], numbers: Sequence[int], *, share: float
) -> NDArray[np.bool_]:
    """Return the volume (D, H, W) without small connected components.

    Components with at least a fraction `share` of the largest one's pixels are kept: 1 keeps only
    the largest one and its equals, 0 keeps all.
    """
    labels, sizes = components(volume, numbers)
    kept: NDArray[np.bool_] = np.insert(sizes >= share * sizes.max(initial=0), 0, False)
    return kept[labels]
