"""Which files are whose: patients' examinations, and the file of each sequence in them.

A case is one examination. A folder is searched with all below it, for NIfTI, for DICOM, and for
slices in TIFF as this project's data set has them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.refusals import Refusal, truncated
from scans.dicom import DicomSeries, find_series, is_dicom, is_volume, sequence_by_times
from scans.layout import files_below
from scans.names import SliceName
from scans.nifti import is_nifti, stem
from scans.nnunet import CHANNEL, recognize_file
from scans.sequences import (
    NAMES,
    NO_CONTRAST,
    NOTHING,
    Recognized,
    sequence_of,
    tells_of_the_exam,
    words_of,
)

BIDS = re.compile(r"sub-[^_]+(?:_ses-[^_]+)?")
AXIAL = 0.7  # cosine between a slice's normal and the body's axis, from which it is axial


class Candidate(NamedTuple):
    """A file or series that may be taken for a sequence."""

    source: "Path | DicomSeries"
    recognized: Recognized

    @property
    def title(self) -> str:
        """Return how to name it to a person."""
        return self.source.title if isinstance(self.source, DicomSeries) else str(self.source)

    @property
    def described(self) -> str:
        """Return its name and by which words it was recognized."""
        return f"{self.title} ({self.recognized.words or 'unknown'})"


class Case(NamedTuple):
    """One examination: its name, the candidates of its sequences, or its slices in TIFF."""

    name: str
    candidates: tuple[Candidate, ...] = ()
    slices: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()  # what a person should know of how it was put together

    def chosen(self, wanted: Iterable[str]) -> dict[str, Candidate]:
        """Return the one candidate of each `wanted` sequence; refuse several, or no FLAIR.

        What is named goes before what is guessed; of several series, axial ones are preferred.
        """
        found: dict[str, Candidate] = {}
        problems = []
        for sequence in dict.fromkeys(("flair", *wanted)):
            name = NAMES[sequence]
            of_it = [each for each in self.candidates if each.recognized.sequence == sequence]
            of_it = [each for each in of_it if not each.recognized.guessed] or of_it
            axial = [each for each in of_it if is_axial(each.source)]
            if len(of_it) > 1 and axial:
                of_it = axial
            if len(of_it) > 1:
                problems += [f"{self.name}: may be {name}: {each.title}" for each in of_it]
            if of_it:
                found[sequence] = of_it[0]
        if problems:
            raise Refusal(
                "\n".join([*truncated(problems), "Say which with --flair, --pre, --post and --t2."])
            )
        if "flair" not in found:
            seen = truncated([each.described for each in self.candidates])
            lines = [f"{self.name}: no FLAIR, which the model needs, among", *seen]
            raise Refusal("\n".join([*lines, "If one of these is FLAIR, say so with --flair."]))
        return found


def is_axial(source: "Path | DicomSeries") -> bool:
    """Return whether a DICOM series says that its slices are axial."""
    plane = [] if isinstance(source, Path) else source.header.get("ImageOrientationPatient") or []
    return len(plane) == 6 and abs(np.cross(plane[:3], plane[3:])[2]) > AXIAL


def recognized_series(series: DicomSeries) -> Recognized:
    """Return which sequence a DICOM series is, by its description, else by its times.

    What is called FLAIR and has other times than FLAIR is none. A T1 for which a contrast agent is
    told is with it, unless it is called native or the like.
    """
    texts = [str(series.header.get(tag, "")) for tag in ("SeriesDescription", "ProtocolName")]
    by_name = next((found for text in texts if (found := sequence_of(text)).words), NOTHING)
    by_times, times = sequence_by_times(series.header)
    if by_name.sequence == "flair" and by_times in ("pre_contrast", "post_contrast"):
        return Recognized(None, f"{by_name.words}, but {times}")
    is_native = not NO_CONTRAST.isdisjoint(words_of(" ".join(texts)))
    if by_name.sequence == "pre_contrast" and by_times == "post_contrast" and not is_native:
        return Recognized(by_times, f"{by_name.words}, {times}")
    may_be_flair = by_name.words in ("t2", "t2w") and by_times == "flair"
    if by_name.words and not may_be_flair:
        return by_name
    return Recognized(by_times, times, guessed=True)


def exam_of(path: Path) -> str:
    """Return what the name of a NIfTI file tells of the examination; "" where it tells nothing."""
    name = stem(path)
    if bids := BIDS.match(name):
        return bids[0]
    if channel := CHANNEL.fullmatch(name):
        return channel["case"]
    return "-".join(word for word in re.split(r"[-_. ]+", name) if tells_of_the_exam(word.lower()))


def folder_of(path: Path, root: Path) -> Path:
    """Return the folder of a patient's files: not one that is named as a sequence."""
    folder = path.parent
    return folder.parent if folder != root and sequence_of(folder.name).words else folder


def nifti_cases(files: Sequence[Path], root: Path) -> list[Case]:
    """Return the cases of NIfTI files.

    Where each of several names of examinations in a folder has a FLAIR of its own, each is a case;
    else the folder is one, with a note where the names differ. One of masks alone is none.
    """
    folders: dict[Path, list[Candidate]] = defaultdict(list)
    for path in files:
        folders[folder_of(path, root)].append(Candidate(path, recognize_file(path)))
    cases = []
    for folder, found in sorted(folders.items()):
        exams: dict[str, list[Candidate]] = defaultdict(list)
        for each in found:
            assert isinstance(each.source, Path)
            if each.recognized.is_scan:
                exams[exam_of(each.source)].append(each)
        with_flair = [
            name
            for name, own in exams.items()
            if any(each.recognized.sequence == "flair" for each in own)
        ]
        if len(with_flair) > 1 and "" not in with_flair:
            cases += [Case(name, tuple(own)) for name, own in sorted(exams.items())]
        elif exams:
            told = sorted(name for name in exams if name)
            notes = [f"names tell of several examinations: {', '.join(told)}"] * (len(told) > 1)
            cases.append(Case(case_name(folder, root), tuple(found), notes=tuple(notes)))
    return cases


def case_name(folder: Path, root: Path) -> str:
    """Return a name for the case in a folder: the way to it from the root, in one word."""
    parts = folder.relative_to(root).parts if folder != root else ()
    kept = [part for part in parts if part not in ("anat", "imagesTr", "imagesTs")]
    name = "_".join(kept) or root.resolve().name
    return name.encode("utf-8", "replace").decode()  # of bytes that are no UTF-8


def dicom_cases(files: Iterable[Path]) -> list[Case]:
    """Return the cases of DICOM files: a case for each study of each patient."""
    exams: dict[str, list[DicomSeries]] = defaultdict(list)
    for series in find_series(files):
        if is_volume(series):
            exams[series.exam].append(series)
    cases: dict[str, Case] = {}
    for own in exams.values():
        header = own[0].header
        words = [str(header.get(tag) or "") for tag in ("PatientID", "StudyDate")]
        name = re.sub(r"[^\w.-]+", "-", "_".join(word for word in words if word)) or "patient"
        if name in cases:
            name = next(f"{name}-{n}" for n in count(2) if f"{name}-{n}" not in cases)
        candidates = [Candidate(each, recognized_series(each)) for each in own]
        cases[name] = Case(name, tuple(candidates))
    return list(cases.values())


def tiff_cases(files: Iterable[Path]) -> list[Case]:
    """Return the cases of TIFF files named as this project's data set: a case for each patient."""
    patients: dict[tuple[Path, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in files:
        name = SliceName.parse(path.name)
        if name is not None and not name.is_mask:
            patients[path.parent, name.patient_id].append((name.number, path))
    return [
        Case(patient_id, slices=tuple(path for _, path in sorted(own)))
        for (_, patient_id), own in sorted(patients.items())
    ]


def find_cases(scan: Path) -> list[Case]:
    """Return the cases that a file or folder holds; refuse what holds none."""
    if scan.is_file():
        if not is_nifti(scan):
            raise Refusal(f"{scan}: not NIfTI; for DICOM and TIFF, name the folder")
        name = recognize_file(scan)
        if name.words and name.sequence != "flair":
            raise Refusal(
                f"{scan}: by its name ({name.words}) it is not FLAIR, which the model needs; if "
                "it is, say so with --flair"
            )
        taken = Recognized("flair", name.words or "the only file")
        return [Case(stem(scan), (Candidate(scan, taken),))]
    if not scan.is_dir():
        raise Refusal(f"{scan}: no such file or folder")
    files = [path for path in files_below(scan, skip="derivatives").values() if path.is_file()]
    images = [path for path in files if is_nifti(path)]
    slices = [path for path in files if path.suffix.lower() in (".tif", ".tiff")]
    known = {*images, *slices}
    rest = [path for path in files if path not in known and is_dicom(path)]
    cases = [*nifti_cases(images, scan), *dicom_cases(rest), *tiff_cases(slices)]
    if not cases:
        kinds = sorted({path.suffix or path.name for path in files})[:8]
        raise Refusal(
            f"{scan}: no NIfTI (.nii, .nii.gz), no MR series in DICOM, and no "
            f"<patient>_<number>.tif in {len(files)} files ({', '.join(kinds)})"
        )
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Refusal(
            f"{scan}: several cases are named {', '.join(twice)}; rename them or run each"
        )
    return cases
