"""Augmentation: random changes of a train slice and its mask, drawn again in every epoch."""

import os

import numpy as np
from numpy.typing import NDArray

from scans.slices import SEQUENCES

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or importing it asks the network for a newer one
import albumentations


class MissingSequences(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """Replace post-contrast by FLAIR, and half of the time pre-contrast too.

    The data set fills a sequence that a patient lacks so; all who lack pre-contrast lack both.
    """

    def apply(self, img: NDArray[np.uint8], *, both: bool, **_: object) -> NDArray[np.uint8]:
        """Return the scan (S, S, 3) without the sequence or the two."""
        pre_contrast, flair, post_contrast = range(len(SEQUENCES))
        img = img.copy()
        img[..., post_contrast] = img[..., flair]
        if both:
            img[..., pre_contrast] = img[..., flair]
        return img

    def get_params(self) -> dict[str, bool]:
        """Return what is drawn for a slice."""
        return {"both": self.py_random.random() < 0.5}


def augmentation(
    *,
    flip: bool,
    rotate: float,
    scale: float,
    translate: float,
    brightness: float,
    contrast: float,
    gamma: float,
    gain: float,
    missing: float,
) -> albumentations.Compose:
    """Return the augmentation of a scan and its mask.

    `rotate` in degrees; `scale`, `translate`, `brightness` and `contrast` as fractions, each drawn
    from the range of ± that value. `gamma` and `gain` are drawn from 1 ± that value, an exponent
    of all intensities and a factor of each sequence on its own; `missing` is a probability.
    """
    transforms: list[albumentations.BasicTransform] = (
        [albumentations.HorizontalFlip(p=0.5)] if flip else []
    )
    if rotate or scale or translate:
        transforms.append(
            albumentations.Affine(
                scale=(1 - scale, 1 + scale),
                translate_percent=(-translate, translate),
                rotate=(-rotate, rotate),
                balanced_scale=True,
                p=1.0,
            )
        )
    if brightness or contrast:
        transforms.append(albumentations.RandomBrightnessContrast(brightness, contrast, p=1.0))
    if gamma:
        percent = 100 * (1 - gamma), 100 * (1 + gamma)
        transforms.append(albumentations.RandomGamma(percent, p=1.0))
    if gain:
        factors = 1 - gain, 1 + gain
        transforms.append(albumentations.MultiplicativeNoise(factors, per_channel=True, p=1.0))
    if missing:
        transforms.append(MissingSequences(p=missing))
    return albumentations.Compose(transforms)
