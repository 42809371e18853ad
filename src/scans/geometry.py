"""Read and write geometry.csv: the voxel size of each patient and the volume's position in space.

TIFF slices do not contain this. For a patient without a row, scores are only in pixels.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.refusals import Refusal, rebuild_hint, refuse


class Geometry(NamedTuple):
    """The geometry of the volume of the main sequence, from which a patient's slices are cut."""

    patient_id: str
    slice_spacing: float  # mm from one slice to the next
    pixel_height: float  # mm
    pixel_width: float  # mm
    slice_thickness: float | None  # mm; None if unknown
    shape: tuple[int, int, int]  # voxels along each axis of the file
    affine: NDArray[np.float64]  # (4, 4), from voxel indices to mm, as in NIfTI

    @property
    def voxel(self) -> tuple[float, float, float]:
        """Return mm between slices, rows and columns."""
        return self.slice_spacing, self.pixel_height, self.pixel_width


def write_geometry(path: Path, rows: Iterable[Geometry]) -> None:
    """Write one row per patient, with the affine's upper three rows as twelve numbers."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Geometry._fields)
        for row in rows:
            sizes = [f"{size:.6g}" for size in row.voxel]
            thickness = "" if row.slice_thickness is None else f"{row.slice_thickness:.6g}"
            shape = " ".join(str(n) for n in row.shape)
            affine = " ".join(f"{value:.8g}" for value in row.affine[:3].ravel())
            writer.writerow([row.patient_id, *sizes, thickness, shape, affine])


def read_geometry(path: Path) -> dict[str, Geometry]:
    """Return the rows of the table by `patient_id`; raise an error if it is not valid.

    The columns `slice_thickness`, `shape` and `affine` may be empty or missing.
    """
    found, problems = {}, []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise Refusal(f"{path}: cannot be read ({error}); {rebuild_hint('acquire')}") from None
    missing = [name for name in Geometry._fields[:4] if name not in (reader.fieldnames or ())]
    if missing:
        raise Refusal(
            f"{path}: missing columns: {', '.join(missing)}. Add them to the comma-separated "
            "header row."
        )
    for number, row in enumerate(rows, start=2):
        try:
            geometry = parse_row(row)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path}: row {number}: {error}")
            continue
        if geometry.patient_id in found:
            problems.append(f"{path}: row {number}: second row for {geometry.patient_id}")
        found[geometry.patient_id] = geometry
    if problems:
        refuse(problems, f"Each row needs {', '.join(Geometry._fields[:4])}, with sizes in mm.")
    return found


def parse_row(row: dict[str, str]) -> Geometry:
    """Return the geometry in a row; raise KeyError, TypeError or ValueError if it is not valid."""
    sizes = [float(row[name]) for name in Geometry._fields[1:4]]
    if not all(0 < size < np.inf for size in sizes):
        raise ValueError(f"sizes must be above 0 mm, not {sizes}")
    numbers = [float(value) for value in (row.get("affine") or "").split()]
    affine = np.full((4, 4), np.nan)
    if numbers:
        affine = np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    first, second, third = map(int, (row.get("shape") or "0 0 0").split())
    thickness = row.get("slice_thickness")
    return Geometry(
        row["patient_id"],
        *(sizes[0], sizes[1], sizes[2]),
        float(thickness) if thickness else None,
        (first, second, third),
        affine,
    )
