"""Find the examinations in a folder, and the file of each sequence in every examination.

A case is one examination. A folder is searched recursively for NIfTI, for DICOM, and for TIFF
slices that are named as in this project's data set.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.refusals import Refusal, quantity, truncated
from scans.dicom import DicomSeries, find_series, is_dicom, is_volume, sequence_by_timing
from scans.layout import files_below
from scans.names import SliceName
from scans.nifti import is_nifti, stem
from scans.nnunet import CHANNEL, recognize_file
from scans.sequences import (
    NAMES,
    NO_CONTRAST,
    UNKNOWN,
    Recognized,
    may_name_exam,
    sequence_of,
    words_of,
)

BIDS = re.compile(r"sub-[^_]+(?:_ses-[^_]+)?")
AXIAL = 0.7  # a slice is axial from this cosine between its normal and the body's long axis


class Candidate(NamedTuple):
    """A file or series that may be one of the sequences."""

    source: "Path | DicomSeries"
    recognized: Recognized

    @property
    def title(self) -> str:
        """Return its name for messages."""
        return self.source.title if isinstance(self.source, DicomSeries) else str(self.source)

    @property
    def description(self) -> str:
        """Return its name and the words by which it was recognized."""
        return f"{self.title} ({self.recognized.words or 'unknown'})"


class Case(NamedTuple):
    """One examination: its name, and the candidates for its sequences or its TIFF slices."""

    name: str
    candidates: tuple[Candidate, ...] = ()
    slices: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()  # warnings about how its files were grouped

    def choose(self, sequences: Iterable[str]) -> dict[str, Candidate]:
        """Return one candidate for FLAIR and for each of `sequences` that the case has.

        A candidate recognized by its name is preferred to a guessed one, and an axial series to
        others. Raise an error if several candidates remain, or if there is no FLAIR.
        """
        found: dict[str, Candidate] = {}
        problems = []
        for sequence in dict.fromkeys(("flair", *sequences)):
            matching = [
                candidate
                for candidate in self.candidates
                if candidate.recognized.sequence == sequence
            ]
            named = [candidate for candidate in matching if not candidate.recognized.guessed]
            matching = named or matching
            axial = [candidate for candidate in matching if is_axial(candidate.source)]
            if len(matching) > 1 and axial:
                matching = axial
            if len(matching) > 1:
                problems += [
                    f"{self.name}: several candidates for {NAMES[sequence]}: {candidate.title}"
                    for candidate in matching
                ]
            if matching:
                found[sequence] = matching[0]
        if problems:
            hint = "Choose one for each sequence with --flair, --pre, --post and --t2."
            raise Refusal("\n".join([*truncated(problems), hint]))
        if "flair" not in found:
            titles = truncated([candidate.description for candidate in self.candidates])
            problem = (
                f"{self.name}: the model needs FLAIR, but no name or header identifies one of "
                "these as FLAIR:"
            )
            hint = "If one of these is FLAIR, pass it with --flair."
            raise Refusal("\n".join([problem, *titles, hint]))
        return found


def is_axial(source: "Path | DicomSeries") -> bool:
    """Return whether a source is a DICOM series whose header says that its slices are axial."""
    plane = [] if isinstance(source, Path) else source.header.get("ImageOrientationPatient") or []
    return len(plane) == 6 and abs(np.cross(plane[:3], plane[3:])[2]) > AXIAL


def recognized_series(series: DicomSeries) -> Recognized:
    """Return which sequence a DICOM series is, by its description or else by its TE, TR and TI.

    A series that is called FLAIR but has the echo and repetition time of a T1 scan is unknown. A T1
    whose header names a contrast agent is post-contrast, unless its description says native or the
    like.
    """
    texts = [str(series.header.get(tag, "")) for tag in ("SeriesDescription", "ProtocolName")]
    by_name = next((found for text in texts if (found := sequence_of(text)).words), UNKNOWN)
    by_timing, timing = sequence_by_timing(series.header)
    if by_name.sequence == "flair" and by_timing in ("pre_contrast", "post_contrast"):
        return Recognized(None, f"{by_name.words}, but {timing}")
    is_native = not NO_CONTRAST.isdisjoint(words_of(" ".join(texts)))
    if by_name.sequence == "pre_contrast" and by_timing == "post_contrast" and not is_native:
        return Recognized(by_timing, f"{by_name.words}, {timing}")
    may_be_flair = by_name.words in ("t2", "t2w") and by_timing == "flair"
    if by_name.words and not may_be_flair:
        return by_name
    return Recognized(by_timing, timing, guessed=True)


def exam_name(path: Path) -> str:
    """Return the part of a NIfTI file's name that identifies the examination; "" if none does."""
    name = stem(path)
    if bids := BIDS.match(name):
        return bids[0]
    if channel := CHANNEL.fullmatch(name):
        return channel["case"]
    return "-".join(word for word in re.split(r"[-_. ]+", name) if may_name_exam(word.lower()))


def folder_of(path: Path, root: Path) -> Path:
    """Return the folder of a patient: a file's folder, or its parent if named after a sequence."""
    folder = path.parent
    return folder.parent if folder != root and sequence_of(folder.name).words else folder


def nifti_cases(files: Sequence[Path], root: Path) -> list[Case]:
    """Return the cases of NIfTI files.

    If the file names in a folder name several examinations and more than one has a FLAIR, each
    examination is a case. Otherwise the folder is one case, with a note if the names differ. A
    folder that has only masks is not a case.
    """
    folders: dict[Path, list[Candidate]] = defaultdict(list)
    for path in files:
        folders[folder_of(path, root)].append(Candidate(path, recognize_file(path)))
    cases = []
    for folder, found in sorted(folders.items()):
        exams: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in found:
            assert isinstance(candidate.source, Path)
            if candidate.recognized.is_scan:
                exams[exam_name(candidate.source)].append(candidate)
        with_flair = [
            name
            for name, candidates in exams.items()
            if any(candidate.recognized.sequence == "flair" for candidate in candidates)
        ]
        if len(with_flair) > 1 and "" not in with_flair:
            cases += [Case(name, tuple(candidates)) for name, candidates in sorted(exams.items())]
        elif exams:
            names = sorted(name for name in exams if name)
            note = f"the file names belong to several examinations: {', '.join(names)}"
            notes = (note,) if len(names) > 1 else ()
            cases.append(Case(case_name(folder, root), tuple(found), notes=notes))
    return cases


def case_name(folder: Path, root: Path) -> str:
    """Return a name for the case in a folder: its path below the root, joined by underscores."""
    parts = folder.relative_to(root).parts if folder != root else ()
    kept = [part for part in parts if part not in ("anat", "imagesTr", "imagesTs")]
    name = "_".join(kept) or root.resolve().name
    return name.encode("utf-8", "replace").decode()  # a folder's name may not be valid UTF-8


def dicom_cases(files: Iterable[Path]) -> list[Case]:
    """Return the cases of DICOM files, one for each study of each patient."""
    exams: dict[str, list[DicomSeries]] = defaultdict(list)
    for series in find_series(files):
        if is_volume(series):
            exams[series.exam].append(series)
    cases: dict[str, Case] = {}
    for members in exams.values():
        header = members[0].header
        words = [str(header.get(tag) or "") for tag in ("PatientID", "StudyDate")]
        name = re.sub(r"[^\w.-]+", "-", "_".join(word for word in words if word)) or "patient"
        if name in cases:
            name = next(f"{name}-{n}" for n in count(2) if f"{name}-{n}" not in cases)
        candidates = [Candidate(series, recognized_series(series)) for series in members]
        cases[name] = Case(name, tuple(candidates))
    return list(cases.values())


def tiff_cases(files: Iterable[Path]) -> list[Case]:
    """Return the cases of TIFF files named as in this project's data set, one for each patient."""
    patients: dict[tuple[Path, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in files:
        name = SliceName.parse(path.name)
        if name is not None and not name.is_mask:
            patients[path.parent, name.patient_id].append((name.number, path))
    return [
        Case(patient_id, slices=tuple(path for _, path in sorted(slices)))
        for (_, patient_id), slices in sorted(patients.items())
    ]


def find_cases(scan: Path) -> list[Case]:
    """Return the cases in a file or folder; raise an error if there are none."""
    if scan.is_file():
        if not is_nifti(scan):
            raise Refusal(f"{scan}: not NIfTI; for DICOM or TIFF, pass the folder instead")
        name = recognize_file(scan)
        if name.words and name.sequence != "flair":
            raise Refusal(
                f"{scan}: the file name ({name.words}) suggests that this is not FLAIR, which the "
                "model needs; if it is FLAIR, pass it with --flair"
            )
        recognized = Recognized("flair", name.words or "the only file")
        return [Case(stem(scan), (Candidate(scan, recognized),))]
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
            f"{scan}: found no NIfTI (.nii, .nii.gz), no MR series in DICOM, and no "
            f"<patient>_<number>.tif among {quantity(len(files), 'file')} ({', '.join(kinds)})"
        )
    names = [case.name for case in cases]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise Refusal(
            f"{scan}: several cases are named {', '.join(repeated)}; rename their folders or "
            "segment them one by one"
        )
    return cases
