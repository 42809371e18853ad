"""Import a user's data set, a folder or a zip, as TIFF slices.

TIFF slices are copied unchanged. NIfTI files in any known layout are converted to TIFF slices.
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

MAX_FILE_SIZE = 2**28  # bytes; a slice of 4096 x 4096 pixels has 50 MB
LAYOUT = f"Expected <patient>/<patient>_<number>.tif, their _mask.tif, and {CLINICAL_FILE}."


def folder_members(folder: Path) -> dict[PurePosixPath, Path]:
    """Return the files below a folder by relative path.

    Raises an error for empty folders and for anything that is not a regular file, such as a link.
    """
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
        refuse(
            problems,
            "Replace links by the files themselves; remove anything else that is listed here.",
        )
    return members


def zip_members(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of a zip by path.

    A backslash also separates folders, because Windows PowerShell writes zips that way. Raises an
    error for paths that lead outside the zip, for encrypted files, and for duplicate paths.
    """
    names = {info: info.filename.replace("\\", "/") for info in archive.infolist()}
    paths = {info: PurePosixPath(name) for info, name in names.items() if name[-1:] != "/"}
    counts = Counter(paths.values())
    problems = [f"more than once in the zip: {path}" for path, count in counts.items() if count > 1]
    for info, path in paths.items():
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
            problems.append(f"path leads outside the zip: {info.filename}")
        elif info.flag_bits & 0x1 and hidden_part(path) is None:
            problems.append(f"encrypted: {info.filename}")
    if problems:
        refuse(problems, f"Create {archive.filename} again, without these problems.")
    return {path: info for info, path in paths.items()}


def copy_members(
    members: Mapping[PurePosixPath, Member], target: Path, archive: zipfile.ZipFile | None = None
) -> None:
    """Copy the members of a folder or zip to their paths below `target`."""
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
    """Raise an error if a source, such as a zip bomb, needs more space than the disk has free."""
    size, free = sum(sizes.values()), shutil.disk_usage(target.parent).free
    if size > free:
        raise Refusal(
            f"{source} needs {size / 1e9:.1f} GB, but only {free / 1e9:.1f} GB of the disk are "
            "free. Free some space, or check where the data set comes from."
        )


def check_slices(sizes: Mapping[PurePosixPath, int], source: Path) -> None:
    """Raise an error if a file is too large for a slice."""
    problems = [
        f"{source}: {place} is {size / 1e9:.1f} GB, too large for a slice"
        for place, size in sorted(sizes.items())
        if size > MAX_FILE_SIZE
    ]
    if problems:
        refuse(problems, "Check where the data set comes from.")


def copy_slices(source: Path, target: Path, archive: zipfile.ZipFile | None) -> list[Geometry]:
    """Copy the patients' slices and data.csv to `target`; return the rows of geometry.csv, if any.

    If data.csv is missing, it is created with the patients' names.
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
        raise Refusal(f"{source}: no folder contains TIFF files. {LAYOUT}")
    check_slices(sizes, source)
    check_sizes(sizes, source, target)
    copy_members(members, target, archive)
    if PurePosixPath(CLINICAL_FILE) not in members:
        names = sorted(path.name for path in target.iterdir() if path.is_dir())
        write_rows(target / CLINICAL_FILE, [{"Patient": name} for name in names])
        print(f"{source} has no {CLINICAL_FILE}, so only the names of the patients are known")
    return pop_geometry(source, target)


def pop_geometry(source: Path, target: Path) -> list[Geometry]:
    """Return the rows of a copied geometry.csv, if there is one, and delete that copy."""
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
        refuse(
            [f"{GEOMETRY_FILE}: no patient {name}" for name in unknown], f"Correct {GEOMETRY_FILE}."
        )
    return list(rows.values())


def convert_volumes(
    source: Path, target: Path, layout: str, acquire: AcquireParams
) -> list[Geometry]:
    """Write a folder's NIfTI files as slices, and data.csv; return the geometry of each volume."""
    from scans.conversion import convert_all  # imported late: only NIfTI needs it

    files, sequences, description = files_below(source), acquire.channels, None
    if layout == "nnunet":
        n_cases = len(files_in(layout, files, ANY_CHANNEL).scans)
        description = find_description(files, n_cases, sequences[MAIN])
        if description.ignored is not None and acquire.labels == "all":
            raise Refusal(
                f"{DESCRIPTION} marks voxels to ignore with label {description.ignored}. Set "
                "acquire.labels to the labels that are tumor."
            )
    exams = list_exams(layout, files, sequences, description)
    clinical = clinical_rows(layout, [exam.name for exam in exams], files)
    known = description.labels if description else frozenset[int]()
    target.mkdir(parents=True)
    rows = convert_all(exams, target, sequences=sequences, labels=acquire.labels, known=known)
    write_rows(target / CLINICAL_FILE, clinical)
    return rows


@contextmanager
def open_archive(source: Path, name: str) -> Iterator[zipfile.ZipFile | None]:
    """Yield a zip, opened, or None for a folder; raise an error for anything else.

    `name` is the setting that names the source; the error mentions it.
    """
    if source.is_dir():
        yield None
        return
    if not source.is_file():
        raise Refusal(
            f"{name} is {str(source)!r}, which is neither a folder nor a zip file. Correct "
            "the path."
        )
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, LZMAError) as error:
        raise Refusal(
            f"{name} is {str(source)!r}, which is not a valid zip file ({error}). Download it or "
            "create it again."
        ) from None


@contextmanager
def unpacked(source: Path, target: Path, archive: zipfile.ZipFile | None) -> Iterator[Path]:
    """Yield the folder with a source's files: the source or a temporary copy of the zip's files."""
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
    """Copy TIFF slices from a folder or zip to `target`; return the rows of geometry.csv, if any.

    `name` is the setting that names the source.
    """
    with open_archive(source, name) as archive:
        return copy_slices(source, target, archive)


def import_dataset(source: Path, target: Path, acquire: AcquireParams) -> list[Geometry]:
    """Write a data set in any known layout to `target` as slices; return the known geometries."""
    with open_archive(source, "acquire.dataset") as archive:
        places = zip_members(archive) if archive else files_below(source)
        visible = [str(place) for place in places if hidden_part(PurePosixPath(place)) is None]
        layout = recognize(visible, source, acquire.layout)
        if layout == "slices":
            acquire.check_nifti_params("TIFF slices")
            return copy_slices(source, target, archive)
        with unpacked(source, target, archive) as folder:
            try:
                return convert_volumes(folder, target, layout, acquire)
            except Refusal as refusal:  # name the zip, not its temporary copy
                raise Refusal(str(refusal).replace(str(folder), str(source))) from None
