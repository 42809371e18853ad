"""Which of the files that somebody has are the data set: patients' folders and data.csv.

    <patient>/<patient>_<number>.tif    <patient>/<patient>_<number>_mask.tif    data.csv

What is left out is named, and nothing is guessed where there are several candidates.
"""

import os
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.refusals import print_list, refuse

Member = TypeVar("Member", Path, zipfile.ZipInfo)  # a file of a folder or of a zip

CLINICAL_FILE = "data.csv"
GEOMETRY_FILE = "geometry.csv"  # optional
TABLES = (CLINICAL_FILE, GEOMETRY_FILE)
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}


def not_utf8(path: PurePosixPath) -> bool:
    """Return whether the file system's bytes of a name are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return True
    return False


def hidden_part(path: PurePosixPath) -> str | None:
    """Return the part of a path that an operating system or a program hides, if there is one."""
    return next((part for part in path.parts if part.startswith(".") or part in JUNK), None)


def raise_error(error: OSError) -> None:
    """Stop at a folder that cannot be read, which os.walk would pass over."""
    raise error


def files_below(folder: Path, *, skip: str | None = None) -> dict[str, Path]:
    """Return all files below a folder by their path in it, linked ones too, in order.

    Hidden ones are left out, and what is in a folder of the name `skip`. Links to files that are
    not there are among them.
    """
    found: dict[str, Path] = {}
    seen = set()
    for place, folders, names in os.walk(folder, onerror=raise_error, followlinks=True):
        real = os.path.realpath(place)
        within = PurePosixPath(Path(place).relative_to(folder).as_posix())
        entered = [each for each in folders if each != skip and hidden_part(within / each) is None]
        folders[:] = [] if real in seen else entered
        if real not in seen:
            seen.add(real)
            found |= {
                (within / name).as_posix(): Path(place) / name
                for name in names
                if hidden_part(within / name) is None
            }
    return dict(sorted(found.items()))


def normalized(members: Mapping[PurePosixPath, Member]) -> dict[PurePosixPath, Member]:
    """Return the members with accented letters composed, as in data.csv they may not be.

    Refuses names that are not UTF-8, and two that become one.
    """
    found: dict[PurePosixPath, Member] = {}
    problems = []
    for path, member in members.items():
        name = PurePosixPath(unicodedata.normalize("NFC", str(path)))
        if not_utf8(name):
            problems.append(f"a name that is not UTF-8: {os.fsencode(path)!r}")
        elif name in found:
            problems.append(f"twice, in two Unicode forms: {name}")
        found[name] = member
    if problems:
        refuse(problems, "Rename them.")
    return found


def root_of(places: Iterable[PurePosixPath]) -> PurePosixPath | None:
    """Return the folder that holds the patients' folders: the highest with folders of TIFF files.

    Further down there may be a second copy of it. Refuses any other folder of patients.
    """
    files: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
    for path in places:
        if path.suffix.lower() in (".tif", ".tiff") and len(path.parts) > 1:
            files[path.parent.parent].add(path.relative_to(path.parent.parent))
    if not files:
        return None
    ordered = sorted(files, key=lambda folder: (len(folder.parts), folder))
    root = ordered[0]
    apart = [
        folder
        for folder in ordered[1:]
        if root not in folder.parents and not files[folder] <= files[root]
    ]
    if apart:
        refuse(
            [f"a folder of patients: {path}" for path in (root, *apart)],
            "Which one is meant? Set acquire.dataset to one, or put all patients into one folder.",
        )
    return root


def layout_members(members: Mapping[PurePosixPath, Member]) -> dict[PurePosixPath, Member]:
    """Return the members of the data set by their place in it: patients' files and data.csv.

    Prints what is left out: hidden files, a second copy, files beside the patients' folders.
    """
    named = normalized(members)
    root = root_of([place for place in named if hidden_part(place) is None])
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
            apart = (set(path.parents) | {path}) - above
            left_out[str(min(apart, key=lambda folder: len(folder.parts)))] += 1
    print_list("left out", [f"{name}: {n} files" for name, n in sorted(left_out.items())])
    return chosen
