"""The common definitions of IoU and Dice, and trivial predictors that need no network.

Most published scores on this data do not state their definition. The table shows how much the
definitions differ for the same predictions, and what trivial predictors score.

- `slice_…`: mean over slices.
- `micro_…`: all pixels together.
- `patient_…`: mean or median over patients, each scored as one volume.
- `…_empty_1`, `…_empty_0`: a slice scores 1 or 0 if reference and prediction are both empty.
- `…_abnormal`: slices without tumor are left out.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from scoring.overlap import COUNTS, count_pixels, dice, iou

BATCH = 16  # slices per batch for batch_iou, after a seeded shuffle
# Names of predictors. All except NETWORK are trivial.
NETWORK, COPIED = "network", "mask of the nearest train slice"
REFERENCE, EMPTY = "reference", "always empty"


def definitions(slices: pd.DataFrame, *, seed: int) -> dict[str, float | int]:
    """Return one predictor's score by every definition, from its pixel counts.

    `slices` has one row per slice: `patient_id`, `abnormal` and COUNTS. Patients with an empty
    reference and an empty prediction are left out of the patients' scores. `n_patients` and
    `n_batches` are the numbers of patients and batches with a defined score.
    """
    tp, fp, fn, tn = (slices[name].to_numpy() for name in COUNTS)
    slice_iou, slice_dice = iou(tp, fp, fn), dice(tp, fp, fn)
    abnormal = slices["abnormal"].to_numpy(dtype=np.bool_)
    patients = slices.groupby("patient_id")[list(COUNTS)].sum()
    patient_dice = dice(patients["tp"], patients["fp"], patients["fn"])
    patient_iou = iou(patients["tp"], patients["fp"], patients["fn"])
    micro, background = (iou(correct.sum(), fp.sum(), fn.sum()) for correct in (tp, tn))
    batches = np.random.default_rng(seed).permutation(len(slices)) // BATCH
    batch_iou = iou(*(np.bincount(batches, weights=counts) for counts in (tp, fp, fn)))
    return {
        "slice_iou_empty_1": mean(np.nan_to_num(slice_iou, nan=1.0)),
        "slice_iou_empty_0": mean(np.nan_to_num(slice_iou, nan=0.0)),
        "slice_iou_abnormal": mean(slice_iou[abnormal]),
        "slice_dice_empty_1": mean(np.nan_to_num(slice_dice, nan=1.0)),
        "slice_dice_abnormal": mean(slice_dice[abnormal]),
        "batch_iou": mean(batch_iou),
        "micro_iou": float(micro),
        "micro_dice": float(dice(tp.sum(), fp.sum(), fn.sum())),
        "mean_iou_with_background": float((micro + background) / 2),
        "patient_iou_mean": mean(patient_iou),
        "patient_dice_mean": mean(patient_dice),
        "patient_dice_median": median(patient_dice),
        "n_slices": len(slices),
        "n_slices_abnormal": int(abnormal.sum()),
        "n_patients": count_defined(patient_dice),
        "n_batches": count_defined(batch_iou),
    }


def count_defined(values: NDArray[np.float64]) -> int:
    """Return how many values are not NaN."""
    return int((~np.isnan(values)).sum())


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    return float(np.nanmean(values)) if count_defined(values) else float("nan")


def median(values: NDArray[np.float64]) -> float:
    """Return the median of the values that are not NaN; NaN if all are."""
    return float(np.nanmedian(values)) if count_defined(values) else float("nan")


def nearest_in_train(numbers: list[int], splits: list[str]) -> list[int | None]:
    """Return, for each slice of a volume, the index of the train slice with the nearest number.

    If two are equally near, the one with the lower number is returned. The result is None for the
    train slices themselves, and for all slices if the volume has no train slice.
    """
    train = [index for index, split in enumerate(splits) if split == "train"]
    return [
        min(train, key=lambda index: (abs(numbers[index] - number), numbers[index]))
        if train and split != "train"
        else None
        for number, split in zip(numbers, splits, strict=True)
    ]


def trivial_counts(
    masks: list[NDArray[np.bool_]], numbers: list[int], splits: list[str]
) -> list[dict[str, dict[str, int]]]:
    """Return, for each slice, the COUNTS of every trivial predictor by its name.

    The copied mask exists only with `split.by: slice`, when a patient has slices both in train and
    elsewhere. It shows the score that leakage alone reaches, without looking at the image.
    """
    sources = nearest_in_train(numbers, splits)
    counts = []
    for mask, source in zip(masks, sources, strict=True):
        predictions = {
            REFERENCE: mask,
            EMPTY: np.zeros_like(mask),
            "reference dilated by 1 px": ndimage.binary_dilation(mask),
            "reference eroded by 1 px": ndimage.binary_erosion(mask),
        }
        if source is not None and masks[source].shape == mask.shape:
            predictions[COPIED] = masks[source]
        counts.append(
            {name: count_pixels(predicted, mask) for name, predicted in predictions.items()}
        )
    return counts
