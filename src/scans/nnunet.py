"""dataset.json of nnU-Net: which channel is which sequence, and which labels there are."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.refusals import Refusal, refuse
from scans.nifti import ENDINGS, stem
from scans.sequences import NAMES, Recognized, sequence_of

DESCRIPTION = "dataset.json"
UNREADABLE = (OSError, ArithmeticError, ValueError, AttributeError, TypeError, RecursionError)
# Names for all channels, before it is known which is which.
ANY_CHANNEL = {f"{number:04}": "flair" for number in range(100)}
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")  # the name of one sequence of a case


class Description(NamedTuple):
    """What dataset.json says, in the form of version 2 or of version 1."""

    channels: dict[str, str]  # the name of each channel by its four digits
    labels: frozenset[int]  # that may occur in masks; empty where it names none
    ignored: int | None  # the label of voxels that nobody has looked at
    n_cases: int | None  # in imagesTr
    ending: str | None  # of the files


def read_description(path: Path) -> Description:
    """Return what a dataset.json says; refuse one that says nothing of the kind."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        channels = content.get("channel_names") or content.get("modality") or {}
        named: dict[str, list[int]] = {}
        for key, value in (content.get("labels") or {}).items():
            in_key = str(key).isdigit()  # as version 1 has it
            numbers = [key] if in_key else value if isinstance(value, list) else [value]
            named[str(value if in_key else key)] = [int(number) for number in numbers]
        n_cases = content.get("numTraining")
        return Description(
            {f"{int(number):04}": str(name) for number, name in channels.items()},
            frozenset(number for numbers in named.values() for number in numbers),
            next(iter(named.get("ignore", [])), None),
            None if n_cases is None else int(n_cases),
            content.get("file_ending"),
        )
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise Refusal(
            f"{path}: cannot be read ({error}); channel_names and labels map names and numbers"
        ) from None


def channel_names(folder: Path) -> dict[str, str]:
    """Return the names of channels from dataset.json in a folder or in the one above it."""
    for place in (folder, folder.parent):
        try:
            return read_description(place / DESCRIPTION).channels
        except FileNotFoundError:
            continue
    return {}


def recognized_file(path: Path) -> Recognized:
    """Return which sequence a NIfTI file is: by dataset.json, else by its name."""
    match = CHANNEL.fullmatch(stem(path))
    name = channel_names(path.parent).get(match["channel"]) if match else None
    if name is None:
        return sequence_of(stem(path))
    found = sequence_of(name)
    return Recognized(found.sequence, f"{name} in {DESCRIPTION}")


def find_description(files: Mapping[str, Path], n_cases: int, main: str) -> Description:
    """Return what the one dataset.json of a data set says; refuse one that contradicts its files.

    `n_cases` are those in imagesTr; `main` is the sequence that has to be there.
    """
    found = [path for path in files.values() if path.name == DESCRIPTION]
    if len(found) != 1:
        raise Refusal(f"{len(found)} files named {DESCRIPTION}, not one: {[*map(str, found)]}")
    [path] = found
    description = read_description(path)
    problems = []
    if not description.channels:
        problems.append(f"{path}: no channel_names")
    elif main not in [sequence_of(name).sequence for name in description.channels.values()]:
        names = ", ".join(description.channels.values())
        problems.append(f"{path}: channel_names has no {NAMES[main]}, only {names}")
    if description.n_cases not in (None, n_cases):
        problems.append(
            f"{path}: numTraining is {description.n_cases}, and there are {n_cases} cases"
        )
    if description.ending not in (None, *ENDINGS):
        problems.append(f"{path}: file_ending is {description.ending!r}, not .nii.gz or .nii")
    if problems:
        refuse(problems, f"Correct {DESCRIPTION}.")
    return description
