"""Read nnU-Net's dataset.json, which names the sequence of each channel and the labels."""

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
# Placeholder names for all channels, used before dataset.json is read.
ANY_CHANNEL = {f"{number:04}": "flair" for number in range(100)}
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")  # file name without its ending


class Description(NamedTuple):
    """The content of dataset.json, read from format version 1 or 2."""

    channels: dict[str, str]  # the name of each channel by its four digits
    labels: frozenset[int]  # allowed in masks; empty if dataset.json names none
    ignored: int | None  # the label of voxels to ignore
    n_cases: int | None  # in imagesTr
    ending: str | None  # file name extension


def read_description(path: Path) -> Description:
    """Return the content of a dataset.json; raise an error if it cannot be interpreted."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        channels = content.get("channel_names") or content.get("modality") or {}
        named: dict[str, list[int]] = {}
        for key, value in (content.get("labels") or {}).items():
            in_key = str(key).isdigit()  # format version 1
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
            f"{path}: cannot be read ({error}). channel_names and labels must map names to "
            "numbers, or numbers to names."
        ) from None


def channel_names(folder: Path) -> dict[str, str]:
    """Return the names of channels from dataset.json in a folder or its parent; empty if none."""
    for place in (folder, folder.parent):
        try:
            return read_description(place / DESCRIPTION).channels
        except FileNotFoundError:
            continue
    return {}


def recognize_file(path: Path) -> Recognized:
    """Return which sequence a NIfTI file is, by dataset.json if possible, else by its name."""
    match = CHANNEL.fullmatch(stem(path))
    name = channel_names(path.parent).get(match["channel"]) if match else None
    if name is None:
        return sequence_of(stem(path))
    found = sequence_of(name)
    return Recognized(found.sequence, f"{name} in {DESCRIPTION}")


def find_description(files: Mapping[str, Path], n_cases: int, main: str) -> Description:
    """Return the content of a data set's only dataset.json, checked against the files.

    `n_cases` is the number of cases in imagesTr; `main` is the required sequence. Raises an error
    if dataset.json contradicts them, or if there is not exactly one.
    """
    found = [path for path in files.values() if path.name == DESCRIPTION]
    if len(found) != 1:
        raise Refusal(
            f"expected one file named {DESCRIPTION}, found {len(found)}: {[*map(str, found)]}"
        )
    [path] = found
    description = read_description(path)
    problems = []
    if not description.channels:
        problems.append(f"{path}: channel_names is missing")
    elif main not in [sequence_of(name).sequence for name in description.channels.values()]:
        names = ", ".join(description.channels.values())
        problems.append(f"{path}: channel_names has no {NAMES[main]}, only {names}")
    if description.n_cases not in (None, n_cases):
        problems.append(
            f"{path}: numTraining is {description.n_cases}, but there are {n_cases} cases"
        )
    if description.ending not in (None, *ENDINGS):
        problems.append(f"{path}: file_ending is {description.ending!r}, not .nii.gz or .nii")
    if problems:
        refuse(problems, f"Correct {DESCRIPTION}.")
    return description
