"""Write the phantom as NIfTI files in the layouts that `datasets` reads.

The voxels equal those of the TIFF phantom, so every stage gives the same result for each layout.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from pipeline.parallel import in_parallel
from scans.names import institution
from scans.nifti import write_nifti
from scans.phantom import MISSING, clinical_table, draw_patient, patient_id
from scans.series import Series
from scans.tiff import SEQUENCES

Layout = Literal["brats", "bids", "nnunet"]  # `params.Layout` without slices
FIELD, SPACING = 230.0, 5.0  # mm: side length of a slice, distance between slices
BRATS = {"pre_contrast": "t1n", "flair": "t2f", "post_contrast": "t1c"}
BIDS = {"pre_contrast": "T1w", "flair": "FLAIR", "post_contrast": "ce-gadolinium_T1w"}
NNUNET = {"pre_contrast": "T1", "flair": "FLAIR", "post_contrast": "T1ce"}


class Places(NamedTuple):
    """The paths of a patient's files, relative to the data set's folder."""

    scans: dict[str, str]  # by sequence
    mask: str


def bids_name(name: str) -> tuple[str, str]:
    """Return `sub-…` and `ses-…`; BIDS allows only letters and digits in their labels."""
    person, _, date = name.rpartition("_")
    return f"sub-{person.replace('_', '')}", f"ses-{date}"


def places_of(layout: Layout, name: str) -> Places:
    """Return the paths of a patient's files in a layout."""
    if layout == "brats":
        stem = f"{name}/{name}-"
        scans = {key: f"{stem}{word}.nii.gz" for key, word in BRATS.items()}
        return Places(scans, f"{stem}seg.nii.gz")
    if layout == "nnunet":
        scans = {key: f"imagesTr/{name}_{n:04}.nii.gz" for n, key in enumerate(NNUNET)}
        return Places(scans, f"labelsTr/{name}.nii.gz")
    subject, session = bids_name(name)
    stem = f"{subject}/{session}/anat/{subject}_{session}_"
    scans = {key: f"{stem}{word}.nii.gz" for key, word in BIDS.items()}
    return Places(scans, f"derivatives/masks/{stem}label-lesion_mask.nii.gz")


def as_series(slices: NDArray[np.uint8]) -> Series:
    """Return axial slices (D, H, W) in NIfTI orientation: x to the right, y to the front, z up."""
    pixel = FIELD / slices.shape[1]
    affine = np.diag([pixel, pixel, SPACING, 1.0])
    return Series(np.ascontiguousarray(slices[:, ::-1, ::-1].transpose(2, 1, 0)), affine, ())


def write_patient(index: int, folder: Path, *, layout: Layout, seed: int, image_size: int) -> None:
    """Write a patient's scans and mask.

    A missing sequence has no file, except in nnU-Net's layout, which requires all channels. The
    mask has label 2 inside the lesion and label 1 at its rim.
    """
    volume, lesion = draw_patient(index, seed=seed, image_size=image_size)
    labels = lesion.astype(np.uint8) + binary_erosion(lesion)
    places = places_of(layout, patient_id(index))
    volumes = {places.mask: labels}
    for channel, sequence in enumerate(SEQUENCES):
        if layout == "nnunet" or sequence not in MISSING.get(index, ()):
            volumes[places.scans[sequence]] = volume[..., channel]
    for place, values in volumes.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        series = as_series(values)
        write_nifti(path, series.values, series)


def write_tables(folder: Path, *, layout: Layout, seed: int, patients: int) -> None:
    """Write the layout's tables and JSON files about the patients and the data set."""
    table = clinical_table(np.random.default_rng([seed, patients]), patients)
    names = [patient_id(index) for index in range(patients)]
    if layout == "bids":
        subjects = [bids_name(name)[0] for name in names]
        table = table.drop(columns="Patient").assign(site=[institution(name) for name in names])
        table.insert(0, "participant_id", subjects)
        table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
        facts: dict[str, Any] = {"Name": "A synthetic phantom", "BIDSVersion": "1.10.0"}
        write_json(folder / "dataset_description.json", facts)
        derived = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "write_phantom"}]}
        write_json(folder / "derivatives/masks/dataset_description.json", facts | derived)
        return
    table.to_csv(folder / "data.csv", index=False)
    if layout == "nnunet":
        description = {
            "channel_names": {str(n): name for n, name in enumerate(NNUNET.values())},
            "labels": {"background": 0, "rim": 1, "core": 2},
            "numTraining": patients,
            "file_ending": ".nii.gz",
        }
        write_json(folder / "dataset.json", description)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_phantom_volumes(
    folder: Path, *, layout: Layout, seed: int, patients: int, image_size: int
) -> None:
    """Write `patients` volumes, with slices of `image_size` x `image_size` pixels, in a layout.

    The same seed gives the same bytes. Converted to slices, the volumes equal those of
    `write_phantom`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write = partial(write_patient, folder=folder, layout=layout, seed=seed, image_size=image_size)
    in_parallel(write, range(patients), "phantom")
    write_tables(folder, layout=layout, seed=seed, patients=patients)
