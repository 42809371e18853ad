"""Probability maps: for each slice an 8-bit PNG of the probability of tumor, pixel by pixel.

A probability p is stored as the level 255 · (2/π) · arcsin √p: steps are 4e-5 wide at 0 and 1,
where most pixels are, and 0.006 in the middle (the variance-stabilizing transform of a proportion;
Anscombe, Biometrika 35:246, 1948). Level 0 is 0, level 255 is 1, and 0.5 lies between 127 and 128,
so that a mask of 0 and 255 is a map too, and nothing is lost for a threshold of 0.5.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.refusals import Refusal, remake
from scans.tiff import LEVELS

# What the maps of a data set together hold no more of, if they are masks or labels.
MOST_LABELS, HIGHEST_LABEL = 8, 10
PROBABILITIES = np.sin(np.pi / 2 * np.arange(LEVELS) / (LEVELS - 1)) ** 2  # of each level


def encode(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the levels of logits of any shape; a probability of 0.5 exactly gets 127."""
    odds = np.exp(np.clip(logits.astype(np.float64), -50, 50) / 2)
    levels = (LEVELS - 1) * (2 / np.pi) * np.arctan(odds)  # arcsin √p = arctan √(p / (1 - p))
    return np.ceil(levels - 0.5).astype(np.uint8)


def probability_path(folder: Path, slice_id: str) -> Path:
    """Return where a slice's probability map lies."""
    return folder / f"{slice_id}.png"


def write_levels(levels: NDArray[np.uint8], folder: Path, slice_id: str) -> None:
    """Write the levels of one slice, (H, W)."""
    Image.fromarray(levels).save(probability_path(folder, slice_id), compress_level=1)


def read_levels(folder: Path, slice_id: str) -> NDArray[np.uint8]:
    """Return the levels of one slice, (H, W); PROBABILITIES says what they mean."""
    path = probability_path(folder, slice_id)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode != "L":
                raise Refusal(
                    f"{path}: expected 1 channel of uint8, found mode {image.mode}; "
                    f"{remake('predict')}"
                )
            return np.array(image)
    except Refusal:
        raise
    except Exception as error:  # Pillow fails in ways without end
        raise Refusal(
            f"{path}: no probability map that can be read ({type(error).__name__}); "
            f"{remake('predict')}"
        ) from None


def check_levels(counts: NDArray[np.int64], folder: Path) -> None:
    """Refuse maps that are masks or labels in another convention than 0 and 255.

    `counts`, (LEVELS,), says how many pixels of all maps together have each level. Masks of 0 and
    1, or 0 and 100, would be taken for low probabilities, and score 0.
    """
    levels = np.flatnonzero(counts).tolist()
    others = [level for level in levels if 0 < level < LEVELS - 1]
    low = HIGHEST_LABEL + 1 if levels[0] else LEVELS // 2
    if others and max(others) < low and len(levels) <= MOST_LABELS:
        raise Refusal(
            f"{folder}: the maps hold nothing but the values {levels}; a mask is of 0 and 255, and "
            "a probability map has levels in between, as src/scans/probability_maps.py defines "
            "them. Convert them."
        )
    if counts[LEVELS // 2 :].sum() == 0:
        print(f"{folder}: no pixel of any slice has a probability above 0.5")
