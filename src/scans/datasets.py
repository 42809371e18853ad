"""How data sets of NIfTI files are laid out: BraTS, BIDS and nnU-Net, and slices in TIFF.

A layout is two patterns of paths below the data set's folder, one of the scans and one of the
masks. `exam` is the examination that a file belongs to, `what` the part of the name that tells the
sequence, by the same words as in `segment`. To add a layout, add a pair of patterns to LAYOUTS.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.refusals import Refusal, print_list, refuse
from scans.layout import not_utf8
from scans.nifti import is_nifti
from scans.nnunet import ANY_CHANNEL, Description
from scans.sequences import MAIN, NAMES, sequence_of


class Layout(NamedTuple):
    """The patterns of a layout, and what it looks like to a person."""

    title: str
    scans: re.Pattern[str]
    masks: re.Pattern[str]


def pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of paths, whatever the case of their letters."""
    return re.compile(text, re.IGNORECASE)


NIFTI = r"\.nii(?:\.gz)?"
SUBJECT = r"sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?"
ENTITIES = r"(?:[a-z]+-[^_/]+_)*"
RAW = r"(?!(?:.*/)?(?:derivatives|sourcedata|code)/)"
# Excludes masks of the brain, the head or a tissue, and those of time series.
NO_LESION = r"(?!.*(?:label|desc)-(?:brain|head|skull|gm|wm|csf|tissue|aparc|aseg))(?!.*/func/)"
LAYOUTS = {
    "slices": Layout(
        "<patient>/<patient>_<number>.tif",
        pattern(r"(?:.*/)?(?P<exam>[^/]+)/[^/]+(?<!_mask)\.tiff?"),
        pattern(r"(?:.*/)?(?P<exam>[^/]+)/[^/]+_mask\.tiff?"),
    ),
    "brats": Layout(
        "<patient>/<patient>-t2f.nii.gz",
        pattern(rf"{RAW}(?:.*/)?(?P<exam>[^/]+)/(?P=exam)[-_](?P<what>[a-z0-9]+){NIFTI}"),
        pattern(rf"{RAW}(?:.*/)?(?P<exam>[^/]+)/(?P=exam)[-_]seg{NIFTI}"),
    ),
    "bids": Layout(
        "sub-<label>/anat/sub-<label>_FLAIR.nii.gz",
        pattern(
            rf"{RAW}(?:.*/)?anat/(?P<what>(?P<exam>{SUBJECT})_{ENTITIES}(?:FLAIR|T1w|T2w)){NIFTI}"
        ),
        pattern(
            rf"{NO_LESION}(?:.*/)?derivatives/.*(?P<exam>{SUBJECT})_{ENTITIES}"
            rf"(?:mask|(?<=label-lesion_)dseg|(?<=label-tumor_)dseg){NIFTI}"
        ),
    ),
    "nnunet": Layout(
        "imagesTr/<case>_0000.nii.gz",
        pattern(rf"(?:.*/)?imagesTr/(?P<exam>[^/]+)_(?P<what>\d{{4}}){NIFTI}"),
        pattern(rf"(?:.*/)?labelsTr/(?P<exam>[^/]+){NIFTI}"),
    ),
}


class Exam(NamedTuple):
    """The files of one examination."""

    name: str
    scans: dict[str, Path]  # by sequence, as far as there are
    mask: Path


class Files(NamedTuple):
    """The files of a data set in one layout."""

    scans: dict[str, dict[str, list[str]]]  # by examination and sequence
    masks: dict[str, list[str]]  # by examination
    rest: list[str]  # NIfTI of neither kind


def files_in(name: str, places: Iterable[str], channels: Mapping[str, str]) -> Files:
    """Return which files are scans and masks in the layout of that name.

    `channels` has the names of nnU-Net's channels. Slices in TIFF have all sequences.
    """
    layout = LAYOUTS[name]
    scans: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    masks: dict[str, list[str]] = defaultdict(list)
    rest = []
    for place in places:
        if match := layout.masks.fullmatch(place):
            masks[match["exam"]].append(place)
            continue
        match = layout.scans.fullmatch(place)
        what = match.groupdict().get("what", "flair") if match else ""
        sequence = sequence_of(channels.get(what, what)).sequence
        if match and (sequence or channels):
            scans[match["exam"]][sequence or ""].append(place)
        elif is_nifti(PurePosixPath(place)):
            rest.append(place)
    return Files(scans, masks, rest)


def recognize(places: Iterable[str], source: Path, asked: str) -> str:
    """Return the name of the layout of files, and print why; refuse none and several."""
    files = list(places)
    # Whatever the channels of nnU-Net are called: that is in a file.
    known = {
        name: files_in(name, files, ANY_CHANNEL if name == "nnunet" else {}) for name in LAYOUTS
    }
    counts = {name: len(each.scans) for name, each in known.items()}
    found = [name for name, count in counts.items() if count]
    seen = {name: f"{name}: {counts[name]} examinations as {LAYOUTS[name].title}" for name in found}
    if asked != "auto" and asked not in found:
        wanted = (
            f"{source}: nothing as {LAYOUTS[asked].title}, which acquire.layout: {asked} asks for"
        )
        raise Refusal("\n".join([wanted, *(f"It has {each}" for each in seen.values())]))
    if not found:
        kinds = ", ".join(sorted({PurePosixPath(place).suffix for place in files})[:8])
        titles = [f"  {name}: {layout.title}" for name, layout in LAYOUTS.items()]
        first = f"{source}: no data set in {len(files)} files ({kinds}). Known layouts are:"
        raise Refusal("\n".join([first, *titles, "docs/own-data.md shows each with an example."]))
    if asked == "auto" and len(found) > 1:
        refuse(
            [f"{source}: may be {each}" for each in seen.values()],
            "Say which: set acquire.layout to one of them, or acquire.dataset to a folder of one.",
        )
    name = found[0] if asked == "auto" else asked
    print(f"{source}: read as {seen[name]} (acquire.layout: {asked})")
    return name


def exam_problems(exam: str, found: Files, sequences: Sequence[str]) -> list[str]:
    """Return what keeps an examination from being read: files that are missing or too many."""
    own, masks = found.scans.get(exam, {}), found.masks.get(exam, [])
    main = sequences[MAIN]
    several = [(NAMES[each], own.get(each, [])) for each in dict.fromkeys(sequences)]
    problems = [
        f"{exam}: {len(places)} files may be {what}: {', '.join(places)}"
        for what, places in [*several, ("the mask", masks)]
        if len(places) > 1
    ]
    if main not in own:
        seen = ", ".join(NAMES[each] for each in own if each) or "no scan"
        problems.append(f"{exam}: no {NAMES[main]}, only {seen}")
    if not masks:
        unused = [place for place in found.rest if exam in PurePosixPath(place).parts]
        problems.append(
            f"{exam}: no mask" + "".join(f"; not recognized: {each}" for each in unused)
        )
    return problems


def list_exams(
    name: str, files: Mapping[str, Path], sequences: Sequence[str], description: Description | None
) -> list[Exam]:
    """Return the examinations of a data set in the layout of that name, in the order of names.

    `sequences` are those of the three channels, `description` is nnU-Net's. Refuses, all at once,
    examinations without the main sequence, without a mask, with several files for one sequence, or
    with several masks; also links to nothing and names that are not UTF-8.
    """
    problems = [
        f"a link to a file that is not there: {each}" for each in files if not files[each].exists()
    ]
    problems += [f"not UTF-8: {each!r}" for each in files if not_utf8(PurePosixPath(each))]
    if problems:
        refuse(
            problems, "Fetch what is missing, for example with `datalad get`, and rename the rest."
        )
    found = files_in(name, files, description.channels if description else {})
    names = sorted({*found.scans, *found.masks})
    problems = [problem for exam in names for problem in exam_problems(exam, found, sequences)]
    if problems:
        refuse(
            problems,
            f"Expected {LAYOUTS[name].title}, one file for each sequence, and one mask; "
            "docs/own-data.md shows the whole layout.",
        )
    if name == "bids":  # which may have several folders of masks
        folders = {places[0].partition("/sub-")[0] for places in found.masks.values()}
        print_list("masks are from", sorted(folders))
    print_list(f"{len(found.rest)} files are not used", found.rest)
    return [
        Exam(
            exam,
            {each: files[own[0]] for each, own in found.scans[exam].items() if each in sequences},
            files[found.masks[exam][0]],
        )
        for exam in names
    ]
