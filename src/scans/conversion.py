"""Convert the NIfTI files of an examination to TIFF slices, the format of this project's data."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.parallel import in_parallel
from pipeline.refusals import Refusal, print_list, quantity, refuse
from scans.alignment import eight_bit, on_one_grid
from scans.datasets import Exam
from scans.geometry import Geometry
from scans.nifti import open_nifti, read_nifti, stem
from scans.sequences import MAIN, NAMES
from scans.series import Axial, Series, corner_shifts

EXACT = 1e-3  # a label may differ from an integer by this
SAME_PLACE = 0.1  # the corners of a mask's and a scan's grid may differ by this, in voxels


Counts = tuple[tuple[int, int], ...]  # values of a mask, each with its number of voxels


class Converted(NamedTuple):
    """The result of converting an examination: facts about it, or the reason why it failed."""

    geometry: Geometry | None = None
    labels: Counts = ()
    notes: tuple[str, ...] = ()
    problem: str = ""


def same_grid(first: Series, second: Series) -> bool:
    """Return whether two volumes have the same shape, and their voxels the same positions."""
    if first.values.shape != second.values.shape:
        return False
    apart = np.linalg.norm(corner_shifts(first.affine, second.affine, first.values.shape), axis=0)
    return bool(apart.max() <= SAME_PLACE * min(first.voxel_size))


def read_labels(
    path: Path, main: Series, known: frozenset[int], notes: list[str]
) -> tuple[NDArray[np.int32], Counts]:
    """Return a mask's labels, (I, J, K), and the number of voxels with each label.

    Raise an error if the mask is not on the main sequence's grid, or has values that are not
    labels. `known` has all labels that the data set names; it is empty if the data set names none.
    """
    mask = read_nifti(path)
    notes += mask.notes
    if not same_grid(mask, main):
        sizes = [" x ".join(map(str, series.values.shape)) for series in (mask, main)]
        raise Refusal(
            f"{path}: the mask and {main.files[0]} are on different grids ({sizes[0]} and "
            f"{sizes[1]} voxels; if these are equal, the positions differ); resample the mask to "
            "that grid with nearest-neighbor interpolation"
        )
    labels: NDArray[np.int32] = np.rint(mask.values).astype(np.int32)
    values, counts = np.unique(labels, return_counts=True)
    if np.abs(labels - mask.values).max() > EXACT or values[0] < 0:
        raise Refusal(f"{path}: contains values that are not labels: fractions or negative numbers")
    if known and (unknown := sorted(set(values.tolist()) - known - {0})):
        raise Refusal(f"{path}: has labels {unknown}, which dataset.json does not name")
    return labels, tuple(zip(values.tolist(), counts.tolist(), strict=True))


def slice_thickness(path: Path) -> float | None:
    """Return the slice thickness in mm from a scan's BIDS JSON file; None if it is not there."""
    try:
        content = json.loads(path.with_name(f"{stem(path)}.json").read_text(encoding="utf-8"))
        return float(content["SliceThickness"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_slices(
    exam: Exam, sequences: Sequence[str]
) -> tuple[Series, NDArray[np.uint8], list[str]]:
    """Return the main series, axial slices (D, H, W, 3) with a sequence a channel, and notes."""
    main, notes = sequences[MAIN], list[str]()
    series = {name: read_nifti(path) for name, path in exam.scans.items()}
    volumes, _ = on_one_grid(series, notes, main=main, required=series)
    levels = {}
    for name, volume in volumes.items():
        found = eight_bit(volume)
        if found is not None:
            levels[name] = found
        elif name == main:
            raise Refusal(f"{exam.scans[main]}: all voxels have the same value")
        else:
            notes.append(f"{NAMES[name]} counts as missing: all its voxels have the same value")
    channels = [levels.get(name, levels[main]) for name in sequences]
    return series[main], np.stack(channels, axis=-1), notes


def convert(
    exam: Exam,
    target: Path,
    *,
    sequences: Sequence[str],
    counted: frozenset[int] | None,
    known: frozenset[int],
) -> Converted:
    """Write an examination's slices and masks into its folder in `target`, or return the problem.

    `sequences` has the sequence of each of the three channels. A voxel is tumor if its label is in
    `counted`, or is not 0 if `counted` is None. Slices are numbered from 1, inferior to superior.
    """
    try:
        main, images, notes = read_slices(exam, sequences)
        labels, counts = read_labels(exam.mask, main, known, notes)
    except Refusal as refusal:
        return Converted(problem=str(refusal))
    axial = Axial.of(main.affine)
    tumor = labels > 0 if counted is None else np.isin(labels, list(counted))
    folder = target / exam.name
    folder.mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(images, axial.turn(tumor), strict=True), start=1):
        path = folder / f"{exam.name}_{number}"
        Image.fromarray(image).save(f"{path}.tif")
        Image.fromarray(mask.astype(np.uint8) * 255).save(f"{path}_mask.tif")
    depth, height, width = (main.voxel_size[axis] for axis in axial.axes)
    first, second, third = main.values.shape
    geometry = Geometry(
        exam.name,
        *(depth, height, width),
        slice_thickness(exam.scans[sequences[MAIN]]),
        (first, second, third),
        main.affine,
    )
    return Converted(geometry, counts, tuple(f"{exam.name}: {note}" for note in notes))


def check_disk(exams: Sequence[Exam], target: Path, main: str) -> None:
    """Raise an error if the disk has no room for the slices: 4 bytes a voxel with the mask."""
    needed = 0
    for exam in exams:
        with suppress(Refusal):  # reported later, together with all other problems
            needed += 4 * math.prod(open_nifti(exam.scans[main]).shape[:3])
    free = shutil.disk_usage(target).free
    if needed > free:
        raise Refusal(
            f"the slices of {quantity(len(exams), 'volume')} need {needed / 1e9:.1f} GB, and the "
            f"disk has {free / 1e9:.1f} GB free; free some space, or move the project to a larger "
            "disk"
        )


def convert_all(
    exams: Sequence[Exam],
    target: Path,
    *,
    sequences: Sequence[str],
    labels: Literal["all"] | Sequence[int],
    known: frozenset[int],
) -> list[Geometry]:
    """Write the slices of all examinations into `target`; return the geometry of each.

    Print the number of voxels with each label. Raise an error that lists all files that cannot be
    read, or the `labels` that occur in no mask.
    """
    check_disk(exams, target, sequences[MAIN])
    counted = None if labels == "all" else frozenset(labels)
    work = partial(convert, target=target, sequences=sequences, counted=counted, known=known)
    done = in_parallel(work, exams, "read")
    problems = [result.problem for result in done if result.problem]
    if problems:
        refuse(problems, "Correct these files, or remove these patients.")
    totals = sum((Counter(dict(result.labels)) for result in done), Counter[int]())
    counts = [f"label {label}: {n:,} voxels" for label, n in sorted(totals.items())]
    absent = sorted((counted or set()) - totals.keys())
    if absent:
        refuse(
            counts,
            f"acquire.labels lists {absent}, but no mask contains them; correct params.yaml.",
        )
    tumor = "every label except 0" if counted is None else ", ".join(map(str, sorted(counted)))
    print_list(f"voxels by label in all masks; tumor is {tumor}", counts)
    print_list("warnings", [note for result in done for note in result.notes])
    return [result.geometry for result in done if result.geometry]
