"""What the scores are called, and how each is defined, in words for a person."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scans.sequences import MAIN, channel_of, short_name


class Score(NamedTuple):
    """A key of evaluate.json in words."""

    key: str
    label: str
    definition: str
    n: str  # the key of how many it is over
    pixels: bool = False  # in pixels, or as a count of them; else a share from 0 to 1


def read_scores() -> list[Score]:
    """Return the scores of the report's table, in its order, from score_labels.csv."""
    text = Path(__file__).with_name("score_labels.csv").read_text(encoding="utf-8")
    return [
        Score(row["key"], row["label"], row["definition"], row["n"], bool(row["pixels"]))
        for row in csv.DictReader(text.splitlines())
    ]


SCORES = read_scores()

HEADLINE = ("dice_patient_mean", "dice_patient_median", "iou", "detection_auroc")

DEFINITIONS = {
    "slice_iou_empty_1": "IoU, mean of slices, empty counts 1",
    "slice_iou_empty_0": "IoU, mean of slices, empty counts 0",
    "slice_iou_abnormal": "IoU, mean of abnormal slices",
    "slice_dice_empty_1": "Dice, mean of slices, empty counts 1",
    "slice_dice_abnormal": "Dice, mean of abnormal slices",
    "batch_iou": "IoU, mean of batches of 16 slices",
    "micro_iou": "IoU of all pixels (micro)",
    "micro_dice": "Dice of all pixels (micro)",
    "mean_iou_with_background": "IoU, mean of tumor and background",
    "patient_iou_mean": "IoU, mean of patients",
    "patient_dice_mean": "Dice, mean of patients",
    "patient_dice_median": "Dice, median of patients",
}


def kept_components(share: float) -> str:
    """Return in words which of a patient's tumor pixels are kept, where not all of them are."""
    if share == 1:
        return "of that each patient's largest connected component in 3-D"
    return (
        "of that each patient's connected components in 3-D of at least "
        f"{100 * share:g} % of the largest one's pixels"
    )


def shown_sequences(sequences: Sequence[str]) -> dict[str, Any]:
    """Return for the viewer the channel and name of each sequence, and the main one's name."""
    names = {
        name: short_name(name)[0].upper() + short_name(name)[1:] for name in channel_of(sequences)
    }
    return {
        "shown_sequences": [(at, names[name]) for name, at in channel_of(sequences).items()],
        "main_sequence": names[sequences[MAIN]],
    }


def channels_in_words(sequences: Sequence[str]) -> str:
    """Return what a slice of three channels consists of."""
    names = [short_name(name) for name in channel_of(sequences)]
    if len(names) == 1:
        return f"a slice of {names[0]}, three times"
    number = {2: "two sequences", 3: "three sequences"}[len(names)]
    return f"a slice of {number}, {', '.join(names[:-1])} and {names[-1]}"


class FormattedScore(NamedTuple):
    """A score of one split, as it is printed."""

    value: float | None  # as stored; None where it is undefined
    text: str
    interval: str  # "0.579 to 0.721"; "" where there is none
    n: str


def formatted(value: float | None, *, pixels: bool = False) -> str:
    """Return a score to three decimals, or pixels to one; "undefined" of None and NaN."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:,.1f}" if pixels else f"{value:.3f}"


def format_score(score: Score, values: dict[str, Any]) -> FormattedScore:
    """Return a score from the section of evaluate.json of one split."""
    value, low, high = (values.get(f"{score.key}{end}") for end in ("", "_low", "_high"))
    numbers = values | {"n_slices_healthy": values["n_slices"] - values["n_slices_abnormal"]}
    patients = f"{values['n_patients']:,} patients"
    number = f"{numbers[score.n]:,} "
    of_what = number + "patients" if "patients" in score.n else f"{number}slices of {patients}"
    interval = ""
    if low is not None and high is not None:
        interval = " to ".join(formatted(end, pixels=score.pixels) for end in (low, high))
    return FormattedScore(value, formatted(value, pixels=score.pixels), interval, of_what)
