"""A slice: one 2-D image of a patient's volume and its mask, and how both are named and read."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.command import Refusal

# The channels of an image, in this order: three MRI sequences read as red, green and blue.
SEQUENCES = ("pre_contrast", "flair", "post_contrast")

# TCGA_CS_4941_19960909: collection, institution, number, date of the scan.
DATED_PATIENT = re.compile(
    r"(?P<case_id>[^_]+_(?P<institution>[^_]+)_.+)_(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
)
SLICE_FILE = re.compile(
    r"(?P<patient_id>.+)_(?P<number>\d+)(?P<mask>_mask)?\.tiff?", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, order=True)
class SliceName:
    """What a file's name tells. Orders by patient, then by number, not by text: 2 before 10."""

    patient_id: str
    number: int
    is_mask: bool
    slice_id: str

    @classmethod
    def parse(cls, file_name: str) -> "SliceName | None":
        """Return the parts of `<patient>_<number>.tif` or `…_mask.tif`; None of another."""
        match = SLICE_FILE.fullmatch(file_name)
        if match is None:
            return None
        patient_id, number = match["patient_id"], match["number"]
        return cls(patient_id, int(number), bool(match["mask"]), f"{patient_id}_{number}")


def case_id(patient_id: str) -> str:
    """Return the patient's key in data.csv: its folder's name without the date of the scan."""
    match = DATED_PATIENT.fullmatch(patient_id)
    return match["case_id"] if match else patient_id


def patient_of(slice_id: str) -> str:
    """Return the id of the patient whose slice it is."""
    return slice_id.rpartition("_")[0]


def institution(patient_id: str) -> str:
    """Return the code in `TCGA_<institution>_<number>_<date>`; "unknown" in another name."""
    match = DATED_PATIENT.fullmatch(patient_id)
    return match["institution"] if match else "unknown"


def slice_path(folder: Path, slice_id: str) -> Path:
    """Return where a slice lies in the folder of scans or in the folder of masks."""
    return folder / f"{slice_id}.tif"


def sorted_slices(folder: Path) -> list[SliceName]:
    """Return the slices of a folder of scans or of masks, by patient and number."""
    names = [SliceName.parse(path.name) for path in folder.glob("*.tif")]
    return sorted(name for name in names if name is not None)


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
    except (Refusal, PermissionError, FileNotFoundError):
        raise
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
