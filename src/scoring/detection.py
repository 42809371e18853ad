"""Finding the abnormal slices: each slice's highest probability as the score of a classifier.

Areas under curves are scikit-learn's, which a test checks. They are computed here because the
bootstrap wants thousands of them, and scikit-learn takes 2 ms to check the input of each.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scoring.bootstrap import Bootstrap, Estimate
from scoring.overlap import ratio

SPECIFICITY = 0.95

Curve = NDArray[np.float64]  # cumulative counts of slices as the threshold falls, from 0 on


def descending_ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """Return the rank of each score, 0 for the highest one; equal scores have the same rank."""
    return np.unique(-np.asarray(scores), return_inverse=True)[1]


def threshold_curves(
    abnormal: NDArray[np.bool_], ranks: NDArray[np.int64], weights: ArrayLike
) -> tuple[Curve, Curve]:
    """Return true and false positives, as sums of weights, at each threshold from the highest down.

    Both begin with 0. Slices of the same rank are called abnormal together.
    """
    true, false = (
        np.bincount(1 + ranks, np.where(kind, weights, 0)) for kind in (abnormal, ~abnormal)
    )
    return true.cumsum(), false.cumsum()


def auroc(tp: Curve, fp: Curve) -> float:
    """Return the area under the ROC curve, by the trapezoidal rule.

    NaN if all slices are of one kind.
    """
    return float(ratio(np.trapezoid(tp, fp), tp[-1] * fp[-1]))


def average_precision(tp: Curve, fp: Curve) -> float:
    """Return the precision at each threshold, averaged with the gain in recall as its weight.

    NaN if all slices are of one kind.
    """
    precision = np.nan_to_num(ratio(tp, tp + fp))
    return float(ratio((np.diff(tp) * precision[1:]).sum(), tp[-1])) if fp[-1] else float("nan")


def sensitivity_at_specificity(tp: Curve, fp: Curve) -> float:
    """Return the highest sensitivity of a threshold whose specificity is SPECIFICITY or more.

    NaN if all slices are of one kind.
    """
    if not tp[-1] * fp[-1]:
        return float("nan")
    return float((tp / tp[-1])[fp / fp[-1] <= 1 - SPECIFICITY + 1e-12].max())


def detection(slices: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float | int]:
    """Return how well abnormal slices are told from healthy ones; NaN where there is one kind.

    The confusion matrix calls a slice abnormal where any of its pixels is predicted as tumor.
    """
    abnormal = slices["abnormal"].to_numpy(dtype=np.bool_)
    found = (slices["tp"] + slices["fp"] > 0).to_numpy()
    matrix = {
        "detection_tp": int((found & abnormal).sum()),
        "detection_fp": int((found & ~abnormal).sum()),
        "detection_fn": int((~found & abnormal).sum()),
        "detection_tn": int((~found & ~abnormal).sum()),
    }
    ranks = descending_ranks(slices["max_probability"])
    patient, patient_ids = pd.factorize(slices["patient_id"], sort=True)
    n_patients = len(patient_ids)

    def over_patients(metric: Callable[[Curve, Curve], float]) -> Estimate:
        def of_drawn(members: NDArray[np.int64]) -> float:
            times = np.bincount(members, minlength=n_patients)  # how often each patient was drawn
            return metric(*threshold_curves(abnormal, ranks, times[patient]))

        return bootstrap.estimate(n_patients, lambda drawn: [of_drawn(each) for each in drawn])

    curves = threshold_curves(abnormal, ranks, np.ones(len(slices)))
    return {
        **over_patients(auroc).named("detection_auroc"),
        **over_patients(average_precision).named("detection_average_precision"),
        "detection_sensitivity_at_95_specificity": sensitivity_at_specificity(*curves),
        **matrix,
    }
