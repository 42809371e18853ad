"""The series of a case, read from whatever kind of files it has."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from application.model import ReleasedModel
from pipeline.outputs import file_sha256
from pipeline.refusals import Refusal
from scans.cases import Candidate, Case
from scans.dicom import DicomSeries, read_dicom
from scans.names import SliceName
from scans.nifti import read_nifti
from scans.sequences import NAMES
from scans.series import Series
from scans.tiff import SEQUENCES, read_image


class Patient(NamedTuple):
    """What is read of a case: its series by sequence, and what is known of its slices."""

    series: dict[str, Series]
    numbers: list[int] | None  # of the slices, where some may be missing
    measured: bool  # whether the files say how large a voxel is
    notes: tuple[str, ...] = ()  # what a person should know of how it was put together
    is_dicom: bool = False  # FLAIR, that is

    def inputs(self) -> dict[str, dict[str, str | int]]:
        """Return for each sequence where it was read from, and a digest of its files."""
        found: dict[str, dict[str, str | int]] = {}
        for sequence, each in self.series.items():
            digests = "".join(file_sha256(path) for path in each.files)
            place = each.files[0] if len(each.files) == 1 else each.files[0].parent
            found[sequence] = {
                "path": str(place),
                "n_files": len(each.files),
                "sha256": hashlib.sha256(digests.encode()).hexdigest(),
            }
        return found


def read_candidate(candidate: Candidate) -> Series:
    """Return the series of a candidate."""
    source = candidate.source
    return read_dicom(source) if isinstance(source, DicomSeries) else read_nifti(source)


def read_slices(files: Sequence[Path], field_of_view: float, spacing: float) -> Patient:
    """Return a patient of this project's data set from the TIFF files of the slices, in order.

    The files say nothing of sizes and sides: the longer side is taken for the field of view, and
    slices are taken to be axial, from inferior to superior, rows from anterior to posterior.
    """
    images = [read_image(path) for path in files]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise Refusal(f"{files[0].parent}: slices of several sizes, {sorted(shapes)}")
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
    """Return the patient of a case, and print which file is taken for which sequence and why."""
    takes = model.takes
    if case.slices:
        print(f"{case.name}: {len(case.slices)} slices in TIFF, each with all sequences")
        return read_slices(case.slices, takes["field_of_view_mm"], takes["slice_spacing_mm"])
    chosen = case.chosen(model.sequences)
    for sequence, candidate in chosen.items():
        print(f"{case.name}: {NAMES[sequence]}: {candidate.described}")
    for each in case.candidates:
        if each not in chosen.values():
            print(f"{case.name}: not used: {each.described}")
    series: dict[str, Series] = {}
    notes = list(case.notes)
    for sequence, candidate in chosen.items():
        if candidate.recognized.guessed:
            notes.append(f"{NAMES[sequence]} is guessed: {candidate.described}")
        try:
            series[sequence] = read_candidate(candidate)
        except Refusal as refusal:
            if sequence == "flair":
                raise
            notes.append(f"{NAMES[sequence]} is not used: {refusal}")
    is_dicom = isinstance(chosen["flair"].source, DicomSeries)
    return Patient(series, None, measured=True, notes=tuple(notes), is_dicom=is_dicom)
