"""What the scores are called, and how each is defined, in words for a person."""

import math
from typing import Any, NamedTuple


class Score(NamedTuple):
    """A key of evaluate.json in words."""

    key: str
    label: str
    definition: str
    n: str  # the key of how many it is over
    pixels: bool = False  # in pixels, or as a count of them; else a share from 0 to 1


SCORES = (
    Score(
        "dice_patient_mean",
        "Dice by patient, mean",
        "2 |P ∩ R| / (|P| + |R|) of a patient's prediction P and reference R, all slices together",
        "n_patients_dice",
    ),
    Score(
        "dice_patient_median",
        "Dice by patient, median",
        "that of the patient in the middle of their order",
        "n_patients_dice",
    ),
    Score(
        "iou_patient_mean",
        "IoU by patient, mean",
        "|P ∩ R| / |P ∪ R| of each patient, all slices together",
        "n_patients_dice",
    ),
    Score("iou", "IoU", "over all pixels of the split together (micro)", "n_slices"),
    Score("precision", "Precision", "share of predicted pixels that are tumor", "n_slices"),
    Score("recall", "Recall", "share of tumor pixels that are predicted", "n_slices"),
    Score(
        "iou_slice_abnormal",
        "IoU by abnormal slice",
        "mean over the slices that hold tumor",
        "n_slices_abnormal",
    ),
    Score(
        "surface_dice_slice_mean",
        "Surface Dice",
        "share of both borders within 1 pixel of each other, in 2-D, mean over the slices where "
        "either has tumor; 0 where only one has",
        "n_slices_surface_dice",
    ),
    Score(
        "hd95_slice_mean",
        "Hausdorff distance, 95 %",
        "pixels, in 2-D, mean over the slices where prediction and reference both have tumor",
        "n_slices_hd95",
        pixels=True,
    ),
    Score(
        "fp_area_slice_healthy",
        "False area of healthy slices",
        "pixels wrongly predicted, mean over the slices without tumor",
        "n_slices_healthy",
        pixels=True,
    ),
    Score(
        "area_bias",
        "Area, bias",
        "pixels, predicted less reference, mean over abnormal slices",
        "n_slices_abnormal",
        pixels=True,
    ),
    Score(
        "area_limit_lower",
        "Area, lower limit of agreement",
        "pixels, bias less 1.96 standard deviations, slices taken for independent",
        "n_slices_abnormal",
        pixels=True,
    ),
    Score(
        "area_limit_upper",
        "Area, upper limit of agreement",
        "pixels, bias and 1.96 standard deviations, slices taken for independent",
        "n_slices_abnormal",
        pixels=True,
    ),
    Score(
        "detection_auroc",
        "Detection, AUROC",
        "telling abnormal slices from healthy ones by a slice's highest probability",
        "n_slices",
    ),
    Score(
        "detection_average_precision",
        "Detection, average precision",
        "of telling abnormal slices by their highest probability",
        "n_slices",
    ),
    Score(
        "detection_sensitivity_at_95_specificity",
        "Detection, sensitivity",
        "share of abnormal slices found where at least 95 % of the healthy ones are called healthy",
        "n_slices",
    ),
    Score(
        "ece",
        "Calibration error",
        "mean absolute difference of probability and share of tumor in 20 bins, over all pixels",
        "n_slices",
    ),
    Score(
        "ece_above_first_bin",
        "Calibration error, from 5 %",
        "that of the pixels with a probability of 5 % and more",
        "n_slices",
    ),
    Score(
        "aurc",
        "Area under risk and coverage",
        "mean of 1 - Dice as patients are set aside one by one, those first of whom the network "
        "itself expects the lowest Dice",
        "n_patients_dice",
    ),
)

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


class Told(NamedTuple):
    """A score of one split, as it is printed."""

    value: float | None  # as stored; None where it is undefined
    text: str
    interval: str  # "0.579 to 0.721"; "" where there is none
    n: str


def told(value: float | None, *, pixels: bool = False) -> str:
    """Return a score to three decimals, or pixels to one; "undefined" of None and NaN."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:,.1f}" if pixels else f"{value:.3f}"


def tell(score: Score, values: dict[str, Any]) -> Told:
    """Return a score from the section of evaluate.json of one split."""
    value, low, high = (values.get(f"{score.key}{end}") for end in ("", "_low", "_high"))
    numbers = values | {"n_slices_healthy": values["n_slices"] - values["n_slices_abnormal"]}
    patients = f"{values['n_patients']:,} patients"
    number = f"{numbers[score.n]:,} "
    of_what = number + "patients" if "patients" in score.n else f"{number}slices of {patients}"
    interval = ""
    if low is not None and high is not None:
        interval = " to ".join(told(end, pixels=score.pixels) for end in (low, high))
    return Told(value, told(value, pixels=score.pixels), interval, of_what)
