"""Damaged and unsuitable scans give an error message with the reason, and no result."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.nifti1 import Nifti1Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from heads import Head, axial_affine, stored, write_dicom, write_exam, write_slices

Run = Callable[..., Any]


def save(folder: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write values as FLAIR into an empty folder."""
    folder.mkdir()
    affine = axial_affine() if affine is None else affine
    nibabel.save(Nifti1Image(values, affine), folder / "flair.nii.gz")
    return folder


def flair(head: Head) -> np.ndarray:
    return stored(head.sequences["flair"])


def empty_folder(folder: Path, head: Head) -> Path:
    folder.mkdir()
    return folder


def missing(folder: Path, head: Head) -> Path:
    return folder


def file_of(name: str, content: bytes) -> Callable[[Path, Head], Path]:
    """Return a function that writes a folder with one file."""

    def write(folder: Path, head: Head) -> Path:
        folder.mkdir()
        (folder / name).write_bytes(content)
        return folder

    return write


def truncated(folder: Path, head: Head) -> Path:
    path = save(folder, flair(head)) / "flair.nii.gz"
    path.write_bytes(path.read_bytes()[:3000])
    return folder


def damaged_in_the_middle(folder: Path, head: Head) -> Path:
    path = save(folder, flair(head)) / "flair.nii.gz"
    content = bytearray(path.read_bytes())
    content[1000:1200] = bytes(200)
    path.write_bytes(content)
    return folder


def four_dimensions(folder: Path, head: Head) -> Path:
    return save(folder, np.stack([flair(head)] * 3, axis=-1))


def two_dimensions(folder: Path, head: Head) -> Path:
    return save(folder, flair(head)[..., 0])


def colors(folder: Path, head: Head) -> Path:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return save(folder, np.zeros((8, 8, 8), kind))


def complex_numbers(folder: Path, head: Head) -> Path:
    return save(folder, flair(head).astype(np.complex64))


def flat_affine(folder: Path, head: Head) -> Path:
    folder.mkdir()
    image = Nifti1Image(flair(head), None)
    image.header.set_sform(np.diag([0.0, 0.0, 0.0, 1.0]), code=1)
    image.to_filename(folder / "flair.nii.gz")
    return folder


def thick_sagittal(folder: Path, head: Head) -> Path:
    return save(folder, flair(head), np.diag([5.0, 1.0, 1.0, 1.0]))


def mask_for_flair(folder: Path, head: Head) -> Path:
    return save(folder, stored(head.tumor).astype(np.uint8))


def all_alike(folder: Path, head: Head) -> Path:
    return save(folder, np.full((16, 16, 16), 7, np.int16))


def no_flair(folder: Path, head: Head) -> Path:
    (save(folder, flair(head)) / "flair.nii.gz").rename(folder / "t2.nii.gz")
    return folder


def dicom_with(change: Callable[[Dataset, int], object]) -> Callable[[Path, Head], Path]:
    """Return a function that writes FLAIR as a DICOM series with changed slices."""

    def write(folder: Path, head: Head) -> Path:
        write_dicom(folder, head.sequences["flair"], "AX FLAIR", change=change)
        return folder

    return write


def move(dataset: Dataset, at: int) -> None:
    if at > 6:
        dataset.ImagePositionPatient[2] += 5


def repeat(dataset: Dataset, at: int) -> None:
    dataset.ImagePositionPatient[2] = float(dataset.ImagePositionPatient[2]) - 5 * (at // 2)


def turn(dataset: Dataset, at: int) -> None:
    if at > 5:
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def compress(dataset: Dataset, at: int) -> None:
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51 no codec reads this"])
    dataset["PixelData"].VR = "OB"


def forget_position(dataset: Dataset, at: int) -> None:
    del dataset.ImagePositionPatient


def set_modality(dataset: Dataset, at: int) -> None:
    dataset.Modality = "CT"


def drop_pixels(dataset: Dataset, at: int) -> None:
    dataset.PixelData = dataset.PixelData[:100]


def resize_one(dataset: Dataset, at: int) -> None:
    if at == 3:
        dataset.Rows, dataset.PixelData = 32, dataset.PixelData[: len(dataset.PixelData) // 2]


def mix_studies(dataset: Dataset, at: int) -> None:
    if at == 3:
        dataset.StudyInstanceUID = "1.2.3"


def damaged_dicom(folder: Path, head: Head) -> Path:
    write_dicom(folder, head.sequences["flair"], "AX FLAIR")
    path = sorted(folder.iterdir())[4]
    path.write_bytes(path.read_bytes()[:140] + b"\xff" * 40)
    return folder


def two_flairs(folder: Path, head: Head) -> Path:
    write_exam(folder, head)
    write_dicom(
        folder / "again",
        head.sequences["flair"],
        "FLAIR repeated",
        number=5,
        change=lambda dataset, at: setattr(dataset, "StudyInstanceUID", dataset.StudyInstanceUID),
    )
    return folder


def slices_of_two_sizes(folder: Path, head: Head) -> Path:
    write_slices(folder, head, "TCGA_CS_1111_20000101")
    small = Head({name: each[:, :40] for name, each in head.sequences.items()}, head.tumor)
    write_slices(folder / "small", small, "TCGA_CS_1111_20000101")
    name = "TCGA_CS_1111_20000101_3.tif"
    (folder / name).write_bytes((folder / "small" / name).read_bytes())
    for path in (folder / "small").iterdir():
        path.unlink()
    return folder


def one_file_that_is_t1(folder: Path, head: Head) -> Path:
    (save(folder, flair(head)) / "flair.nii.gz").rename(folder / "sub-1_T1w.nii.gz")
    return folder / "sub-1_T1w.nii.gz"


CASES: list[tuple[Callable[[Path, Head], Path], str]] = [
    (missing, "scan: no such file"),
    (empty_folder, "NIfTI.*DICOM.* 0 files"),
    (file_of("readme.txt", b"no scan"), r"NIfTI.*DICOM.* 1 file \(.txt\)"),
    (file_of("flair.nii", b"not an image at all"), r"flair.nii: not .*NIfTI"),
    (file_of("flair.nii.gz", b"not compressed"), r"flair.nii.gz: not .*NIfTI"),
    (truncated, r"flair.nii.gz: damaged"),
    (damaged_in_the_middle, r"flair.nii.gz: (not .*NIfTI|damaged)"),
    (four_dimensions, r"flair\.nii\.gz: .*\(56, 64, 12, 3\)"),
    (two_dimensions, r"flair\.nii\.gz: .*\(56, 64\)"),
    (colors, r"flair.nii.gz: .*'R'"),
    (complex_numbers, r"flair.nii.gz: .*complex64"),
    (flat_affine, r"flair.nii.gz: .*affine"),
    (thick_sagittal, r"flair.nii.gz: sagittal .*5.0 mm"),
    (mask_for_flair, r"flair.nii.gz: only 2 "),
    (all_alike, r"flair.nii.gz: only 1 "),
    (no_flair, r"FLAIR.*\n.*t2.nii.gz \(t2\)\n.*--flair"),
    (dicom_with(move), "AX FLAIR.*5.00 to 10.00 mm"),
    (dicom_with(repeat), "AX FLAIR.*: .*same position.*5 "),
    (dicom_with(turn), "AX FLAIR.*2 planes"),
    (dicom_with(compress), "AX FLAIR.*JPEG 2000.*gdcmconv"),
    (dicom_with(forget_position), "IM000_000: .*ImagePositionPatient"),
    (dicom_with(set_modality), "NIfTI.*MR.* 12 files"),
    (dicom_with(drop_pixels), "AX FLAIR.*: cannot be read: "),
    (dicom_with(resize_one), "AX FLAIR.*: cannot be read: "),
    (dicom_with(mix_studies), "DICOM SEG.*dcm2niix"),
    (damaged_dicom, "AX FLAIR.*5.00 to 10.00 mm"),
    (two_flairs, "AX T2 FLAIR.*\n.*FLAIR repeated.*\n.*--flair"),
    (slices_of_two_sizes, r"\(40, 56, 3\), \(64, 56, 3\)"),
    (one_file_that_is_t1, r"sub-1_T1w.nii.gz: .*t1w.*--flair"),
]


@pytest.mark.parametrize(("make", "message"), CASES)
def test_an_unsuitable_scan_gives_an_error_with_the_reason(
    run: Run, head: Head, tmp_path: Path, make: Callable[[Path, Head], Path], message: str
) -> None:
    scan = make(tmp_path / "scan", head)
    ended = run(scan, "--out", tmp_path / "result")
    assert ended.code == 1
    assert re.search(message, ended.error, re.DOTALL), ended.error
    assert "Traceback" not in ended.error
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: --out"),
        (("--out", "x"), "--flair"),
        (("scan", "--out", "x", "--threshold", "2"), "argument --threshold: "),
        (("--out", "x", "--pre", "t1.nii"), "--flair"),
    ],
)
def test_an_incomplete_command_names_the_missing_option(
    run: Run, words: tuple[str, ...], message: str
) -> None:
    ended = run(*words)
    assert ended.code == 2
    assert message in ended.error.splitlines()[-1]


SAMPLES = [
    *sorted((Path(nibabel.__file__).parent / "tests/data").glob("*.nii*")),
    *sorted((Path(pydicom.__file__).parent / "data/test_files").glob("MR*.dcm")),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_sample_files_of_packages_run_or_give_an_error_with_the_reason(
    run: Run, tmp_path: Path, sample: Path
) -> None:
    """Samples of heads, diffusion, surfaces, single slices, several encodings, and damage."""
    named = sample
    if sample.suffix == ".dcm":
        named = tmp_path / "series"
        named.mkdir()
        (named / sample.name).write_bytes(sample.read_bytes())
    ended = run("--flair", named, "--out", tmp_path / "result")
    assert "Traceback" not in ended.error
    if ended.code:
        assert ended.error.startswith("segment: error: ")
        assert not (tmp_path / "result").exists()
    else:
        assert (tmp_path / "result/index.html").exists()
