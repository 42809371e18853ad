"""DICOM: find the series among files, and read a series as a volume."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.uid import UID

from pipeline.refusals import Refusal, quantity
from scans.series import Series

PREAMBLE, MAGIC = 128, b"DICM"  # bytes before the magic letters of a DICOM file
# The tags that are read from every file, to group files into series.
TAGS = (
    *("PatientID", "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "SeriesNumber"),
    *("SeriesDescription", "ProtocolName", "Modality", "ImageType", "ContrastBolusAgent"),
    *("ScanningSequence", "EchoTime", "RepetitionTime", "InversionTime", "SOPClassUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames", "Rows", "Columns"),
    *("InstanceNumber", "SOPInstanceUID", "SliceThickness", "SpacingBetweenSlices"),
)
UNEVEN = 0.05  # distances between slices may differ by this share of their mean
LONG_INVERSION = 1500  # ms; FLAIR has 1800 or more, T1 has none or a shorter one
LONG_ECHO = 60  # ms; FLAIR and T2 have more, T1 has less
SHORT_REPETITION = 3000  # ms; T1 has less
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's x and y grow to the left and to the back (LPS)


class DicomSeries(NamedTuple):
    """The files of one series, and the header of the first."""

    files: tuple[Path, ...]
    header: Dataset

    @property
    def title(self) -> str:
        """Return the series' name for messages."""
        header = self.header
        number, description = header.get("SeriesNumber", "?"), header.get("SeriesDescription", "")
        slices = quantity(int(header.get("NumberOfFrames") or len(self.files)), "slice")
        return f"series {number} {description!r}, {slices}, {self.files[0].parent}"

    @property
    def exam(self) -> str:
        """Return a key for the examination: the patient and the study."""
        return f"{self.header.get('PatientID', '')} {self.header.get('StudyInstanceUID', '')}"


def is_dicom(path: Path) -> bool:
    """Return whether a file begins like a DICOM file."""
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC
    except OSError:  # a broken link, or no permission
        return False


def read_header(path: Path) -> Dataset:
    """Return the header of a DICOM file without its pixels."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about files that violate the standard
            return dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except Exception as error:  # pydicom raises many kinds
        raise Refusal(f"{path}: damaged DICOM file ({type(error).__name__}: {error})") from None


def is_volume(series: DicomSeries) -> bool:
    """Return whether a series is an MR volume, not a localizer, a report or another modality."""
    kind = [str(part).upper() for part in series.header.get("ImageType", [])]
    words = str(series.header.get("SeriesDescription", "")).lower()
    return (
        series.header.get("Modality") == "MR"
        and "LOCALIZER" not in kind
        and not any(word in words for word in ("localizer", "scout", "survey", "3-pl"))
    )


def find_series(files: Iterable[Path]) -> list[DicomSeries]:
    """Return the series of DICOM files, sorted by examination and number, without copied files."""
    members: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    seen = set()
    for path in files:
        header = read_header(path)
        instance = str(header.get("SOPInstanceUID", path))
        if instance in seen:
            continue
        seen.add(instance)
        members[str(header.get("SeriesInstanceUID", path.parent))].append((path, header))
    found = [
        DicomSeries(tuple(path for path, _ in pairs), pairs[0][1]) for pairs in members.values()
    ]
    return sorted(found, key=lambda series: (series.exam, series.header.get("SeriesNumber") or 0))


def first_number(value: object) -> float:
    """Return a header's value as a number, the first if there are several; 0 if it is not one."""
    try:
        return float(str(value[0] if isinstance(value, MultiValue) else value))
    except ValueError:
        return 0.0


def sequence_by_timing(header: Dataset) -> tuple[str | None, str]:
    """Return the sequence guessed from echo, repetition and inversion time, and the reason."""
    echo, repetition, inversion = (
        first_number(header.get(name)) for name in ("EchoTime", "RepetitionTime", "InversionTime")
    )
    timing = f"TE {echo:g}, TR {repetition:g}, TI {inversion:g} ms"
    if inversion >= LONG_INVERSION and echo >= LONG_ECHO:
        return "flair", timing
    if 0 < repetition < SHORT_REPETITION and 0 < echo < LONG_ECHO / 2:
        agent = str(header.get("ContrastBolusAgent") or "").strip()
        given = agent and agent.lower() not in ("no", "none", "0")
        return (
            ("post_contrast", f"{timing}, agent {agent!r}") if given else ("pre_contrast", timing)
        )
    return None, timing


def check_positions(series: DicomSeries, headers: Sequence[Dataset]) -> None:
    """Raise an error if slices are unevenly spaced, at the same position, or in several planes."""
    planes = {tuple(round(float(x), 3) for x in h.ImageOrientationPatient) for h in headers}
    if len(planes) > 1:
        raise Refusal(
            f"{series.title}: slices in {len(planes)} planes, as in a localizer; use a series with "
            "parallel slices"
        )
    [plane] = planes
    normal = np.cross(plane[:3], plane[3:])
    positions = np.sort([float(np.dot(normal, h.ImagePositionPatient)) for h in headers])
    gaps = np.diff(positions)
    if n_duplicates := int((gaps < 1e-3).sum()):
        raise Refusal(
            f"{series.title}: several slices have the same position "
            f"({quantity(n_duplicates, 'duplicate')}), as in a dynamic or multi-echo scan; use a "
            "series that is one volume"
        )
    if len(gaps) and gaps.max() - gaps.min() > UNEVEN * gaps.mean():
        raise Refusal(
            f"{series.title}: slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart: a slice "
            "is missing, or the series has several stacks; use a complete series with one stack"
        )


def read_dicom(series: DicomSeries) -> Series:
    """Return a series as a volume (D, H, W), rescaled; raise an error if it is not a volume."""
    import highdicom  # imported here because it takes as long to load as everything else together

    datasets: list[Dataset] = []
    try:
        datasets += [dcmread(path) for path in series.files]
        if int(series.header.get("NumberOfFrames") or 1) > 1:
            if len(datasets) > 1:
                raise Refusal(
                    f"{series.title}: {len(datasets)} multi-frame files; use a folder with one"
                )
            volume = highdicom.Image.from_dataset(datasets[0]).get_volume(dtype=np.float32)
        else:
            for path, dataset in zip(series.files, datasets, strict=True):
                if "ImagePositionPatient" not in dataset:
                    raise Refusal(
                        f"{path}: has no ImagePositionPatient, so the position of this slice is "
                        "unknown; export the series again with this tag"
                    )
            check_positions(series, datasets)
            volume = highdicom.get_volume_from_series(datasets, dtype=np.float32, rtol=UNEVEN)
    except Refusal:
        raise
    except Exception as error:  # pydicom and highdicom raise many kinds
        reason = " ".join(str(error).split())
        syntax = UID(datasets[0].file_meta.TransferSyntaxUID) if datasets else UID("")
        if syntax.is_compressed:
            reason = (
                f"compressed as {syntax.name}; convert it to uncompressed DICOM (`gdcmconv --raw`) "
                f"or to NIfTI (`dcm2niix`), or install a decoder: {reason}"
            )
        raise Refusal(f"{series.title}: cannot be read: {reason}") from None
    affine = TO_RAS @ volume.affine
    if len(volume.array) == 1:
        affine[:3, 0] *= thickness(series) / np.linalg.norm(affine[:3, 0])
    return Series(volume.array, affine, series.files)


def thickness(series: DicomSeries) -> float:
    """Return the thickness of a single slice in mm."""
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        if (size := first_number(series.header.get(tag))) > 0:
            return size
    raise Refusal(
        f"{series.title}: has one slice, and neither SpacingBetweenSlices nor SliceThickness says "
        "how thick it is; add one of these tags, or use a series with several slices"
    )
