"""Slices as the network takes them: normalized, fitted into a square, augmented."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from scans.intensity import NONE, Normalization
from scans.tiff import read_image, read_mask

if TYPE_CHECKING:
    import albumentations  # slow to import, and not needed for prediction

STRIDE = 32  # the encoder halves a slice five times
# A slice is too small to be shared among threads: they would only take cores from the network.
cv2.setNumThreads(1)

# Which slice an item is: epoch, position, and how often that epoch had drawn the slice before.
Key = tuple[int, int, int]
# A fitted scan (S, S, 3), its fitted mask (S, S), the mask at its own size (H, W), the slice's id.
Item = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_], str]


def fitted_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return height and width scaled so that the longer one is `image_size`."""
    scale = image_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def padded_size(image_size: int) -> int:
    """Return `image_size` rounded up to a multiple of 32."""
    return -(-image_size // STRIDE) * STRIDE


def fit(pixels: NDArray[np.uint8], image_size: int, interpolation: int) -> NDArray[np.uint8]:
    """Return a scan or mask scaled to `image_size`, padded with 0 below and to the right.

    (H, W, ...) becomes (S, S, ...) with S = padded_size(image_size); unfit is the way back.
    """
    height, width = fitted_size(pixels.shape[0], pixels.shape[1], image_size)
    if (height, width) != pixels.shape[:2]:
        pixels = np.asarray(
            cv2.resize(pixels, (width, height), interpolation=interpolation), dtype=np.uint8
        )
    size = padded_size(image_size)
    margins = [(0, size - height), (0, size - width)] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, margins)


def unfit(logits: torch.Tensor, height: int, width: int, image_size: int) -> torch.Tensor:
    """Return logits (S, S) of a fitted slice at the slice's own size, (H, W), bilinear."""
    rows, columns = fitted_size(height, width, image_size)
    logits = logits[:rows, :columns]
    if (rows, columns) == (height, width):
        return logits
    scaled = torch.nn.functional.interpolate(
        logits[None, None].float(), (height, width), mode="bilinear", align_corners=False
    )
    return scaled[0, 0]


def slice_seed(seed: int, epoch: int, slice_id: str, n_before: int) -> int:
    """Return the seed of a slice's augmentation, in [0, 2**32).

    `n_before` is how often the epoch had drawn the slice before.
    """
    entropy = [seed, epoch, zlib.crc32(slice_id.encode()), n_before]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class SliceDataset(Dataset[Item]):
    """Scans and masks of a table of slices, read and fitted one by one.

    `slices` holds `slice_id`, `patient_id`, and the paths `image` and `mask`; with `masks` False no
    mask is read, and all are empty. What augmentation draws follows from the seed, the epoch, the
    slice and how often the epoch had drawn it before, whichever worker loads it.
    """

    def __init__(
        self,
        slices: pd.DataFrame,
        *,
        image_size: int,
        masks: bool = True,
        normalization: Normalization = NONE,
        augment: "albumentations.Compose | None" = None,
        seed: int = 0,
    ) -> None:
        columns = ["slice_id", "patient_id", "image", *(["mask"] if masks else [])]
        self.slices = slices[columns].to_dict("records")
        self.image_size, self.masks, self.normalization = image_size, masks, normalization
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, key: Key) -> Item:
        epoch, position, n_before = key
        row = self.slices[position]
        slice_id = row["slice_id"]
        image = read_image(Path(row["image"]))
        own_mask = (
            read_mask(Path(row["mask"]))
            if self.masks
            else np.zeros(image.shape[:2], dtype=np.bool_)
        )
        image = fit(self.normalization(image, row["patient_id"]), self.image_size, cv2.INTER_LINEAR)
        mask = fit(own_mask.view(np.uint8), self.image_size, cv2.INTER_NEAREST)
        if self.augment is not None:
            self.augment.set_random_seed(slice_seed(self.seed, epoch, slice_id, n_before))
            augmented = self.augment(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        return image, mask, own_mask, slice_id
