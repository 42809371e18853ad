"""What the name of a patient or of a slice's file says, and how restructure names the files."""

import re
from dataclasses import dataclass
from pathlib import Path

# TCGA_CS_4941_19960909: collection, institution, number, date of the scan.
DATED_PATIENT = re.compile(
    r"(?P<case_id>[^_]+_(?P<institution>[^_]+)_.+)_(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
)
SLICE_FILE = re.compile(
    r"(?P<patient_id>.+)_(?P<number>\d+)(?P<mask>_mask)?\.tiff?", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, order=True)
class SliceName:
    """What a file's name tells. Orders by patient, then by number, not by text: 2 before 10."""

    patient_id: str
    number: int
    is_mask: bool
    slice_id: str

    @classmethod
    def parse(cls, file_name: str) -> "SliceName | None":
        """Return the parts of `<patient>_<number>.tif` or `…_mask.tif`; None of another."""
        match = SLICE_FILE.fullmatch(file_name)
        if match is None:
            return None
        patient_id, number = match["patient_id"], match["number"]
        return cls(patient_id, int(number), bool(match["mask"]), f"{patient_id}_{number}")


def case_id(patient_id: str) -> str:
    """Return the patient's key in data.csv: its folder's name without the date of the scan."""
    match = DATED_PATIENT.fullmatch(patient_id)
    return match["case_id"] if match else patient_id


def institution(patient_id: str) -> str:
    """Return the code in `TCGA_<institution>_<number>_<date>`; "unknown" in another name."""
    match = DATED_PATIENT.fullmatch(patient_id)
    return match["institution"] if match else "unknown"


def slice_path(folder: Path, slice_id: str) -> Path:
    """Return where a slice lies in the folder of scans or in the folder of masks."""
    return folder / f"{slice_id}.tif"


def sorted_slices(folder: Path) -> list[SliceName]:
    """Return the slices of a folder of scans or of masks, by patient and number."""
    names = [SliceName.parse(path.name) for path in folder.glob("*.tif")]
    return sorted(name for name in names if name is not None)
