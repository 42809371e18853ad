"""One set of predictions, many scores: the common definitions, and predictors that need no network.

Most published scores on this data name no definition; this table shows how far apart they lie, and
what it takes to reach them. `slice_…` are means over slices, `micro_…` over all pixels together,
`patient_…` over patients, each as one volume; `empty_1` and `empty_0` say what a slice counts where
reference and prediction are both empty, `abnormal` that slices without tumor are left out.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from scoring.overlap import COUNTS, count_pixels, dice, iou

BATCH = 16  # slices of a batch, in the order of a seeded shuffle, for batch_iou
# Names of predictors: those but the network need none.
NETWORK, COPIED = "network", "mask of the nearest train slice"
REFERENCE, EMPTY = "reference", "always empty"


def definitions(slices: pd.DataFrame, *, seed: int) -> dict[str, float | int]:
    """Return every definition of one predictor's score from its counts of pixels.

    `slices` has one row a slice: `patient_id`, `abnormal` and COUNTS. A patient without tumor, in
    reference and prediction, is left out; `n_patients` says over how many,
    and `n_batches` over how many the mean of batches is.
    """
    tp, fp, fn, tn = (slices[name].to_numpy() for name in COUNTS)
    slice_iou, slice_dice = iou(tp, fp, fn), dice(tp, fp, fn)
    abnormal = slices["abnormal"].to_numpy(dtype=np.bool_)
    patients = slices.groupby("patient_id")[list(COUNTS)].sum()
    patient_dice = dice(patients["tp"], patients["fp"], patients["fn"])
    patient_iou = iou(patients["tp"], patients["fp"], patients["fn"])
    micro, background = (iou(each.sum(), fp.sum(), fn.sum()) for each in (tp, tn))
    batches = np.random.default_rng(seed).permutation(len(slices)) // BATCH
    in_batches = iou(*(np.bincount(batches, weights=each) for each in (tp, fp, fn)))
    return {
        "slice_iou_empty_1": mean(np.nan_to_num(slice_iou, nan=1.0)),
        "slice_iou_empty_0": mean(np.nan_to_num(slice_iou, nan=0.0)),
        "slice_iou_abnormal": mean(slice_iou[abnormal]),
        "slice_dice_empty_1": mean(np.nan_to_num(slice_dice, nan=1.0)),
        "slice_dice_abnormal": mean(slice_dice[abnormal]),
        "batch_iou": mean(in_batches),
        "micro_iou": float(micro),
        "micro_dice": float(dice(tp.sum(), fp.sum(), fn.sum())),
        "mean_iou_with_background": float((micro + background) / 2),
        "patient_iou_mean": mean(patient_iou),
        "patient_dice_mean": mean(patient_dice),
        "patient_dice_median": float(np.nanmedian(patient_dice)) if known(patient_dice) else np.nan,
        "n_slices": len(slices),
        "n_slices_abnormal": int(abnormal.sum()),
        "n_patients": known(patient_dice),
        "n_batches": known(in_batches),
    }


def known(values: NDArray[np.float64]) -> int:
    """Return how many values are not NaN."""
    return int((~np.isnan(values)).sum())


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN of none."""
    return float(np.nanmean(values)) if known(values) else float("nan")


def nearest_in_train(numbers: list[int], splits: list[str]) -> list[int | None]:
    """Return for each slice of a volume the index of the train slice nearest to it by number.

    The lower of two as near; None for the train slices themselves, and where there is none.
    """
    train = [index for index, split in enumerate(splits) if split == "train"]
    return [
        min(train, key=lambda other: (abs(numbers[other] - number), numbers[other]))
        if train and split != "train"
        else None
        for number, split in zip(numbers, splits, strict=True)
    ]


def trivial_counts(
    masks: list[NDArray[np.bool_]], numbers: list[int], splits: list[str]
) -> list[dict[str, dict[str, int]]]:
    """Return each slice's COUNTS under predictors that need no network, by their names.

    The copied mask exists where a patient has slices on both sides of the split, that is under
    `split.by: slice`: it shows what leakage scores without a look at the image.
    """
    sources = nearest_in_train(numbers, splits)
    counts = []
    for mask, source in zip(masks, sources, strict=True):
        answers = {
            REFERENCE: mask,
            EMPTY: np.zeros_like(mask),
            "reference dilated by 1 px": ndimage.binary_dilation(mask),
            "reference eroded by 1 px": ndimage.binary_erosion(mask),
        }
        if source is not None and masks[source].shape == mask.shape:
            answers[COPIED] = masks[source]
        counts.append({name: count_pixels(answer, mask) for name, answer in answers.items()})
    return counts
