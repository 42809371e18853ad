"""Read and write probability maps: an 8-bit PNG per slice with each pixel's tumor probability.

A probability p is stored as the level 255 · (2/π) · arcsin √p, the variance-stabilizing transform
of a proportion (Anscombe, Biometrika 35:246, 1948). Steps are 4e-5 wide near 0 and 1, where most
pixels are, and 0.006 in the middle. Level 0 is 0 and level 255 is 1, so a mask with values 0 and
255 is a valid map. 0.5 lies between levels 127 and 128, so thresholding at 0.5 is exact.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.refusals import Refusal, rebuild_hint
from scans.tiff import LEVELS

# Maps with more values than MAX_LABELS are no masks or labels. Nor are maps without a 0 that have
# intermediate values above MAX_LABEL.
MAX_LABELS, MAX_LABEL = 8, 10
PROBABILITIES = np.sin(np.pi / 2 * np.arange(LEVELS) / (LEVELS - 1)) ** 2  # of each level


def encode(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the levels of logits of any shape; a probability of exactly 0.5 becomes 127."""
    odds = np.exp(np.clip(logits.astype(np.float64), -50, 50) / 2)
    levels = (LEVELS - 1) * (2 / np.pi) * np.arctan(odds)  # arcsin √p = arctan √(p / (1 - p))
    return np.ceil(levels - 0.5).astype(np.uint8)


def probability_path(folder: Path, slice_id: str) -> Path:
    """Return the path of a slice's probability map."""
    return folder / f"{slice_id}.png"


def write_levels(levels: NDArray[np.uint8], folder: Path, slice_id: str) -> None:
    """Write the levels of one slice, (H, W)."""
    Image.fromarray(levels).save(probability_path(folder, slice_id), compress_level=1)


def read_levels(folder: Path, slice_id: str) -> NDArray[np.uint8]:
    """Return the levels of one slice, (H, W); PROBABILITIES has the probability of each level."""
    path = probability_path(folder, slice_id)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode != "L":
                raise Refusal(
                    f"{path}: expected 1 channel of uint8, found mode {image.mode}; "
                    f"{rebuild_hint('predict')}"
                )
            return np.array(image)
    except Refusal:
        raise
    except Exception as error:  # a damaged file can raise almost anything in Pillow
        raise Refusal(
            f"{path}: not a readable probability map ({type(error).__name__}); "
            f"{rebuild_hint('predict')}"
        ) from None


def check_levels(counts: NDArray[np.int64], folder: Path) -> None:
    """Raise an error if the maps are masks or labels with values other than 0 and 255.

    `counts`, (LEVELS,), is the number of pixels with each level in all maps together. A mask of 0
    and 1, or of 0 and 100, would be read as low probabilities and get a score of 0.
    """
    levels = np.flatnonzero(counts).tolist()
    intermediate = [level for level in levels if 0 < level < LEVELS - 1]
    low = MAX_LABEL + 1 if levels[0] else LEVELS // 2
    if intermediate and max(intermediate) < low and len(levels) <= MAX_LABELS:
        raise Refusal(
            f"{folder}: the maps contain only the values {levels}. A mask must have values 0 and "
            "255; a probability map has levels in between (src/scans/probability_maps.py). Convert "
            "the maps."
        )
    if counts[LEVELS // 2 :].sum() == 0:
        print(f"{folder}: no pixel of any slice has a probability above 0.5")
