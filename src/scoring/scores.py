"""The scores of a split, from tables with one row a slice and one row a patient."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from scoring.bootstrap import Bootstrap, Estimate
from scoring.calibration import soft_dice_confidence
from scoring.overlap import COUNTS, dice, iou, ratio

FEWEST = 10  # patients; of a smaller group an interval by resampling is far too narrow


def per_patient(slices: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each split and patient with counts over its slices there, IoU and Dice.

    `fp_healthy` are the false positives in its slices without tumor.
    `slices` has one row a slice: `split`, `patient_id`, `abnormal`, COUNTS, `hd95` and
    `surface_dice`, which are averaged over the slices where they are defined, `probability_inside`
    the predicted mask and `probability_sum` over all pixels.
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
    """Return the mean of a value over the slices that have it, its interval by patients."""
    by_patient = values.groupby(slices["patient_id"])
    return bootstrap.ratio(by_patient.sum(), by_patient.count())


def limits_of_agreement(
    name: str, bias: Estimate, differences: "pd.Series[float]"
) -> dict[str, float]:
    """Return bias, with its interval, and the limits between which 95 % of the differences lie.

    That is mean ± 1.96 standard deviations, if the differences are normal (Bland and Altman, Lancet
    327:307, 1986).
    """
    spread = 1.96 * float(differences.std(ddof=1))
    return {
        **bias.named(f"{name}_bias"),
        f"{name}_limit_lower": bias.value - spread,
        f"{name}_limit_upper": bias.value + spread,
    }


def agreement(slices: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float]:
    """Return bias and limits of agreement of abnormal slices' areas: predicted - reference, pixels.

    The limits take slices for independent, the bias's interval does not.
    """
    differences = (slices["fp"] - slices["fn"]).where(slices["abnormal"] == 1)
    return limits_of_agreement("area", slice_mean(slices, differences, bootstrap), differences)


# Scores of patients, each with its interval, from their rows: micro IoU, precision and recall over
# all pixels together, and means and the median over patients, each as one volume.
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
    """Return the named PATIENT_SCORES (all, if none is named) with intervals, from patients' rows.

    NaN where a score is undefined.
    """
    scores: dict[str, float | int] = {}
    for name in names or PATIENT_SCORES:
        scores |= PATIENT_SCORES[name](patients, bootstrap).named(name)
    return scores


def summarize(
    slices: pd.DataFrame, patients: pd.DataFrame, bootstrap: Bootstrap
) -> dict[str, float | int]:
    """Return the scores of one split from its rows of slices and of patients.

    They are PATIENT_SCORES and, as `…_slice_…`, means over slices. Distances are in pixels, in 2-D.
    A mean leaves out undefined values; its n is given beside it.
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


def without_few(scores: dict[str, float], n_patients: int) -> dict[str, float]:
    """Return the scores, their intervals NaN where they are of fewer than FEWEST patients."""
    return {
        name: np.nan if n_patients < FEWEST and name.endswith(("_low", "_high")) else value
        for name, value in scores.items()
    }


def subgroups(patients: pd.DataFrame, groups: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return the scores of each group of patients within each split, with their n.

    `groups` has a row for each group that a patient is in: `attribute`, `value`, `patient_id`. A
    group of fewer than FEWEST patients with a Dice has no interval.
    """
    rows = []
    joined = patients.merge(groups, on="patient_id")
    for (split, attribute, value), chosen in joined.groupby(["split", "attribute", "value"]):
        figures = {
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
                **without_few(figures, n_dice),
            }
        )
    return pd.DataFrame(rows)
