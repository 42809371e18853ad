"""Read the series of a case from NIfTI, DICOM or TIFF."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from application.model import ReleasedModel
from pipeline.outputs import file_sha256
from pipeline.refusals import Refusal, quantity
from scans.cases import Candidate, Case
from scans.dicom import DicomSeries, read_dicom
from scans.names import SliceName
from scans.nifti import read_nifti
from scans.sequences import NAMES
from scans.series import Series
from scans.tiff import SEQUENCES, read_image


class Patient(NamedTuple):
    """The series of a case by sequence, and facts about its slices."""

    series: dict[str, Series]
    numbers: list[int] | None  # slice numbers, if slices may be missing
    measured: bool  # whether the files contain the voxel size
    notes: tuple[str, ...] = ()  # warnings about how its files were chosen
    is_dicom: bool = False  # whether FLAIR is DICOM

    def inputs(self) -> dict[str, dict[str, str | int]]:
        """Return for each sequence its path, and a digest of its files."""
        found: dict[str, dict[str, str | int]] = {}
        for sequence, series in self.series.items():
            digests = "".join(file_sha256(path) for path in series.files)
            path = series.files[0] if len(series.files) == 1 else series.files[0].parent
            found[sequence] = {
                "path": str(path),
                "n_files": len(series.files),
                "sha256": hashlib.sha256(digests.encode()).hexdigest(),
            }
        return found


def read_candidate(candidate: Candidate) -> Series:
    """Return the series of a candidate."""
    source = candidate.source
    return read_dicom(source) if isinstance(source, DicomSeries) else read_nifti(source)


def read_slices(files: Sequence[Path], field_of_view: float, spacing: float) -> Patient:
    """Return a patient of this project's data set from the TIFF files of the slices, in order.

    The files contain neither voxel size nor orientation. The longer side is assumed to be the field
    of view, and slices to be axial, from inferior to superior, rows from anterior to posterior.
    """
    images = [read_image(path) for path in files]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise Refusal(
            f"{files[0].parent}: slices of different sizes, {sorted(shapes)}; all slices of a "
            "patient need the same size"
        )
    volume = np.stack(images).transpose(2, 1, 0, 3)  # (W, H, D, sequences)
    pixel = field_of_view / max(volume.shape[:2])
    affine = np.diag([-pixel, -pixel, spacing, 1.0])
    series = {
        name: Series(volume[..., channel], affine, tuple(files))
        for channel, name in enumerate(SEQUENCES)
    }
    names = [SliceName.parse(path.name) for path in files]
    return Patient(series, [name.number for name in names if name], measured=False)


def read_case(case: Case, model: ReleasedModel) -> Patient:
    """Return the patient of a case, and print which file is used for which sequence and why."""
    if case.slices:
        print(f"{case.name}: {quantity(len(case.slices), 'TIFF slice')}, each with all sequences")
        field_of_view, spacing = model.input["field_of_view_mm"], model.input["slice_spacing_mm"]
        return read_slices(case.slices, field_of_view, spacing)
    chosen = case.choose(model.sequences)
    for sequence, candidate in chosen.items():
        print(f"{case.name}: {NAMES[sequence]}: {candidate.description}")
    for candidate in case.candidates:
        if candidate not in chosen.values():
            print(f"{case.name}: not used: {candidate.description}")
    series: dict[str, Series] = {}
    notes = list(case.notes)
    for sequence, candidate in chosen.items():
        if candidate.recognized.guessed:
            notes.append(
                f"{NAMES[sequence]} was guessed from echo, repetition and inversion time: "
                f"{candidate.description}"
            )
        try:
            series[sequence] = read_candidate(candidate)
        except Refusal as refusal:
            if sequence == "flair":
                raise
            notes.append(f"{NAMES[sequence]} is not used: {refusal}")
    is_dicom = isinstance(chosen["flair"].source, DicomSeries)
    return Patient(series, None, measured=True, notes=tuple(notes), is_dicom=is_dicom)
