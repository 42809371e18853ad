"""Random augmentation of train slices and their masks, drawn again in every epoch."""

import math
import os
import random

import cv2
import numpy as np
from numpy.typing import NDArray

from learning.params import AugmentParams
from scans.tiff import LEVELS, SEQUENCES

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # stops its online check for a newer version
import albumentations

# A slice is too small for several threads: they would only take cores from the network.
cv2.setNumThreads(1)
FLAIR = SEQUENCES.index("flair")
NEIGHBORS = {"before": "image", "after": "image"}  # transformed like the image


class Intensities(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """Change the intensities of each sequence, as if another scanner had recorded them.

    Level 0, which is mostly air, stays 0.
    """

    def __init__(self, augment: AugmentParams) -> None:
        super().__init__(p=1.0)
        self.augment = augment

    def get_params(self) -> dict[str, NDArray[np.uint8]]:
        """Return a slice's lookup table, (1, 256, 3): the new value of each level and sequence."""
        draw, augment = self.random_generator.uniform, self.augment
        gamma = np.exp(draw(-augment.gamma, augment.gamma, len(SEQUENCES)))
        gain = np.exp(draw(-augment.gain, augment.gain, len(SEQUENCES)))
        contrast = 1 + draw(-augment.contrast, augment.contrast)
        brightness = draw(-augment.brightness, augment.brightness)
        levels = np.linspace(0, 1, LEVELS)[:, None]
        changed = levels**gamma * gain * contrast + brightness * (levels > 0)
        table = np.rint((LEVELS - 1) * changed.clip(0, 1)).astype(np.uint8)
        return {"table": table[None]}

    def apply(
        self, img: NDArray[np.uint8], table: NDArray[np.uint8], **_: object
    ) -> NDArray[np.uint8]:
        """Return the scan, (S, S, 3), with changed intensities."""
        return np.asarray(cv2.LUT(img, table), dtype=np.uint8)


class OnlyFlair(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """Copy FLAIR into all channels, as the data set does for patients who have only FLAIR."""

    def apply(self, img: NDArray[np.uint8], **_: object) -> NDArray[np.uint8]:
        """Return the scan, (S, S, 3), with FLAIR in all three channels."""
        return np.repeat(img[..., FLAIR : FLAIR + 1], len(SEQUENCES), axis=-1)


class LogScaledAffine(albumentations.Affine):  # type: ignore[misc]
    """Affine transform with a log-uniform scale factor: ½ is as likely as 2."""

    @staticmethod
    def _get_scale(
        scale: dict[str, tuple[float, float]], _: bool, __: bool, random: random.Random
    ) -> dict[str, float]:
        low, high = scale["x"]
        factor = math.exp(random.uniform(math.log(low), math.log(high)))
        return {"x": factor, "y": factor}


def augmentation(augment: AugmentParams) -> albumentations.Compose:
    """Return the augmentation of `image`, `mask` and, if given, its neighbors `before` and `after`.

    Geometric changes apply to all of them alike, intensity changes only to the images. Each value
    limits a random change:

    - `flip`: half of the slices are mirrored left to right.
    - `rotate` (degrees) and `translate` (fraction of the size): the change is drawn from ± value.
    - `scale`: the scale factor is drawn from exp(± value).
    - `gamma` (an exponent) and `gain` (a factor): drawn from exp(± value) for each sequence.
    - `contrast`: the factor is drawn from 1 ± value.
    - `brightness`: a fraction of the highest level, drawn from ± value, is added.

    `missing` is the probability that FLAIR replaces the other two sequences.
    """
    transforms: list[albumentations.BasicTransform] = (
        [albumentations.HorizontalFlip(p=0.5)] if augment.flip else []
    )
    if augment.rotate or augment.scale or augment.translate:
        transforms.append(
            LogScaledAffine(
                scale=(np.exp(-augment.scale), np.exp(augment.scale)),
                translate_percent=(-augment.translate, augment.translate),
                rotate=(-augment.rotate, augment.rotate),
                p=1.0,
            )
        )
    transforms.append(Intensities(augment))
    if augment.missing:
        transforms.append(OnlyFlair(p=augment.missing))
    return albumentations.Compose(transforms, additional_targets=NEIGHBORS)
