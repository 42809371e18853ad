"""A series: one MRI sequence of a patient, as a volume in space, from any kind of file.

Positions are in mm, with axes as in NIfTI: x grows towards the patient's right, y towards the
front, z towards the head (RAS+).
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.orientations import io_orientation
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from pipeline.refusals import Refusal

# Slices are thick if the largest voxel size is at least FLAT times the next one, and THICK mm.
FLAT, THICK = 1.5, 2.0
SIZES = (0.1, 20.0)  # lowest and highest plausible voxel size in mm
SAME = 1e-3  # entries of two affines may differ by this on the same grid
LEAST_COVERED = 0.5  # share of the reference's grid that another series must cover
AXES = ("sagittal", "coronal", "axial")  # names of slices perpendicular to x, y and z


class Series(NamedTuple):
    """Values (I, J, K) as stored, and the affine from voxel indices to positions, (4, 4)."""

    values: NDArray[Any]
    affine: NDArray[np.float64]
    files: tuple[Path, ...]  # the files that it was read from
    notes: tuple[str, ...] = ()  # warnings about it
    header: Nifti1Header | None = None  # only if it was read from NIfTI

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Return the voxel spacing in mm along each axis."""
        first, second, third = (float(size) for size in voxel_sizes(self.affine))
        return first, second, third

    @property
    def voxel_volume(self) -> float:
        """Return the volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


class Axial(NamedTuple):
    """How to turn a volume of any orientation into axial slices and back.

    The slices are an array (D, H, W): slices from inferior to superior, rows from anterior to
    posterior, columns from the patient's right to left. `axes` has the volume's axis for each of
    these, and `flips` whether it runs in the opposite direction. For an oblique volume, these are
    the nearest axes.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, affine: NDArray[np.float64]) -> "Axial":
        """Return how to turn a volume with this affine."""
        nearest = {int(axis): (n, sign) for n, (axis, sign) in enumerate(io_orientation(affine))}
        directions = ((2, 1.0), (1, -1.0), (0, -1.0))  # superior, posterior, left
        first, second, third = (nearest[axis][0] for axis, _ in directions)
        flips = [bool(nearest[axis][1] != sign) for axis, sign in directions]
        return cls((first, second, third), (flips[0], flips[1], flips[2]))

    @property
    def directions(self) -> tuple[slice, ...]:
        """Return an index for each axis of the slices that reverses those that are flipped."""
        return tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)

    def turn(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return the axial slices of a volume (I, J, K), as a view (D, H, W)."""
        return volume.transpose(self.axes)[self.directions]

    def turn_back(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Return axial slices (D, H, W) in the orientation of the volume, (I, J, K)."""
        return slices[self.directions].transpose(np.argsort(self.axes))


def corner_shifts(
    first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the differences between the corners of a volume under two affines, (3, 8) in mm."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    shifts: NDArray[np.float64] = ((first - second) @ np.vstack([corners, np.ones(8)]))[:3]
    return shifts


def tilt(affine: NDArray[np.float64]) -> float:
    """Return the angle between the slices of a volume and the axial plane in degrees."""
    axis = affine[:3, Axial.of(affine).axes[0]]
    return float(np.degrees(np.arccos(min(1.0, abs(axis[2]) / np.linalg.norm(axis)))))


def check_plane(series: Series) -> None:
    """Raise an error if the slices are thick and not axial, or the voxel size is implausible."""
    sizes = np.array(series.voxel_size)
    thick = int(sizes.argmax())
    if sizes.min() < SIZES[0] or sizes[thick] > SIZES[1]:
        raise Refusal(
            f"{name_of(series)}: implausible voxel size "
            f"({' × '.join(f'{size:g}' for size in sizes)} mm); correct the units in the header"
        )
    is_flat = sizes[thick] >= max(THICK, FLAT * np.sort(sizes)[1])
    if not is_flat or Axial.of(series.affine).axes[0] == thick:
        return
    plane = AXES[int(io_orientation(series.affine)[thick, 0])]
    raise Refusal(
        f"{name_of(series)}: {plane} slices {sizes[thick]:.1f} mm apart. The model needs axial "
        "slices: use an axial scan, or a 3-D scan with small voxels."
    )


def name_of(series: Series) -> str:
    """Return a series' file, or the folder of its files."""
    first = series.files[0]
    return str(first if len(series.files) == 1 else first.parent)


def resampled(series: Series, reference: Series) -> tuple[NDArray[Any], float]:
    """Return a series resampled linearly to a reference's grid, and the share of it covered.

    Voxels that the series does not cover are 0; its border values extend by one voxel. A series
    that is on that grid already keeps its values. Raise an error if less than half is covered.
    """
    shape = reference.values.shape
    same = np.allclose(series.affine, reference.affine, rtol=0, atol=SAME)
    if same and series.values.shape == shape:
        return series.values, 1.0
    padded = np.pad(series.values.astype(np.float32), 1, mode="edge")
    shift = np.eye(4)
    shift[:3, 3] = -1
    image = Nifti1Image(padded, series.affine @ shift)
    found = resample_from_to(image, (shape, reference.affine), order=1, cval=np.nan)
    values = np.asarray(found.dataobj)
    outside = np.isnan(values)
    covered = 1 - float(outside.mean())
    if covered < LEAST_COVERED:
        raise Refusal(
            f"{name_of(series)} covers only {covered:.0%} of {name_of(reference)}; use scans "
            "of the same examination"
        )
    values[outside] = 0
    return values, covered
