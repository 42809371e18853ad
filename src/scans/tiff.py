"""Scans and masks as TIFF files: read, checked, never guessed at."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.refusals import Refusal

# The channels of an image, in this order: three MRI sequences read as red, green and blue.
SEQUENCES = ("pre_contrast", "flair", "post_contrast")
LEVELS = 256  # of an 8-bit channel

# What Pillow's modes say.
WANTED = {"RGB": "3 channels of uint8", "L": "1 channel of uint8"}


def read_pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    """Return the pixels of a TIFF file of one page whose Pillow mode is `mode`."""
    try:
        # Pillow also warns of what it then refuses.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=["TIFF"]) as image:
            pages = getattr(image, "n_frames", 1)
            if image.mode != mode or pages != 1:
                raise Refusal(
                    f"{path}: expected {WANTED[mode]} in one page, "
                    f"found mode {image.mode}, pages: {pages}"
                )
            return np.array(image)
    except (Refusal, PermissionError):
        raise
    except FileNotFoundError:
        raise Refusal(
            f"{path}: no such file; `dvc checkout`, or `dvc repro --force restructure`"
        ) from None
    except UnidentifiedImageError:
        raise Refusal(f"{path}: not a TIFF image that can be read") from None
    except Exception as error:  # a damaged header makes Pillow fail in ways without end
        raise Refusal(f"{path}: damaged TIFF image ({type(error).__name__}: {error})") from None


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return a scan, (H, W, 3) uint8, channels in the order of SEQUENCES."""
    return read_pixels(path, "RGB")


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return the binary reference, (H, W), True on tumor; refuse values other than 0 and 255."""
    pixels = read_pixels(path, "L")
    mask: NDArray[np.bool_] = pixels == 255
    if not (mask | (pixels == 0)).all():
        values = sorted({int(value) for value in np.unique(pixels)} - {0, 255})
        raise Refusal(f"{path}: mask values are 0 and 255, found also {values[:5]}")
    return mask
