"""Somebody's data set, a folder or a zip, brought to this project's form: slices in TIFF.

Slices are copied as they are; NIfTI files are read, whatever their layout, and written as slices.
"""

import os
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from pipeline.refusals import Refusal, refuse
from scans.datasets import files_in, list_exams, recognize
from scans.geometry import Geometry, read_geometry
from scans.layout import (
    CLINICAL_FILE,
    GEOMETRY_FILE,
    Member,
    files_below,
    hidden_part,
    layout_members,
    raise_error,
)
from scans.nnunet import ANY_CHANNEL, DESCRIPTION, find_description
from scans.params import AcquireParams
from scans.participants import clinical_rows, write_rows
from scans.sequences import MAIN

LARGEST_FILE = 2**28  # bytes; a slice of 4096 x 4096 pixels has 50 MB
LAYOUT = f"Expected <patient>/<patient>_<number>.tif, their _mask.tif, and {CLINICAL_FILE}."


def folder_members(folder: Path) -> dict[PurePosixPath, Path]:
    """Return the files below a folder by relative path; refuse what is no plain file."""
    members, problems = {}, []
    for parent, folders, files in os.walk(folder, onerror=raise_error):
        below = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        if not folders and not files and Path(parent) != folder and hidden_part(below) is None:
            problems.append(f"empty folder: {parent}")
        for name in sorted([*files, *(f for f in folders if (Path(parent) / f).is_symlink())]):
            path = Path(parent) / name
            if hidden_part(below / name) is None and (path.is_symlink() or not path.is_file()):
                problems.append(f"neither a file nor a folder: {path}")
            members[below / name] = path
    if problems:
        refuse(problems, "Put the files themselves in their place, or take away what is none.")
    return members


def zip_members(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of a zip by path; refuse paths out of it, encryption and repeats.

    A backslash separates folders too: so it is in zips that Windows PowerShell has made.
    """
    names = {info: info.filename.replace("\\", "/") for info in archive.infolist()}
    paths = {info: PurePosixPath(name) for info, name in names.items() if name[-1:] != "/"}
    repeats = Counter(paths.values())
    problems = [f"twice in the zip: {path}" for path, count in repeats.items() if count > 1]
    for info, path in paths.items():
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
            problems.append(f"path out of the zip: {info.filename}")
        elif info.flag_bits & 0x1 and hidden_part(path) is None:
            problems.append(f"encrypted: {info.filename}")
    if problems:
        refuse(problems, f"Make {archive.filename} anew.")
    return {path: info for info, path in paths.items()}


def copy_members(
    members: Mapping[PurePosixPath, Member], target: Path, archive: zipfile.ZipFile | None = None
) -> None:
    """Copy the members of a folder or zip to their places in `target`."""
    for place, member in tqdm(sorted(members.items()), desc="copy", unit="file", disable=None):
        path = target / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(member, Path):
            shutil.copyfile(member, path)
        else:
            assert archive is not None
            with archive.open(member) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)


def check_sizes(sizes: Mapping[PurePosixPath, int], source: Path, target: Path) -> None:
    """Refuse a source that is larger than the free disk, as a zip bomb is."""
    size, free = sum(sizes.values()), shutil.disk_usage(target.parent).free
    if size > free:
        raise Refusal(
            f"{source} holds {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
            "free some, or check where the source comes from"
        )


def check_slices(sizes: Mapping[PurePosixPath, int], source: Path) -> None:
    """Refuse files too large for slices."""
    problems = [
        f"{source}: {place} of {size / 1e9:.1f} GB, too large for a slice"
        for place, size in sorted(sizes.items())
        if size > LARGEST_FILE
    ]
    if problems:
        refuse(problems, "Check where it comes from.")


def copy_slices(source: Path, target: Path, archive: zipfile.ZipFile | None) -> list[Geometry]:
    """Copy the patients' folders of slices and data.csv to `target`; return what geometry.csv says.

    Where there is no data.csv, it gets one with the patients' names.
    """
    found: Mapping[PurePosixPath, Any] = (
        folder_members(source) if archive is None else zip_members(archive)
    )
    members = layout_members(found)
    sizes = {
        place: member.stat().st_size if isinstance(member, Path) else member.file_size
        for place, member in members.items()
    }
    if not members:
        raise Refusal(f"{source}: no folder with TIFF files in it. {LAYOUT}")
    check_slices(sizes, source)
    check_sizes(sizes, source, target)
    copy_members(members, target, archive)
    if PurePosixPath(CLINICAL_FILE) not in members:
        names = sorted(path.name for path in target.iterdir() if path.is_dir())
        write_rows(target / CLINICAL_FILE, [{"Patient": name} for name in names])
        print(f"{source}: no {CLINICAL_FILE}: patients are known by their names alone")
    return taken_geometry(source, target)


def taken_geometry(source: Path, target: Path) -> list[Geometry]:
    """Return what a geometry.csv among the copied files says, and remove it from them."""
    table = target / GEOMETRY_FILE
    if not table.exists():
        return []
    try:
        rows = read_geometry(table)
    except Refusal as refusal:
        raise Refusal(str(refusal).replace(str(table), f"{source}: {GEOMETRY_FILE}")) from None
    table.unlink()
    patients = {path.name for path in target.iterdir() if path.is_dir()}
    if unknown := sorted(rows.keys() - patients):
        refuse([f"{GEOMETRY_FILE}: no patient {each}" for each in unknown], "Correct it.")
    return list(rows.values())


def convert_volumes(
    source: Path, target: Path, layout: str, acquire: AcquireParams
) -> list[Geometry]:
    """Write the NIfTI files of a folder as slices, and data.csv; return where they lie in space."""
    from scans.conversion import convert_all  # late: SciPy, for those who have NIfTI

    files, sequences, description = files_below(source), acquire.channels, None
    if layout == "nnunet":
        n_cases = len(files_in(layout, files, ANY_CHANNEL).scans)
        description = find_description(files, n_cases, sequences[MAIN])
        if description.ignored is not None and acquire.labels == "all":
            raise Refusal(
                f"{DESCRIPTION} has the label {description.ignored} for voxels to ignore: set "
                "acquire.labels to the labels that are tumor"
            )
    exams = list_exams(layout, files, sequences, description)
    clinical = clinical_rows(layout, [exam.name for exam in exams], files)
    known = description.labels if description else frozenset[int]()
    target.mkdir(parents=True)
    rows = convert_all(exams, target, sequences=sequences, labels=acquire.labels, known=known)
    write_rows(target / CLINICAL_FILE, clinical)
    return rows


@contextmanager
def opened(source: Path, name: str) -> Iterator[zipfile.ZipFile | None]:
    """Yield the archive that a source is, None for a folder; refuse anything else, with `name`."""
    if source.is_dir():
        yield None
        return
    if not source.is_file():
        raise Refusal(
            f"{name} is {str(source)!r}, which is neither a folder nor a zip file; correct the path"
        )
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, LZMAError) as error:
        raise Refusal(
            f"{name} is {str(source)!r}, no sound zip file: {error}; fetch or make it anew"
        ) from None


@contextmanager
def unpacked(source: Path, target: Path, archive: zipfile.ZipFile | None) -> Iterator[Path]:
    """Yield the folder with a source's files: itself, or what is in the zip, as long as needed."""
    if archive is None:
        yield source
        return
    members = {
        place: info for place, info in zip_members(archive).items() if hidden_part(place) is None
    }
    check_sizes({place: info.file_size for place, info in members.items()}, source, target)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        copy_members(members, Path(folder), archive)
        yield Path(folder)


def copy_dataset(source: Path, target: Path, name: str) -> list[Geometry]:
    """Copy slices in TIFF from a folder or zip to `target`; `name` says who asked for it.

    Returns what a geometry.csv among them says.
    """
    with opened(source, name) as archive:
        return copy_slices(source, target, archive)


def bring_dataset(source: Path, target: Path, acquire: AcquireParams) -> list[Geometry]:
    """Write a data set in any layout to `target`, as slices; return where they lie in space."""
    with opened(source, "acquire.dataset") as archive:
        places = zip_members(archive) if archive else files_below(source)
        shown = [str(place) for place in places if hidden_part(PurePosixPath(place)) is None]
        layout = recognize(shown, source, acquire.layout)
        if layout == "slices":
            acquire.check_unread("slices in TIFF")
            return copy_slices(source, target, archive)
        with unpacked(source, target, archive) as folder:
            try:
                return convert_volumes(folder, target, layout, acquire)
            except Refusal as refusal:  # files are named by their place in the zip
                raise Refusal(str(refusal).replace(str(folder), str(source))) from None
