"""Augmentation: random changes of a train slice and its mask, drawn again in every epoch."""

import os

import numpy as np
from numpy.typing import NDArray

from learning.params import AugmentParams
from scans.tiff import SEQUENCES

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


def augmentation(augment: AugmentParams) -> albumentations.Compose:
    """Return the augmentation of a scan and its mask.

    `rotate` in degrees; `scale`, `translate`, `brightness` and `contrast` as fractions, each drawn
    from the range of ± that value. `gamma` and `gain` are drawn from 1 ± that value, an exponent
    of all intensities and a factor of each sequence on its own; `missing` is a probability.
    """
    transforms: list[albumentations.BasicTransform] = (
        [albumentations.HorizontalFlip(p=0.5)] if augment.flip else []
    )
    if augment.rotate or augment.scale or augment.translate:
        transforms.append(
            albumentations.Affine(
                scale=(1 - augment.scale, 1 + augment.scale),
                translate_percent=(-augment.translate, augment.translate),
                rotate=(-augment.rotate, augment.rotate),
                balanced_scale=True,
                p=1.0,
            )
        )
    if augment.brightness or augment.contrast:
        brightness_and_contrast = augment.brightness, augment.contrast
        transforms.append(albumentations.RandomBrightnessContrast(*brightness_and_contrast, p=1.0))
    if augment.gamma:
        percent = 100 * (1 - augment.gamma), 100 * (1 + augment.gamma)
        transforms.append(albumentations.RandomGamma(percent, p=1.0))
    if augment.gain:
        factors = 1 - augment.gain, 1 + augment.gain
        transforms.append(albumentations.MultiplicativeNoise(factors, per_channel=True, p=1.0))
    if augment.missing:
        transforms.append(MissingSequences(p=augment.missing))
    return albumentations.Compose(transforms)
