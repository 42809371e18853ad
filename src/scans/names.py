"""Parse and compare the names of patients and slice files; build the paths of slices."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

# TCGA-CS-4941: collection, institution ("tissue source site"), participant. Phantoms use this form.
BARCODE = re.compile(r"(?:TCGA|PHANTOM)[-_](?P<code>[A-Z0-9]{2})[-_][A-Z0-9]{4}(?![A-Z0-9])")

# In the name of an examination, a date (with or without a time) or a session may follow the person.
YEAR, MONTH, DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
MONTH_NAME = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
GAP = r"[-_. ]?"
DATE = (
    rf"(?:{YEAR}{GAP}{MONTH}{GAP}{DAY}|{DAY}{GAP}{MONTH}{GAP}{YEAR}|{MONTH}{GAP}{DAY}{GAP}{YEAR}"
    rf"|{YEAR}[-_.]{MONTH}|\d?\d{GAP}{MONTH_NAME}{GAP}{YEAR}|{YEAR}{GAP}{MONTH_NAME}{GAP}\d?\d)"
)
TIME = r"(?:[-_. ]?t?[0-2]\d[-_.:]?[0-5]\d(?:[-_.:]?[0-5]\d)?)?"
NUMBERED = (
    "session|visit|v|exam|scan|mri?|study|time[-_ ]?point|tp|t|d|day|wk|week|mo|month|yr|year|fu"
)
NAMED = "baseline|follow[-_ ]?up|pre[-_ ]?op|post[-_ ]?op|pre|post"
SESSION = rf"(?:{NUMBERED})[-_ ]?\d+(?:-\d+)?[a-z]?|(?:{NAMED})[-_ ]?\d*|ses[-_ ]?[a-z0-9]+"
BRATS = r"(?<=-\d{5})-\d{3}"  # BraTS-GLI-00005-001: time point 001 of patient 00005
SEPARATORS = "-_. "
EXAM = re.compile(rf"(?:[-_. ]+(?:{DATE}{TIME}|{SESSION})|{BRATS})$", re.IGNORECASE)

SLICE_FILE = re.compile(
    r"(?P<patient_id>.+)_(?P<number>\d+)(?P<mask>_mask)?\.tiff?", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, order=True)
class SliceName:
    """The parts of a slice's file name. Sorts by patient, then by number: 2 before 10."""

    patient_id: str
    number: int
    is_mask: bool
    slice_id: str

    @classmethod
    def parse(cls, file_name: str) -> "SliceName | None":
        """Return the parts of `<patient>_<number>.tif` or `…_mask.tif`; None for other names."""
        match = SLICE_FILE.fullmatch(file_name)
        if match is None:
            return None
        patient_id, number = match["patient_id"], match["number"]
        return cls(patient_id, int(number), bool(match["mask"]), f"{patient_id}_{number}")


def name_key(name: str) -> str:
    """Return a key that is equal for two spellings of a name: no case, no blanks, no punctuation.

    Blanks and punctuation between two digits become a dash, so that 1_12 differs from 11_2.
    Composed and decomposed accented letters are the same.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    spaced = "".join(" " if unicodedata.category(char)[0] in "PZC" else char for char in folded)
    return re.sub(r"(?<=\d) +(?=\d)", "-", spaced.strip()).replace(" ", "") or name


def person(patient_id: str) -> str:
    """Return a patient's name without the date, time or session of an examination at its end."""
    if barcode := BARCODE.match(patient_id):
        return barcode[0]
    name = patient_id.strip(SEPARATORS)
    while (exam := EXAM.search(name)) and name[: exam.start()].strip(SEPARATORS):
        name = name[: exam.start()].rstrip(SEPARATORS)
    return name or patient_id


def institution(patient_id: str) -> str:
    """Return the code in a TCGA name, CS in TCGA_CS_4941_19960909; "unknown" for other names."""
    match = BARCODE.match(patient_id)
    return match["code"] if match else "unknown"


def slice_path(folder: Path, slice_id: str) -> Path:
    """Return the path of a slice in the folder of scans or of masks."""
    return folder / f"{slice_id}.tif"


def sorted_slices(folder: Path) -> list[SliceName]:
    """Return the slices in a folder of scans or of masks, sorted by patient and number."""
    names = [SliceName.parse(path.name) for path in folder.glob("*.tif")]
    return sorted(name for name in names if name is not None)
