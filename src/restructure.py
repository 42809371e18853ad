"""Check the patients' folders, then copy all scans into one folder and all masks into another.

    python src/restructure.py data/raw data/slices/images data/slices/masks

A scan and its mask get the same file name, `<patient>_<number>.tif`. The files are copied
unchanged, so that DVC stores their content only once. All files are checked before the first is
written.
"""

import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.parallel import in_parallel
from pipeline.refusals import Refusal, quantity, refuse
from scans.layout import CLINICAL_FILE
from scans.names import SliceName, slice_path
from scans.tiff import read_image, read_mask

LAYOUT = (
    "Expected <patient>/<patient>_<number>.tif, <patient>/<patient>_<number>_mask.tif and "
    f"{CLINICAL_FILE}. Correct the files, then run `dvc repro -f acquire`."
)


@dataclass(frozen=True)
class Pair:
    """A scan and its mask in a patient's folder."""

    name: SliceName
    image: Path
    mask: Path


def find_pairs(patient: Path) -> tuple[list[Pair], list[str]]:
    """Return the pairs in a patient's folder, and one line for each problem with its files."""
    files: dict[tuple[int, bool], list[Path]] = defaultdict(list)
    problems = []
    for path in sorted(patient.iterdir()):
        name = SliceName.parse(path.name)
        if name is None or path.is_symlink() or not path.is_file():
            problems.append(f"not a slice: {path}")
        elif name.patient_id != patient.name:
            problems.append(f"slice of another patient: {path}")
        else:
            files[name.number, name.is_mask].append(path)
    problems += [
        "slice number twice: " + ", ".join(str(path) for path in paths)
        for paths in files.values()
        if len(paths) > 1
    ]
    pairs = []
    for number in sorted({number for number, _ in files}):
        images, masks = files.get((number, False)), files.get((number, True))
        if not masks:
            problems.append(f"scan without mask: {files[number, False][0]}")
        elif not images:
            problems.append(f"mask without scan: {masks[0]}")
        else:
            name = SliceName.parse(images[0].name)
            assert name is not None
            pairs.append(Pair(name, images[0], masks[0]))
    if not files:
        problems.append(f"patient without slices: {patient}")
    return pairs, problems


def pair_problem(pair: Pair) -> str | None:
    """Return what is wrong with the pixels of a pair, or None."""
    try:
        image, mask = read_image(pair.image), read_mask(pair.mask)
    except (Refusal, OSError) as error:
        return str(error)
    if image.shape[:2] != mask.shape:
        sizes = [f"{height}x{width}" for height, width in (image.shape[:2], mask.shape)]
        return f"{pair.mask}: mask of {sizes[1]} for a scan of {sizes[0]}"
    return None


def checked_pairs(raw: Path) -> list[Pair]:
    """Return all pairs of the data set, by patient and number; raise an error for any problem."""
    if not raw.is_dir():
        refuse([f"no folder of patients at {raw}"], LAYOUT)
    entries = sorted(raw.iterdir())
    patients = [path for path in entries if path.is_dir() and not path.is_symlink()]
    problems = [
        f"neither a patient's folder nor {CLINICAL_FILE}: {path}"
        for path in entries
        if path not in patients and path.name != CLINICAL_FILE
    ]
    if not patients:
        problems.append(f"no patient's folder in {raw}")
    pairs = []
    for patient in patients:
        patient_pairs, patient_problems = find_pairs(patient)
        pairs += patient_pairs
        problems += patient_problems
    pair_problems = in_parallel(pair_problem, pairs, "check", unit="slice")
    problems += [problem for problem in pair_problems if problem]
    if problems:
        refuse(problems, LAYOUT)
    return pairs


def main(raw: Path, images: Path, masks: Path) -> None:
    pairs = checked_pairs(raw)
    with replacing(images, masks) as folders:
        for folder in folders:
            folder.mkdir()
        for pair in pairs:
            shutil.copyfile(pair.image, slice_path(folders[0], pair.name.slice_id))
            shutil.copyfile(pair.mask, slice_path(folders[1], pair.name.slice_id))
    n_patients = len({pair.name.patient_id for pair in pairs})
    print(f"{quantity(len(pairs), 'slice')} of {quantity(n_patients, 'patient')}")


if __name__ == "__main__":
    run(main)
