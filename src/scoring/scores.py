"""The scores of a split, from tables with one row per slice and one row per patient."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from scoring.bootstrap import Bootstrap, Estimate
from scoring.calibration import soft_dice_confidence
from scoring.overlap import COUNTS, dice, iou, ratio

MIN_PATIENTS = 10  # bootstrap intervals of smaller groups are far too narrow


def per_patient(slices: pd.DataFrame) -> pd.DataFrame:
    """Return one row per split and patient: pixel counts over the patient's slices, and scores.

    `fp_healthy` counts the false positives in slices without tumor. `hd95` and `surface_dice` are
    means over the slices where they are defined.

    `slices` has one row per slice: `split`, `patient_id`, `abnormal`, COUNTS, `hd95`,
    `surface_dice`, and the sums of probabilities inside the predicted mask (`probability_inside`)
    and over all pixels (`probability_sum`).
    """
    grouped = slices.groupby(["split", "patient_id"], sort=True)
    patients = grouped[list(COUNTS)].sum()
    healthy_fp = slices["fp"].where(slices["abnormal"] == 0, 0)
    patients["fp_healthy"] = healthy_fp.groupby([slices["split"], slices["patient_id"]]).sum()
    patients.insert(0, "n_slices", grouped.size())
    patients.insert(1, "n_abnormal", grouped["abnormal"].sum())
    tp, fp, fn = (patients[name] for name in ("tp", "fp", "fn"))
    patients["iou"] = iou(tp, fp, fn)
    patients["dice"] = dice(tp, fp, fn)
    patients["precision"] = ratio(tp, tp + fp)
    patients["recall"] = ratio(tp, tp + fn)
    for name in ("hd95", "surface_dice"):
        patients[name] = grouped[name].mean()
        patients[f"n_slices_{name}"] = grouped[name].count()
    probability = grouped[["probability_inside", "probability_sum"]].sum()
    patients["confidence"] = soft_dice_confidence(
        probability["probability_inside"], probability["probability_sum"], tp + fp
    )
    return patients.reset_index()


def slice_mean(slices: pd.DataFrame, values: pd.Series, bootstrap: Bootstrap) -> Estimate:
    """Return the mean of a value over the slices that have it; the interval resamples patients."""
    by_patient = values.groupby(slices["patient_id"])
    return bootstrap.ratio(by_patient.sum(), by_patient.count())


def limits_of_agreement(
    name: str, bias: Estimate, differences: "pd.Series[float]"
) -> dict[str, float]:
    """Return the bias with its interval, and the 95 % limits of agreement.

    The limits are the mean ± 1.96 standard deviations. 95 % of the differences lie between them if
    the differences are normally distributed (Bland and Altman, Lancet 327:307, 1986).
    """
    spread = 1.96 * float(differences.std(ddof=1))
    return {
        **bias.named(f"{name}_bias"),
        f"{name}_limit_lower": bias.value - spread,
        f"{name}_limit_upper": bias.value + spread,
    }


def agreement(slices: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float]:
    """Return bias and limits of agreement of the tumor area in abnormal slices, in pixels.

    Differences are predicted - reference. The limits treat slices as independent; the interval of
    the bias does not.
    """
    differences = (slices["fp"] - slices["fn"]).where(slices["abnormal"] == 1)
    return limits_of_agreement("area", slice_mean(slices, differences, bootstrap), differences)


# Scores computed from patients' rows, each with an interval. IoU, precision and recall are over all
# pixels together; means and the median are over patients, each scored as one volume.
PATIENT_SCORES: dict[str, Callable[[pd.DataFrame, Bootstrap], Estimate]] = {
    "dice_patient_mean": lambda rows, bootstrap: bootstrap.mean(rows["dice"]),
    "dice_patient_median": lambda rows, bootstrap: bootstrap.median(rows["dice"]),
    "iou_patient_mean": lambda rows, bootstrap: bootstrap.mean(rows["iou"]),
    "iou": lambda rows, bootstrap: bootstrap.ratio(
        rows["tp"], rows["tp"] + rows["fp"] + rows["fn"]
    ),
    "precision": lambda rows, bootstrap: bootstrap.ratio(rows["tp"], rows["tp"] + rows["fp"]),
    "recall": lambda rows, bootstrap: bootstrap.ratio(rows["tp"], rows["tp"] + rows["fn"]),
}


MICRO = ("iou", "precision", "recall")


def patient_scores(
    patients: pd.DataFrame, bootstrap: Bootstrap, *names: str
) -> dict[str, float | int]:
    """Return the PATIENT_SCORES with these names, by default all, and their intervals.

    Undefined scores are NaN.
    """
    scores: dict[str, float | int] = {}
    for name in names or PATIENT_SCORES:
        scores |= PATIENT_SCORES[name](patients, bootstrap).named(name)
    return scores


def summarize(
    slices: pd.DataFrame, patients: pd.DataFrame, bootstrap: Bootstrap
) -> dict[str, float | int]:
    """Return the scores of one split from its slices' and its patients' rows.

    They are PATIENT_SCORES and means over slices, named `…_slice_…`. Distances are 2-D, in pixels.
    Means leave out undefined values; `n_…` is the number of values that are defined.
    """
    abnormal = slices["abnormal"] == 1
    slice_iou = pd.Series(iou(slices["tp"], slices["fp"], slices["fn"]), slices.index)
    healthy_fp = slices["fp"].where(~abnormal)
    over_patients = [name for name in PATIENT_SCORES if name not in MICRO]
    return {
        **patient_scores(patients, bootstrap, *MICRO),
        **slice_mean(slices, slice_iou.where(abnormal), bootstrap).named("iou_slice_abnormal"),
        **patient_scores(patients, bootstrap, *over_patients),
        **slice_mean(slices, slices["hd95"], bootstrap).named("hd95_slice_mean"),
        **slice_mean(slices, slices["surface_dice"], bootstrap).named("surface_dice_slice_mean"),
        **slice_mean(slices, healthy_fp, bootstrap).named("fp_area_slice_healthy"),
        **agreement(slices, bootstrap),
        "n_patients": len(patients),
        "n_patients_dice": int(patients["dice"].count()),
        "n_slices": len(slices),
        "n_slices_abnormal": int(abnormal.sum()),
        "n_slices_hd95": int(slices["hd95"].count()),
        "n_slices_surface_dice": int(slices["surface_dice"].count()),
    }


def hide_unreliable_intervals(scores: dict[str, float], n_patients: int) -> dict[str, float]:
    """Return the scores, with intervals set to NaN if there are fewer than MIN_PATIENTS."""
    return {
        name: np.nan if n_patients < MIN_PATIENTS and name.endswith(("_low", "_high")) else value
        for name, value in scores.items()
    }


def subgroups(patients: pd.DataFrame, groups: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return the scores of each group of patients within each split, and the group's size.

    `groups` has one row per patient and group: `attribute`, `value`, `patient_id`. Intervals are
    NaN for a group with fewer than MIN_PATIENTS patients that have a Dice.
    """
    rows = []
    joined = patients.merge(groups, on="patient_id")
    for (split, attribute, value), chosen in joined.groupby(["split", "attribute", "value"]):
        scores = {
            **patient_scores(chosen, bootstrap, "dice_patient_mean"),
            "dice_patient_median": chosen["dice"].median(),
            **patient_scores(chosen, bootstrap, "iou"),
        }
        n_dice = int(chosen["dice"].count())
        rows.append(
            {
                "group": f"{attribute}: {value} ({split})",
                "split": split,
                "attribute": attribute,
                "value": value,
                "n_patients": len(chosen),
                "n_patients_dice": n_dice,
                "n_slices": int(chosen["n_slices"].sum()),
                **hide_unreliable_intervals(scores, n_dice),
            }
        )
    return pd.DataFrame(rows)
