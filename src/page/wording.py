"""Names and definitions of the scores, and other phrases of the report and the model card."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.refusals import quantity
from scans.sequences import MAIN, channel_of, short_name


class Score(NamedTuple):
    """A key of evaluate.json with its label and definition."""

    key: str
    label: str
    definition: str
    n: str  # the key that counts the patients or slices behind the score
    one_decimal: bool = False  # pixels, mm or mL; other scores are shares from 0 to 1


def read_scores() -> list[Score]:
    """Return the scores in score_labels.csv, in the order of the report's table."""
    text = Path(__file__).with_name("score_labels.csv").read_text(encoding="utf-8")
    return [
        Score(row["key"], row["label"], row["definition"], row["n"], bool(row["pixels"]))
        for row in csv.DictReader(text.splitlines())
    ]


SCORES = read_scores()

HEADLINE = ("dice_patient_mean", "dice_patient_median", "iou", "detection_auroc")

DEFINITIONS = {
    "slice_iou_empty_1": "mean IoU over slices, empty slices count as 1",
    "slice_iou_empty_0": "mean IoU over slices, empty slices count as 0",
    "slice_iou_abnormal": "mean IoU over abnormal slices",
    "slice_dice_empty_1": "mean Dice over slices, empty slices count as 1",
    "slice_dice_abnormal": "mean Dice over abnormal slices",
    "batch_iou": "mean IoU over batches of 16 slices",
    "micro_iou": "IoU over all pixels (micro)",
    "micro_dice": "Dice over all pixels (micro)",
    "mean_iou_with_background": "mean of tumor IoU and background IoU",
    "patient_iou_mean": "mean IoU over patients",
    "patient_dice_mean": "mean Dice over patients",
    "patient_dice_median": "median Dice over patients",
}


def describe_postprocessing(share: float) -> str:
    """Return which connected components `evaluate.component_share` removes; `share` is not 0."""
    if share == 1:
        return "all 3-D connected components except the patient's largest one are removed"
    return (
        f"3-D connected components below {100 * share:g} % of the patient's largest one are removed"
    )


def shown_sequences(sequences: Sequence[str]) -> dict[str, Any]:
    """Return the channel and name of each sequence, and the main one's name, for the viewer."""
    names = {
        name: short_name(name)[0].upper() + short_name(name)[1:] for name in channel_of(sequences)
    }
    return {
        "shown_sequences": [(index, names[name]) for name, index in channel_of(sequences).items()],
        "main_sequence": names[sequences[MAIN]],
    }


def channels_in_words(sequences: Sequence[str]) -> str:
    """Return which sequences a slice of three channels consists of, as a phrase."""
    names = [short_name(name) for name in channel_of(sequences)]
    if len(names) == 1:
        return f"one slice of {names[0]}, copied to three channels"
    number = {2: "two sequences", 3: "three sequences"}[len(names)]
    return f"one slice of {number} ({', '.join(names)})"


class FormattedScore(NamedTuple):
    """A score of one split, formatted for display."""

    value: float | None  # as stored; None if undefined
    text: str
    interval: str  # "0.579 to 0.721"; "" if there is none
    n: str


def formatted(value: float | None, *, one_decimal: bool = False) -> str:
    """Return a score with three decimals, or with one; "undefined" for None and NaN."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:,.1f}" if one_decimal else f"{value:.3f}"


def format_score(score: Score, values: dict[str, Any]) -> FormattedScore:
    """Return a score from one split's section of evaluate.json."""
    value, low, high = (values.get(f"{score.key}{end}") for end in ("", "_low", "_high"))
    numbers = values | {"n_slices_healthy": values["n_slices"] - values["n_slices_abnormal"]}
    patients, number = quantity(values["n_patients"], "patient"), numbers[score.n]
    n = f"{quantity(number, 'slice')} of {patients}"
    if "patients" in score.n:
        n = quantity(number, "patient")
    interval = ""
    if low is not None and high is not None:
        interval = " to ".join(formatted(end, one_decimal=score.one_decimal) for end in (low, high))
    return FormattedScore(value, formatted(value, one_decimal=score.one_decimal), interval, n)
