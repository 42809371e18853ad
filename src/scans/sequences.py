"""Recognize the MRI sequence of a file by the words in its name or in a DICOM description.

The words come from BraTS, BIDS and common scanners. A name that matches no rule has no sequence.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

NAMES = {
    "flair": "FLAIR",
    "pre_contrast": "pre-contrast T1",
    "post_contrast": "post-contrast T1",
    "t2": "T2",
}

SHORT = {"pre_contrast": "pre-contrast", "post_contrast": "post-contrast"}
MAIN = 1  # the channel of the main sequence; see `channels`

# All words are in lower case. A name with one of these is not a scan, whatever its other words are.
NO_SCAN = {
    *("seg", "dseg", "mask", "label", "labels", "roi", "segmentation", "brainmask", "probability")
}
FLAIR = {"flair", "t2f", "t2flair", "flr", "darkfluid"}
T1 = {"t1", "t1w", "t1wi", "t1n", "t1pre", "t1se", "mprage", "mp2rage", "spgr", "bravo", "tfe"}
T1_CONTRAST = {"t1c", "t1ce", "t1gd", "t1post", "t1wce", "t1km", "t1contrast"}
# A T1 is post-contrast if a word in CONTRAST occurs anywhere, or a word in CONTRAST_AFTER_T1 occurs
# after the word for T1. Before it, `C` and `post` may belong to the patient or the session.
CONTRAST = {
    *("gd", "gad", "gado", "gadolinium", "contrast", "postcontrast", "postgd", "postgad", "km")
}
CONTRAST_AFTER_T1 = {"c", "ce", "post", "inj"}
NO_CONTRAST = {"pre", "native", "precontrast", "unenhanced"}
T2 = {"t2", "t2w", "t2wi"}
OTHERS = {
    *("dwi", "adc", "swi", "pha", "phase", "pd", "pdw", "bold", "asl", "dti", "perf"),
    *("dsc", "dce", "tof", "mra", "gre", "fieldmap", "mip"),
}
# Words for how a scan was made or processed. They do not identify the examination.
TECHNIQUE = {
    *("ax", "axial", "tra", "sag", "sagittal", "cor", "coronal", "2d", "3d", "se", "fse", "tse"),
    *("space", "cube", "vista", "fs", "brain", "reg", "registered", "bet", "n4", "to", "in", "op"),
}
ALONE = {"pre": "pre_contrast", "post": "post_contrast"}  # only if this is the whole name
WITHOUT = re.compile(r"\b(?:w/?o|without|no|non)[-_ ]*(?:contrast|gad\w*|gd|ce|inj\w*)\b")
BIDS_ENTITY = re.compile(r"(?:^|_)(?:sub|ses|space|desc|run|rec)-[^_]*")
BIDS_SUFFIX = {"flair": "flair", "t2w": "t2", "t1w": "pre_contrast"}


class Recognized(NamedTuple):
    """The sequence of a file, None if unknown, and the words by which it was recognized."""

    sequence: str | None
    words: str  # "" if no word was recognized
    guessed: bool = False  # from DICOM times rather than from a name
    is_scan: bool = True  # False for a mask


UNKNOWN = Recognized(None, "")


def channels(sequences: Sequence[str]) -> tuple[str, str, str]:
    """Return the sequence of each of an image's three channels.

    The main sequence is the second of two or three, or the only one. The slices are on its grid. It
    fills channels that have no sequence, and replaces sequences that a patient does not have.
    """
    first, main, last = (sequences[0], sequences[min(1, len(sequences) - 1)], sequences[-1])
    return first, main, last


def other_sequences(sequences: Sequence[str]) -> list[str]:
    """Return the sequences of three channels except the main one, in channel order."""
    return [name for name in dict.fromkeys(sequences) if name != sequences[MAIN]]


def channel_of(sequences: Sequence[str]) -> dict[str, int]:
    """Return the channel of each sequence, in channel order; for the main one, the middle one."""
    found = {name: index for index, name in enumerate(sequences)} | {sequences[MAIN]: MAIN}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def short_name(sequence: str) -> str:
    """Return the short name of a sequence, for places with little room."""
    return SHORT.get(sequence) or NAMES[sequence]


def missing_phrase(sequences: Sequence[str]) -> str:
    """Return missing sequences as a phrase, such as `pre and post-contrast`."""
    if list(sequences) == list(SHORT):
        return "pre and post-contrast"
    return " and ".join(map(short_name, sequences))


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case, without BIDS entities such as the subject."""
    text = WITHOUT.sub("unenhanced", name.lower().replace("_", " "))
    if name.startswith("sub-"):
        text = WITHOUT.sub("unenhanced", BIDS_ENTITY.sub("", name.lower()))
        text = re.sub(r"(?:^|_)ce-[^_]*", "_gadolinium", text)
    text = re.sub(r"dark[-_. ]fluid|\bda[-_ ]?fl\b", "darkfluid", text)
    return [word for word in re.split(r"[^a-z0-9]+", text) if word]


def first_position(words: list[str], known: set[str]) -> int:
    """Return the position of the first known word; the number of words if there is none."""
    return next((index for index, word in enumerate(words) if word in known), len(words))


def bids_sequence(name: str) -> Recognized | None:
    """Return the sequence of a BIDS name by its suffix; None if the name is not BIDS.

    A T1 is post-contrast if `ce-` names an agent or a word after `acq-` means contrast. Phase
    images have no sequence.
    """
    *parts, suffix = name.lower().split("_")
    if not name.startswith("sub-") or suffix not in BIDS_SUFFIX:
        return None
    entities = dict(part.split("-", 1) for part in parts if "-" in part)
    if entities.get("part", "mag") != "mag":
        return Recognized(None, f"part-{entities['part']}")
    agent = entities.get("ce", "none")
    words = set(re.split(r"[^a-z0-9]+", entities.get("acq", "")))
    enhanced = agent != "none" or not words.isdisjoint(CONTRAST | CONTRAST_AFTER_T1 | T1_CONTRAST)
    if suffix == "t1w" and enhanced:
        return Recognized("post_contrast", "t1w with contrast agent")
    return Recognized(BIDS_SUFFIX[suffix], suffix)


def sequence_of(name: str) -> Recognized:
    """Return the sequence that a file's name indicates."""
    if (found := bids_sequence(name)) is not None:
        return found
    words = words_of(name)
    no_scan, flair, t1 = (
        first_position(words, known) for known in (NO_SCAN, FLAIR, T1 | T1_CONTRAST)
    )
    if no_scan < len(words):
        return Recognized(None, words[no_scan], is_scan=False)
    if flair < t1:  # the first word decides: T1 FLAIR is a T1, and so is a T1 registered to FLAIR
        return Recognized("flair", words[flair])
    if t1 < len(words):
        agents = [word for word in words if word in CONTRAST]
        agents += [word for word in words[t1 + 1 :] if word in CONTRAST_AFTER_T1]
        if words[t1] in T1_CONTRAST or (agents and NO_CONTRAST.isdisjoint(words)):
            return Recognized("post_contrast", " ".join([words[t1], *agents[:1]]))
        return Recognized("pre_contrast", words[t1])
    t2, other = first_position(words, T2), first_position(words, OTHERS)
    if min(t2, other) < len(words):
        return Recognized("t2" if t2 < other else None, words[min(t2, other)])
    if len(words) == 1 and words[0] in ALONE:
        return Recognized(ALONE[words[0]], words[0])
    return UNKNOWN


def may_name_exam(word: str) -> bool:
    """Return whether a word of a file name may identify the patient or the examination."""
    known = (NO_SCAN, FLAIR, T1, T1_CONTRAST, CONTRAST, CONTRAST_AFTER_T1, NO_CONTRAST, T2, OTHERS)
    return not any(word in words for words in (*known, TECHNIQUE))
