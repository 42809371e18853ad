"""For tests of segment: synthetic heads as files of every kind, and a model with a fixed rule.

They need only requirements-segment.txt.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Image
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from application.model import ReleasedModel

ROOT = Path(__file__).resolve().parents[2]
DEPTH, HEIGHT, WIDTH = 12, 64, 56
VOXEL = (5.0, 3.6, 3.6)  # mm between slices, rows and columns: a field of view of 230 mm
SEQUENCES = ("pre_contrast", "flair", "post_contrast")


class Head(NamedTuple):
    """Axial slices (D, H, W) of each sequence, and the mask of the tumor."""

    sequences: dict[str, np.ndarray]
    tumor: np.ndarray


def make_head(seed: int = 0) -> Head:
    """Return a head with scalp, skull, brain and a tumor off every axis of symmetry."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:DEPTH, :HEIGHT, :WIDTH].astype(float)
    radius = np.hypot((y - 31) / 27, (x - 27) / 22) / (1 - 0.02 * (z - 4) ** 2 / 4)
    scalp, brain = (radius > 0.92) & (radius <= 1), radius <= 0.78
    tumor = np.hypot(np.hypot((y - 22) / 7, (x - 17) / 5), (z - 7) / 2.6) < 1
    found = {}
    for name, brain_level, tumor_level in (
        ("pre_contrast", 500, 350),
        ("flair", 400, 900),
        ("post_contrast", 520, 420),
    ):
        values = 30 * rng.random(z.shape) + 700 * scalp + brain_level * brain
        values[tumor] = tumor_level
        found[name] = values.round().astype(np.int16)
    return Head(found, tumor)


def axial_affine(voxel: tuple[float, ...] = VOXEL) -> np.ndarray:
    """Return the affine of axial slices stored as (W, H, D), columns to the patient's left."""
    affine = np.diag([-voxel[2], -voxel[1], voxel[0], 1.0])
    affine[:3, 3] = [100, 115, -30]
    return affine


def stored(slices: np.ndarray) -> np.ndarray:
    """Return axial slices (D, H, W) as a NIfTI file stores them, (W, H, D)."""
    return np.ascontiguousarray(slices.transpose(2, 1, 0))


def write_head(
    folder: Path, head: Head, names: dict[str, str], voxel: tuple[float, ...] = VOXEL
) -> None:
    """Write sequences as NIfTI; `names` has the file name of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for sequence, name in names.items():
        image = Nifti1Image(stored(head.sequences[sequence]), axial_affine(voxel))
        nibabel.save(image, folder / name)


# Names of files and descriptions of DICOM series, by the sequence that they should give.
NAMES_BY_SEQUENCE: dict[str | None, list[str]] = {
    "flair": [
        *("flair", "BraTS-GLI-00005-001-t2f", "BraTS19_2013_0_1_flair", "sub-01_ses-1_FLAIR"),
        *("sub-01_acq-t1_FLAIR", "sub-01_acq-label_FLAIR"),
        *(
            "AX T2 FLAIR",
            "t2_flair_tra",
            "3D_T2FLAIR",
            "t2_tirm_tra_dark-fluid_4mm",
            "FLAIR post Gd",
        ),
    ],
    "pre_contrast": [
        *("t1", "BraTS-GLI-00005-001-t1n", "BraTS19_2013_0_1_t1", "sub-01_T1w", "T1 pre contrast"),
        *("AX T1 W/O CONTRAST", "T1 without contrast", "AX T1 NO GAD", "T1 non-contrast", "C_T1"),
        *("sub-01_ses-post_T1w", "P1_post_op_T1", "Ax T1 FLAIR", "sub-1_space-FLAIR_T1w"),
        *("sub-01_acq-FLAIR_T1w", "sub-01_acq-mprage_T1w", "sub-01_ce-none_T1w"),
        *("AX T1 SE", "sag-mprage", "T1 non-contrast native", "pre", "t1_spgr"),
    ],
    "post_contrast": [
        *("t1ce", "BraTS-GLI-00005-001-t1c", "sub-01_ce-gadolinium_T1w", "T1_Gd", "AX T1 +C"),
        *("MPRAGE post", "t1c+", "T1KM", "post", "t1_tse_KM", "sag_T1_SPGR_postcontrast"),
        *("sub-01_ses-pre_ce-gadolinium_T1w", "T1 axial GADO", "AX T1 POSTGAD"),
        *("sub-01_acq-post_T1w", "sub-01_acq-pre_ce-gadolinium_T1w"),
    ],
    "t2": ["t2", "BraTS-GLI-00005-001-t2w", "sub-01_T2w", "AX T2 FSE", "sub-01_acq-PD_T2w"],
    None: [
        "BraTS19_2013_0_1_seg",
        "flair_seg",
        "dwi_b1000",
        "sub-01_part-phase_T1w",
        "scan",
    ],
}

ALL = {"flair": "flair.nii.gz", "pre_contrast": "t1.nii.gz", "post_contrast": "t1ce.nii.gz"}


def write_dicom(
    folder: Path,
    slices: np.ndarray,
    description: str,
    *,
    number: int = 1,
    exam: str = "exam",
    patient_id: str = "P1",
    columns: tuple[float, ...] = (1, 0, 0),
    rows: tuple[float, ...] = (0, 1, 0),
    voxel: tuple[float, ...] = VOXEL,
    change: Callable[[Dataset, int], object] = lambda dataset, at: None,
) -> None:
    """Write slices (D, H, W) as a DICOM series; `columns` and `rows` are the direction cosines.

    `change` may alter the data set of each slice before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(columns, rows)
    series, study, frame = (
        generate_uid(entropy_srcs=[kind, exam, patient_id, description if kind == "series" else ""])
        for kind in ("series", "study", "frame")
    )
    for at, pixels in enumerate(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        found = Dataset()
        found.file_meta = meta
        for name, value in {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            **{"PatientID": patient_id, "PatientName": "A^B", "PatientBirthDate": ""},
            **{"PatientSex": "", "StudyInstanceUID": study, "StudyDate": "20200131"},
            **{
                "StudyTime": "",
                "StudyID": "1",
                "AccessionNumber": "",
                "ReferringPhysicianName": "",
            },
            **{"SeriesInstanceUID": series, "SeriesNumber": number, "Modality": "MR"},
            **{"SeriesDescription": description, "FrameOfReferenceUID": frame},
            **{"PositionReferenceIndicator": "", "InstanceNumber": at + 1, "Manufacturer": "none"},
            **{"ImageType": ["ORIGINAL", "PRIMARY", "M"], "SliceThickness": voxel[0]},
            "ImagePositionPatient": [*(np.array([-100, -115, -30]) + at * voxel[0] * normal)],
            "ImageOrientationPatient": [*columns, *rows],
            **{"PixelSpacing": [voxel[1], voxel[2]], "Rows": pixels.shape[0]},
            **{"Columns": pixels.shape[1], "SamplesPerPixel": 1, "BitsAllocated": 16},
            **{"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 16, "HighBit": 15},
            **{"PixelRepresentation": 0, "PixelData": pixels.astype("<u2").tobytes()},
        }.items():
            setattr(found, name, value)
        change(found, at)
        # File names are not in the order of the slices, as in public archives.
        found.save_as(folder / f"IM{at * 7 % 13:03}_{at:03}", enforce_file_format=True)


def join_frames(folder: Path) -> None:
    """Replace the files of a DICOM series by one enhanced MR image with a frame for each."""
    files = sorted(folder.iterdir())
    slices = [dcmread(path) for path in files]
    found = slices[0].copy()
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = EnhancedMRImageStorage
    found.NumberOfFrames = len(slices)
    found.PixelData = b"".join(dataset.PixelData for dataset in slices)
    frames = []
    for dataset in slices:
        parts = {
            "PlanePositionSequence": ("ImagePositionPatient",),
            "PlaneOrientationSequence": ("ImageOrientationPatient",),
            "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
        }
        frame = Dataset()
        for name, tags in parts.items():
            part = Dataset()
            for tag in tags:
                setattr(part, tag, dataset[tag].value)
            setattr(frame, name, Sequence([part]))
        frames.append(frame)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del found[tag]
    found.PerFrameFunctionalGroupsSequence = Sequence(frames)
    found.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    for path in files:
        path.unlink()
    found.save_as(folder / "frames.dcm", enforce_file_format=True)


DESCRIPTIONS = {"pre_contrast": "AX T1 SE", "flair": "AX T2 FLAIR", "post_contrast": "AX T1 +C"}


def write_exam(folder: Path, head: Head, **options: Any) -> None:
    """Write the sequences of a head as DICOM series, each in its own folder."""
    for number, (sequence, description) in enumerate(DESCRIPTIONS.items(), start=1):
        slices = head.sequences[sequence]
        write_dicom(folder / f"s{number}", slices, description, number=number, **options)


def write_slices(folder: Path, head: Head, name: str) -> None:
    """Write a head in the format of this project's data set: TIFF slices and masks."""
    folder.mkdir(parents=True, exist_ok=True)
    channels = [np.clip(head.sequences[name] // 4, 0, 255).astype(np.uint8) for name in SEQUENCES]
    for number, image in enumerate(np.stack(channels, axis=-1), start=1):
        Image.fromarray(image).save(folder / f"{name}_{number}.tif")
        blank = Image.new("L", (WIDTH, HEIGHT))
        blank.save(folder / f"{name}_{number}_mask.tif")


class BrightTumor(ReleasedModel):
    """A model that finds voxels bright in FLAIR and dark in pre-contrast T1.

    It omits the lowest slice of the tumor. So its result depends on the order of slices, rows,
    columns and sequences.
    """

    def __init__(self, path: Path | None = None, **changes: Any) -> None:
        self.sha256 = "0" * 64
        self.input = {
            **{"name": "slices", "image_size": 64, "field_of_view_mm": 230.0},
            **{"slice_spacing_mm": 5.0, "normalize": "percentile", "sequences": SEQUENCES},
        } | changes
        self.description = {
            **{"name": "bright", "version": "0.0.0", "warning": "For tests.", "threshold": 0.5},
            **{"component_share": 0.1, "input": self.input},
            "test": {
                "by_missing_sequence": [
                    {"missing": "pre-contrast", "n_patients": 3, "dice_patient_mean": 0.7}
                ]
            },
        }

    def probabilities(self, slices: np.ndarray, on_progress: Callable[[int], object]) -> np.ndarray:
        bright = (slices[..., 1] > 145) & (slices[..., 0] < 120)
        below = np.concatenate([np.zeros_like(bright[:1]), bright[:-1]])
        on_progress(len(slices))
        return np.where(bright & below.any(axis=(1, 2), keepdims=True), 0.9, 0.1).astype(np.float32)


def read_mask(folder: Path) -> np.ndarray:
    """Return a result's mask as axial slices (D, H, W), whatever its orientation."""
    image = nibabel.as_closest_canonical(nibabel.load(folder / "mask.nii.gz"))
    values: np.ndarray = np.asarray(image.dataobj)[::-1, ::-1]
    return values.transpose(2, 1, 0).astype(bool)
