"""Findings: oddities in the data that a person should check, each with its file."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exploration.measurements import Volume
from scans.intensity import normalized, tissue_statistics
from scans.sequences import MAIN
from scans.skull import LEAST_BONE, skull_share
from scans.tiff import LEVELS
from scans.volume import components, stack

SPECK_SIZE = 50  # pixels; a smaller component is a speck if the mask has a larger one
THUMBNAIL = 32  # pixels along each side of a slice's thumbnail
BLANK = 2.0  # gray levels; thumbnails with a lower standard deviation would all look alike
ALIKE = 0.985  # slices are near-duplicates if their thumbnails correlate at least this much

RIM = 2  # pixels on either side of a mask's border
SHIFTS = (-2, -1, 0, 1, 2)  # slices by which the masks may be shifted

KINDS = (
    "no_tumor", "mask_touches_border", "speck", "near_duplicate", "slice_gap", "mask_shifted",
    "skull_stripped", "voxel_size",
)  # fmt: skip
OTHER_SIZE = 0.1  # relative difference from the median voxel size that makes a finding
FALSE_ALARMS = 0.05  # share of whole heads that may look skull-stripped; 2 of LGG's 110 do
USUAL_FIELD = 230.0  # mm along a slice's longer side, assumed if the pixel size is unknown


class Finding(NamedTuple):
    """Something to check, and the file that shows it."""

    kind: str  # one of KINDS
    file: str  # mask or scan; the first one if the finding concerns all slices
    patient_id: str
    # By kind, in the order of KINDS: number of slices; pixels on the border; pixels of the speck;
    # correlation; missing slices; slices by which the masks are shifted (+1: they belong to the
    # next slice); share of dark voxels where a skull would be; voxel size in mm along the axis that
    # differs most.
    value: float
    other: str  # the other file of a near-duplicate; else ""


def touches_border(mask: NDArray[np.bool_]) -> int:
    """Return the number of tumor pixels in the outermost rows and columns of a slice."""
    inner = mask[1:-1, 1:-1]
    return int(mask.sum() - inner.sum())


def specks(volume: Volume) -> list[tuple[int, int]]:
    """Return slice position and size of each component that is too small to be a lesion.

    The size is in pixels of the whole volume; the slice is the one with most of them.
    """
    labels, sizes = components(stack(volume.masks), volume.rows["slice_number"].tolist())
    found = []
    for label in np.flatnonzero(sizes < SPECK_SIZE) + 1 if len(sizes) > 1 else []:
        if label != 1 + sizes.argmax():
            fullest = int((labels == label).sum(axis=(1, 2)).argmax())
            found.append((fullest, int(sizes[label - 1])))
    return found


def rim_contrast(volume: Volume, shift: int) -> float:
    """Return how much brighter FLAIR is just inside the masks than just outside them.

    Each mask is compared with the slice whose number is higher by `shift`. Slices are weighted by
    their number of inside pixels; NaN if there are none.
    """
    numbers = volume.rows["slice_number"].tolist()
    positions = {number: position for position, number in enumerate(numbers)}
    kernel, differences, weights = np.ones((3, 3), np.uint8), [], []
    for number, mask in zip(numbers, volume.masks, strict=True):
        position = positions.get(number + shift)
        if position is None or not mask.any() or volume.images[position].shape[:2] != mask.shape:
            continue
        pixels = mask.astype(np.uint8)
        inside = mask & (cv2.erode(pixels, kernel, iterations=RIM) == 0)
        outside = (cv2.dilate(pixels, kernel, iterations=RIM) > 0) & ~mask
        if outside.any():
            flair = volume.images[position][..., 1]
            differences.append(flair[inside].mean() - flair[outside].mean())
            weights.append(inside.sum())
    return float(np.average(differences, weights=weights)) if weights else float("nan")


def slice_findings(volume: Volume) -> list[Finding]:
    """Return the findings about the order of a patient's slices: gaps and shifted masks.

    Masks are shifted if their rims fit slices before or after better than their own. In the 110 LGG
    patients, the rim contrast on a neighboring slice is at most 0.89 times that on the mask's own
    slice; with all masks shifted by one slice, it is at least 1.12 times as high.
    """
    files, numbers = volume.rows["mask"].tolist(), volume.rows["slice_number"].tolist()
    patient_id = volume.rows["patient_id"].iloc[0]
    found = [
        Finding("slice_gap", file, patient_id, number - before - 1, "")
        for file, before, number in zip(files[1:], numbers, numbers[1:], strict=False)
        if number - before > 1
    ]
    contrast = {shift: rim_contrast(volume, shift) for shift in SHIFTS}
    best = max(SHIFTS, key=lambda shift: np.nan_to_num(contrast[shift], nan=-np.inf))
    if contrast[best] > contrast[0]:
        first = next(file for file, mask in zip(files, volume.masks, strict=True) if mask.any())
        found.append(Finding("mask_shifted", first, patient_id, best, ""))
    return found


def mask_findings(volume: Volume) -> list[Finding]:
    """Return the findings about a patient's masks: no tumor, tumor on the border, specks."""
    files, patient_id = volume.rows["mask"].tolist(), volume.rows["patient_id"].iloc[0]
    if not any(mask.any() for mask in volume.masks):
        return [Finding("no_tumor", files[0], patient_id, len(volume.masks), "")]
    border = [
        Finding("mask_touches_border", file, patient_id, n_pixels, "")
        for file, mask in zip(files, volume.masks, strict=True)
        if (n_pixels := touches_border(mask))
    ]
    small = [
        Finding("speck", files[position], patient_id, size, "") for position, size in specks(volume)
    ]
    return border + small


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return FLAIR at THUMBNAIL² pixels, flattened, with mean 0 and norm 1; zeros if blank."""
    small = cv2.resize(image[..., 1], (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    centered = small.astype(np.float32).ravel()
    centered -= centered.mean()
    if centered.std() < BLANK:
        return np.zeros_like(centered)
    return np.asarray(centered / np.linalg.norm(centered))


def near_duplicates(slices: pd.DataFrame, thumbnails: NDArray[np.float32]) -> list[Finding]:
    """Return pairs of slices from two patients whose thumbnails correlate at ALIKE or above.

    `slices` has `image` and `patient_id` for each row of `thumbnails`. A copy is found despite
    changed brightness or contrast, noise, or a shift by one pixel; a mirrored copy or one shifted
    further is not. The correlation of two vectors of mean 0 and norm 1 is their dot product.
    """
    files, patient_ids = slices["image"].to_numpy(), slices["patient_id"].to_numpy()
    positions, exact = np.arange(len(slices)), thumbnails.astype(np.float64)
    found = []
    for patient_id in dict.fromkeys(patient_ids):  # one at a time, to save memory
        members = np.flatnonzero(patient_ids == patient_id)
        correlation = exact[members] @ exact.T
        later = (patient_ids != patient_id) & (positions > members[:, None])
        for row, other in np.argwhere((correlation >= ALIKE) & later):
            value = float(correlation[row, other])
            found.append(
                Finding("near_duplicate", files[members[row]], patient_id, value, files[other])
            )
    return found


def bone_share(volume: Volume, pixel: float | None) -> float:
    """Return `skull_share` of a patient; `pixel` is the pixel size in mm, None if unknown."""
    main = [image[..., MAIN] for image in volume.images]
    counts = sum(np.bincount(image.ravel(), minlength=LEVELS) for image in main)
    statistics = tissue_statistics(np.arange(LEVELS), np.asarray(counts))
    images = [normalized(image, statistics, "percentile") for image in main]
    size = pixel or USUAL_FIELD / max(max(image.shape) for image in main)
    return skull_share(images, size)


def outlier_findings(
    volumes: Sequence[pd.DataFrame],
    bone: Sequence[float],
    voxels: Mapping[str, tuple[float, float, float]],
) -> list[Finding]:
    """Return findings about outliers: skull-stripped among whole heads, or unusual voxel sizes.

    `volumes` has the manifest rows of each patient, `bone` the `bone_share` of each patient, and
    `voxels` the known voxel sizes in mm by patient.
    """
    firsts = [(rows["image"].iloc[0], rows["patient_id"].iloc[0]) for rows in volumes]
    stripped = [
        Finding("skull_stripped", file, patient_id, share, "")
        for (file, patient_id), share in zip(firsts, bone, strict=True)
        if share < LEAST_BONE
    ]
    is_mixed = FALSE_ALARMS < len(stripped) / len(firsts) < 1 - FALSE_ALARMS
    found = stripped if is_mixed else []
    if not voxels:
        return found
    usual = np.median(list(voxels.values()), axis=0)
    for file, patient_id in firsts:
        if patient_id in voxels:
            sizes = np.array(voxels[patient_id])
            differences = np.abs(sizes / usual - 1)
            if differences.max() > OTHER_SIZE:
                value = float(sizes[differences.argmax()])
                found.append(Finding("voxel_size", file, patient_id, value, ""))
    return found
