"""Scans and masks as TIFF files: read, checked, never guessed at."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.refusals import Refusal, remake

# The channels of an image, in this order: three MRI sequences read as red, green and blue.
SEQUENCES = ("pre_contrast", "flair", "post_contrast")
LEVELS = 256  # of an 8-bit channel

LARGEST = 4096  # pixels along a side; more would fill the memory before anything is checked
BITS, SAMPLES, FORMAT = 258, 277, 339  # TIFF tags: bits per sample, samples per pixel, their type
UNSIGNED = 1  # the value of FORMAT for unsigned integers
WANTED = {"RGB": ("3 channels of uint8", 3), "L": ("1 channel of uint8", 1)}  # by Pillow's mode


def read_pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    """Return the pixels of a TIFF file of one page, of Pillow's `mode`, with 8 bits a channel.

    The tags count, not the mode alone: Pillow reads 16 bits a channel as RGB and drops the lower 8.
    """
    try:
        # Pillow also warns of what it then refuses.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=["TIFF"]) as image:
            pages, tags = getattr(image, "n_frames", 1), image.tag_v2  # type: ignore[attr-defined]
            bits, n_samples = tags.get(BITS, (1,)), tags.get(SAMPLES, 1)
            is_uint8 = set(bits) == {8} and set(tags.get(FORMAT, [UNSIGNED])) == {UNSIGNED}
            wanted, n_wanted = WANTED[mode]
            if (image.mode, pages, n_samples, is_uint8) != (mode, 1, n_wanted, True):
                raise Refusal(
                    f"{path}: expected {wanted} in one page, found mode {image.mode}, "
                    f"pages: {pages}, channels: {n_samples}, bits of each: {bits}"
                )
            if max(image.size) > LARGEST:
                raise Refusal(f"{path}: {image.size} pixels, more than {LARGEST} along a side")
            return np.array(image)
    except (Refusal, PermissionError):
        raise
    except FileNotFoundError:
        raise Refusal(f"{path}: no such file; {remake('restructure')}") from None
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
