"""Write a mask as DICOM SEG, which viewers such as 3D Slicer and OHIF overlay on the series."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from scans.dicom import TO_RAS
from scans.series import Series

# Attributes that DICOM requires, possibly empty, and that anonymizers remove.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


def complete(dataset: Dataset) -> None:
    """Add attributes that highdicom needs to a single-frame or multi-frame file without them.

    The segmentation takes its sizes from the volume, not from these attributes.
    """
    for tag in (tag for tag in MAY_BE_EMPTY if tag not in dataset):
        setattr(dataset, tag, "")
    if not dataset.get("SliceThickness"):
        dataset.SliceThickness = 1
    if "PerFrameFunctionalGroupsSequence" in dataset:
        shared, frame = (
            dataset[f"{kind}FunctionalGroupsSequence"][0] for kind in ("Shared", "PerFrame")
        )
        for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if name not in shared:
                setattr(shared, name, frame[name].value)


def write_segmentation(
    path: Path, mask: NDArray[np.uint8], flair: Series, model: dict[str, Any]
) -> None:
    """Write a mask, (D, H, W) of 0 and 1, on the grid of a series that was read from DICOM."""
    datasets = [dcmread(file) for file in flair.files]
    for dataset in datasets:
        complete(dataset)
    volume = highdicom.Volume(
        mask,
        TO_RAS @ flair.affine,  # TO_RAS is its own inverse
        coordinate_system="PATIENT",
        frame_of_reference_uid=datasets[0].FrameOfReferenceUID,
    )
    algorithm = AlgorithmIdentificationSequence(
        name=model["name"], version=model["version"], family=codes.DCM.ArtificialIntelligence
    )
    description = SegmentDescription(
        segment_number=1,
        segment_label="Glioma",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
    segmentation = Segmentation(
        source_images=datasets,
        pixel_array=volume,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=highdicom.UID(),
        series_number=1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="unknown",
        manufacturer_model_name=model["name"],
        software_versions=model["version"],
        device_serial_number="0",
        content_label="TUMOR",
        omit_empty_frames=bool(mask.any()),
    )
    segmentation.save_as(path)
