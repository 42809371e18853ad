"""Write the result of a patient: masks, a summary, and pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from application.model import ReleasedModel
from application.page import write_page
from application.reading import Patient
from application.segmentation import Segmentation
from pipeline.outputs import discard, json_text, replacing, rounded
from pipeline.refusals import Refusal
from scans.nifti import write_nifti
from scans.probability_maps import PROBABILITIES
from scans.sequences import MAIN
from scans.series import name_of
from scans.volume import components

SUMMARY = "result.json"
WRITTEN = (
    *("mask.nii.gz", "probability.nii.gz", "mask.dcm", "masks", "preview.png", "index.html"),
    SUMMARY,
)
N_PREVIEWED = 9  # slices in the preview, in three rows
PREVIEW = 256  # pixels along each side of a slice in the preview
OUTLINE = (255, 200, 0)  # RGB color of the outline


def measure_tumor(segmentation: Segmentation, patient: Patient) -> dict[str, Any]:
    """Return volume, components and extent of a mask, in mL and mm; None if voxel size is unknown.

    `slices` are the numbers of the slices with tumor: those in the names of the data set's files,
    or else counted from 1, from the lowest slice.
    """
    numbers = patient.numbers or list(range(1, len(segmentation.mask) + 1))
    _, sizes = components(segmentation.mask, numbers)
    milliliters = segmentation.flair.voxel_volume / 1000
    voxels = np.argwhere(segmentation.mask)
    extent = np.ptp(voxels, axis=0) + 1 if len(voxels) else np.zeros(3, dtype=np.int64)
    order = ("inferior_superior", "anterior_posterior", "right_left")
    measured = patient.measured
    return {
        "n_voxels": int(segmentation.mask.sum()),
        "volume_ml": float(segmentation.mask.sum() * milliliters) if measured else None,
        "components": [
            {"n_voxels": int(n), "volume_ml": float(n * milliliters) if measured else None}
            for n in sorted(sizes.tolist(), reverse=True)
        ],
        "extent_mm": {
            name: float(n * size) if measured else None
            for name, n, size in zip(order, extent, segmentation.voxel_size, strict=True)
        },
        "slices": sorted({numbers[int(index)] for index in voxels[:, 0]}),
    }


def preview_positions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions of the slices to preview, spread over the tumor, or all if it is empty.

    A small tumor's range is extended, so that no slice is shown twice.
    """
    tumor = np.flatnonzero(mask.any(axis=(1, 2)))
    first, last = (int(tumor[0]), int(tumor[-1])) if len(tumor) else (0, len(mask) - 1)
    n_extra = max(0, N_PREVIEWED - (last - first + 1))
    first = max(0, min(first - n_extra // 2, len(mask) - N_PREVIEWED))
    last = min(len(mask) - 1, max(last, first + N_PREVIEWED - 1))
    return np.unique(np.linspace(first, last, N_PREVIEWED).round().astype(np.int64))


def preview(segmentation: Segmentation) -> Image.Image:
    """Return a picture of nine FLAIR slices with the outline of the tumor."""
    _, height, width = segmentation.voxel_size
    shape = (segmentation.mask.shape[1] * height, segmentation.mask.shape[2] * width)
    scale = PREVIEW / max(shape)
    size = (max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale)))
    sheet = Image.new("RGB", (3 * PREVIEW, 3 * PREVIEW))
    for place, index in enumerate(preview_positions(segmentation.mask)):
        flair = Image.fromarray(segmentation.images[index, ..., MAIN])
        pixels = np.array(flair.resize(size, Image.Resampling.BILINEAR).convert("RGB"))
        tumor = Image.fromarray(segmentation.mask[index]).resize(size, Image.Resampling.NEAREST)
        inside = np.pad(np.array(tumor), 1)
        core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        pixels[inside[1:-1, 1:-1] & ~core] = OUTLINE
        corner = (place % 3 * PREVIEW, place // 3 * PREVIEW)
        left, top = (PREVIEW - size[0]) // 2, (PREVIEW - size[1]) // 2
        sheet.paste(Image.fromarray(pixels), (corner[0] + left, corner[1] + top))
    return sheet


def result_identity(patient: Patient, model: ReleasedModel, threshold: float) -> dict[str, Any]:
    """Return the part of result.json that identifies a result: inputs, model and threshold."""
    name, version = model.description["name"], model.description["version"]
    return {
        "inputs": patient.inputs(),
        "model": {"name": name, "version": version, "sha256": model.sha256},
        "threshold": threshold,
    }


def summarize(
    name: str, patient: Patient, segmentation: Segmentation, warning: str, identity: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of result.json, except the run time."""
    return {
        "name": name,
        "warning": warning,
        **measure_tumor(segmentation, patient),
        "voxel_mm": list(segmentation.voxel_size) if patient.measured else None,
        "warnings": [*patient.notes, *segmentation.warnings],
        "missing": list(segmentation.missing),
        **identity,
    }


def existing_summary(
    folder: Path, identity: dict[str, Any], *, probability: bool
) -> dict[str, Any] | None:
    """Return the summary in a folder if inputs, model and threshold are the same.

    None if there is no result, or if the result of these inputs has to be computed again. Raise an
    error if the folder contains anything else.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names and not folder.is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        digests = [entry["sha256"] for entry in summary["inputs"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Refusal(
            f"{folder}: is not empty and contains no result; choose another --out"
        ) from None
    if foreign := sorted(names - set(WRITTEN)):
        raise Refusal(
            f"{folder}: contains files that are not part of a result ({', '.join(foreign[:5])}); "
            "move them, or choose another --out"
        )
    if digests != [entry["sha256"] for entry in identity["inputs"].values()]:
        raise Refusal(f"{folder}: contains the result of a different scan; choose another --out")
    needed = {"mask.nii.gz", "index.html"} | ({"probability.nii.gz"} if probability else set())
    is_complete = needed <= names and rounded(identity).items() <= summary.items()
    return summary if is_complete else None


def write_results(
    folder: Path,
    patient: Patient,
    segmentation: Segmentation,
    summary: dict[str, Any],
    *,
    probability: bool,
) -> None:
    """Write all files of a result into a folder; they appear together at the end, or not at all."""
    names = ["mask.nii.gz", "preview.png", "index.html"]
    names += ["probability.nii.gz"] if probability else []
    names += ["mask.dcm"] if patient.is_dicom else []
    names += ["masks"] if patient.numbers is not None else []
    is_new = not folder.exists()
    try:
        with replacing(*(folder / name for name in [*names, SUMMARY])) as partials:
            files = dict(zip([*names, SUMMARY], partials, strict=True))
            write_files(files, patient, segmentation, summary)
    except BaseException:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    for name in set(WRITTEN) - {*names, SUMMARY}:  # left by an earlier run with other options
        discard(folder / name)


def write_files(
    files: dict[str, Path], patient: Patient, segmentation: Segmentation, summary: dict[str, Any]
) -> None:
    """Write each file of a result to its path."""
    mask = segmentation.axial.turn_back(segmentation.mask).astype(np.uint8)
    write_nifti(files["mask.nii.gz"], mask, segmentation.flair)
    if "probability.nii.gz" in files:
        values = PROBABILITIES.astype(np.float32)[segmentation.axial.turn_back(segmentation.levels)]
        write_nifti(files["probability.nii.gz"], values, segmentation.flair)
    if patient.is_dicom:
        from application.dicom_seg import write_segmentation  # here: highdicom is slow to load

        try:
            write_segmentation(files["mask.dcm"], mask, segmentation.flair, summary["model"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # from highdicom
            raise Refusal(
                f"{name_of(segmentation.flair)}: cannot write a DICOM SEG for this series "
                f"({error}); convert it to NIfTI with `dcm2niix` and segment that"
            ) from error
    if patient.numbers is not None:
        write_tiffs(files["masks"], segmentation)
    preview(segmentation).save(files["preview.png"])
    write_page(files["index.html"], segmentation, summary)
    files[SUMMARY].write_text(json_text(summary), encoding="utf-8")


def write_tiffs(folder: Path, segmentation: Segmentation) -> None:
    """Write a mask for each slice, 0 and 255, named as in this project's data set."""
    folder.mkdir()
    for path, mask in zip(segmentation.flair.files, segmentation.mask, strict=True):
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        image.save(folder / f"{path.stem}_mask.tif")
