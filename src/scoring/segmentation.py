"""Turn a patient's probability maps into predicted masks, paired with the reference masks."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.refusals import Refusal, rebuild_hint
from scans.probability_maps import PROBABILITIES, probability_path, read_levels
from scans.tiff import read_mask
from scans.volume import large_components, stack
from scoring.overlap import count_pixels


class SegmentedSlice(NamedTuple):
    """The prediction and the reference of a slice; all arrays are (H, W)."""

    levels: NDArray[np.uint8]  # PROBABILITIES[levels] are the probabilities
    mask: NDArray[np.bool_]
    predicted: NDArray[np.bool_]

    def counts(self) -> dict[str, int]:
        """Return tp, fp, fn and tn in pixels."""
        return count_pixels(self.predicted, self.mask)


def read_pair(
    slice_id: str, mask_file: Path | str, predictions: Path
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a slice's probability levels and its reference mask, both (H, W)."""
    levels = read_levels(predictions, slice_id)
    mask = read_mask(Path(mask_file))
    if levels.shape != mask.shape:
        raise Refusal(
            f"{probability_path(predictions, slice_id)}: {levels.shape} pixels for a mask of "
            f"{mask.shape} pixels; {rebuild_hint('predict')}"
        )
    return levels, mask


def segment_volume(
    volume: pd.DataFrame, predictions: Path, *, threshold: float, share: float
) -> list[SegmentedSlice]:
    """Return the segmented slices of a patient, in order.

    `volume` holds `slice_id`, `slice_number` and `mask` of all slices. Pixels with a probability
    above `threshold` are tumor. Of their 3-D connected components, only those with at least a
    fraction `share` of the largest component's pixels are kept.
    """
    pairs = [
        read_pair(slice_id, mask_file, predictions)
        for slice_id, mask_file in zip(volume["slice_id"], volume["mask"], strict=True)
    ]
    predicted = [PROBABILITIES[levels] > threshold for levels, _ in pairs]
    kept = large_components(stack(predicted), volume["slice_number"].tolist(), share=share)
    return [
        SegmentedSlice(levels, mask, padded[: mask.shape[0], : mask.shape[1]])
        for (levels, mask), padded in zip(pairs, kept, strict=True)
    ]
