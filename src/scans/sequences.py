"""Which MRI sequence a file holds, by the words in its name or in a DICOM description.

The words are those of BraTS, BIDS and common scanners. What no rule names has no sequence.
"""

import re
from typing import NamedTuple

NAMES = {"flair": "FLAIR", "pre_contrast": "pre-contrast T1", "post_contrast": "post-contrast T1"}

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
OTHERS = {
    *("t2", "t2w", "dwi", "adc", "swi", "pha", "phase", "pd", "pdw", "bold", "asl", "dti", "perf"),
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


class Recognized(NamedTuple):
    """The sequence that a name tells, None where it tells none, and the words that tell it."""

    sequence: str | None
    words: str  # "" where none is known
    guessed: bool = False  # from numbers, not from a name
    is_scan: bool = True  # not a mask


NOTHING = Recognized(None, "")


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


def sequence_of(name: str) -> Recognized:
    """Return which sequence a name tells."""
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
    if (other := first_of(words, OTHERS)) < len(words):
        return Recognized(None, words[other])
    if len(words) == 1 and words[0] in ALONE:
        return Recognized(ALONE[words[0]], words[0])
    return NOTHING


def tells_of_the_exam(word: str) -> bool:
    """Return whether a word of a name may tell whose scan it is, or when it was made."""
    known = (NO_SCAN, FLAIR, T1, T1_CONTRAST, CONTRAST, CONTRAST_AFTER_T1, NO_CONTRAST, OTHERS)
    return not any(word in each for each in (*known, TECHNIQUE))
