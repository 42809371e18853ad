"""From the NIfTI files of an examination to slices in TIFF, as this project's data set has them."""

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
from pipeline.refusals import Refusal, print_list, refuse
from scans.alignment import eight_bit, on_one_grid
from scans.datasets import Exam
from scans.geometry import Geometry
from scans.nifti import opened, read_nifti, stem
from scans.sequences import MAIN, NAMES
from scans.series import Axial, Series, corner_shifts

EXACT = 1e-3  # by which a label may differ from a whole number
SAME_PLACE = 0.1  # voxels by which the corners of a mask's and a scan's grid may lie apart


Counts = tuple[tuple[int, int], ...]  # values of a mask, and how many voxels have each


class Converted(NamedTuple):
    """What is known of an examination once its slices are written, or why they are not."""

    geometry: Geometry | None = None
    labels: Counts = ()
    notes: tuple[str, ...] = ()
    problem: str = ""


def same_grid(one: Series, other: Series) -> bool:
    """Return whether two volumes have as many voxels, and those at the same places."""
    if one.values.shape != other.values.shape:
        return False
    apart = np.linalg.norm(corner_shifts(one.affine, other.affine, one.values.shape), axis=0)
    return bool(apart.max() <= SAME_PLACE * min(one.voxel_size))


def read_labels(
    path: Path, main: Series, known: frozenset[int], notes: list[str]
) -> tuple[NDArray[np.int32], Counts]:
    """Return a mask's labels (I, J, K) on the main sequence's grid, and how many voxels have each.

    Refuses a mask on another grid, and values that are no labels. `known` are all values that the
    data set has a name for; none where it says nothing of that.
    """
    mask = read_nifti(path)
    notes += mask.notes
    if not same_grid(mask, main):
        sizes = [" x ".join(map(str, each.values.shape)) for each in (mask, main)]
        raise Refusal(
            f"{path}: not on the grid of {main.files[0]} ({sizes[0]} and {sizes[1]} voxels, or "
            "other positions); resample it to that grid with nearest-neighbor interpolation"
        )
    labels: NDArray[np.int32] = np.rint(mask.values).astype(np.int32)
    values, counts = np.unique(labels, return_counts=True)
    if np.abs(labels - mask.values).max() > EXACT or values[0] < 0:
        raise Refusal(f"{path}: contains values that are not labels: fractions or negative ones")
    if known and (unknown := sorted(set(values.tolist()) - known - {0})):
        raise Refusal(f"{path}: has labels {unknown}, which dataset.json does not name")
    return labels, tuple(zip(values.tolist(), counts.tolist(), strict=True))


def slice_thickness(path: Path) -> float | None:
    """Return the slice thickness in mm from the JSON file that BIDS has beside a scan."""
    try:
        content = json.loads(path.with_name(f"{stem(path)}.json").read_text(encoding="utf-8"))
        return float(content["SliceThickness"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_slices(
    exam: Exam, sequences: Sequence[str]
) -> tuple[Series, NDArray[np.uint8], list[str]]:
    """Return the main series, axial slices (D, H, W, 3) of the sequences' channels, and notes."""
    main, notes = sequences[MAIN], list[str]()
    series = {name: read_nifti(path) for name, path in exam.scans.items()}
    volumes, _ = on_one_grid(series, notes, main=main, required=series)
    levels = {}
    for name, volume in volumes.items():
        found = eight_bit(volume)
        if found is not None:
            levels[name] = found
        elif name == main:
            raise Refusal(f"{exam.scans[main]}: all voxels are alike")
        else:
            notes.append(f"{NAMES[name]} is taken as missing: all its voxels are alike")
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
    """Write an examination's slices and masks into its folder in `target`, or say what is wrong.

    `sequences` are those of the three channels. Tumor is where the mask has one of the labels
    `counted`, or any but 0 if that is None. The slices are numbered from 1, from inferior to
    superior.
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
    """Refuse to begin where the slices do not fit on the disk: 4 bytes a voxel with the mask."""
    needed = 0
    for exam in exams:
        with suppress(Refusal):  # which is reported with all others
            needed += 4 * math.prod(opened(exam.scans[main]).shape[:3])
    free = shutil.disk_usage(target).free
    if needed > free:
        raise Refusal(
            f"{len(exams)} volumes become {needed / 1e9:.1f} GB of slices, and the disk has "
            f"{free / 1e9:.1f} GB free; free some, or move the project to a larger disk"
        )


def convert_all(
    exams: Sequence[Exam],
    target: Path,
    *,
    sequences: Sequence[str],
    labels: Literal["all"] | Sequence[int],
    known: frozenset[int],
) -> list[Geometry]:
    """Write the slices of all examinations into `target`; return where they lie in space.

    Prints how many voxels have which label. Refuses, all at once, what cannot be read, and `labels`
    that no mask has.
    """
    check_disk(exams, target, sequences[MAIN])
    counted = None if labels == "all" else frozenset(labels)
    work = partial(convert, target=target, sequences=sequences, counted=counted, known=known)
    done = in_parallel(work, exams, "read")
    problems = [each.problem for each in done if each.problem]
    if problems:
        refuse(problems, "Correct these files, or take their patients out.")
    totals = sum((Counter(dict(each.labels)) for each in done), Counter[int]())
    counts = [f"label {label}: {n:,} voxels" for label, n in sorted(totals.items())]
    absent = sorted((counted or set()) - totals.keys())
    if absent:
        refuse(counts, f"acquire.labels has {absent}, which no mask has; correct it.")
    taken = "all but 0" if counted is None else ", ".join(map(str, sorted(counted)))
    print_list(f"voxels by label in all masks; tumor is {taken}", counts)
    print_list("warnings", [note for each in done for note in each.notes])
    return [each.geometry for each in done if each.geometry]
