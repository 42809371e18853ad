"""Layouts of data sets: NIfTI as in BraTS, BIDS and nnU-Net, and TIFF slices.

A layout has two patterns of paths below the data set's folder, one for scans and one for masks. The
group `exam` is the examination that a file belongs to. The group `sequence` is the part of the name
that identifies the sequence, with the same words as in `segment`. To add a layout, add an entry to
LAYOUTS.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.refusals import Refusal, print_list, quantity, refuse
from scans.layout import not_utf8
from scans.nifti import is_nifti
from scans.nnunet import ANY_CHANNEL, Description
from scans.sequences import MAIN, NAMES, sequence_of


class Layout(NamedTuple):
    """The patterns of a layout, and a path as an example for messages."""

    title: str
    scans: re.Pattern[str]
    masks: re.Pattern[str]


def pattern(text: str) -> re.Pattern[str]:
    """Return a compiled pattern that ignores case."""
    return re.compile(text, re.IGNORECASE)


NIFTI = r"\.nii(?:\.gz)?"
SUBJECT = r"sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?"
ENTITIES = r"(?:[a-z]+-[^_/]+_)*"
RAW = r"(?!(?:.*/)?(?:derivatives|sourcedata|code)/)"
# Excludes masks of the brain, the head or a tissue, and masks of time series.
NON_LESION = r"(?!.*(?:label|desc)-(?:brain|head|skull|gm|wm|csf|tissue|aparc|aseg))(?!.*/func/)"
LAYOUTS = {
    "slices": Layout(
        "<patient>/<patient>_<number>.tif",
        pattern(r"(?:.*/)?(?P<exam>[^/]+)/[^/]+(?<!_mask)\.tiff?"),
        pattern(r"(?:.*/)?(?P<exam>[^/]+)/[^/]+_mask\.tiff?"),
    ),
    "brats": Layout(
        "<patient>/<patient>-t2f.nii.gz",
        pattern(rf"{RAW}(?:.*/)?(?P<exam>[^/]+)/(?P=exam)[-_](?P<sequence>[a-z0-9]+){NIFTI}"),
        pattern(rf"{RAW}(?:.*/)?(?P<exam>[^/]+)/(?P=exam)[-_]seg{NIFTI}"),
    ),
    "bids": Layout(
        "sub-<label>/anat/sub-<label>_FLAIR.nii.gz",
        pattern(
            rf"{RAW}(?:.*/)?anat/(?P<sequence>(?P<exam>{SUBJECT})_{ENTITIES}(?:FLAIR|T1w|T2w)){NIFTI}"
        ),
        pattern(
            rf"{NON_LESION}(?:.*/)?derivatives/.*(?P<exam>{SUBJECT})_{ENTITIES}"
            rf"(?:mask|(?<=label-lesion_)dseg|(?<=label-tumor_)dseg){NIFTI}"
        ),
    ),
    "nnunet": Layout(
        "imagesTr/<case>_0000.nii.gz",
        pattern(rf"(?:.*/)?imagesTr/(?P<exam>[^/]+)_(?P<sequence>\d{{4}}){NIFTI}"),
        pattern(rf"(?:.*/)?labelsTr/(?P<exam>[^/]+){NIFTI}"),
    ),
}


class Exam(NamedTuple):
    """The files of one examination."""

    name: str
    scans: dict[str, Path]  # by sequence, without missing ones
    mask: Path


class Files(NamedTuple):
    """The files of a data set in one layout."""

    scans: dict[str, dict[str, list[str]]]  # by examination and sequence
    masks: dict[str, list[str]]  # by examination
    unused: list[str]  # other NIfTI files


def files_in(name: str, places: Iterable[str], channels: Mapping[str, str]) -> Files:
    """Return which files are scans and which are masks in the layout `name`.

    `channels` has the names of nnU-Net's channels; it is empty for other layouts. TIFF slices count
    as FLAIR, because one file contains all sequences.
    """
    layout = LAYOUTS[name]
    scans: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    masks: dict[str, list[str]] = defaultdict(list)
    unused = []
    for place in places:
        if match := layout.masks.fullmatch(place):
            masks[match["exam"]].append(place)
            continue
        match = layout.scans.fullmatch(place)
        text = match.groupdict().get("sequence", "flair") if match else ""
        sequence = sequence_of(channels.get(text, text)).sequence
        if match and (sequence or channels):
            scans[match["exam"]][sequence or ""].append(place)
        elif is_nifti(PurePosixPath(place)):
            unused.append(place)
    return Files(scans, masks, unused)


def recognize(places: Iterable[str], source: Path, requested: str) -> str:
    """Return the name of the files' layout, and print it.

    `requested` is a layout's name or `auto`. Raises an error if no layout matches, or if several do
    and none is requested.
    """
    files = list(places)
    # The names of nnU-Net's channels do not matter yet; they are in dataset.json.
    by_layout = {
        name: files_in(name, files, ANY_CHANNEL if name == "nnunet" else {}) for name in LAYOUTS
    }
    counts = {name: len(layout_files.scans) for name, layout_files in by_layout.items()}
    found = {
        name: f"{name}: files such as {LAYOUTS[name].title} (examinations: {count})"
        for name, count in counts.items()
        if count
    }
    if requested != "auto" and requested not in found:
        problem = (
            f"acquire.layout is {requested}, but {source} has no files such as "
            f"{LAYOUTS[requested].title}"
        )
        raise Refusal("\n".join([problem, *(f"Found layout {text}" for text in found.values())]))
    if not found:
        kinds = ", ".join(sorted({PurePosixPath(place).suffix for place in files})[:8])
        titles = [f"  {name}: {layout.title}" for name, layout in LAYOUTS.items()]
        first = f"{source}: no data set found in {len(files)} files ({kinds}). Known layouts:"
        raise Refusal("\n".join([first, *titles, "docs/own-data.md has an example of each."]))
    if requested == "auto" and len(found) > 1:
        refuse(
            [f"{source} contains layout {text}" for text in found.values()],
            "Set acquire.layout to one of them, or acquire.dataset to a folder with only one.",
        )
    name = next(iter(found)) if requested == "auto" else requested
    print(f"{source}: layout {found[name]}; acquire.layout is {requested}")
    return name


def exam_problems(exam: str, found: Files, sequences: Sequence[str]) -> list[str]:
    """Return problems with the files of an examination: missing or ambiguous scans and masks."""
    scans, masks = found.scans.get(exam, {}), found.masks.get(exam, [])
    main = sequences[MAIN]
    candidates = [(NAMES[name], scans.get(name, [])) for name in dict.fromkeys(sequences)]
    problems = [
        f"{exam}: {len(places)} files could be {role}: {', '.join(places)}"
        for role, places in [*candidates, ("the mask", masks)]
        if len(places) > 1
    ]
    if main not in scans:
        present = ", ".join(NAMES[name] for name in scans if name) or "no scan"
        problems.append(f"{exam}: no {NAMES[main]}, only {present}")
    if not masks:
        unused = [place for place in found.unused if exam in PurePosixPath(place).parts]
        problems.append(
            f"{exam}: no mask" + "".join(f"; not recognized: {place}" for place in unused)
        )
    return problems


def list_exams(
    name: str, files: Mapping[str, Path], sequences: Sequence[str], description: Description | None
) -> list[Exam]:
    """Return the examinations of a data set in the layout `name`, sorted by name.

    `sequences` are those of the three channels; `description` is nnU-Net's dataset.json. Raises an
    error that lists broken links and names that are not UTF-8, or else all examinations without the
    main sequence, without a mask, or with several files for a sequence or the mask.
    """
    problems = [f"broken link: {place}" for place, path in files.items() if not path.exists()]
    problems += [
        f"name is not UTF-8: {place!r}" for place in files if not_utf8(PurePosixPath(place))
    ]
    if problems:
        refuse(
            problems,
            "Get the files that broken links point to, for example with `datalad get`; rename the "
            "others.",
        )
    found = files_in(name, files, description.channels if description else {})
    names = sorted({*found.scans, *found.masks})
    problems = [problem for exam in names for problem in exam_problems(exam, found, sequences)]
    if problems:
        refuse(
            problems,
            f"Expected one mask and one file per sequence, such as {LAYOUTS[name].title}. "
            "docs/own-data.md describes the layout.",
        )
    if name == "bids":  # can have several folders of masks
        folders = {places[0].partition("/sub-")[0] for places in found.masks.values()}
        print_list("folders of masks", sorted(folders))
    print_list(quantity(len(found.unused), "unused NIfTI file"), found.unused)
    return [
        Exam(
            exam,
            {
                sequence: files[places[0]]
                for sequence, places in found.scans[exam].items()
                if sequence in sequences
            },
            files[found.masks[exam][0]],
        )
        for exam in names
    ]
