"""Find the data set among a user's files: the patients' folders and data.csv.

    <patient>/<patient>_<number>.tif    <patient>/<patient>_<number>_mask.tif    data.csv

All skipped files are listed. If there are several candidates, an error asks the user to choose.
"""

import os
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.refusals import print_list, quantity, refuse

Member = TypeVar("Member", Path, zipfile.ZipInfo)  # a file of a folder or of a zip

CLINICAL_FILE = "data.csv"
GEOMETRY_FILE = "geometry.csv"  # optional
TABLES = (CLINICAL_FILE, GEOMETRY_FILE)
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}


def not_utf8(path: PurePosixPath) -> bool:
    """Return whether a path is not valid UTF-8 on disk."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return True
    return False


def hidden_part(path: PurePosixPath) -> str | None:
    """Return the first part of a path that is hidden or made by an operating system, or None."""
    return next((part for part in path.parts if part.startswith(".") or part in JUNK), None)


def raise_error(error: OSError) -> None:
    """Raise the error of a folder that cannot be read; by default os.walk ignores it."""
    raise error


def files_below(folder: Path, *, skip: str | None = None) -> dict[str, Path]:
    """Return all files below a folder by relative path, sorted.

    Links are followed; broken links are included. Hidden files and folders named `skip` are left
    out.
    """
    found: dict[str, Path] = {}
    seen = set()
    for place, folders, names in os.walk(folder, onerror=raise_error, followlinks=True):
        real = os.path.realpath(place)
        within = PurePosixPath(Path(place).relative_to(folder).as_posix())
        visible = [name for name in folders if name != skip and hidden_part(within / name) is None]
        folders[:] = [] if real in seen else visible
        if real not in seen:
            seen.add(real)
            found |= {
                (within / name).as_posix(): Path(place) / name
                for name in names
                if hidden_part(within / name) is None
            }
    return dict(sorted(found.items()))


def normalize_paths(members: Mapping[PurePosixPath, Member]) -> dict[PurePosixPath, Member]:
    """Return the members by path in Unicode form NFC, in which accented letters are composed.

    Raises an error for names that are not UTF-8, and for two names that become the same.
    """
    found: dict[PurePosixPath, Member] = {}
    problems = []
    for path, member in members.items():
        name = PurePosixPath(unicodedata.normalize("NFC", str(path)))
        if not_utf8(name):
            problems.append(f"name is not UTF-8: {os.fsencode(path)!r}")
        elif name in found:
            problems.append(f"two names differ only in their Unicode form: {name}")
        found[name] = member
    if problems:
        refuse(problems, "Rename these files.")
    return found


def find_root(places: Iterable[PurePosixPath]) -> PurePosixPath | None:
    """Return the folder that contains the patients' folders; None if there are no TIFF files.

    It is the topmost folder that has subfolders with TIFF files. Below it there may be a second
    copy of the data set; any other folder of patients is an error.
    """
    files: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
    for path in places:
        if path.suffix.lower() in (".tif", ".tiff") and len(path.parts) > 1:
            files[path.parent.parent].add(path.relative_to(path.parent.parent))
    if not files:
        return None
    ordered = sorted(files, key=lambda folder: (len(folder.parts), folder))
    root = ordered[0]
    others = [
        folder
        for folder in ordered[1:]
        if root not in folder.parents and not files[folder] <= files[root]
    ]
    if others:
        refuse(
            [f"a folder of patients: {path}" for path in (root, *others)],
            "Set acquire.dataset to one of these folders, or put all patients into one folder.",
        )
    return root


def layout_members(members: Mapping[PurePosixPath, Member]) -> dict[PurePosixPath, Member]:
    """Return the members of the data set by their path in it: patients' files and data.csv.

    Prints which members are left out: hidden files, a second copy, and files outside the patients'
    folders.
    """
    named = normalize_paths(members)
    root = find_root([place for place in named if hidden_part(place) is None])
    if root is None:
        return {}
    above = set(root.parents) | {root}
    chosen: dict[PurePosixPath, Member] = {}
    left_out: Counter[str] = Counter()
    for path, member in named.items():
        if (hidden := hidden_part(path)) is not None:
            left_out["._*" if hidden.startswith("._") else hidden] += 1
        elif path.is_relative_to(root) and (path.parent != root or path.name in TABLES):
            chosen[path.relative_to(root)] = member
        else:
            outside = (set(path.parents) | {path}) - above
            left_out[str(min(outside, key=lambda folder: len(folder.parts)))] += 1
    print_list(
        "left out", [f"{name}: {quantity(n, 'file')}" for name, n in sorted(left_out.items())]
    )
    return chosen
