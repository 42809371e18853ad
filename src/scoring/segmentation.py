"""From a patient's probability maps to predicted masks, beside the reference masks."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.refusals import Refusal, remake
from scans.probability_maps import PROBABILITIES, probability_path, read_levels
from scans.tiff import read_mask
from scans.volume import large_components, stack
from scoring.overlap import count_pixels


class SegmentedSlice(NamedTuple):
    """A slice as it was predicted, and its reference; all three are (H, W)."""

    levels: NDArray[np.uint8]  # of probability; PROBABILITIES says what they mean
    mask: NDArray[np.bool_]
    predicted: NDArray[np.bool_]

    def counts(self) -> dict[str, int]:
        """Return tp, fp, fn and tn."""
        return count_pixels(self.predicted, self.mask)


def read_pair(
    slice_id: str, mask_file: Path | str, predictions: Path
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a slice's levels of probability and its reference, both (H, W)."""
    levels = read_levels(predictions, slice_id)
    mask = read_mask(Path(mask_file))
    if levels.shape != mask.shape:
        raise Refusal(
            f"{probability_path(predictions, slice_id)}: {levels.shape} pixels for a mask of "
            f"{mask.shape}; {remake('predict')}"
        )
    return levels, mask


def segment_volume(
    volume: pd.DataFrame, predictions: Path, *, threshold: float, share: float
) -> list[SegmentedSlice]:
    """Return the segmented slices of a patient, in order.

    `volume` holds `slice_id`, `slice_number` and `mask` of all of them. Tumor is where the
    probability is above `threshold`; of that, the patient's connected components in 3-D of at least
    a `share` of the largest one's pixels.
    """
    pairs = [
        read_pair(slice_id, mask_file, predictions)
        for slice_id, mask_file in zip(volume["slice_id"], volume["mask"], strict=True)
    ]
    predicted = [PROBABILITIES[levels] > threshold for levels, _ in pairs]
    kept = large_components(stack(predicted), volume["slice_number"].tolist(), share=share)
    return [
        SegmentedSlice(levels, mask, whole[: mask.shape[0], : mask.shape[1]])
        for (levels, mask), whole in zip(pairs, kept, strict=True)
    ]
