"""Read and write series as NIfTI files."""

import warnings
from pathlib import Path, PurePath
from typing import Any

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from numpy.typing import NDArray

from pipeline.refusals import Refusal
from scans.series import Series, corner_shifts

ENDINGS = (".nii", ".nii.gz")
DIFFERENT = 1.0  # mm; a corner's position may differ by this between qform and sform


def is_nifti(path: PurePath) -> bool:
    """Return whether a file has a NIfTI suffix."""
    return path.name.lower().endswith(ENDINGS)


def stem(path: Path) -> str:
    """Return a file's name without its suffix, where `.nii.gz` is one suffix."""
    name = path.name
    return next((name[: -len(e)] for e in ENDINGS[::-1] if name.lower().endswith(e)), path.stem)


def open_nifti(path: Path) -> Nifti1Image:
    """Return a NIfTI image without reading its values yet."""
    try:
        image = nibabel.load(path)
    except FileNotFoundError:
        raise Refusal(f"{path}: no such file") from None
    except Exception as error:  # nibabel, gzip and zlib raise many kinds
        reason = " ".join(str(error).split())
        raise Refusal(f"{path}: not a readable NIfTI image ({reason})") from None
    if not isinstance(image, Nifti1Image):  # NIfTI-2 derives from it
        raise Refusal(f"{path}: {type(image).__name__}, not NIfTI")
    return image


def checked_affine(image: Nifti1Image, path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """Return the affine and warnings about it; raise an error if it is not invertible."""
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise Refusal(
            f"{path}: the affine in its header is invalid or places all voxels in one plane: "
            f"{affine.tolist()}; correct the header or convert the scan again"
        )
    notes = []
    (qform, q_code), (sform, s_code) = image.get_qform(coded=True), image.get_sform(coded=True)
    if not q_code and not s_code:
        notes.append(
            f"{path.name}: its header does not give the orientation (qform and sform are 0); x is "
            "assumed to run from right to left, as in nibabel"
        )
    if q_code and s_code:
        apart = np.abs(corner_shifts(qform, sform, image.shape)).max()
        if apart > DIFFERENT:
            notes.append(
                f"{path.name}: qform and sform differ by up to {apart:.0f} mm; the sform is used"
            )
    return affine, notes


def read_nifti(path: Path) -> Series:
    """Return the series in a file; raise an error unless it is one volume of real numbers."""
    image = open_nifti(path)
    shape = tuple(n for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        several = ", as in a dynamic or diffusion scan" if len(shape) > 3 else ""
        raise Refusal(
            f"{path}: expected one 3-D volume, found shape {image.shape}{several}; use a file with "
            "one 3-D volume"
        )
    if image.get_data_dtype().names or np.issubdtype(image.get_data_dtype(), np.complexfloating):
        raise Refusal(
            f"{path}: the values are {image.get_data_dtype()}, not one real number per voxel; "
            "convert it to one real value per voxel"
        )
    affine, notes = checked_affine(image, path)
    try:
        with warnings.catch_warnings(action="ignore"):
            values: NDArray[Any] = np.asanyarray(image.dataobj).reshape(shape)
    except Exception as error:  # truncated or damaged: nibabel, gzip and zlib raise many kinds
        reason = " ".join(str(error).split())
        raise Refusal(f"{path}: damaged, its values cannot be read ({reason})") from None
    if not np.isfinite(values).all():
        notes.append(f"{path.name}: NaN and infinite values are replaced by 0")
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return Series(values, affine, (path,), tuple(notes), Nifti1Header.from_header(image.header))


def write_nifti(path: Path, values: NDArray[Any], series: Series) -> None:
    """Write a volume (I, J, K) on the grid of a series; the same values give the same bytes.

    If the series was read from NIfTI, the new file keeps the coordinate space of its header.
    """
    header = series.header.copy() if series.header is not None else Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    image = Nifti1Image(values, series.affine, header)
    image.header.set_xyzt_units("mm")
    image.header["cal_min"] = image.header["cal_max"] = 0
    image.header["descrip"] = image.header["aux_file"] = b""
    if series.header is None:
        image.set_sform(series.affine, code="scanner")
        image.set_qform(series.affine, code="scanner")
    nibabel.save(image, path)
