"""Augmentation: random changes of a train slice and its mask, drawn again in every epoch."""

import math
import os
import random

import cv2
import numpy as np
from numpy.typing import NDArray

from learning.params import AugmentParams
from scans.tiff import LEVELS, SEQUENCES

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or importing it asks the network for a newer one
import albumentations

# A slice is too small to be shared among threads: they would only take cores from the network.
cv2.setNumThreads(1)
FLAIR = SEQUENCES.index("flair")
BESIDE = {"before": "image", "after": "image"}  # treated as the image itself


class Intensities(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """Change the intensities of each sequence, as another scanner would have shown them.

    Level 0, which is mostly air, stays 0.
    """

    def __init__(self, augment: AugmentParams) -> None:
        super().__init__(p=1.0)
        self.augment = augment

    def get_params(self) -> dict[str, NDArray[np.uint8]]:
        """Return what each level of each sequence becomes, (1, 256, 3), for a slice."""
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
        """Return the changed scan, (S, S, 3)."""
        return np.asarray(cv2.LUT(img, table), dtype=np.uint8)


class FlairAlone(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """Replace all sequences by FLAIR, as the data set does for patients who have no other."""

    def apply(self, img: NDArray[np.uint8], **_: object) -> NDArray[np.uint8]:
        """Return the scan, (S, S, 3), with FLAIR three times."""
        return np.repeat(img[..., FLAIR : FLAIR + 1], len(SEQUENCES), axis=-1)


class LogScaledAffine(albumentations.Affine):  # type: ignore[misc]
    """Affine whose factor of scale is drawn evenly in its logarithm: as often ½ as 2."""

    @staticmethod
    def _get_scale(
        scale: dict[str, tuple[float, float]], _: bool, __: bool, random: random.Random
    ) -> dict[str, float]:
        low, high = scale["x"]
        factor = math.exp(random.uniform(math.log(low), math.log(high)))
        return {"x": factor, "y": factor}


def augmentation(augment: AugmentParams) -> albumentations.Compose:
    """Return the augmentation of `image` and `mask`, and of `before` and `after` where given.

    Those are the slices beside it, and all get the same change. `rotate` is in degrees, `translate`
    a fraction, each drawn from ± that value; the factor of `scale`, and for each sequence the
    exponent of `gamma` and the factor of `gain`, from exp(± value); the factor of `contrast` from
    1 ± value, and the share of the highest level that `brightness` adds from ± value. `missing` is
    the probability of FLAIR alone.
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
        transforms.append(FlairAlone(p=augment.missing))
    return albumentations.Compose(transforms, additional_targets=BESIDE)
