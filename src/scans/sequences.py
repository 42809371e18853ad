"""Which MRI sequence a file holds, by the words in its name or in a DICOM description.

The words are those of BraTS, BIDS and common scanners. What no rule names has no sequence.
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

# Words in small letters. What has one of the first is no scan, whatever else it has.
NO_SCAN = {
    *("seg", "dseg", "mask", "label", "labels", "roi", "segmentation", "brainmask", "probability")
}
FLAIR = {"flair", "t2f", "t2flair", "flr", "darkfluid"}
T1 = {"t1", "t1w", "t1wi", "t1n", "t1pre", "t1se", "mprage", "mp2rage", "spgr", "bravo", "tfe"}
T1_CONTRAST = {"t1c", "t1ce", "t1gd", "t1post", "t1wce", "t1km", "t1contrast"}
# A T1 is without contrast agent unless a word tells of one: anywhere, or after the word for T1, for
# before it `C` and `post` may be of the patient or the session.
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
# Words that tell how a scan was made, not whose it is.
TECHNIQUE = {
    *("ax", "axial", "tra", "sag", "sagittal", "cor", "coronal", "2d", "3d", "se", "fse", "tse"),
    *("space", "cube", "vista", "fs", "brain", "reg", "registered", "bet", "n4", "to", "in", "op"),
}
ALONE = {"pre": "pre_contrast", "post": "post_contrast"}  # a name that is nothing but this
WITHOUT = re.compile(r"\b(?:w/?o|without|no|non)[-_ ]*(?:contrast|gad\w*|gd|ce|inj\w*)\b")
BIDS_ENTITY = re.compile(r"(?:^|_)(?:sub|ses|space|desc|run|rec)-[^_]*")
BIDS_SUFFIX = {"flair": "flair", "t2w": "t2", "t1w": "pre_contrast"}  # in small letters


class Recognized(NamedTuple):
    """The sequence that a name tells, None where it tells none, and the words that tell it."""

    sequence: str | None
    words: str  # "" where none is known
    guessed: bool = False  # from numbers, not from a name
    is_scan: bool = True  # not a mask


NOTHING = Recognized(None, "")


def channels(sequences: Sequence[str]) -> tuple[str, str, str]:
    """Return which sequence each of an image's three channels has.

    Of three sequences the second is the main one, of two the second, and of one that one: its grid
    is that of the slices, it fills the channels that are left, and stands in for what is missing.
    """
    first, main, last = (sequences[0], sequences[min(1, len(sequences) - 1)], sequences[-1])
    return first, main, last


def others(sequences: Sequence[str]) -> list[str]:
    """Return the sequences of three channels that are not the main one, in their order."""
    return [name for name in dict.fromkeys(sequences) if name != sequences[MAIN]]


def channel_of(sequences: Sequence[str]) -> dict[str, int]:
    """Return the channel of each sequence, in the order of channels; the main one has several."""
    found = {name: at for at, name in enumerate(sequences)} | {sequences[MAIN]: MAIN}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def short_name(sequence: str) -> str:
    """Return what a sequence is called where room is scarce."""
    return SHORT.get(sequence) or NAMES[sequence]


def lacking(sequences: Sequence[str]) -> str:
    """Return missing sequences as a phrase, such as `pre and post-contrast`."""
    if list(sequences) == list(SHORT):
        return "pre and post-contrast"
    return " and ".join(map(short_name, sequences))


def words_of(name: str) -> list[str]:
    """Return the words of a name in small letters, without what BIDS tells of other things."""
    text = WITHOUT.sub("unenhanced", name.lower().replace("_", " "))
    if name.startswith("sub-"):
        text = WITHOUT.sub("unenhanced", BIDS_ENTITY.sub("", name.lower()))
        text = re.sub(r"(?:^|_)ce-[^_]*", "_gadolinium", text)
    text = re.sub(r"dark[-_. ]fluid|\bda[-_ ]?fl\b", "darkfluid", text)
    return [word for word in re.split(r"[^a-z0-9]+", text) if word]


def first_of(words: list[str], known: set[str]) -> int:
    """Return where the first of the known words is; behind all words if there is none."""
    return next((at for at, word in enumerate(words) if word in known), len(words))


def bids_sequence(name: str) -> Recognized | None:
    """Return which sequence a name as in BIDS tells by its last part; None of another name.

    A T1 is with contrast agent if `ce-` names one, or a word after `acq-` tells of one. Images of
    the phase are of no sequence.
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
    """Return which sequence a name tells."""
    if (found := bids_sequence(name)) is not None:
        return found
    words = words_of(name)
    no_scan, flair, t1 = (first_of(words, each) for each in (NO_SCAN, FLAIR, T1 | T1_CONTRAST))
    if no_scan < len(words):
        return Recognized(None, words[no_scan], is_scan=False)
    if flair < t1:  # what comes first counts: T1 FLAIR is T1, and so is T1 brought to FLAIR
        return Recognized("flair", words[flair])
    if t1 < len(words):
        agents = [word for word in words if word in CONTRAST]
        agents += [word for word in words[t1 + 1 :] if word in CONTRAST_AFTER_T1]
        if words[t1] in T1_CONTRAST or (agents and NO_CONTRAST.isdisjoint(words)):
            return Recognized("post_contrast", " ".join([words[t1], *agents[:1]]))
        return Recognized("pre_contrast", words[t1])
    t2, other = first_of(words, T2), first_of(words, OTHERS)
    if min(t2, other) < len(words):
        return Recognized("t2" if t2 < other else None, words[min(t2, other)])
    if len(words) == 1 and words[0] in ALONE:
        return Recognized(ALONE[words[0]], words[0])
    return NOTHING


def tells_of_the_exam(word: str) -> bool:
    """Return whether a word of a name may tell whose scan it is, or when it was made."""
    known = (NO_SCAN, FLAIR, T1, T1_CONTRAST, CONTRAST, CONTRAST_AFTER_T1, NO_CONTRAST, T2, OTHERS)
    return not any(word in each for each in (*known, TECHNIQUE))
