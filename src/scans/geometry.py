"""geometry.csv: how large the voxels of each patient are, and where they lie in space.

Slices in TIFF do not say this; a patient without a row has scores in pixels alone.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.refusals import Refusal, refuse, remake


class Geometry(NamedTuple):
    """The volume that a patient's slices come from: that of the main sequence."""

    patient_id: str
    slice_spacing: float  # mm from one slice to the next
    pixel_height: float  # mm
    pixel_width: float  # mm
    slice_thickness: float | None  # mm, where the files say it
    shape: tuple[int, int, int]  # voxels along each axis of the file
    affine: NDArray[np.float64]  # (4, 4), from the file's voxels to mm, axes as in NIfTI

    @property
    def voxel(self) -> tuple[float, float, float]:
        """Return mm between slices, rows and columns."""
        return self.slice_spacing, self.pixel_height, self.pixel_width


def write_geometry(path: Path, rows: Iterable[Geometry]) -> None:
    """Write the table, a row for each patient; the affine as twelve numbers, row by row."""
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
    """Return what is known of patients' voxels, by `patient_id`; refuse another table.

    `slice_thickness`, `shape` and `affine` may be empty or missing.
    """
    found, problems = {}, []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise Refusal(f"{path}: cannot be read ({error}); {remake('acquire')}") from None
    lacking = [name for name in Geometry._fields[:4] if name not in (reader.fieldnames or ())]
    if lacking:
        raise Refusal(f"{path}: no column {', '.join(lacking)}; commas separate columns")
    for number, row in enumerate(rows, start=2):
        try:
            each = parsed(row)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path}: row {number}: {error}")
            continue
        if each.patient_id in found:
            problems.append(f"{path}: row {number}: {each.patient_id} for the second time")
        found[each.patient_id] = each
    if problems:
        refuse(problems, f"It needs {', '.join(Geometry._fields[:4])}: sizes in mm.")
    return found


def parsed(row: dict[str, str]) -> Geometry:
    """Return a row of the table; ValueError or KeyError where it is not sound."""
    sizes = [float(row[name]) for name in Geometry._fields[1:4]]
    if not all(0 < size < np.inf for size in sizes):
        raise ValueError(f"sizes are {sizes}, not mm above 0")
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
