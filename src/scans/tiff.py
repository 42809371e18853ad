"""Read scans and masks from TIFF files; raise an error for any unexpected format."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.refusals import Refusal, rebuild_hint

# The channels of an image, in this order: three MRI sequences stored as red, green and blue.
SEQUENCES = ("pre_contrast", "flair", "post_contrast")
LEVELS = 256  # of an 8-bit channel

MAX_SIDE = 4096  # pixels; larger images could fill the memory before they are checked
BITS, SAMPLES, FORMAT = 258, 277, 339  # TIFF tags: bits per sample, samples per pixel, their type
UNSIGNED = 1  # the value of FORMAT for unsigned integers
EXPECTED = {"RGB": ("3 channels of uint8", 3), "L": ("1 channel of uint8", 1)}  # by Pillow's mode


def read_pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    """Return the pixels of a one-page TIFF file in Pillow's `mode`, with 8 bits per channel.

    Checks the tags as well as the mode, because Pillow reads 16 bits per channel as RGB and drops
    the lower 8.
    """
    try:
        # Pillow warns about files for which it then raises an error.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=["TIFF"]) as image:
            pages, tags = getattr(image, "n_frames", 1), image.tag_v2  # type: ignore[attr-defined]
            bits, n_samples = tags.get(BITS, (1,)), tags.get(SAMPLES, 1)
            is_uint8 = set(bits) == {8} and set(tags.get(FORMAT, [UNSIGNED])) == {UNSIGNED}
            expected, n_expected = EXPECTED[mode]
            if (image.mode, pages, n_samples, is_uint8) != (mode, 1, n_expected, True):
                raise Refusal(
                    f"{path}: expected {expected} in one page, found mode {image.mode}, "
                    f"pages: {pages}, channels: {n_samples}, bits per channel: {bits}"
                )
            if max(image.size) > MAX_SIDE:
                raise Refusal(
                    f"{path}: {image.width} × {image.height} pixels; at most {MAX_SIDE} per side "
                    "are supported"
                )
            return np.array(image)
    except (Refusal, PermissionError):
        raise
    except FileNotFoundError:
        raise Refusal(f"{path}: no such file; {rebuild_hint('restructure')}") from None
    except UnidentifiedImageError:
        raise Refusal(f"{path}: not a readable TIFF image") from None
    except Exception as error:  # a damaged header can raise almost anything in Pillow
        raise Refusal(f"{path}: damaged TIFF image ({type(error).__name__}: {error})") from None


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return a scan, (H, W, 3) uint8, channels in the order of SEQUENCES."""
    return read_pixels(path, "RGB")


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return the binary reference, (H, W), True for tumor.

    Raises an error for values other than 0 and 255.
    """
    pixels = read_pixels(path, "L")
    mask: NDArray[np.bool_] = pixels == 255
    if not (mask | (pixels == 0)).all():
        values = sorted({int(value) for value in np.unique(pixels)} - {0, 255})
        raise Refusal(f"{path}: mask values must be 0 and 255, also found {values[:5]}")
    return mask
